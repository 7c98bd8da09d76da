"""
Why a VM failed, from the trap and from what hostcore knows of it. Pure.
"""

from __future__ import annotations

from typing import Final

from sandboxd.vm.hostcore_answers import VmStatus
from sandboxd.vm.traps import VIOLATIONS, FailureCause, GuestFailure

MEMORY_FULL: Final = 15 / 16
"""
A guest that gives up (``unreachable``) with this share of its memory in use is said to have run out of
memory.
"""


def cause_of(failure: GuestFailure, status: VmStatus, memory_full: bool) -> tuple[FailureCause, str]:
    """Return the cause and its message; ``memory_full``: `MEMORY_FULL` of the guest's memory is in use."""
    if failure.cause is not FailureCause.TRAP:
        return failure.cause, failure.message
    if status.exited:
        return FailureCause.EXIT, f"the guest called proc_exit({status.exit_code})"
    if status.violation:
        return VIOLATIONS.get(
            status.violation, (FailureCause.ABI_VIOLATION, f"hostcore raised violation {status.violation}")
        )
    if failure.gave_up and memory_full:
        return FailureCause.MEMORY_LIMIT, failure.message
    return FailureCause.TRAP, failure.message
