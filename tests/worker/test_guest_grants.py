"""What the policy grants a guest and how far, as the guest itself finds it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandboxd.channel import layout
from sandboxd.channel.sync_vm import VmLost
from sandboxd.limits import MIB
from sandboxd.protos import control_pb2 as control
from sandboxd.vm.config_blob import Flag
from tests.support.modules import EVERYTHING, bundle, guest
from tests.support.vm_traffic import request
from tests.support.worker_process import LIMITS, OneVm


def test_memory_limit_is_the_policys() -> None:
    """memory.grow answers -1 past the limit, and the guest lives on."""
    module = guest(
        '(func (export "proxy_on_vm_start") (param i32 i32) (result i32)'
        " (i32.and (i32.eq (memory.grow (i32.const 15)) (i32.const 1))"
        " (i32.eq (memory.grow (i32.const 1)) (i32.const -1))))"
    )
    with OneVm(bundle(module, memory_bytes=1 * MIB)) as one:
        one.worker.receive("vm_started")
        one.worker.send(control.ToWorker(ping=control.Ping(number=1)))

        assert one.worker.receive("pong").vms[0].guest_memory_bytes == 1 * MIB


def test_host_calls_per_event_are_limited() -> None:
    """A guest that does nothing but call the host ends at the limit."""
    module = guest(
        '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)'
        " (loop $l (drop (call 0)) (br $l)) (i32.const 0))",
        imports='(import "env" "proxy_done" (func (result i32)))',
    )
    with OneVm(bundle(module), cpu_ms=5000, limits=replace(LIMITS, host_calls_per_event=1000)) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        with pytest.raises(VmLost):
            request(one)

        assert "host calls" in one.worker.receive("vm_failed").message


def test_denied_function_is_reported_with_its_index() -> None:
    """The guest gets the ABI's answer, the client a DENIED record."""
    module = guest(
        '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)'
        " (if (i32.ne (call 0 (i32.const 0)) (i32.const 10)) (then unreachable)) (i32.const 0))",
        imports='(import "env" "proxy_close_stream" (func (param i32) (result i32)))',
    )
    with OneVm(bundle(module, EVERYTHING - {"proxy_close_stream"})) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)

        verdict = request(one)

        assert verdict.code == layout.CODE_OK
        assert any(effect.kind == layout.DENIED and effect.arg == 0 for effect in verdict.notices)


def test_live_clock_moves_within_an_event() -> None:
    """Only with the policy's leave; a guest reads it twice and sees a difference."""
    module = guest(
        """(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local i64 i32)
        (drop (call 0 (i32.const 1) (i64.const 0) (i32.const 64))) (local.set 3 (i64.load (i32.const 64)))
        (local.set 4 (i32.const 3000000))
        (loop $l (local.set 4 (i32.sub (local.get 4) (i32.const 1))) (br_if $l (local.get 4)))
        (drop (call 0 (i32.const 1) (i64.const 0) (i32.const 64)))
        (if (i64.lt_u (i64.sub (i64.load (i32.const 64)) (local.get 3)) (i64.const 100000)) (then
        unreachable))
        (i32.const 0))""",
        imports='(import "wasi_snapshot_preview1" "clock_time_get" (func (param i32 i64 i32) (result i32)))',
    )
    with OneVm(bundle(module), cpu_ms=1000, flags=Flag.LIVE_CLOCK) as one:
        one.vm.wait_ready(5)
        assert request(one).code == layout.CODE_OK
    with OneVm(bundle(module), cpu_ms=1000) as one:
        one.vm.wait_ready(5)
        with pytest.raises(VmLost):
            request(one)
