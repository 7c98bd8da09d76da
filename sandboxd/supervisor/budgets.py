"""Which limit of the policy a failed VM has hit, in the operator's words: value and key. Pure."""

from __future__ import annotations

from sandboxd.policy.model import PluginPolicy
from sandboxd.vm.settings import MAX_WASM_STACK_BYTES

_TABLE_TEXT = "exceeds table limits"
_STACK_TEXT = "call stack exhausted"
"""The engine's message for it, which the worker passes on; a worker that lies gets a wrong hint into its own line."""


def hint(cause: str, message: str, policy: PluginPolicy, *, while_starting: bool = False) -> str:
    """
    Return which limit was hit and what to raise, without a subject; empty if it was none.

    Args:
        cause: of the failure, in lower case.
        message: what the worker says of it.
        policy: of the plugin.
        while_starting: whether the VM was starting.
    """
    limits = policy.limits
    found = ""
    match cause:
        case "internal" if _TABLE_TEXT in message:
            found = f"the limit is {limits.table_elements}: limits.table_elements"
        case "cpu_limit" if while_starting:
            found = f"the limit is {duration(limits.start_time_ns)} of CPU for the whole start: limits.start_time"
        case "cpu_limit":
            found = f"the limit is {duration(limits.cpu_per_call_ns)} of CPU in one call: limits.cpu_per_call"
        case "memory_limit" if "heap" in message:
            found = (
                "the host keeps what its streams hold back in 96MiB per VM, which no policy changes:"
                " limits.body_buffer and limits.open_streams bound it"
            )
        case "memory_limit":
            found = f"the limit is {size(policy.vm.memory_bytes)}: vm.memory"
        case "host_call_limit":
            found = f"the limit is {limits.host_calls_per_event}: limits.host_calls_per_event"
        case "trap" if _STACK_TEXT in message:
            found = f"the limit is {size(MAX_WASM_STACK_BYTES)}, which no policy changes"
    return found


def duration(nanoseconds: int) -> str:
    """Return a duration as policies write it."""
    for unit, length in (("m", 60 * 10**9), ("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if nanoseconds >= length and nanoseconds % length == 0:
            return f"{nanoseconds // length}{unit}"
    return f"{nanoseconds}ns"


def size(count: int) -> str:
    """Return a size as policies write it."""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= length and count % length == 0:
            return f"{count // length}{unit}"
    return f"{count}B"
