"""libsandboxd and the daemon: attach, die and come back, drain, be refused."""

from __future__ import annotations

import ctypes as c
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.channel.attach_wire import FrameType, RefusalCode
from sandboxd.client.wire import encode_attach, encode_broken
from sandboxd.supervisor import attach_frames as wire
from tests.support import c_client
from tests.support.daemon_client import ADD_HEADER, FakeDaemon, fake_daemon, policy_text, wait_for

pytestmark = pytest.mark.long

REQUEST = [(b":path", b"/"), (b":method", b"GET"), (b":authority", b"a"), (b"cookie", b"secret")]
JAIL = "jail: {self_test: false}\n"


class Attached:
    """A channel that the daemon gave."""

    def __init__(self, lib: c.CDLL, handle: c.c_void_p) -> None:
        self.lib, self.handle = lib, handle

    def check(self) -> str:
        return c_client.NAMES[self.lib.sbx_channel_check(self.handle, None)]

    def added(self) -> list[tuple[bytes, bytes]]:
        """What the plugin adds to a response."""
        stream, event = c.c_void_p(), c.c_void_p()
        assert self.lib.sbx_stream_open(self.handle, None, 0, 1, None, c.byref(stream)) == 0
        found: list[tuple[bytes, bytes]] = []
        for kind, headers in ((2, REQUEST), (5, [(b":status", b"200")])):
            given = c_client.pairs_of(headers)
            status = self.lib.sbx_submit_headers(stream, kind, given, len(headers), True, 2, None, c.byref(event))
            assert status == 0, c_client.NAMES[status]
            assert self.lib.sbx_wait(event, 5_000_000_000) == 0
            for effect in c_client.effects_of(self.lib.sbx_event_verdict(event).contents):
                if effect.changes:
                    changes = effect.changes.contents
                    found += [
                        (changes.added[i].name.get(), changes.added[i].value.get()) for i in range(changes.added_count)
                    ]
            self.lib.sbx_event_free(event)
        self.lib.sbx_stream_close(stream, False, 3)
        return found

    def close(self) -> None:
        self.lib.sbx_channel_close(self.handle)


def options(
    daemon: FakeDaemon, tenant: str = "alpha", plugin: str = "", uid: int | None = None
) -> c_client.AttachOptions:
    path = str(daemon.runtime / "attach.sock").encode()
    return c_client.AttachOptions(path, tenant.encode(), plugin.encode(), os.geteuid() if uid is None else uid, 0)


def attach(lib: c.CDLL, given: c_client.AttachOptions, timeout_s: float = 10.0) -> tuple[str, Attached, c_client.Error]:
    handle, error = c.c_void_p(), c_client.Error()
    status = lib.sbx_attach(c.byref(given), int(timeout_s * 1e9), c.byref(handle), c.byref(error))
    return c_client.NAMES[status], Attached(lib, handle), error


@pytest.fixture
def daemon(short_path: Path, artefact_cache: Path) -> Iterator[FakeDaemon]:
    """A daemon with one tenant, one front and the attach socket."""
    policies = {"a": policy_text("alpha", ADD_HEADER, more="failure: {policy: open, status: 555}")}
    more = JAIL + "attach: {channels: 2}\n"
    with fake_daemon(short_path, artefact_cache, policies, fronts=1, more=more) as running:
        yield running


@pytest.fixture(scope="module")
def lasting(artefact_cache: Path) -> Iterator[FakeDaemon]:
    """One daemon for tests that leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        Path(directory).chmod(0o755)
        policies = {"a": policy_text("alpha", ADD_HEADER)}
        more = JAIL + "attach: {channels: 2}\n"
        with fake_daemon(Path(directory), artefact_cache, policies, fronts=1, more=more) as running:
            yield running


def test_a_client_filters_through_a_channel_of_its_own(shim: c.CDLL, daemon: FakeDaemon) -> None:
    status, channel, error = attach(shim, options(daemon))
    assert status == "OK", error.text
    assert (b"x-wasm-processed", b"Yes") in channel.added()
    assert channel.check() == "OK"
    assert len(daemon.tenant("alpha")["plugins"][0]["vms"]) == 2

    channel.close()
    wait_for(lambda: len(daemon.tenant("alpha")["plugins"][0]["vms"]) == 1, 5, "the client's VM is gone")


def test_a_killed_worker_is_told_and_attached_again(shim: c.CDLL, daemon: FakeDaemon) -> None:
    status, channel, _ = attach(shim, options(daemon))
    assert status == "OK"
    os.kill(daemon.worker_pid("alpha"), signal.SIGKILL)
    wait_for(lambda: channel.check() == "DETACHED", 5, "detached")
    stream = c.c_void_p()
    assert c_client.NAMES[shim.sbx_stream_open(channel.handle, None, 0, 1, None, c.byref(stream))] == "DETACHED"
    channel.close()

    status, channel, error = attach(shim, options(daemon))
    assert status == "OK", error.text
    assert (b"x-wasm-processed", b"Yes") in channel.added()
    channel.close()


def runs_as_another(daemon: FakeDaemon, pid: int) -> bool:
    tenant = daemon.tenant("alpha")
    return tenant["state"] == "running" and tenant["worker"]["pid"] not in (0, pid)


def test_while_the_plugin_is_down_its_policy_is_known(shim: c.CDLL, daemon: FakeDaemon) -> None:
    pid = 0
    for _ in range(3):  # so that the pause before the next start is long enough to be met
        wait_for(functools.partial(runs_as_another, daemon, pid), 20, "running")
        pid = daemon.worker_pid("alpha")
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.tenant("alpha")["state"] != "running", 5, "down")
    attachment, error, handle = c.c_void_p(), c_client.Error(), c.c_void_p()
    given = options(daemon)
    assert shim.sbx_attach_begin(c.byref(given), c.byref(attachment), c.byref(error)) == 0
    deadline = time.monotonic() + 20
    seen = False
    while (status := shim.sbx_attach_step(attachment, c.byref(handle), c.byref(error))) == 1:
        policy = shim.sbx_attachment_policy(attachment)
        if policy:
            seen = True
            assert shim.sbx_failure_decide(policy, 2, 4, False).action == 0  # this policy is fail-open
            assert shim.sbx_attachment_reason(attachment)
        assert time.monotonic() < deadline
        select.select([shim.sbx_attachment_fd(attachment)], [], [], 1)
    assert status == 0, error.text
    assert seen
    channel = Attached(shim, handle)
    assert (b"x-wasm-processed", b"Yes") in channel.added()
    channel.close()


def test_a_reload_drains_the_old_channel_without_loss(shim: c.CDLL, daemon: FakeDaemon) -> None:
    status, old, _ = attach(shim, options(daemon))
    assert status == "OK"
    pid = daemon.worker_pid("alpha")
    (daemon.policies / "a.yaml").write_text(policy_text("alpha", ADD_HEADER, more="limits: {open_streams: 77}"))
    assert daemon.reload()["alpha"]["result"] == "swapped"
    wait_for(lambda: old.check() == "DRAIN", 5, "drain")
    assert (b"x-wasm-processed", b"Yes") in old.added()

    status, new, _ = attach(shim, options(daemon))
    assert status == "OK"
    assert (b"x-wasm-processed", b"Yes") in new.added()
    assert daemon.worker_pid("alpha") != pid
    old.close()
    new.close()


def test_a_dead_daemon_is_noticed(shim: c.CDLL, daemon: FakeDaemon) -> None:
    status, channel, _ = attach(shim, options(daemon))
    assert status == "OK"
    daemon.process.kill()
    daemon.process.wait(10)
    wait_for(lambda: channel.check() == "DETACHED", 5, "detached")
    channel.close()
    status, _, error = attach(shim, options(daemon))
    assert status == "SYSTEM"
    assert error.sys_errno


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_clients_that_leave_at_any_moment_leave_nothing_behind(shim: c.CDLL, daemon: FakeDaemon) -> None:
    """Before the channel comes, with it, and after it: no VM, no descriptor, and room for the next one."""

    def calm() -> bool:
        return len(daemon.tenant("alpha")["plugins"][0]["vms"]) == 1

    before = descriptors(daemon.process.pid)
    worker = descriptors(daemon.worker_pid("alpha"))
    for pause_s in [0, 0.001, 0.003, 0.01, 0.03] * 6:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(daemon.runtime / "attach.sock"))
            sock.send(encode_attach("alpha", "main"))
            time.sleep(pause_s)
    wait_for(calm, 20, "the VMs are gone")
    status, channel, error = attach(shim, options(daemon))
    assert status == "OK", error.text
    assert (b"x-wasm-processed", b"Yes") in channel.added()
    channel.close()
    wait_for(calm, 20, "the VM is gone")
    wait_for(lambda: descriptors(daemon.process.pid) <= before + 2, 5, "the daemon's descriptors are closed")
    wait_for(lambda: descriptors(daemon.worker_pid("alpha")) <= worker, 5, "the worker's descriptors are closed")


def test_a_daemon_that_comes_back_gives_channels_again(shim: c.CDLL, daemon: FakeDaemon, artefact_cache: Path) -> None:
    """Killed, so that its socket is still there; the next one takes it over."""
    status, channel, _ = attach(shim, options(daemon))
    assert status == "OK"
    daemon.process.kill()
    daemon.process.wait(10)
    wait_for(lambda: channel.check() == "DETACHED", 5, "detached")
    channel.close()
    again = FakeDaemon(daemon.directory, artefact_cache, fronts=1, more=JAIL + "attach: {channels: 2}\n")
    try:
        again.wait_ready()
        status, channel, error = attach(shim, options(again))
        assert status == "OK", error.text
        assert (b"x-wasm-processed", b"Yes") in channel.added()
        channel.close()
    finally:
        again.stop()


def test_a_tenant_that_goes_takes_its_channels_along(shim: c.CDLL, daemon: FakeDaemon) -> None:
    status, channel, _ = attach(shim, options(daemon))
    assert status == "OK"
    (daemon.policies / "a.yaml").unlink()
    daemon.reload()
    wait_for(lambda: channel.check() in ("DRAIN", "DETACHED"), 10, "told")
    channel.close()
    status, _, error = attach(shim, options(daemon))
    assert (status, error.code) == ("REFUSED", RefusalCode.UNKNOWN)
    assert error.text == b"no such tenant or plugin"


def test_of_several_plugins_one_has_to_be_named(shim: c.CDLL, daemon: FakeDaemon) -> None:
    text = policy_text("alpha", ADD_HEADER) + "".join(
        policy_text("alpha", ADD_HEADER, name="second").splitlines(keepends=True)[2:]
    )
    (daemon.policies / "a.yaml").write_text(text)
    daemon.reload()
    status, _, error = attach(shim, options(daemon))
    assert (status, error.code) == ("REFUSED", RefusalCode.UNKNOWN)
    assert error.text == b"several plugins: name one"
    status, channel, error = attach(shim, options(daemon, plugin="second"))
    assert status == "OK", error.text
    channel.close()


@pytest.mark.parametrize(("tenant", "plugin"), [("nobody", ""), ("alpha", "other"), ("x" * 255, "y" * 255)])
def test_what_no_policy_knows_is_refused(shim: c.CDLL, lasting: FakeDaemon, tenant: str, plugin: str) -> None:
    status, _, error = attach(shim, options(lasting, tenant, plugin))
    assert (status, error.code) == ("REFUSED", RefusalCode.UNKNOWN)


def test_channels_are_counted(shim: c.CDLL, daemon: FakeDaemon) -> None:
    channels = [attach(shim, options(daemon))[1] for _ in range(2)]
    status, _, error = attach(shim, options(daemon))
    assert (status, error.code) == ("REFUSED", RefusalCode.LIMIT)
    for channel in channels:
        channel.close()
    wait_for(lambda: len(daemon.tenant("alpha")["plugins"][0]["vms"]) == 1, 5, "the VMs are gone")
    status, channel, error = attach(shim, options(daemon))
    assert status == "OK", error.text
    channel.close()


def test_another_user_may_not_attach(shim: c.CDLL, short_path: Path, artefact_cache: Path) -> None:
    policies = {"a": policy_text("alpha", ADD_HEADER)}
    more = JAIL + "attach: {uids: [4242]}\n"
    with fake_daemon(short_path, artefact_cache, policies, fronts=1, more=more) as daemon:
        status, _, error = attach(shim, options(daemon))
        assert (status, error.code) == ("REFUSED", RefusalCode.FORBIDDEN)


ATTACH_AS_SOMEBODY = """
import os, socket, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.settimeout(5)
    sock.connect(sys.argv[1])
    answer = sock.recv(4096)
    print(int.from_bytes(answer[6:8], "little"), int.from_bytes(answer[16:20], "little"), answer[20:].decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_it_is_is_the_kernels_word(lasting: FakeDaemon) -> None:
    """A process of another user reaches the socket, which is open to all, and no further; it has not even to ask."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ATTACH_AS_SOMEBODY, str(lasting.runtime / "attach.sock")],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.stdout.split(maxsplit=2) == [
        str(int(FrameType.REFUSED)), str(int(RefusalCode.FORBIDDEN)), "this user may not attach\n"
    ], done.stderr  # fmt: skip


def test_a_socket_of_another_user_is_not_trusted(shim: c.CDLL, lasting: FakeDaemon) -> None:
    status, _, error = attach(shim, options(lasting, uid=os.geteuid() + 1))
    assert status == "PROTOCOL"
    assert b"belongs to user" in error.text


@pytest.mark.parametrize(
    "frame",
    [
        b"x", b"SBXA" + bytes(12), encode_attach("alpha", "main")[:-1], encode_broken("lies"),
        encode_attach("alpha", "main") + b"x", bytes(70_000),
        encode_attach("\0", "")[:-1] + b"\xff",
    ],
    ids=["short", "head", "cut", "broken_without_channel", "longer", "huge", "not_utf8"],
)  # fmt: skip
def test_the_daemon_survives_malformed_frames(shim: c.CDLL, lasting: FakeDaemon, frame: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(5)
        sock.connect(str(lasting.runtime / "attach.sock"))
        sock.send(frame)
        answer = sock.recv(4096)
        assert answer[:4] == b"SBXA"
        assert int.from_bytes(answer[6:8], "little") == FrameType.REFUSED
        assert sock.recv(4096) == b""
    status, channel, error = attach(shim, options(lasting))
    assert status == "OK", error.text
    channel.close()


def test_a_client_that_reports_a_broken_channel_ends_the_worker(shim: c.CDLL, daemon: FakeDaemon) -> None:
    pid = daemon.worker_pid("alpha")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        sock.connect(str(daemon.runtime / "attach.sock"))
        sock.send(encode_attach("alpha", "main"))
        data, fds, _, _ = socket.recv_fds(sock, 4096, 4)
        assert int.from_bytes(data[6:8], "little") == FrameType.ATTACHED
        assert len(fds) == 4
        for fd in fds:
            os.close(fd)
        sock.send(encode_broken("it lies"))
        data = sock.recv(4096)
        assert int.from_bytes(data[6:8], "little") == FrameType.DETACHED
    wait_for(lambda: runs_as_another(daemon, pid), 20, "new worker")


# --- a daemon that lies ---------------------------------------------------------------------------


def liar(short_path: Path) -> tuple[socket.socket, c_client.AttachOptions]:
    path = short_path / "liar.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(1)
    return listener, c_client.AttachOptions(str(path).encode(), b"t", b"p", 0xFFFFFFFF, 0)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"", "DETACHED"), (b"junk", "PROTOCOL"), (wire.attached(65536, 0, 1), "PROTOCOL"),
        (wire.down("no policy with it"), "PROTOCOL"), (wire.detached("already"), "PROTOCOL"),
        (wire.refused(RefusalCode.LIMIT, "full\n\x1b[31m"), "REFUSED"), (bytes(5000), "PROTOCOL"),
    ],
)  # fmt: skip
def test_answers_are_checked(shim: c.CDLL, short_path: Path, answer: bytes, status: str) -> None:
    listener, given = liar(short_path)
    attachment, error, handle = c.c_void_p(), c_client.Error(), c.c_void_p()
    with listener:
        assert shim.sbx_attach_begin(c.byref(given), c.byref(attachment), c.byref(error)) == 0
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(4096) == encode_attach("t", "p")
            if answer:
                peer.send(answer)
        select.select([shim.sbx_attachment_fd(attachment)], [], [], 5)
        found = shim.sbx_attach_step(attachment, c.byref(handle), c.byref(error))
    assert c_client.NAMES[found] == status
    assert error.text.isascii()
    assert b"\x1b" not in error.text
    assert not handle.value


def test_an_unsealed_policy_or_channel_is_refused(shim: c.CDLL, short_path: Path) -> None:
    fds = [os.memfd_create(name, os.MFD_ALLOW_SEALING) for name in "abcd"]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for count in (1, 3, 4):
        (short_path / "liar.sock").unlink(missing_ok=True)
        listener, given = liar(short_path)
        attachment, error, handle = c.c_void_p(), c_client.Error(), c.c_void_p()
        with listener:
            assert shim.sbx_attach_begin(c.byref(given), c.byref(attachment), c.byref(error)) == 0
            peer, _ = listener.accept()
            with peer:
                socket.send_fds(peer, [wire.attached(65536, 0, 1)], fds[:count])
                select.select([shim.sbx_attachment_fd(attachment)], [], [], 5)
                assert c_client.NAMES[shim.sbx_attach_step(attachment, c.byref(handle), c.byref(error))] == "PROTOCOL"
    assert len(list(Path("/proc/self/fd").iterdir())) == before  # what was received is closed
    for fd in fds:
        os.close(fd)
