"""The supervisor's side of services: what a VM says is logged and counted, and what none may say ends its channel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from sandboxd.channel import layout
from sandboxd.channel.memfd import ChannelFds, create_blob, create_channel
from sandboxd.channel.ring import Record
from sandboxd.limits import MIN_RING_BYTES
from sandboxd.policy.model import ModuleRef, PluginKind, PluginPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import services
from sandboxd.supervisor.services import ServiceChannels
from sandboxd.supervisor.users import SERVICES_INDEX, is_for
from tests.support.eventually import until
from tests.support.fake_vm import FakeVm

POLICY = f"""
tenant: a
plugins:
  - name: s
    kind: service
    module: {{file: m.wasm, sha256: {"1f8c" * 16}}}
    limits: {{log_lines_per_second: 100}}
"""


class Host:
    """The daemon, as far as services know it."""

    def __init__(self) -> None:
        self.broken: list[tuple[int, str]] = []
        self.drained: list[int] = []

    def channel_broken(self, channel_id: int, reason: str) -> None:
        self.broken.append((channel_id, reason))

    def channel_drained(self, channel_id: int) -> None:
        self.drained.append(channel_id)


class Rig:
    """A service's channel with a fake VM behind it."""

    def __init__(self) -> None:
        self.host = Host()
        self.channels = ServiceChannels(self.host)
        self.fds: ChannelFds = create_channel(MIN_RING_BYTES)
        self.vm = FakeVm(self.fds)
        self.text_fd = create_blob("policy", POLICY.encode())
        self.attach(7)
        self.vm.begin()

    def attach(self, channel_id: int) -> None:
        """Attach the VM's channel as one of this number."""
        attach = control.Attach(
            channel_id=channel_id,
            tenant="a",
            plugin="s",
            ring_bytes=MIN_RING_BYTES,
            policy_path="p",
            imports=["proxy_log"],
        )
        fds = (self.fds.memfd, self.fds.vm_event_fd, self.fds.client_event_fd, self.text_fd)
        self.channels.send(control.ToFront(attach=attach), fds)

    def say(self, *records: Record) -> None:
        """Have the VM write completions."""
        self.vm.emit(records)


def loose(kind: int, payload: bytes = b"", arg: int = 0, stream_id: int = 0) -> Record:
    """Return something outside events."""
    return (kind, 0, stream_id, 0, arg, payload)


def drive(test: Callable[[Rig], Awaitable[None]]) -> None:
    """Run a test in a loop, and close everything."""

    async def body() -> None:
        rig = Rig()
        try:
            await test(rig)
        finally:
            rig.channels.stop()
            rig.vm.stop()
            rig.fds.close()

    asyncio.run(body())


@pytest.fixture(autouse=True)
def debug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Log everything."""
    with caplog.at_level(logging.DEBUG):
        yield


def test_what_a_service_says_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def test(rig: Rig) -> None:
        rig.say(loose(layout.LOG, b"hello\nforged", 2), loose(layout.DENIED), loose(layout.LOGS_DROPPED, arg=3))
        await until(lambda: rig.channels.counters["a/s"].get("guest_log.dropped") == 3)
        assert rig.channels.counters["a/s"] == {"guest_log.lines": 1, "denied.proxy_log": 1, "guest_log.dropped": 3}
        rig.vm.begin()
        await until(lambda: rig.channels.counters["a/s"].get("vm_restarts") == 1)
        assert rig.host.broken == []

    drive(test)
    assert "a/s stream=0: hello\\nforged" in caplog.text


def test_a_limit_that_a_service_reaches_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """As in a front."""

    async def test(rig: Rig) -> None:
        rig.say(loose(layout.NOTE, arg=layout.NOTE_METRICS_LIMIT))
        await until(lambda: rig.channels.counters["a/s"].get("note.metrics_limit") == 1)

    drive(test)
    assert "a/s: limits.metrics (1000) was reached: 1 times so far" in caplog.text


def test_log_lines_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    """By the policy's limit, as in a front."""

    async def test(rig: Rig) -> None:
        rig.say(*(loose(layout.LOG, b"again", 2) for _ in range(250)))
        await until(lambda: rig.channels.counters["a/s"].get("guest_log.lines") == 250)
        assert 100 <= rig.channels.counters["a/s"]["guest_log.dropped"] <= 150

    drive(test)
    assert 100 <= caplog.text.count("a/s stream=0: again") <= 150


@pytest.mark.parametrize(
    "record",
    [
        loose(layout.REQUEST_HEADERS, stream_id=1),
        loose(layout.LOCAL_RESPONSE, bytes(24), stream_id=1),
        loose(layout.VERDICT),
        (layout.VERDICT, 0, 1, 1, 0, b""),
        loose(99),
        loose(layout.VM_STARTED, arg=1),
    ],
)
def test_what_no_service_says_ends_its_channel(record: Record) -> None:
    """Once: a broken channel is not looked at again."""

    async def test(rig: Rig) -> None:
        rig.say(record)
        await until(lambda: bool(rig.host.broken))
        assert rig.host.broken[0][0] == 7
        rig.say(loose(layout.LOG, b"more", 2))
        await asyncio.sleep(3 * services.LOOK_S)
        assert len(rig.host.broken) == 1
        assert rig.channels.counters["a/s"] == {"channel_broken": 1}

    drive(test)


def test_one_whose_channel_raises_is_broken_and_the_others_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it raises, and again when it is attached anew."""

    class Away:
        def has_completions(self) -> bool:
            raise IndexError("nobody has thought of this")

        def close(self) -> None:
            pass

    async def test(rig: Rig) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(services, "VmClient", lambda own, _limits: own.close() or Away())
            rig.attach(6)
            rig.attach(8)
        await until(lambda: len(rig.host.broken) == 2)
        assert [channel_id for channel_id, _ in rig.host.broken] == [6, 8]
        assert "IndexError" in rig.host.broken[0][1]
        rig.say(loose(layout.LOG, b"still heard", 2))
        await until(lambda: rig.channels.counters["a/s"].get("guest_log.lines") == 1)
        assert rig.channels.counters["a/s"]["channel_broken"] == 2

    drive(test)
    assert "service a/s: its channel cannot be read" in caplog.text


def test_a_flood_does_not_keep_the_loop_busy() -> None:
    """A VM that fills its ring all the time gets a small part of the supervisor's time, and waits."""

    async def test(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        turns, longest_s, end_s = 0, 0.0, loop.time() + 1.5
        while loop.time() < end_s:
            if rig.vm.outbox.has_room(4):  # full again, and again
                rig.vm.emit([loose(layout.LOG, b"x", 0)] * 256)
            before_s = loop.time()
            await asyncio.sleep(0)
            turns, longest_s = turns + 1, max(longest_s, loop.time() - before_s)
        assert rig.channels.counters["a/s"]["guest_log.lines"] > 1000
        assert longest_s < 0.5
        assert turns > 50

    drive(test)


def test_superseded_and_detached() -> None:
    """There are no streams to wait for; its last words are read; what is removed is forgotten."""

    async def test(rig: Rig) -> None:
        rig.say(loose(layout.LOG, b"bye", 2))
        rig.channels.superseded(7)
        await until(lambda: rig.host.drained == [7])
        assert rig.channels.counters["a/s"]["guest_log.lines"] == 1
        rig.channels.send(control.ToFront(detach=control.Detach(channel_id=7)))
        rig.channels.send(control.ToFront(plugin_down=control.PluginDown(tenant="a", plugin="s")))
        assert "a/s" in rig.channels.counters
        rig.channels.send(control.ToFront(plugin_down=control.PluginDown(tenant="a", plugin="s", removed=True)))
        assert rig.channels.counters == {}

    drive(test)


def test_services_are_for_one_user_alone() -> None:
    class User:
        def __init__(self, index: int) -> None:
            self.index = index

        def wants(self, tenant: str, plugin: str) -> bool:
            return bool(tenant and plugin)

        def send(self, frame: control.ToFront, fds: object = ()) -> None: ...

        def superseded(self, channel_id: int) -> None: ...

    for index, filters, wanted in ((0, True, False), (1_000_000, True, False), (SERVICES_INDEX, False, True)):
        for kind, expected in ((PluginKind.FILTER, filters), (PluginKind.SERVICE, wanted)):
            policy = PluginPolicy("p", ModuleRef(Path("m.wasm"), "0" * 64), kind=kind)
            assert is_for(User(index), policy) is expected
