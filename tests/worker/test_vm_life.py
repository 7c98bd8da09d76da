"""A VM from one start to the next: leave to start again, close, shutdown, a broken channel."""

from __future__ import annotations

import os
import time

import pytest

from sandboxd.channel import layout
from sandboxd.channel.sync_vm import VmLost
from sandboxd.protos import control_pb2 as control
from tests.support.modules import bundle, misdeed
from tests.support.vm_traffic import REQUEST, guest_bundle, request
from tests.support.worker_process import OneVm


def test_a_vm_waits_for_leave() -> None:
    """However long; the generations count on. Nobody else who has the channel can make the worker miscount."""
    with OneVm(bundle(misdeed("trap_in_request_headers")), restarts=0) as one:
        for generation in (1, 2):
            assert one.worker.receive("vm_started").generation == generation
            assert one.vm.wait_ready(5) == generation
            with pytest.raises(VmLost):
                request(one)
            failed = one.worker.receive("vm_failed")
            assert (failed.generation, failed.while_starting) == (generation, False)
            assert one.worker.silent(0.1)
            assert one.vm.client.vm_state == layout.VM_FAILED
            os.pwrite(one.fds.memfd, (77).to_bytes(4, "little"), layout.OFFSET_VM_GENERATION)
            one.worker.send(control.ToWorker(restart_vm=control.RestartVm(vm_id=1)))
        assert one.worker.receive("vm_started").generation == 3


@pytest.mark.parametrize("module", ["c/c_add_header", "misdeeds/configure_false"])
def test_close_ends_the_vm(module: str) -> None:
    """Whether it serves or waits for its next start; the channel says that nobody is there."""
    with OneVm(guest_bundle(module)) as one:
        one.worker.receive("vm_started" if module.startswith("c/") else "vm_failed")
        one.worker.send(control.ToWorker(close_vm=control.CloseVm(vm_id=1)))

        assert one.worker.receive("vm_closed").vm_id == 1
        assert one.vm.client.vm_state == layout.VM_GONE
        one.worker.send(control.ToWorker(ping=control.Ping(number=1)))
        assert len(one.worker.receive("pong").vms) == 0


def test_close_breaks_off_a_call() -> None:
    """A guest that loops within its limit does not hold up the end."""
    with OneVm(bundle(misdeed("loop_in_request_headers")), cpu_ms=60_000) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        stream = one.vm.client.open_stream(b"", 1)
        one.vm.client.submit(stream, layout.REQUEST_HEADERS, REQUEST, True, 1)
        one.vm.client.flush()
        time.sleep(0.05)
        one.worker.send(control.ToWorker(close_vm=control.CloseVm(vm_id=1)))

        assert one.worker.receive("vm_closed").vm_id == 1


def test_shutdown_by_the_client_ends_the_vm_and_close_is_answered() -> None:
    """After SHUTDOWN nobody serves the channel; VmClosed still waits for CloseVm."""
    with OneVm(guest_bundle("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        one.vm.wait(one.vm.client.shutdown(1), 5)
        deadline = time.monotonic() + 5
        while one.vm.client.vm_state != layout.VM_GONE:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert one.worker.silent(0.05)
        one.worker.send(control.ToWorker(close_vm=control.CloseVm(vm_id=1)))

        assert one.worker.receive("vm_closed").vm_id == 1


def test_broken_submission_ring_is_final() -> None:
    """A counter that no client writes: the VM is not started again by itself."""
    with OneVm(guest_bundle("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        os.pwrite(one.fds.memfd, (3).to_bytes(4, "little"), layout.OFFSET_SQ_TAIL)
        os.eventfd_write(one.fds.vm_event_fd, 1)

        failure = one.worker.receive("vm_failed")

        assert failure.cause == control.FAILURE_CAUSE_PROTOCOL
        assert one.vm.client.vm_state == layout.VM_GONE
