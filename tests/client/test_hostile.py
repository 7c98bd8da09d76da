"""What a client does with a daemon and a VM that lie, and what it leaves behind; and the canary of redaction."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandboxd import client
from sandboxd.channel import layout
from sandboxd.channel.memfd import create_blob, create_channel
from sandboxd.client import wire
from sandboxd.client.connection import State
from sandboxd.errors import PeerError
from sandboxd.policy.capabilities import PRESETS, needs
from sandboxd.policy.capability_names import HTTP_CALLBACKS
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.failure import Cause
from sandboxd.policy.model import ModuleRef, PluginPolicy
from sandboxd.supervisor import attach_frames as daemon
from tests.support import guests

GET = [(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a"), (b":scheme", b"http")]
POLICY = compile_policy(
    "acme", PluginPolicy("p", ModuleRef(Path("none"), "0" * 64)), needs(PRESETS["standard"], HTTP_CALLBACKS), bytes(32)
)
RING = layout.MIN_RING_BYTES


def open_descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def lying(path: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """A daemon for one client; ``talk`` has read the request already."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(10)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(10)
                assert isinstance(daemon.parse(sock.recv(4096)), daemon.AttachRequest)
                talk(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(10)
            assert not thread.is_alive()


def send(sock: socket.socket, data: bytes, channels: int, blobs: tuple[bytes, ...] = ()) -> None:
    """Send a frame with so many channels and blobs."""
    made = [create_channel(RING) for _ in range(channels)]
    fds = [fd for one in made for fd in (one.memfd, one.vm_event_fd, one.client_event_fd)]
    fds += [create_blob("policy", blob) for blob in blobs]
    try:
        socket.send_fds(sock, [data], fds)
    finally:
        for fd in fds:
            os.close(fd)


LIES: dict[str, tuple[bytes, int, tuple[bytes, ...], str]] = {
    "no descriptors": (daemon.attached(RING, 0, 1), 0, (), "with 0 descriptors, not 4"),
    "no policy": (daemon.attached(RING, 0, 1), 1, (), "with 3 descriptors, not 4"),
    "no room": (daemon.drain(), 2, (), "do not fit"),
    "odd rings": (daemon.attached(RING + 8, 0, 1), 1, (POLICY,), f"rings of {RING + 8} bytes"),
    "other rings": (daemon.attached(RING * 2, 0, 1), 1, (POLICY,), "does not fit rings"),
    "bad policy": (daemon.attached(RING, 0, 1), 1, (POLICY[:-4],), "compiled policy"),
    "another's policy": (
        daemon.attached(RING, 0, 1),
        1,
        (POLICY.replace(b"acme", b"else"),),
        "else/p, which was not asked for",
    ),
    "long frame": (daemon.drain() + bytes(5000), 0, (), "do not fit"),
    "noise": (b"hello", 0, (), "shorter than its head"),
    "request": (wire.encode_attach("a", "b"), 0, (), "frame of type 1"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_daemon_is_refused_and_leaves_no_descriptor(tmp_path: Path, lie: str) -> None:
    data, channels, blobs, words = LIES[lie]
    before = open_descriptors()
    path = tmp_path / "s"
    with lying(path, lambda sock: send(sock, data, channels, blobs)), pytest.raises(PeerError, match=words):
        client.connect(path, "acme", timeout_s=5)
    assert open_descriptors() == before


async def test_a_vm_that_breaks_the_rules_is_reported(tmp_path: Path) -> None:
    """The event is answered, the channel given up, and the daemon told why."""
    channel = create_channel(RING)
    reports: list[daemon.AttachRequest | daemon.BrokenReport] = []

    def talk(sock: socket.socket) -> None:
        blob = create_blob("policy", POLICY)
        socket.send_fds(
            sock,
            [daemon.attached(RING, 0, 1)],
            [channel.memfd, channel.vm_event_fd, channel.client_event_fd, blob],
        )
        os.close(blob)
        reports.append(daemon.parse(sock.recv(4096)))

    path = tmp_path / "s"
    with lying(path, talk):
        session = client.AsyncSession(client.Address(path, "acme"))
        stream = await session.open_stream()
        os.pwrite(channel.memfd, layout.VM_READY.to_bytes(4, "little"), layout.OFFSET_VM_STATE)
        asking = asyncio.create_task(stream.request_headers(GET))
        await asyncio.sleep(0.05)
        os.pwrite(channel.memfd, (8).to_bytes(4, "little"), layout.OFFSET_CQ_TAIL)  # a record of no kind and size 0
        os.eventfd_write(channel.client_event_fd, 1)
        outcome = await asyncio.wait_for(asking, 10)
        assert outcome.failure is Cause.PROTOCOL
        assert outcome.local_response is not None
        assert outcome.local_response.status == 500
        connection = session._current
        assert connection is not None
        async with asyncio.timeout(5):
            while connection.state is not State.CLOSED:
                await asyncio.sleep(0.01)
        assert isinstance(session.problem, PeerError)
        await session.close()
    channel.close()
    (report,) = reports
    assert isinstance(report, daemon.BrokenReport)
    assert report.reason


async def test_the_canary_never_enters_shared_memory(attach_socket: Path) -> None:
    """A hidden header is nowhere in the channel; its harmless twin is."""
    canary, twin = b"canary-7e1d90aa52", b"twin-7e1d90aa52"
    async with await client.connect_async(attach_socket, "acme", guests.TOKEN_GATE.name) as session:
        stream = await session.open_stream({"source.address": canary.decode()})
        outcome = await stream.request_headers(
            [*GET, (b"x-token", b"sesame"), (b"authorization", canary), (b"x-other", twin)], True
        )
        connection = session._current
        assert connection is not None
        assert connection.channel is not None
        memfd = connection.channel.vm.client.fds.memfd
        memory = os.pread(memfd, os.fstat(memfd).st_size, 0)
        assert twin in memory
        assert canary not in memory
        assert (b"authorization", canary) in (outcome.headers or [])
        stream.close()


def test_attaching_again_and_again_leaves_nothing(attach_socket: Path) -> None:
    before = open_descriptors()
    for _ in range(5):
        with client.connect(attach_socket, "acme", guests.C_ADD_HEADER.name) as session:
            session.open_stream().request_headers(GET)
    assert open_descriptors() == before
