"""A VM in this process: the channel's window, and what is left behind when it ends."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmtime import Engine

from sandboxd.channel import layout, memfd, pairs
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Verdict
from sandboxd.errors import InternalError, WorkerError
from sandboxd.vm import config_blob, window
from sandboxd.vm.engine import new_engine
from sandboxd.vm.hostcore_answers import POLL_SLEEP, POLL_WAKE_CLIENT
from sandboxd.vm.instance import Vm
from sandboxd.vm.plugin import LoadedPlugin, load_plugin, sealed_size
from sandboxd.vm.traps import FailureCause, GuestFailure, clean
from tests.support.guests import GUESTS
from tests.support.modules import bundle, guest
from tests.support.worker_process import configuration

RING = 65536
HEADERS = pairs.encode([(b":method", b"GET"), (b":path", b"/")])


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Return one engine for all."""
    return new_engine()


@pytest.fixture
def channel() -> Iterator[VmClient]:
    """Return a client on a fresh channel."""
    client = VmClient(memfd.create_channel(RING))
    yield client
    client.close()


def rust(engine: Engine) -> LoadedPlugin:
    """Return a Rust filter, loaded."""
    return load_plugin(engine, bundle((GUESTS / "rust/http_headers.wasm").read_bytes()).data)


def started(plugin: LoadedPlugin, client: VmClient, generation: int = 1) -> Vm:
    """Return a VM that has started on the client's channel."""
    vm = Vm(plugin, client.fds.memfd, RING, lambda: False)
    blob = configuration(plugin.manifest, RING)
    vm.configure(config_blob.refresh(blob, entropy=bytes(32), start_time_ns=1, generation=generation))
    vm.start()
    return vm


def test_poll_serves_and_asks_for_sleep(engine: Engine, channel: VmClient) -> None:
    """The result's bits are those of the document."""
    vm = started(rust(engine), channel)
    channel.drain()
    channel.prepare_sleep()
    stream = channel.open_stream(b"", time.time_ns())
    seq = channel.submit(stream, layout.REQUEST_HEADERS, HEADERS, True, time.time_ns())
    channel.flush()

    first = vm.poll(1)
    second = vm.poll(1)

    assert (first, second) == (POLL_WAKE_CLIENT, POLL_SLEEP)
    (verdict,) = [item for item in channel.drain() if isinstance(item, Verdict)]
    assert (verdict.event_seq, verdict.code) == (seq, layout.CODE_OK)
    assert vm.status().streams_open == 1
    assert vm.guest_memory_bytes() >= 17 * 65536
    vm.close()


def test_channel_outlives_its_vms(engine: Engine, channel: VmClient) -> None:
    """Freeing a VM's memory changes nothing in the rings; a second close does nothing."""
    plugin = rust(engine)
    vm = started(plugin, channel)
    before = os.pread(channel.fds.memfd, layout.file_bytes(RING), 0)

    vm.close()
    vm.close()

    assert os.pread(channel.fds.memfd, layout.file_bytes(RING), 0) == before
    assert any(before[layout.HEADER_BYTES + RING :])


def test_vms_leave_nothing_behind(engine: Engine, channel: VmClient) -> None:
    """Mappings and descriptors are as many after a hundred restarts as after ten."""

    def counts() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().count("\n")
        return maps, len(list(Path("/proc/self/fd").iterdir()))

    plugin = rust(engine)
    for generation in range(1, 11):
        started(plugin, channel, generation).close()
        channel.drain()
    maps, fds = counts()
    for generation in range(11, 111):
        started(plugin, channel, generation).close()
        channel.drain()

    assert counts()[1] == fds
    assert counts()[0] <= maps + 10


def test_channel_file_is_checked() -> None:
    """Its seals and its size, before it is mapped."""
    fd = os.memfd_create("channel", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, layout.file_bytes(RING))
        with pytest.raises(WorkerError, match="not a memfd sealed"):
            window.checked_size(fd, RING)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, memfd.CHANNEL_SEALS)
        assert window.checked_size(fd, RING) == layout.file_bytes(RING)
        with pytest.raises(WorkerError, match=f"has {layout.file_bytes(RING)} bytes, expected"):
            window.checked_size(fd, 2 * RING)
    finally:
        os.close(fd)
    with open("/dev/null", "rb") as file, pytest.raises(WorkerError, match="not a memfd sealed"):
        window.checked_size(file.fileno(), RING)


def test_blobs_are_checked() -> None:
    """Sealed, not empty, not too large."""
    fd = memfd.create_blob("x", b"1234")
    try:
        assert sealed_size(fd, 4) == 4
        with pytest.raises(WorkerError, match="has 4 bytes, allowed are 1 to 3"):
            sealed_size(fd, 3)
    finally:
        os.close(fd)
    with open("/dev/null", "rb") as file, pytest.raises(WorkerError, match="not a sealed memfd"):
        sealed_size(file.fileno(), 4)


def test_bad_configuration_is_a_bug_of_ours(engine: Engine, channel: VmClient) -> None:
    """hostcore names the entry that it does not accept."""
    plugin = rust(engine)
    vm = Vm(plugin, channel.fds.memfd, RING, lambda: False)
    with pytest.raises(InternalError, match="configuration entry"):
        vm.configure(b"\x63\0\0\0\0\0\0\0")
    with pytest.raises(InternalError, match="no room"):
        vm.configure(bytes(200 << 20))
    vm.close()


def test_epoch_asks_and_goes_on(engine: Engine, channel: VmClient) -> None:
    """A VM that may go on is asked once per move of the epoch; one that may not ends."""
    module = guest(
        '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (loop $l (br $l)) (i32.const 0))'
    )
    plugin = load_plugin(engine, bundle(module).data)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) >= 3

    def tick() -> None:
        while len(asked) < 3:
            engine.increment_epoch()
            time.sleep(0.005)

    vm = Vm(plugin, channel.fds.memfd, RING, should_stop)
    vm.configure(configuration(plugin.manifest, RING))
    vm.start()
    stream = channel.open_stream(b"", 1)
    channel.submit(stream, layout.REQUEST_HEADERS, HEADERS, True, 1)
    channel.flush()
    ticker = threading.Thread(target=tick)
    ticker.start()

    with pytest.raises(GuestFailure) as caught:
        vm.poll(1)

    ticker.join(5)
    assert caught.value.cause is FailureCause.CPU_LIMIT
    assert len(asked) == 3
    vm.close()


def test_handler_that_raises_ends_the_call(engine: Engine, channel: VmClient) -> None:
    """An exception cannot pass through the engine."""
    plugin = rust(engine)

    def should_stop() -> bool:
        raise RuntimeError

    vm = Vm(plugin, channel.fds.memfd, RING, should_stop)
    engine.increment_epoch()
    with pytest.raises(GuestFailure, match="CPU limit"):
        vm.configure(configuration(plugin.manifest, RING))
    vm.close()


def test_failure_text_is_bounded_and_clean() -> None:
    """Names of a hostile module cannot fill a frame or drive a terminal."""
    failure = GuestFailure(FailureCause.TRAP, "m", tuple("é" * 300 for _ in range(20)))

    assert len(failure.text.encode()) <= 4096
    assert clean("a\x1b[0m\nb" + "x" * 50, 12) == "a?[0m?bxxxxx"
