"""The broker as the supervisor uses it: calls by their tenant's rules, bounded, and none in the way of another."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import pytest

from sandboxd.channel.pairs import decode
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from tests.support import broker, upstream
from tests.support.broker import CANCEL, grpc_call, grpc_message, http_call, status

pytestmark = pytest.mark.timeout(60)

UNIMPLEMENTED = 12
"""gRPC: the upstream has no such method."""


def stream(method: str) -> control.CalloutRequest:
    return control.CalloutRequest(grpc_stream=grpc_call(method))


async def test_redacted_headers_do_not_come_back(known: upstream.Upstream) -> None:
    callouts = upstream.policy(known, redact_response_headers={"x-hidden": "mask"})
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": callouts})
        headers = decode((await peer.http(http_call("/headers"))).headers)
    assert (b"x-shown", b"yes") in headers
    assert (b"x-hidden", b"***") in headers
    assert b"set-cookie" not in [name for name, _ in headers]


async def test_a_plugin_has_its_own_upstreams_alone(known: upstream.Upstream) -> None:
    """A worker that names another plugin's, another tenant's or nobody's gets a refusal that is counted."""
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known), "q": {"upstreams": {}}})
        peer.rules(2, "other", {"p": {"upstreams": {}}})
        assert (await peer.http(http_call(), plugin="q")).failure == "denied by the policy: upstreams"
        assert (await peer.http(http_call(), worker=2)).failure == "denied by the policy: upstreams"
        assert (await peer.http(http_call(), plugin="unknown")).failure == "denied by the policy: upstreams"
        assert status(await peer.http(http_call())) == b"200"
        counters = await peer.counters()
    assert counters["acme/q"] == {"(unknown)": {"denied.upstreams": 1}}
    assert counters["acme/p"]["web"]["answered"] == 1


async def test_concurrency_is_the_policys(known: upstream.Upstream) -> None:
    callouts = upstream.policy(known, concurrency=2)
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": callouts})
        slow = [peer.begin(control.CalloutRequest(http_call=http_call("/slow/300"))) for _ in range(2)]
        assert (await peer.http(http_call())).failure == "denied by the policy: concurrency"
        for key in slow:
            reply = await peer.reply(key)
            assert reply is not None
            assert status(reply.http) == b"200"
        assert status(await peer.http(http_call())) == b"200"


async def test_rate_is_the_policys(known: upstream.Upstream) -> None:
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known, rate=3)})
        replies = [await peer.http(http_call()) for _ in range(4)]
    assert [reply.failure for reply in replies] == ["", "", "", "denied by the policy: rate"]


async def test_slow_upstreams_of_one_tenant_do_not_hold_up_another(known: upstream.Upstream) -> None:
    """Slow-loris, endless and silent ones, as many as may be; the neighbour's calls are as fast as before."""
    bad = {**upstream.policy(known, concurrency=200, timeout="5s", response_bytes="8MiB"), "concurrency": 400}
    async with broker.running() as peer:
        peer.rules(1, "bad", {"p": bad})
        peer.rules(2, "good", {"p": upstream.policy(known)})
        for path in ("/stuck", "/drip", "/slow/4000"):
            for _ in range(50):
                peer.begin(control.CalloutRequest(http_call=http_call(path)))
        await asyncio.sleep(0.3)
        started = time.monotonic()
        for _ in range(20):
            assert status(await peer.http(http_call(), worker=2)) == b"200"
        assert time.monotonic() - started < 3


async def test_memory_of_one_tenant_is_bounded(known: upstream.Upstream) -> None:
    """Responses that nobody takes wait, and count; past the tenant's budget its calls fail, and nobody else's."""
    bad = {**upstream.policy(known, concurrency=64, response_bytes="8MiB", timeout="20s"), "concurrency": 64}
    async with broker.running() as peer:
        peer.takes = False
        peer.rules(1, "bad", {"p": bad})
        peer.rules(2, "good", {"p": upstream.policy(known)})
        keys = [peer.begin(control.CalloutRequest(http_call=http_call("/big/8000000"))) for _ in range(12)]
        counters: dict[str, Any] = {}
        for _ in range(100):
            counters = (await peer.counters()).get("bad/p", {}).get("web", {})
            if counters.get("denied.memory"):
                break
            await asyncio.sleep(0.1)
        assert counters.get("denied.memory", 0) >= 1
        assert peer.received_bytes[1] <= 512 * 1024
        assert status(await peer.http(http_call(), worker=2)) == b"200"
        peer.takes = True
        peer.send(taken=control.EgressTaken(worker_id=1, bytes=peer.received_bytes[1]))
        replies = [await peer.reply(key, 30) for key in keys]
        sizes = [len(reply.http.body) for reply in replies if reply is not None and not reply.http.failure]
        assert sizes
        assert set(sizes) == {8_000_000}
        assert status(await peer.http(http_call())) == b"200"  # all has been given back


async def test_newer_rules_are_for_newer_calls(known: upstream.Upstream) -> None:
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known)})
        before = peer.begin(control.CalloutRequest(http_call=http_call("/slow/200")))
        narrow = upstream.policy(known)
        narrow["upstreams"]["web"]["paths"] = ["/status/*"]
        peer.rules(1, "acme", {"p": narrow})
        assert (await peer.http(http_call("/slow/200"))).failure == "denied by the policy: paths"
        assert status(await peer.http(http_call("/status/204"))) == b"204"
        reply = await peer.reply(before)
        assert reply is not None
        assert status(reply.http) == b"200"


# --- gRPC ---


async def until_closed(peer: broker.Peer, key: tuple[int, int, int]) -> list[control.CalloutReply]:
    """Return the replies of a stream, the last of which says that it is closed."""
    replies: list[control.CalloutReply] = []
    while not replies or replies[-1].WhichOneof("reply") != "closed":
        reply = await peer.reply(key)
        assert reply is not None
        replies.append(reply)
    return replies


async def test_a_stream_both_ways(known: upstream.Upstream) -> None:
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known)})
        key = peer.begin(stream("Stream"))
        for number in range(3):
            peer.more(key, grpc_message(b"%d" % number, end=number == 2))
        replies = await until_closed(peer, key)
    assert [reply.WhichOneof("reply") for reply in replies] == [
        "initial_metadata",
        *["message"] * 3,
        "trailing_metadata",
        "closed",
    ]
    assert [reply.message.message for reply in replies[1:4]] == [b"echo:0", b"echo:1", b"echo:2"]
    assert (b"x-trailing", b"two") in decode(replies[4].trailing_metadata.metadata)
    assert replies[-1].closed.status == 0


async def test_a_stream_that_ends_while_a_message_is_under_way_says_what_its_upstream_said(
    known: upstream.Upstream,
) -> None:
    """Which of the two comes first differs from one to the next."""
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known)})
        ends = []
        for _ in range(200):
            key = peer.begin(stream("Nothing"))
            peer.more(key, grpc_message(b"one"))
            ends.append((await until_closed(peer, key))[-1].closed)
    assert {end.status for end in ends} == {UNIMPLEMENTED}


async def test_a_stream_that_floods_waits_for_its_vm(known: upstream.Upstream) -> None:
    """An upstream that sends more than is taken fills a window, and no more."""
    async with broker.running() as peer:
        peer.takes = False
        peer.rules(1, "acme", {"p": upstream.policy(known, timeout="20s")})
        peer.begin(stream("Count"))
        peer.more((1, 1, 1), grpc_message(b"1000000"))
        await asyncio.sleep(1)
        assert peer.received_bytes[1] <= 512 * 1024
        assert (await peer.counters())["acme/p"]["rpc"]["response_bytes"] < 4 * 1024 * 1024


@pytest.mark.parametrize("takes", [True, False])
async def test_a_stream_has_so_much_time_and_no_more(
    known: upstream.Upstream, caplog: pytest.LogCaptureFixture, takes: bool
) -> None:
    """However much moves on it, and even while its plugin reads nothing; its place is free for another call then."""
    callouts = upstream.policy(known, timeout="20s", concurrency=1)
    callouts["upstreams"]["rpc"]["stream_timeout"] = "400ms"
    async with broker.running() as peer:
        peer.takes = takes
        peer.rules(1, "acme", {"p": callouts})
        key = peer.begin(stream("Count"))
        peer.more(key, grpc_message(b"100000000"))
        counters: dict[str, int] = {}
        async with asyncio.timeout(10):
            while not counters.get("failed.stream_timeout"):
                await asyncio.sleep(0.05)
                counters = (await peer.counters())["acme/p"]["rpc"]
        peer.takes = True
        peer.send(taken=control.EgressTaken(worker_id=1, bytes=0 if takes else peer.received_bytes[1]))
        last = await peer.reply(key)
        while last is not None and last.WhichOneof("reply") != "closed":
            last = await peer.reply(key)
        assert last is not None
        assert (last.closed.status, last.closed.message) == (4, "ended by the policy: stream_timeout")
        unary = await peer.reply(peer.begin(control.CalloutRequest(grpc_call=grpc_call("Unary", b"x"))))
        assert unary is not None
        assert unary.WhichOneof("reply") == "message"
    assert counters["calls"] == counters["failed.stream_timeout"] == 1
    assert "tenant acme: plugin p: a stream to rpc is ended by stream_timeout: 0.4 s" in caplog.text


async def test_a_cancelled_stream_ends_at_the_server(known: upstream.Upstream) -> None:
    before = known.cancelled
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known, timeout="20s")})
        key = peer.begin(stream("Stuck"))
        assert (await peer.reply(key)) is not None
        assert (await peer.reply(key)) is not None
        peer.more(key, CANCEL)
        assert await peer.reply(key) is None
        for _ in range(50):
            if known.cancelled > before:
                break
            await asyncio.sleep(0.05)
    assert known.cancelled == before + 1


async def test_a_message_over_the_limit_ends_its_stream(known: upstream.Upstream) -> None:
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known, request_bytes="1KiB")})
        key = peer.begin(stream("Stream"))
        peer.more(key, grpc_message(b"x" * 1000))
        kinds = []
        for _ in range(2):
            reply = await peer.reply(key)
            assert reply is not None
            kinds.append(reply.WhichOneof("reply"))
        assert kinds == ["initial_metadata", "message"]
        peer.more(key, grpc_message(b"x" * 1025))
        reply = await peer.reply(key)
        assert reply is not None
        assert (reply.closed.status, reply.closed.message) == (7, "denied by the policy: request_bytes")


# --- names ---


async def test_a_name_that_rebinds_reaches_nothing(known: upstream.Upstream) -> None:
    """Each look at a name is the one that counts: the address that was judged is what is connected to."""
    looks = iter([["127.0.0.1"], ["127.0.0.1"]])

    async def lookup(host: str, port: int) -> list[str]:
        assert (host, port) == ("rebinding.example", known.port)
        return next(looks)

    known.heads.clear()
    web = {"url": f"http://rebinding.example:{known.port}", "paths": ["/*"]}
    rpc = {"url": f"grpc://rebinding.example:{known.port}", "paths": ["/*"]}
    async with broker.running(lookup) as peer:
        peer.rules(1, "acme", {"p": {"upstreams": {"web": web, "rpc": rpc}}})
        assert (await peer.http(http_call())).failure == "denied by the policy: allow_addresses"
        key = peer.begin(control.CalloutRequest(grpc_call=grpc_call("Unary", b"x")))
        reply = await peer.reply(key)
        assert reply is not None
        assert reply.closed.message == "denied by the policy: allow_addresses"
    assert known.heads == []


async def test_a_slow_name_server_holds_up_nobody_else(known: upstream.Upstream) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        await asyncio.sleep(3600)
        return []

    web = {"url": "http://slow.example", "paths": ["/*"], "timeout": "300ms"}
    async with broker.running(lookup) as peer:
        peer.rules(1, "acme", {"p": {"upstreams": {"web": web}}})
        peer.rules(2, "good", {"p": upstream.policy(known)})
        started = time.monotonic()
        slow = peer.begin(control.CalloutRequest(http_call=http_call()))
        assert status(await peer.http(http_call(), worker=2)) == b"200"
        reply = await peer.reply(slow)
        assert reply is not None
        assert status(reply.http) == b"504"
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("path", "expected", "counter"),
    [
        ("/stuck", b"504", "failed.timeout"),
        ("/reset", b"503", "failed.reset"),
        ("/junk", b"502", "failed.protocol"),
        ("/drip", "reset", "failed.timeout"),
        ("/cut", "reset", "failed.cut"),
    ],
)
async def test_a_failure_is_what_envoy_makes_of_it(
    known: upstream.Upstream, path: str, expected: bytes | str, counter: str
) -> None:
    """Before the headers a status in the upstream's place, after them no response."""
    async with broker.running() as peer:
        peer.rules(1, "acme", {"p": upstream.policy(known, timeout="400ms")})
        reply = await peer.http(http_call(path))
        counters = await peer.counters()
    assert (reply.failure or status(reply)) == expected
    assert counters["acme/p"]["web"][counter] == 1


def test_a_process_of_its_own_says_that_it_is_ready_and_ends_with_its_socket() -> None:
    with frames.Pair() as pair:
        fd = pair.theirs.fileno()
        process = subprocess.Popen([sys.executable, "-m", "sandboxd.egress", str(fd)], pass_fds=(fd,))
    try:
        pair.ours.settimeout(30)
        assert control.FromEgress.FromString(frames.receive_plain(pair.ours)).WhichOneof("frame") == "ready"
        pair.ours.close()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
