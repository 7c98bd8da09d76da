"""Guests that trap, loop, exit or refuse: what is told of it, and who goes on."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from sandboxd.channel import layout
from sandboxd.channel.client import VmClient
from sandboxd.channel.memfd import create_channel
from sandboxd.channel.sync_vm import SyncVm, VmLost
from sandboxd.protos import control_pb2 as control
from tests.support.modules import bundle, guest, misdeed
from tests.support.vm_traffic import REQUEST, request, whole_stream
from tests.support.worker_process import OneVm, configuration

pytestmark = pytest.mark.long

CALLBACK = "proxy_on_request_headers"
GROW_AND_PANIC = guest(
    '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)'
    " (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable)"
)
"""What a toolchain's allocator does when the host gives no more memory."""


@pytest.mark.parametrize(
    ("module", "cause", "callback", "text"),
    [
        (misdeed("vm_start_false"), "START_REFUSED", "", "proxy_on_vm_start returned false"),
        (misdeed("configure_false"), "START_REFUSED", "", "proxy_on_configure returned false"),
        (misdeed("trap_in_initialize"), "TRAP", "_initialize", "unreachable"),
        (misdeed("trap_in_start_section"), "TRAP", "_initialize", "unreachable"),
        (misdeed("trap_in_configure"), "TRAP", "proxy_on_configure", "unreachable"),
        (misdeed("loop_in_start_section"), "CPU_LIMIT", "_initialize", "CPU limit"),
        (misdeed("loop_in_initialize"), "CPU_LIMIT", "_initialize", "CPU limit"),
        (misdeed("loop_in_vm_start"), "CPU_LIMIT", "proxy_on_vm_start", "CPU limit"),
        (misdeed("loop_in_configure"), "CPU_LIMIT", "proxy_on_configure", "CPU limit"),
        (
            guest(
                '(func (export "_initialize") (call 0 (i32.const 7)))',
                imports='(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))',
            ),
            "EXIT",
            "_initialize",
            r"proc_exit\(7\)",
        ),
        (
            misdeed("host_call_in_initialize"),
            "ABI_VIOLATION",
            "_initialize",
            "not allowed during initialisation",
        ),
    ],
)
def test_failed_start_is_reported_and_tried_again(module: bytes, cause: str, callback: str, text: str) -> None:
    """With the supervisor's leave, and only then; the client sees a VM that is not there."""
    with OneVm(bundle(module), start_ms=50) as one:
        failures = [one.worker.receive("vm_failed")]
        assert one.worker.silent(0.05)
        for _ in range(2):
            one.worker.send(control.ToWorker(restart_vm=control.RestartVm(vm_id=1)))
            failures.append(one.worker.receive("vm_failed"))
        one.vm.client.drain()

        assert one.vm.client.vm_state in (layout.VM_FAILED, layout.VM_STARTING)

    assert [failure.generation for failure in failures] == [1, 2, 3]
    for failure in failures:
        assert control.FailureCause.Name(failure.cause) == f"FAILURE_CAUSE_{cause}"
        assert failure.while_starting
        assert failure.callback == callback or not callback
        assert text.replace("\\", "") in failure.message


@pytest.mark.parametrize(
    ("module", "cause", "callback", "text"),
    [
        (misdeed("trap_in_request_headers"), "TRAP", CALLBACK, "unreachable"),
        (misdeed("loop_in_request_headers"), "CPU_LIMIT", CALLBACK, "CPU limit exceeded"),
        (misdeed("loop_in_context_create"), "CPU_LIMIT", "proxy_on_context_create", "CPU limit exceeded"),
        (misdeed("recurse_forever"), "TRAP", CALLBACK, "call stack exhausted"),
        (misdeed("proc_exit_in_headers"), "EXIT", CALLBACK, "proc_exit"),
        (GROW_AND_PANIC, "MEMORY_LIMIT", CALLBACK, "(guest memory 16777216 of 16777216 bytes)"),
    ],
)
def test_failed_event_ends_the_vm_and_a_new_one_comes(module: bytes, cause: str, callback: str, text: str) -> None:
    """The client learns of it at once, and the next generation serves on the same channel."""
    with OneVm(bundle(module), start_ms=400, cpu_ms=100) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)

        with pytest.raises(VmLost):
            request(one)

        failure = one.worker.receive("vm_failed")
        assert control.FailureCause.Name(failure.cause) == f"FAILURE_CAUSE_{cause}"
        assert (failure.callback, failure.while_starting, failure.generation) == (callback, False, 1)
        assert text in failure.message
        assert one.worker.receive("vm_started").generation == 2
        assert one.vm.wait_ready(5) == 2
        with pytest.raises(VmLost):
            request(one)
        assert one.worker.receive("vm_failed").generation == 2


@pytest.mark.parametrize(
    ("name", "cause", "callback"),
    [
        ("loop_in_allocator", "CPU_LIMIT", CALLBACK),
        ("loop_in_request_body", "CPU_LIMIT", "proxy_on_request_body"),
        ("loop_in_response_headers", "CPU_LIMIT", "proxy_on_response_headers"),
        ("loop_in_response_body", "CPU_LIMIT", "proxy_on_response_body"),
        ("loop_in_done", "CPU_LIMIT", "proxy_on_done"),
        ("loop_in_log", "CPU_LIMIT", "proxy_on_log"),
        ("loop_in_delete", "CPU_LIMIT", "proxy_on_delete"),
        ("trap_in_allocator", "TRAP", CALLBACK),
        ("trap_in_request_body", "TRAP", "proxy_on_request_body"),
        ("trap_in_response_headers", "TRAP", "proxy_on_response_headers"),
        ("trap_in_response_body", "TRAP", "proxy_on_response_body"),
        ("trap_in_log", "TRAP", "proxy_on_log"),
        ("host_call_in_allocator", "ABI_VIOLATION", CALLBACK),
    ],
)
def test_misdeed_in_any_callback_ends_the_vm(name: str, cause: str, callback: str) -> None:
    """Whatever the callback: the cause is told, and the next generation starts."""
    with OneVm(bundle(misdeed(name)), cpu_ms=20) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        with pytest.raises(VmLost):
            whole_stream(one)

        failure = one.worker.receive("vm_failed")
        assert control.FailureCause.Name(failure.cause) == f"FAILURE_CAUSE_{cause}"
        assert failure.callback in (callback, "proxy_on_memory_allocate")
        assert one.worker.receive("vm_started").generation == 2


@pytest.mark.parametrize(
    "name",
    [
        "grow_forever",
        "table_grow_forever",
        "allocator_returns_zero",
        "allocator_returns_outside",
        "wild_pointers",
    ],
)
def test_misdeeds_that_have_an_answer_do_not_end_the_vm(name: str) -> None:
    """The guest gets a status or a -1, and the stream goes through."""
    with OneVm(bundle(misdeed(name)), cpu_ms=2000) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        whole_stream(one)

        assert one.worker.silent(0.05)


def test_backtrace_names_the_guests_functions() -> None:
    """From the module's name section, the innermost first."""
    module = guest(
        "(func $a_function_of_the_guest unreachable)",
        '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)'
        " (call $a_function_of_the_guest) (i32.const 0))",
    )
    with OneVm(bundle(module)) as one:
        one.vm.wait_ready(5)
        one.worker.receive("vm_started")
        with pytest.raises(VmLost):
            request(one)

        failed = one.worker.receive("vm_failed")

    assert "a_function_of_the_guest" in failed.backtrace[0]
    assert len(failed.backtrace) >= 2
    assert "unreachable" in failed.message


def test_endless_loop_costs_its_own_vm_alone() -> None:
    """
    Two VMs of one engine: the innocent one computes on, longer in sum than the limit, and is not stopped.
    """
    busy = guest(
        """(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local i32)
        (local.set 3 (i32.const 1000000))
        (loop $l (local.set 3 (i32.sub (local.get 3) (i32.const 1))) (br_if $l (local.get 3))) (i32.const
        0))"""
    )
    both = {2: bundle(busy)}
    options: dict[str, Any] = {"cpu_ms": 30, "more": both}
    with OneVm(bundle(misdeed("loop_in_request_headers")), **options) as one:
        one.worker.receive("vm_started")
        fds = create_channel(65536)
        other = SyncVm(VmClient(fds))
        one.worker.open(fds, configuration(bundle(busy).manifest, 65536), 2, 2)
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        other.wait_ready(5)
        done = threading.Event()
        lost: list[int] = []

        def offend() -> None:
            while not done.is_set():
                try:
                    one.vm.wait_ready(5)
                    request(one)
                except VmLost:
                    lost.append(1)

        thread = threading.Thread(target=offend)
        thread.start()
        until = time.monotonic() + 1.0
        served = 0
        while time.monotonic() < until:
            stream = other.client.open_stream(b"", 1)
            assert other.call(stream, layout.REQUEST_HEADERS, REQUEST).code == layout.CODE_OK
            other.close_stream(stream)
            served += 1
        done.set()
        thread.join(10)
        other.close()

    assert served > 50
    assert len(lost) > 3
