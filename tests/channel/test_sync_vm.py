"""Waiting in a thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandboxd.channel import layout, memfd
from sandboxd.channel.client import VmClient
from sandboxd.channel.sync_vm import SyncVm, VmLost
from tests.support.fake_vm import FakeVm, pass_through


@pytest.fixture
def rig() -> Iterator[tuple[SyncVm, FakeVm]]:
    fds = memfd.create_channel(65536)
    vm, fake = SyncVm(VmClient(fds)), FakeVm(fds)
    yield vm, fake
    fake.stop()
    vm.close()


def test_calls(rig: tuple[SyncVm, FakeVm]) -> None:
    vm, fake = rig
    fake.start().begin()
    assert vm.wait_ready(5) == 1
    stream_id = vm.client.open_stream(b"", 0)
    for _ in range(500):
        verdict = vm.call(stream_id, layout.REQUEST_BODY, b"x" * 40_000)
        assert verdict.effects[0].payload == b"x" * 40_000
    assert vm.close_stream(stream_id).code == 0


def test_no_vm(rig: tuple[SyncVm, FakeVm]) -> None:
    vm, fake = rig
    with pytest.raises(TimeoutError):
        vm.wait_ready(0.02)
    with pytest.raises(TimeoutError):
        vm.call(vm.client.open_stream(b"", 0), layout.REQUEST_HEADERS, timeout_s=0.02)
    fake.fail()
    with pytest.raises(VmLost, match="failed to start"):
        vm.wait_ready(5)


def test_vm_fails_during_a_call(rig: tuple[SyncVm, FakeVm]) -> None:
    vm, fake = rig

    def answer(event):  # type: ignore[no-untyped-def]
        if event.kind == layout.REQUEST_HEADERS:
            fake.fail()
            return []
        return pass_through(event)

    fake.answer = answer
    fake.start().begin()
    vm.wait_ready(5)
    with pytest.raises(VmLost):
        vm.call(vm.client.open_stream(b"", 0), layout.REQUEST_HEADERS, timeout_s=5)


def test_notices_of_the_start_are_kept(rig: tuple[SyncVm, FakeVm]) -> None:
    vm, fake = rig
    fake.emit([(layout.VM_STARTED, 0, 0, 0, 1, b""), (layout.LOG, 0, 0, 0, 2, b"hello")])
    fake.words[layout.OFFSET_VM_STATE // 4] = layout.VM_READY
    fake.words[layout.OFFSET_VM_GENERATION // 4] = 1

    assert vm.wait_ready(5) == 1
    assert [effect.payload for effect in vm.loose] == [b"hello"]
