"""The client against a real daemon, a real worker and real guests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from sandboxd import client
from sandboxd.errors import PeerError
from sandboxd.policy.failure import Cause
from sandboxd.policy.model import FailurePolicy, OnFailure
from tests.client.plugins import policy
from tests.support import guests
from tests.support.daemon_client import FakeDaemon, wait_for

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/x"), (b":authority", b"a"), (b"x-token", b"sesame")]
POST = [(b":method", b"POST"), *GET[1:], (b"content-length", b"7")]
OK = [(b":status", b"200"), (b"content-type", b"text/plain")]
SECRET = (b"authorization", b"Bearer a-secret-5b1")
PROCESSED = (b"x-wasm-processed", b"Yes")


async def test_headers_pass_and_change(attach_socket: Path) -> None:
    async with await client.connect_async(attach_socket, "acme", guests.C_ADD_HEADER.name) as session:
        for _ in range(300):
            stream = await session.open_stream({"request.id": "1"})
            request = await stream.request_headers([*GET, SECRET], True)
            response = await stream.response_headers(OK, True)
            stream.close()
            assert request.headers is not None
            assert response.headers is not None
            assert PROCESSED in request.headers
            assert SECRET in request.headers
            assert PROCESSED in response.headers
            assert request.ended
            assert not request.paused


def test_the_synchronous_session_does_the_same(attach_socket: Path, daemon: FakeDaemon) -> None:
    with client.connect(attach_socket, "acme", guests.C_ADD_HEADER.name, daemon_uid=os.geteuid()) as session:
        for _ in range(300):
            stream = session.open_stream()
            assert PROCESSED in (stream.request_headers(GET, True).headers or [])
            assert stream.response_headers(OK).headers
            assert stream.response_body(b"abc", True).body == b"abc"
            stream.close()
        assert session.problem is None


def test_a_local_response_ends_the_exchange(attach_socket: Path) -> None:
    with client.connect(attach_socket, "acme", guests.TOKEN_GATE.name) as session:
        stream = session.open_stream()
        outcome = stream.request_headers(GET[:4])
        assert outcome.local_response is not None
        assert outcome.local_response.status == 403
        assert b"Access forbidden" in outcome.local_response.body
        assert outcome.over
        assert outcome.headers is None
        with pytest.raises(PeerError, match="REQUEST_BODY after the exchange was answered"):
            stream.request_body(b"x")
        stream.close()


def test_a_paused_body_is_changed_as_a_whole(attach_socket: Path) -> None:
    with client.connect(attach_socket, "acme", guests.HTTP_BODY_REQUEST.name) as session:
        stream = session.open_stream()
        first = stream.request_headers(POST)
        second = stream.request_body(b"a sec")
        assert second.paused
        assert second.body == b""
        last = stream.request_body(b"ret", True)
        assert (first.body + last.body).startswith(b"Original message body (8 bytes) redacted.")
        assert last.ended
        stream.close()


def test_write_rules_hold(attach_socket: Path) -> None:
    with client.connect(attach_socket, "strict", guests.C_ADD_HEADER.name) as session:
        outcome = session.open_stream().request_headers(GET, True)
        assert outcome.headers == GET
        assert [refusal.reason.value for refusal in outcome.refusals] == ["denied_by_policy"]
    with client.connect(attach_socket, "strict", guests.HTTP_BODY_RESPONSE.name) as session:
        stream = session.open_stream()
        stream.request_headers(GET, True)
        stream.response_headers(OK)
        assert stream.response_body(b"a sec").body == b""
        last = stream.response_body(b"ret", True)
        assert (last.body, last.ended) == (b"a secret", True)
        assert [refusal.name for refusal in last.refusals] == ["body"]
    with client.connect(attach_socket, "strict", guests.TOKEN_GATE.name) as session:
        response = session.open_stream().request_headers(GET[:4]).local_response
        assert response is not None
        assert (response.status, response.body) == (500, b"")


def test_what_is_hidden_is_not_seen_and_still_goes_on(attach_socket: Path) -> None:
    with client.connect(attach_socket, "acme", guests.TOKEN_GATE.name) as session:
        headers = session.open_stream().request_headers([*GET, SECRET]).headers
        assert headers is not None
        assert (b"x-saw-authorization", b"no") in headers
        assert SECRET in headers


def test_every_mode_of_redaction(attach_socket: Path) -> None:
    probe = [(b"x-probe", b"request-get,request-whole"), (b"x-in", b"private"), (b"x-in-empty", b"secret"), SECRET]
    with client.connect(attach_socket, "probing") as session:
        stream = session.open_stream()
        request = stream.request_headers([*GET, *probe], True).headers
        response = stream.response_headers(OK, True).headers
        assert request is not None
        assert response is not None
        assert (b"x-whole", b"1") in request
        assert SECRET in request
        assert (b":path", b"/x") in request
        result = dict(response)[b"x-probe-result-request-get"]
        assert result.split(b"|") == [b"***", b"***", b"none", b"present"]


def test_logs_reach_the_sink_as_one_line_each(attach_socket: Path) -> None:
    lines: list[str] = []
    with client.connect(
        attach_socket, "acme", guests.HTTP_HEADERS.name, log=lambda _, text: lines.append(text)
    ) as session:
        stream = session.open_stream()
        stream.request_headers([*GET, (b"x-a", b"1\x1b[2J\r\n2"), SECRET], True)
        stream.close()
    assert any("-> x-a:" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert not any("a-secret" in line for line in lines)


@pytest.mark.parametrize("tenant", ["closed", "open"])
def test_a_trap_is_answered_by_the_failure_policy(attach_socket: Path, tenant: str) -> None:
    """What failed open loses no byte, not even those that the plugin never saw; the next VM serves."""
    with client.connect(attach_socket, tenant, guests.misdeed("trap_in_request_body").name) as session:
        for _ in range(2):
            session.attach(10)
            stream = session.open_stream()
            assert stream.request_headers(POST).headers == POST
            outcome = stream.request_body(b"1234567", True)
            assert outcome.failure is Cause.TRAP
            if tenant == "open":
                assert (outcome.body, outcome.ended, outcome.bypassed) == (b"1234567", True, True)
                assert stream.response_headers(OK, True).headers == OK
            else:
                assert outcome.local_response is not None
                assert outcome.local_response.status == 555
            stream.close()


@pytest.mark.parametrize("tenant", ["closed", "open"])
def test_a_pause_without_end_is_a_timeout(attach_socket: Path, tenant: str) -> None:
    with client.connect(attach_socket, tenant, guests.misdeed("pause_forever").name) as session:
        stream = session.open_stream()
        started = time.monotonic()
        outcome = stream.request_headers(GET, True)
        assert 0.9 < time.monotonic() - started < 4
        assert outcome.failure is Cause.TIMEOUT
        if tenant == "open":
            assert outcome.headers == GET
        else:
            assert outcome.local_response is not None
            assert outcome.local_response.status == 504
        stream.close()


# --- attaching ---


@pytest.mark.parametrize(
    ("tenant", "plugin", "words"),
    [("nobody", "", "nobody.*no such tenant"), ("acme", "absent", "acme/absent"), ("acme", "", "several plugins")],
)
def test_refusals_name_what_is_wrong(attach_socket: Path, tenant: str, plugin: str, words: str) -> None:
    with pytest.raises(client.AttachRefused, match=words) as caught:
        client.connect(attach_socket, tenant, plugin)
    assert caught.value.code == 1


def test_no_daemon_and_a_strange_daemon(attach_socket: Path, tmp_path: Path) -> None:
    with pytest.raises(client.DaemonAway, match=r"none\.sock: No such file"):
        client.connect(tmp_path / "none.sock", "acme", timeout_s=0.3)
    with pytest.raises(PeerError, match=f"belongs to user {os.geteuid()}, not 4242"):
        client.connect(attach_socket, "acme", guests.C_ADD_HEADER.name, daemon_uid=4242, timeout_s=0.3)


async def test_an_unknown_plugin_never_fails_open(attach_socket: Path) -> None:
    address = client.Address(attach_socket, "nobody")
    async with client.AsyncSession(address, fallback=FailurePolicy(OnFailure.OPEN)) as session:
        outcome = await (await session.open_stream()).request_headers(GET)
        assert outcome.failure is Cause.UNKNOWN_PLUGIN
        assert outcome.local_response is not None


def served(session: client.Session) -> bool:
    """Whether a request is filtered."""
    stream = session.open_stream()
    outcome = stream.request_headers(GET, True)
    stream.close()
    return PROCESSED in (outcome.headers or [])


def test_a_killed_worker_is_attached_again(own_daemon: FakeDaemon) -> None:
    """An event that is with the worker is answered; later streams find the next worker."""
    with client.connect(own_daemon.runtime / "attach.sock", "acme") as session:
        assert served(session)
        stream = session.open_stream()
        stream.request_headers(GET)
        os.kill(own_daemon.worker_pid("acme"), signal.SIGKILL)
        wait_for(lambda: session.problem is not None, 5, "the loss is known")
        lost = stream.response_headers(OK, True)
        assert lost.failure in (Cause.WORKER_GONE, Cause.VM_DOWN)
        assert lost.local_response is not None
        assert lost.local_response.status == 503
        session.attach(20)
        assert served(session)


def test_a_reload_drains_the_old_channel(own_daemon: FakeDaemon) -> None:
    """A stream that is open ends on the version that it began with; new ones get the new version."""
    with client.connect(own_daemon.runtime / "attach.sock", "acme") as session:
        old = session.open_stream()
        old.request_headers(GET)
        changed = policy("acme", guests.C_ADD_HEADER.plugin(write={"deny_headers": ["x-wasm-processed"]}))
        (own_daemon.policies / "acme.yaml").write_text(changed)
        assert own_daemon.reload()
        wait_for(lambda: not served(session), 20, "the new version serves")
        response = old.response_headers(OK, True)
        assert PROCESSED in (response.headers or [])
        old.close()
        assert session.open_stream().request_headers(GET).headers == GET


def test_a_dead_daemon_is_found_again(own_daemon: FakeDaemon, artefact_cache: Path) -> None:
    fallback = FailurePolicy(OnFailure.OPEN)
    path = own_daemon.runtime / "attach.sock"
    with client.connect(path, "acme", fallback=fallback) as session:
        assert served(session)
        own_daemon.process.kill()
        own_daemon.process.wait()
        wait_for(lambda: session.problem is not None, 5, "the loss is known")
        outcome = session.open_stream().request_headers(GET)
        assert (outcome.headers, outcome.bypassed, outcome.failure) == (GET, True, Cause.VM_DOWN)
        again = FakeDaemon(own_daemon.directory, artefact_cache, fronts=1, more="attach: {channels: 4}\n")
        try:
            again.wait_ready()
            session.attach(20)
            assert served(session)
        finally:
            again.stop()
