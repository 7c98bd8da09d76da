"""TCP connections of a Python program, over a channel to a real VM."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandboxd import client, limits
from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import Effect
from sandboxd.channel.errors import ChannelBroken
from sandboxd.client import compiled
from sandboxd.client.tcp import AsyncConnection
from sandboxd.client.tcp_exchange import TcpExchange
from sandboxd.errors import PeerError
from sandboxd.policy.capabilities import needs
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.failure import Cause
from sandboxd.policy.write_rules import Reason
from tests.client.plugins import MORE, policy
from tests.support.daemon_client import FakeDaemon, fake_daemon
from tests.support.front_rig import policy as plugin_policy
from tests.support.guests import C_ADD_HEADER, tcp_probe

BEHAVIOURS = ("pass", "upper", "whole-lines", "resume-down", "close-new", "close-down", "trap", "address")


@pytest.fixture(scope="module")
def tcp_daemon(artefact_cache: Path) -> Iterator[FakeDaemon]:
    """A daemon with the probe in several behaviours, and a plugin for HTTP alone."""
    shown = {"properties": {"source.address": "show"}}
    plugins = [tcp_probe(name).plugin(redact=shown) for name in BEHAVIOURS]
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        Path(directory).chmod(0o755)
        policies = {"acme": policy("acme", *plugins, C_ADD_HEADER.plugin())}
        with fake_daemon(Path(directory), artefact_cache, policies, fronts=1, more=MORE) as running:
            yield running


async def session(daemon: FakeDaemon, behaviour: str) -> client.AsyncSession:
    """Attach to a probe."""
    return await client.connect_async(daemon.runtime / "attach.sock", "acme", f"tcp-{behaviour}")


async def test_both_directions_and_their_ends(tcp_daemon: FakeDaemon) -> None:
    """Edited by the plugin."""
    async with await session(tcp_daemon, "upper") as channel:
        connection, begun = await channel.open_connection()
        down = await connection.downstream_data(b"hello", True)
        up = await connection.upstream_data(b"answer")
        last = await connection.upstream_data(b"", True)
        await connection.upstream_closed()
        over = await connection.downstream_closed(2)
        connection.close()

    assert (begun.closed, begun.failure) == (False, None)
    assert (down.downstream, down.downstream_ended, down.upstream) == (b"HELLO", True, b"")
    assert (up.upstream, up.upstream_ended) == (b"ANSWER", False)
    assert last.upstream_ended
    assert over.failure is None


async def test_a_pause_and_what_frees_it(tcp_daemon: FakeDaemon) -> None:
    """More bytes of its direction, or something of the other."""
    async with await session(tcp_daemon, "whole-lines") as channel:
        connection, _ = await channel.open_connection()
        first = await connection.downstream_data(b"half ")
        second = await connection.downstream_data(b"line\n")
        connection.close()
    async with await session(tcp_daemon, "resume-down") as channel:
        connection, _ = await channel.open_connection()
        await connection.downstream_data(b"a")
        held = await connection.downstream_data(b"b")
        freed = await connection.upstream_data(b"x")
        connection.close()

    assert (first.downstream, first.paused) == (b"", True)
    assert (second.downstream, second.paused) == (b"half line\n", False)
    assert held.paused
    assert (freed.upstream, freed.downstream, freed.paused) == (b"x", b"b", False)


async def test_closing_and_failing(tcp_daemon: FakeDaemon) -> None:
    """At the connection's beginning, with its bytes, and by a trap."""
    async with await session(tcp_daemon, "close-new") as channel:
        connection, begun = await channel.open_connection()
        assert (begun.closed, begun.reset) == (True, False)
        with pytest.raises(PeerError):
            await connection.downstream_data(b"x")
    async with await session(tcp_daemon, "close-down") as channel:
        connection, _ = await channel.open_connection()
        closed = await connection.downstream_data(b"close")
        assert (closed.closed, closed.downstream) == (True, b"")
    async with await session(tcp_daemon, "trap") as channel:
        connection, _ = await channel.open_connection()
        failed = await connection.downstream_data(b"trap")
        assert (failed.reset, failed.closed, failed.failure) == (True, False, Cause.TRAP)


def test_without_a_loop(tcp_daemon: FakeDaemon) -> None:
    """The same for synchronous programs."""
    with client.connect(tcp_daemon.runtime / "attach.sock", "acme", "tcp-resume-down") as channel:
        connection, begun = channel.open_connection()
        first = connection.downstream_data(b"a")
        held = connection.downstream_data(b"b", True)
        nothing = connection.freed(0.01)
        freed = connection.upstream_data(b"x")
        over = connection.upstream_closed(2)
        connection.downstream_closed()
        connection.close()

    assert (begun.failure, first.downstream, held.paused, nothing) == (None, b"a", True, None)
    assert (freed.downstream, freed.downstream_ended, freed.upstream, over.failure) == (b"b", True, b"x", None)


async def test_attributes(tcp_daemon: FakeDaemon) -> None:
    """What the policy shows."""
    async with await session(tcp_daemon, "address") as channel:
        connection, _ = await channel.open_connection({"source.address": "10.1.2.3:4"})
        up = await connection.upstream_data(b"x")
        connection.close()

    assert up.upstream == b"10.1.2.3:4\nx"


async def test_a_plugin_without_callbacks_is_not_asked(tcp_daemon: FakeDaemon) -> None:
    """All passes."""
    async with await client.connect_async(tcp_daemon.runtime / "attach.sock", "acme", "c-add-header") as channel:
        connection, begun = await channel.open_connection()
        down = await connection.downstream_data(b"x")
        connection.close()

    assert (begun.bypassed, down.downstream) == (True, b"x")


async def test_many_connections_at_a_time(tcp_daemon: FakeDaemon) -> None:
    """Each has its own bytes."""
    async with await session(tcp_daemon, "upper") as channel:

        async def one(number: int) -> bytes:
            connection, _ = await channel.open_connection()
            got = b"".join([(await connection.downstream_data(b"c%d," % number)).downstream for _ in range(5)])
            connection.close()
            return got

        found = await asyncio.gather(*map(one, range(40)))

    assert found == [b"C%d," % number * 5 for number in range(40)]


# --- the pure half, against a worker that lies ---


def made(extra: str = "", functions: tuple[str, ...] = ("proxy_get_buffer_bytes",)) -> TcpExchange:
    """A connection of a plugin with all callbacks, as the client knows its policy."""
    asked = plugin_policy(extra)
    callbacks = [name for name in asked.capabilities if name.startswith("proxy_on_")]
    found = needs(asked.capabilities & {*functions, *callbacks}, callbacks)
    return TcpExchange(compiled.parse(compile_policy("acme", asked, found, bytes(32))))


def effect(kind: int, payload: bytes = b"", flags: int = 0, arg: int = 0) -> Effect:
    return Effect(kind, flags, 1, 1, arg, payload)


DOWN, UP = layout.DOWNSTREAM_DATA, layout.UPSTREAM_DATA


def test_what_it_cannot_read_is_zeros_and_the_true_bytes_go_on() -> None:
    """Whatever the worker says."""
    exchange = made(functions=())
    ask = exchange.data(exchange.downstream, b"secret", False)
    assert ask is not None
    assert ask.payload == bytes(6)
    exchange.answer([effect(DOWN, b"forged")], 0)

    assert exchange.outcome().downstream == b"secret"


def test_writes_that_the_policy_forbids() -> None:
    """It is shown the bytes and may not change them."""
    exchange = made("write: {body: false}")
    ask = exchange.data(exchange.upstream, b"true", False)
    assert ask is not None
    assert ask.payload == b"true"
    exchange.answer([effect(UP, b"forged")], 0)

    assert exchange.outcome().upstream == b"true"


@pytest.mark.parametrize(
    "forged",
    [effect(DOWN, b"x", layout.FLAG_END_OF_STREAM), effect(layout.CLEAR_ROUTE_CACHE), effect(layout.REQUEST_BODY)],
)
def test_forged_effects(forged: Effect) -> None:
    """Are a broken channel."""
    exchange = made()
    exchange.data(exchange.downstream, b"x", False)
    with pytest.raises(ChannelBroken):
        exchange.answer([forged], 0)


def test_failing_open_needs_all_bytes() -> None:
    """What the VM held is gone with it."""
    exchange = made("failure: {policy: open}")
    exchange.data(exchange.downstream, b"a", False)
    exchange.fail(Cause.TRAP)
    assert exchange.outcome().downstream == b"a"
    exchange = made("failure: {policy: open}")
    exchange.data(exchange.downstream, b"a", False)
    exchange.answer([], layout.STATE_REQUEST_PAUSED)
    exchange.data(exchange.downstream, b"b", False)
    exchange.fail(Cause.TRAP)

    assert exchange.outcome().reset


@pytest.mark.parametrize("functions", [(), ("proxy_get_buffer_bytes",)])
def test_late_bytes_are_not_those_of_an_event_without_a_verdict(functions: tuple[str, ...]) -> None:
    """The plugin has yet to see them: they stay, and failing open still has them."""
    exchange = made("failure: {policy: open}", functions)
    exchange.data(exchange.downstream, b"old", False)
    exchange.answer([], layout.STATE_REQUEST_PAUSED)
    exchange.data(exchange.downstream, b"new", False)
    exchange.late([effect(DOWN, b"old")])
    assert exchange.outcome().downstream == b"old"
    exchange.fail(Cause.TRAP)

    out = exchange.outcome()
    assert (out.downstream, out.bypassed) == (b"new", True)


def test_what_is_kept_is_bounded() -> None:
    """More than the policy's buffer is no connection any more."""
    exchange = made("limits: {body_buffer: 64KiB}", functions=())
    exchange.data(exchange.downstream, bytes(40_000), False)
    exchange.answer([], layout.STATE_REQUEST_PAUSED)

    assert exchange.data(exchange.downstream, bytes(40_000), False) is None
    assert exchange.outcome().reset


@pytest.mark.parametrize("size", [0, 40_000])
def test_what_a_program_has_not_fetched_is_bounded(size: int) -> None:
    """The worker frees bytes that were never held, again and again, while the program is busy with a slow peer."""
    exchange = made("limits: {body_buffer: 64KiB}")
    most = exchange.policy.event_limits.max_bytes
    for _ in range(most // 40_000 + 2):
        exchange.late([effect(DOWN, bytes(size))])
    pending = exchange.downstream._out

    assert sum(map(len, pending)) <= most
    assert len(pending) <= most // 40_000
    assert exchange.finished == (size > 0)
    assert exchange.outcome().reset == (size > 0)


def test_properties_that_a_program_has_not_fetched_are_bounded() -> None:
    """As in one event."""
    exchange = made()
    for number in range(limits.MAX_WRITTEN_PROPERTIES + 1000):
        exchange.late([effect(layout.PROPERTY_SET, pairs.encode([(b"p%d" % number, b"v")]))])
    out = exchange.outcome()

    assert len(out.properties) == limits.MAX_WRITTEN_PROPERTIES
    assert 0 < len(out.refusals) <= limits.MAX_WRITTEN_PROPERTIES
    assert out.refusals[0].reason is Reason.TOO_MANY


async def test_bytes_of_an_event_that_the_program_gave_up_are_not_lost_in_silence() -> None:
    """Nobody can tell any more what went on of them."""

    async def forever(_: int) -> None:
        await asyncio.sleep(60)

    vm = SimpleNamespace(
        open_stream=lambda *_: 1, submit=lambda *_: 1, poll=lambda _: None, wait=forever, close_stream=lambda *_: None
    )
    channel: Any = SimpleNamespace(ready=True, closed=False, vm=vm, streams={})
    connection = AsyncConnection(made().policy, channel, b"")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection.downstream_data(b"x"), 0.01)
    out = await asyncio.wait_for(connection.freed(), 1)

    assert (out.reset, out.failure) == (True, Cause.TIMEOUT)
    assert not channel.streams
