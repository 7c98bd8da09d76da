"""Frames with descriptors, the outbox, systemd's socket, the daemon's directories, the operator's socket."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

import pytest

from sandboxd.errors import ConfigError, WorkerError
from sandboxd.protos import admin_pb2 as admin
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from sandboxd.supervisor.admin import MAX_REQUEST_BYTES, AdminServer, call
from sandboxd.supervisor.notify import Notifier
from sandboxd.supervisor.outbox import Outbox, OutboxFullError
from sandboxd.supervisor.rundir import RedactionKeys, RuntimeDirectory, make_directory, remove_dead_socket

PING = control.ToWorker(ping=control.Ping(number=7))


def open_fds() -> int:
    """Return how many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


class TestFrames:
    """One packet, its descriptors beside it."""

    def test_descriptors_travel(self) -> None:
        """And arrive close-on-exec."""
        pair = frames.Pair()
        read_end, write_end = os.pipe()
        with pair.ours, pair.theirs:
            frames.send(pair.ours, frames.encode(PING), (write_end,))
            packet = frames.receive_with_fds(pair.theirs)
            assert control.ToWorker.FromString(packet.data) == PING
            assert not os.get_inheritable(packet.fds[0])
            os.write(packet.fds[0], b"x")
            assert os.read(read_end, 1) == b"x"
            packet.close()
        os.close(read_end)
        os.close(write_end)

    def test_too_long_to_send(self) -> None:
        """Found before it is sent."""
        setup = control.ToWorker(setup=control.WorkerSetup(tenant="x" * frames.MAX_FRAME_BYTES))
        with pytest.raises(frames.FrameTooLongError, match="65536"):
            frames.encode(setup)

    def test_cut_packets_leak_nothing(self) -> None:
        """Descriptors of a packet that is refused are closed."""
        pair = frames.Pair()
        before = open_fds()
        with pair.ours, pair.theirs:
            pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            frames.send(pair.ours, b"x" * 70_000, (0,))
            with pytest.raises(frames.FrameTooLongError):
                frames.receive_with_fds(pair.theirs)
            assert open_fds() == before


class TestOutbox:
    """Sending without blocking."""

    async def test_keeps_the_order_when_the_peer_is_slow(self) -> None:
        """Queued frames and their descriptors follow in order."""
        pair = frames.Pair()
        with pair.ours, pair.theirs:
            pair.ours.setblocking(False)
            pair.theirs.setblocking(False)
            outbox = Outbox(asyncio.get_running_loop(), pair.ours)
            before = open_fds()
            for number in range(1000):
                outbox.send(control.ToWorker(ping=control.Ping(number=number + 1)), (0,))
            got = []
            while len(got) < 1000:
                try:
                    packet = frames.receive_with_fds(pair.theirs)
                except BlockingIOError:
                    await asyncio.sleep(0)
                    continue
                got.append(control.ToWorker.FromString(packet.data).ping.number)
                assert len(packet.fds) == 1
                packet.close()
            outbox.close()
            assert got == list(range(1, 1001))
            assert open_fds() == before

    def fill(self, outbox: Outbox) -> None:
        """Send more than any socket holds."""
        for _ in range(10_000):
            outbox.send(PING, (0,))

    async def test_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A peer that never reads is told on, and nothing leaks."""
        monkeypatch.setattr("sandboxd.supervisor.outbox.MAX_QUEUED_FRAMES", 10)
        pair = frames.Pair()
        with pair.ours, pair.theirs:
            pair.ours.setblocking(False)
            outbox = Outbox(asyncio.get_running_loop(), pair.ours)
            before = open_fds()
            with pytest.raises(OutboxFullError):
                self.fill(outbox)
            outbox.close()
            assert open_fds() == before


class TestNotifier:
    """sd_notify."""

    def test_says_what_systemd_wants(self, short_path: Path) -> None:
        """One datagram per state."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(short_path / "n"))
            environment = {"NOTIFY_SOCKET": str(short_path / "n"), "WATCHDOG_USEC": "2000000"}
            notifier = Notifier(environment)
            notifier.ready("fine")
            notifier.reloading()
            notifier.stopping()
            assert sock.recv(100) == b"READY=1\nSTATUS=fine"
            assert sock.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert sock.recv(100) == b"STOPPING=1"
            assert notifier.watchdog_s == 2

    def test_abstract_sockets(self) -> None:
        """``@name`` is an abstract address."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            name = f"sandboxd-test-{os.getpid()}"
            sock.bind("\0" + name)
            Notifier({"NOTIFY_SOCKET": "@" + name}).watchdog()
            assert sock.recv(100) == b"WATCHDOG=1"

    @pytest.mark.timeout(20)
    def test_a_manager_that_does_not_read(
        self, short_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Costs messages, never the daemon: the kernel queues only so many."""
        monkeypatch.setattr("sandboxd.supervisor.notify.SEND_TIMEOUT_S", 0.01)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(short_path / "n"))
            notifier = Notifier({"NOTIFY_SOCKET": str(short_path / "n")})
            for _ in range(1000):
                notifier.watchdog()
                if "cannot be told WATCHDOG" in caplog.text:
                    break
            else:
                pytest.fail("the queue never filled: the test shows nothing")
            assert sock.recv(100) == b"WATCHDOG=1"

    def test_without_systemd(self) -> None:
        """Nothing happens; a watchdog of another process is not ours."""
        Notifier({}).ready("x")
        assert Notifier({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}).watchdog_s == 0
        assert Notifier({"WATCHDOG_USEC": "five"}).watchdog_s == 0


class TestDirectories:
    """Runtime and state directory."""

    def test_one_daemon_at_a_time(self, tmp_path: Path) -> None:
        """The lock goes with the process, not with the file."""
        first = RuntimeDirectory(tmp_path / "run")
        with pytest.raises(ConfigError, match=rf"another sandboxd \(pid {os.getpid()}\)"):
            RuntimeDirectory(tmp_path / "run")
        first.close()
        RuntimeDirectory(tmp_path / "run").close()

    def test_modes(self, tmp_path: Path) -> None:
        """Whatever the umask is."""
        before = os.umask(0o077)
        try:
            RuntimeDirectory(tmp_path / "run").close()
            RedactionKeys(tmp_path / "state")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "state" / "redaction.key").stat().st_mode) == 0o600

    def test_a_directory_that_others_may_write_is_refused(self, tmp_path: Path) -> None:
        """They could plant sockets."""
        (tmp_path / "run").mkdir()
        (tmp_path / "run").chmod(0o777)
        with pytest.raises(ConfigError, match="chmod go-w"):
            RuntimeDirectory(tmp_path / "run")

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        """Named, not traced back."""
        (tmp_path / "run").write_text("x")
        with pytest.raises(ConfigError, match="must be a directory"):
            make_directory(tmp_path / "run", 0o755)
        with pytest.raises(ConfigError, match="cannot be made"):
            make_directory(tmp_path / "run" / "below", 0o755)

    def test_keys_are_stable_and_differ_by_tenant(self, tmp_path: Path) -> None:
        """The installation's key survives a restart."""
        one, again = RedactionKeys(tmp_path / "s"), RedactionKeys(tmp_path / "s")
        assert one.of("a") == again.of("a") != one.of("b")
        assert len(one.of("a")) == 32
        assert RedactionKeys(tmp_path / "other").of("a") != one.of("a")

    def test_a_damaged_key_is_an_error(self, tmp_path: Path) -> None:
        """Not a silent change of all hashes."""
        RedactionKeys(tmp_path / "s")
        (tmp_path / "s" / "redaction.key").write_bytes(b"short")
        with pytest.raises(ConfigError, match="32 bytes"):
            RedactionKeys(tmp_path / "s")

    def test_a_key_that_others_can_read_is_an_error(self, tmp_path: Path) -> None:
        """Who has it can find out what was hashed."""
        RedactionKeys(tmp_path / "s")
        (tmp_path / "s" / "redaction.key").chmod(0o640)
        with pytest.raises(ConfigError, match=r"redaction.key: .*alone may read it \(0600\)"):
            RedactionKeys(tmp_path / "s")

    def test_only_dead_sockets_are_removed(self, short_path: Path) -> None:
        """A live one and a plain file stay."""
        path = short_path / "s"
        remove_dead_socket(path)
        with socket.socket(socket.AF_UNIX) as alive:
            alive.bind(str(path))
            alive.listen()
            with pytest.raises(ConfigError, match="alive"):
                remove_dead_socket(path)
        remove_dead_socket(path)
        assert not path.exists()
        path.write_text("precious")
        with pytest.raises(ConfigError, match="not a socket"):
            remove_dead_socket(path)
        assert path.read_text() == "precious"


class TestAdminSocket:
    """One request, one answer, hostile or not."""

    async def ask(self, path: Path, command: int = 1) -> dict[str, Any]:
        """Call from a thread, as another process would."""
        return await asyncio.to_thread(call, path, admin.AdminRequest(command=command), 5)

    async def test_answers_and_errors(self, short_path: Path) -> None:
        """JSON, or the reason; a bug's text stays in the log."""

        async def handle(request: admin.AdminRequest) -> dict[str, Any]:
            if request.command == 2:
                raise ConfigError("no such thing")
            if request.command == 3:
                raise ZeroDivisionError("secret detail")
            return {"a": [1, 2]}

        server = AdminServer(short_path / "admin.sock", handle)
        await server.start()
        assert stat.S_IMODE((short_path / "admin.sock").stat().st_mode) == 0o600
        assert await self.ask(short_path / "admin.sock") == {"a": [1, 2]}
        with pytest.raises(WorkerError, match="no such thing"):
            await self.ask(short_path / "admin.sock", 2)
        with pytest.raises(WorkerError, match="internal error; see the daemon's log"):
            await self.ask(short_path / "admin.sock", 3)
        await server.stop()

    @pytest.mark.parametrize(
        "said", [b"", b"\1", struct.pack("<I", MAX_REQUEST_BYTES + 1), struct.pack("<I", 3) + b"\xff\xff\xff"]
    )
    async def test_garbage_is_dropped(self, short_path: Path, said: bytes) -> None:
        """The connection ends without an answer, and the next request is served."""

        async def handle(request: admin.AdminRequest) -> dict[str, Any]:
            return {}

        server = AdminServer(short_path / "admin.sock", handle)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(str(short_path / "admin.sock"))
        writer.write(said)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert await self.ask(short_path / "admin.sock") == {}
        await server.stop()

    def test_nobody_listens(self, tmp_path: Path) -> None:
        """One clear line."""
        with pytest.raises(ConfigError, match="is it running"):
            call(tmp_path / "admin.sock", admin.AdminRequest(), 1)
