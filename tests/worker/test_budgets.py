"""
Every budget of a VM with a real guest that exceeds it, and a harmless twin that just does not.

What the front keeps is in `tests/front/test_counters.py` and `tests/e2e/test_failures.py`; what the loader and the
kernel keep in `tests/policy/test_load.py` and `tests/supervisor/test_cgroups.py`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.channel import layout, pairs
from sandboxd.channel.sync_vm import VmLost
from sandboxd.errors import GuestError
from sandboxd.limits import DEFAULT_TABLE_ELEMENTS, MIB
from sandboxd.policy.failure import cause_of_vm_failure
from sandboxd.policy.model import ModuleRef, PluginLimits, PluginPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.budgets import hint
from tests.support.modules import bundle, guest
from tests.support.worker_process import LIMITS, OneVm

pytestmark = pytest.mark.long

REQUEST = pairs.encode([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"x")])
HEADERS = '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $n i32) {} (i32.const 0))'
CONFIGURE = '(func (export "proxy_on_configure") (param i32 i32) (result i32) (local $n i32) {} (i32.const 1))'
LOG = '(import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))'
METRIC = '(import "env" "proxy_define_metric" (func $metric (param i32 i32 i32 i32) (result i32)))'
PANIC_UNLESS = "(if (i32.eqz {}) (then unreachable))"


def loop(count: int, body: str = "") -> str:
    """Return a loop with so many turns; what is left to do is in ``$n``."""
    step = "(local.set $n (i32.sub (local.get $n) (i32.const 1)))"
    return f"(local.set $n (i32.const {count})) (loop $l {body} {step} (br_if $l (local.get $n)))"


def recursion(depth: int) -> tuple[str, ...]:
    """Return a guest's parts that call themselves so deep."""
    down = "(if (local.get 0) (then (call $down (i32.sub (local.get 0) (i32.const 1)))))"
    return f"(func $down (param i32) {down})", HEADERS.format(f"(call $down (i32.const {depth}))")


def grow(pages: int) -> bytes:
    """Return a guest that panics unless its memory, one page at first, can have so many more."""
    return guest(HEADERS.format(PANIC_UNLESS.format(f"(i32.ne (memory.grow (i32.const {pages})) (i32.const -1))")))


def table(elements: int) -> bytes:
    """Return a guest that panics unless its table can have so many elements."""
    grown = f"(i32.ne (table.grow $t (ref.null func) (i32.const {elements})) (i32.const -1))"
    return guest("(table $t 0 funcref)", HEADERS.format(PANIC_UNLESS.format(grown)))


def calls(count: int) -> bytes:
    """Return a guest that calls the host so often."""
    imports = '(import "env" "proxy_set_effective_context" (func $call (param i32) (result i32)))'
    return guest(HEADERS.format(loop(count, "(drop (call $call (i32.const 1)))")), imports=imports)


def metrics(count: int) -> bytes:
    """Return a guest that panics unless it can define so many metrics, by names of one letter."""
    define = "(call $metric (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200))"
    name = "(i32.store8 (i32.const 100) (i32.add (local.get $n) (i32.const 64)))"
    return guest(
        HEADERS.format(loop(count, name + PANIC_UNLESS.format(f"(i32.eqz {define})"))),
        imports=METRIC,
    )


def define_metrics(count: int) -> str:
    """Return code that defines so many metrics and ignores what comes of it."""
    define = "(drop (call $metric (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))"
    return loop(count, "(i32.store8 (i32.const 100) (i32.add (local.get $n) (i32.const 64)))" + define)


# module below the limit, module above it, how the VM is run, cause, what the message says
CASES = {
    "cpu of a call": (
        guest(HEADERS.format(loop(100_000))),
        guest(HEADERS.format("(loop $l (br $l))")),
        {"cpu_ms": 200},
        "CPU_LIMIT",
        "CPU limit exceeded",
    ),
    "memory": (grow(15), grow(16), {"memory_bytes": MIB}, "TRAP", "of 1048576 bytes"),
    "table": (
        table(DEFAULT_TABLE_ELEMENTS),
        table(DEFAULT_TABLE_ELEMENTS + 1),
        {"cpu_ms": 2000},
        "TRAP",
        "unreachable",
    ),
    "table of a policy": (table(2000), table(2001), {"table_elements": 2000}, "TRAP", "unreachable"),
    "stack": (
        guest(*recursion(1000)),
        guest(*recursion(1_000_000)),
        {"cpu_ms": 2000},
        "TRAP",
        "call stack exhausted",
    ),
    "host calls": (
        calls(100),
        calls(101),
        {"limits": replace(LIMITS, host_calls_per_event=100)},
        "HOST_CALL_LIMIT",
        "more host calls in one event than the limit",
    ),
    "metrics": (metrics(5), metrics(6), {"limits": replace(LIMITS, metrics=5)}, "TRAP", "unreachable"),
    "full memory": (
        guest(HEADERS.format("(drop (memory.grow (i32.const 15)))")),
        guest(HEADERS.format("(drop (memory.grow (i32.const 15))) unreachable")),
        {"memory_bytes": MIB},
        "MEMORY_LIMIT",
        "(guest memory 1048576 of 1048576 bytes)",
    ),
}


def run(module: bytes, options: dict[str, Any]) -> control.VmFailed | None:
    """Send a request to a guest; return the failure that came of it."""
    options = dict(options)
    made = bundle(module, memory_bytes=options.pop("memory_bytes", 16 * MIB))
    with OneVm(made, restarts=0, **options) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        stream = one.vm.client.open_stream(b"", time.time_ns())
        try:
            verdict = one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)
        except VmLost:
            failed: control.VmFailed = one.worker.receive("vm_failed")
            return failed
        assert verdict.code == layout.CODE_OK
        assert one.worker.silent(0.02)
        return None


@pytest.mark.parametrize("name", CASES)
def test_just_below(name: str) -> None:
    """The twin is none the worse."""
    below, _, options, _, _ = CASES[name]

    assert run(below, options) is None


@pytest.mark.parametrize("name", CASES)
def test_past_the_limit(name: str) -> None:
    """The VM ends, and says of what."""
    _, above, options, cause, text = CASES[name]

    failed = run(above, options)

    assert failed is not None
    assert control.FailureCause.Name(failed.cause) == f"FAILURE_CAUSE_{cause}"
    assert text in failed.message


@pytest.mark.parametrize(("body", "fails"), [(loop(100_000), False), ("(loop $l (br $l))", True)])
def test_the_start(body: str, fails: bool) -> None:
    """A start has a limit of its own, of all its calls together."""
    with OneVm(bundle(guest(CONFIGURE.format(body))), start_ms=300) as one:
        if not fails:
            one.worker.receive("vm_started")
            return
        failed = one.worker.receive("vm_failed")

    assert failed.while_starting
    assert failed.cause == control.FAILURE_CAUSE_CPU_LIMIT


@pytest.mark.parametrize(("elements", "fails"), [(2000, False), (2001, True)])
def test_a_table_that_begins_too_large(elements: int, fails: bool) -> None:
    """Nothing of it starts; the message is the one that `sandboxd.supervisor.budgets` knows."""
    with OneVm(bundle(guest(f"(table {elements} funcref)", HEADERS.format(""))), table_elements=2000) as one:
        if not fails:
            one.worker.receive("vm_started")
            return
        failed = one.worker.receive("vm_failed")

    assert failed.while_starting
    cause = control.FailureCause.Name(failed.cause).removeprefix("FAILURE_CAUSE_").lower()
    policy = PluginPolicy("p", ModuleRef(Path("m"), "0" * 64), limits=PluginLimits(table_elements=2000))
    assert hint(cause, failed.message, policy, while_starting=True) == "the limit is 2000: limits.table_elements"


@pytest.mark.parametrize(("lines", "dropped"), [(5, 0), (8, 3)])
def test_log_lines(lines: int, dropped: int) -> None:
    """What is past the limit is dropped and counted; the guest goes on."""
    write = "(drop (call $log (i32.const 2) (i32.const 100) (i32.const 4)))"
    module = guest(HEADERS.format(loop(lines, write)), imports=LOG)
    with OneVm(bundle(module), limits=replace(LIMITS, log_lines_per_event=5)) as one:
        one.vm.wait_ready(5)
        stream = one.vm.client.open_stream(b"", time.time_ns())
        verdict = one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)

    assert verdict.code == layout.CODE_OK
    assert sum(notice.kind == layout.LOG for notice in verdict.notices) == 5
    assert [notice.arg for notice in verdict.notices if notice.kind == layout.LOGS_DROPPED] == [dropped] * bool(dropped)


def test_open_streams() -> None:
    """As many as the limit says; the next is refused, and the others go on."""
    with OneVm(bundle(guest(HEADERS.format(""))), limits=replace(LIMITS, open_streams=3)) as one:
        one.vm.wait_ready(5)
        streams = [one.vm.client.open_stream(b"", time.time_ns()) for _ in range(4)]
        codes = [one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True).code for stream in streams]

    assert codes == [layout.CODE_OK] * 3 + [layout.CODE_LIMIT]


@pytest.mark.parametrize(("size", "over"), [(1000, False), (1001, True)])
def test_held_body(size: int, over: bool) -> None:
    """A filter that holds a body back gets no more of it than the limit; past it, the answer is 413 and a note."""
    hold = '(func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (i32.const 1))'
    with OneVm(bundle(guest(HEADERS.format(""), hold)), limits=replace(LIMITS, body_buffer_bytes=1000)) as one:
        one.vm.wait_ready(5)
        stream = one.vm.client.open_stream(b"", time.time_ns())
        one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST)
        one.vm.call(stream, layout.REQUEST_BODY, b"x" * (size - 500))

        verdict = one.vm.call(stream, layout.REQUEST_BODY, b"x" * 500)

    notes = [layout.NOTE_NAMES[notice.arg] for notice in verdict.notices if notice.kind == layout.NOTE]
    assert notes == ["body_limit"] * over
    assert any(effect.kind == layout.LOCAL_RESPONSE for effect in verdict.effects) == over


@pytest.mark.parametrize(("count", "over"), [(5, False), (6, True)])
def test_metrics_over_the_limit_are_told(count: int, over: bool) -> None:
    """A guest that does not care for the status: its operator learns of it all the same, once per event."""
    module = guest(HEADERS.format(define_metrics(count)), imports=METRIC)
    with OneVm(bundle(module), limits=replace(LIMITS, metrics=5)) as one:
        one.vm.wait_ready(5)
        stream = one.vm.client.open_stream(b"", time.time_ns())
        verdict = one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)
    notes = [layout.NOTE_NAMES[notice.arg] for notice in verdict.notices if notice.kind == layout.NOTE]
    assert notes == ["metrics_limit"] * over


@pytest.mark.parametrize("name", ["cpu of a call", "host calls", "stack", "full memory"])
def test_the_channel_names_the_limit(name: str) -> None:
    """What a client reads in the header page is what the worker reports to the supervisor."""
    _, above, options, cause, _ = CASES[name]
    options = dict(options)
    made = bundle(above, memory_bytes=options.pop("memory_bytes", 16 * MIB))
    with OneVm(made, restarts=0, **options) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        assert one.vm.client.vm_failure == 0
        stream = one.vm.client.open_stream(b"", time.time_ns())
        with pytest.raises(VmLost):
            one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)
        said = one.vm.client.vm_failure
    assert said == control.FailureCause.Value(f"FAILURE_CAUSE_{cause}")
    assert cause_of_vm_failure(said).value == cause.lower()


@pytest.mark.parametrize(
    ("parts", "refusal"),
    [
        ("(table 1 funcref)" * 16, None),
        ("(table 1 funcref)" * 17, "tables"),
        ("(memory 1)", "memories"),
    ],
)
def test_tables_and_memories_of_a_module(parts: str, refusal: str | None) -> None:
    module = guest(HEADERS.format(""), parts)
    if refusal is None:
        assert run(module, {}) is None
        return
    with pytest.raises(GuestError, match=refusal):
        bundle(module)
