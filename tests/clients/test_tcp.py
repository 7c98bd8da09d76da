"""TCP connections of the C client: against a scripted VM, beside the Python client, and with a real worker."""

from __future__ import annotations

import ctypes as c
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import EventLimits, Verdict
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.intake import Intake
from sandboxd.channel.memfd import ChannelFds, create_channel
from sandboxd.channel.ring import Record
from sandboxd.client import compiled
from sandboxd.client.tcp_exchange import TcpExchange, TcpOutcome
from sandboxd.policy import capabilities, capability_names
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.failure import Cause
from sandboxd.policy.model import ModuleRef, PluginPolicy
from sandboxd.supervisor.local import LocalSandbox
from tests.support.c_client import NAMES, CChannel, effects_of
from tests.support.c_tcp import BYPASS, CLOSE, CONTINUE, PAUSE, RESET, CConnection, Outcome
from tests.support.fake_vm import Event, FakeVm, pass_through
from tests.support.front_rig import policy as plugin_policy
from tests.support.guests import C_TCP_FLOW, Guest, tcp_probe

DOWN, UP = layout.DOWNSTREAM_DATA, layout.UPSTREAM_DATA
END, AS_SUBMITTED = layout.FLAG_END_OF_STREAM, layout.FLAG_AS_SUBMITTED
DOWN_HELD = layout.STATE_REQUEST_PAUSED
PROTOCOL, TIMEOUT, TRAP = 7, 2, 0
"""``enum sbx_cause``."""
CAUSES = {
    Cause.TRAP: TRAP, Cause.TIMEOUT: TIMEOUT, Cause.VM_DOWN: 4, Cause.LIMIT: 6, Cause.PROTOCOL: PROTOCOL,
}  # fmt: skip
POLICIES = ("", "write: {body: false}", "failure: {policy: open}", "failure: {policy: open}\nwrite: {body: false}")


def blob(extra: str = "", *, reads: bool = True) -> bytes:
    """A compiled policy of a plugin with all callbacks for TCP."""
    asked = plugin_policy(extra)
    callbacks = capability_names.TCP_CALLBACKS
    functions = {"proxy_get_buffer_bytes"} if reads else set()
    needs = capabilities.needs(asked.capabilities & {*functions, *callbacks}, callbacks)
    return compile_policy("acme", asked, needs, bytes(32))


class Rig:
    """A channel with the C client on one end and a fake VM, moved by hand, on the other."""

    def __init__(self, lib: c.CDLL, policy: bytes) -> None:
        self.lib = lib
        self.fds: ChannelFds = create_channel(65536)
        self.vm = FakeVm(self.fds)
        self.vm.begin()
        self.channel = CChannel(lib, self.fds, policy, 0)
        assert lib.sbx_ready(self.channel.handle)

    def connect(self, attributes: Iterable[tuple[bytes, bytes]] = ()) -> CConnection:
        connection = CConnection(self.channel, list(attributes))
        assert connection.status == "OK"
        self.vm.poll()
        assert connection.wait(connection.begun).action in (CONTINUE, BYPASS)
        return connection

    def step(self, connection: CConnection, kind: int, data: bytes, records: Any, end: bool = False) -> Outcome:
        """Submit bytes, answer with the given effects, and take."""
        status, event = connection.data(kind, [data], end)
        assert status == "OK", status
        self.vm.answer = lambda asked: records(asked) if asked.kind not in layout.WITHOUT_VERDICT else []
        for _ in range(2):  # large answers do not fit at once
            self.vm.poll()
            if event is not None:
                self.lib.sbx_spin(event)
        return connection.wait(event)

    def close(self) -> None:
        self.channel.close()
        self.vm.stop()
        self.fds.close()


@pytest.fixture
def rigs(shim: c.CDLL) -> Iterator[Any]:
    made: list[Rig] = []

    def make(policy: bytes) -> Rig:
        made.append(Rig(shim, policy))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


# --- one connection ---


def test_both_directions_and_their_ends(rigs: Any) -> None:
    rig = rigs(blob())
    connection = rig.connect([(b"source\0address", b"1.2.3.4:5")])
    down = rig.step(connection, DOWN, b"hello", pass_through, end=True)
    up = rig.step(connection, UP, b"answer", lambda e: [e.effect(UP, b"ANSWER"), e.verdict()])
    status, event = connection.peer_close(layout.UPSTREAM_CLOSE, 2)
    rig.vm.poll()
    over = connection.wait(event)
    connection.close()
    rig.vm.poll()

    assert (down.action, down.downstream, down.downstream_ended, down.upstream) == (CONTINUE, b"hello", True, b"")
    assert (up.upstream, up.upstream_ended, up.downstream) == (b"ANSWER", False, b"")
    assert (status, over.action, over.cause) == ("OK", CONTINUE, None)
    assert [e.kind for e in rig.vm.seen] == [1, 16, 17, 18, 20, 9]
    assert rig.vm.seen[4].payload == b"\2\0\0\0"


def test_what_waits_and_what_is_freed_late(rigs: Any) -> None:
    """Held bytes are freed by another connection's event, and outside any event."""
    rig = rigs(blob())
    first, second = rig.connect(), rig.connect()
    held = rig.step(first, DOWN, b"a", lambda e: [e.verdict(state=DOWN_HELD)])
    rig.step(second, DOWN, b"b", lambda e: [e.effect(DOWN, b"A", stream_id=1), *pass_through(e)])
    freed = first.take()
    rig.step(first, DOWN, b"c", lambda e: [e.verdict(state=DOWN_HELD)])
    rig.vm.emit([(DOWN, 0, 1, 0, 0, b"C")])
    assert NAMES[rig.lib.sbx_next(rig.channel.handle, c.byref(c.c_void_p()))] == "AGAIN"

    assert (held.action, held.downstream) == (PAUSE, b"")
    assert (freed.action, freed.downstream) == (CONTINUE, b"A")
    assert first.take().downstream == b"C"
    assert [(kind, data) for kind, _, _, data in rig.channel.late] == [(DOWN, b""), (DOWN, b"")]


@pytest.mark.parametrize("after", [True, False])
def test_what_an_event_frees_that_nobody_waits_for_any_more(rigs: Any, after: bool) -> None:
    """The program gave it up, before or after it had effects; what it does to another connection counts."""
    rig = rigs(blob())
    first, second = rig.connect(), rig.connect()
    rig.step(first, DOWN, b"a", lambda e: [e.verdict(state=DOWN_HELD)])
    _, event = second.data(DOWN, [b"b"])
    (asked,) = rig.vm.take()
    if not after:
        rig.lib.sbx_event_free(event)
    piece = (DOWN, layout.FLAG_MORE, 1, asked.seq, 0, b"A")
    rig.vm.emit([asked.effect(DOWN, b"B"), asked.effect(layout.LOG, b"log", arg=2), piece])
    assert NAMES[rig.lib.sbx_next(rig.channel.handle, c.byref(c.c_void_p()))] == "AGAIN"
    if after:
        rig.lib.sbx_event_free(event)
    rig.vm.emit([asked.effect(DOWN, b"A", stream_id=1), asked.effect(DOWN, b"B"), asked.verdict()])
    assert NAMES[rig.lib.sbx_next(rig.channel.handle, c.byref(c.c_void_p()))] == "AGAIN"

    freed = first.take()
    assert (freed.action, freed.downstream) == (CONTINUE, b"AA")
    assert second.take().action == RESET


@pytest.mark.parametrize("reads", [True, False])
def test_late_bytes_are_not_those_of_the_event_that_is_with_the_vm(rigs: Any, reads: bool) -> None:
    """The plugin has yet to see them, and may still hold them."""
    rig = rigs(blob(reads=reads))
    connection = rig.connect()
    rig.step(connection, DOWN, b"old", lambda e: [e.verdict(state=DOWN_HELD)])
    _, event = connection.data(DOWN, [b"new"])
    rig.vm.answer = lambda e: [e.verdict(state=DOWN_HELD)]
    rig.vm.emit([(DOWN, 0, 1, 0, 0, b"old")])
    rig.lib.sbx_spin(event)
    before = connection.take()
    rig.vm.poll()
    after = connection.wait(event)

    assert before.downstream == b"old"
    assert (after.action, after.downstream) == (PAUSE, b"")


def test_closing(rigs: Any) -> None:
    """In an orderly way; the VM is told, and nothing more may come."""
    rig = rigs(blob())
    connection = rig.connect()
    closed = rig.step(
        connection, DOWN, b"x", lambda e: [e.effect(DOWN, b"x"), e.effect(layout.CLOSE_STREAM, arg=2), e.verdict()]
    )

    assert (closed.action, closed.downstream, closed.cause) == (CLOSE, b"", None)
    assert connection.data(DOWN, [b"y"])[0] == "INVALID"
    rig.vm.take()
    assert rig.vm.seen[-1].kind == layout.STREAM_CLOSE
    connection.close()
    assert not rig.vm.take()


def test_one_event_at_a_time(rigs: Any) -> None:
    rig = rigs(blob())
    connection = rig.connect()
    _, event = connection.data(DOWN, [b"x"])
    refused = connection.data(UP, [b"y"])
    rig.vm.poll()
    connection.wait(event)

    assert refused == ("FULL", None)
    assert connection.data(UP, [b"y"])[0] == "OK"


def test_the_kinds_of_streams_are_apart(rigs: Any) -> None:
    """For the caller."""
    rig = rigs(blob())
    connection = rig.connect()
    event, stream = c.c_void_p(), rig.channel.open()
    lib = rig.lib

    assert NAMES[lib.sbx_submit_headers(connection.stream, 2, None, 0, True, 1, None, c.byref(event))] == "INVALID"
    assert NAMES[lib.sbx_submit_nothing(connection.stream, 3, True, 1, None, c.byref(event))] == "INVALID"
    assert NAMES[lib.sbx_submit_data(stream, DOWN, None, 0, True, 1, None, c.byref(event))] == "INVALID"
    assert NAMES[lib.sbx_submit_peer_close(stream, 19, 0, 1, None, c.byref(event))] == "INVALID"
    assert connection.data(3, [b"x"])[0] == "INVALID"
    assert connection.peer_close(19, 3)[0] == "INVALID"


@pytest.mark.parametrize("kind", sorted(layout.HTTP_KINDS))
@pytest.mark.parametrize("loose", [False, True])
def test_http_effects_break_a_connection(rigs: Any, kind: int, loose: bool) -> None:
    rig = rigs(blob())
    connection = rig.connect()
    if loose:
        rig.vm.emit([(kind, 0, 1, 0, 0, b"")])
        rig.lib.sbx_next(rig.channel.handle, c.byref(c.c_void_p()))
    else:
        assert rig.step(connection, DOWN, b"x", lambda e: [e.effect(kind), e.verdict()]).cause == PROTOCOL
    assert not rig.lib.sbx_ready(rig.channel.handle)
    assert f"effect of kind {kind}" in rig.channel.reason


@pytest.mark.parametrize("kind", [DOWN, UP])
def test_data_break_an_exchange(rigs: Any, kind: int) -> None:
    rig = rigs(blob())
    rig.channel.open()
    rig.vm.emit([(kind, 0, 1, 0, 0, b"x")])
    rig.lib.sbx_next(rig.channel.handle, c.byref(c.c_void_p()))

    assert not rig.lib.sbx_ready(rig.channel.handle)


# --- what the plugin may not see or write ---


def test_what_it_cannot_read_is_zeros_and_the_true_bytes_go_on(rigs: Any) -> None:
    """Whatever the worker says, and however long."""
    rig = rigs(blob(reads=False))
    connection = rig.connect()
    held = rig.step(connection, DOWN, b"secret", lambda e: [e.verdict(state=DOWN_HELD)])
    gone = rig.step(connection, DOWN, b"key", lambda e: [e.effect(DOWN, b"forged"), e.verdict()])

    assert (held.action, held.downstream) == (PAUSE, b"")
    assert gone.downstream == b"secretkey"
    assert [e.payload for e in rig.vm.seen if e.kind == DOWN] == [bytes(6), bytes(3)]
    ring = Path(f"/proc/self/fd/{rig.fds.memfd}").read_bytes()
    assert b"secret" not in ring


def test_writes_that_the_policy_forbids(rigs: Any) -> None:
    rig = rigs(blob("write: {body: false}"))
    connection = rig.connect()
    up = rig.step(connection, UP, b"true", lambda e: [e.effect(UP, b"forged"), e.verdict()])

    assert up.upstream == b"true"
    assert rig.vm.seen[-1].payload == b"true"


def test_properties_come_with_the_verdict(rigs: Any) -> None:
    rig = rigs(blob())
    connection = rig.connect()
    _, event = connection.data(DOWN, [b"x"])
    written = pairs.encode([(b"a\0b", b"v")])
    rig.vm.answer = lambda e: [e.effect(layout.PROPERTY_SET, written), *pass_through(e)]
    rig.vm.poll()
    found = [(e.kind, e.property.name.get(), e.property.value.get()) for e in effects_of(rig.channel.wait(event))]

    assert found == [(layout.PROPERTY_SET, b"a\0b", b"v")]


# --- failure ---


def test_a_plugin_without_callbacks_is_not_asked(rigs: Any) -> None:
    asked = plugin_policy()
    needs = capabilities.needs(asked.capabilities, {"proxy_on_request_headers"})
    rig = rigs(compile_policy("acme", asked, needs, bytes(32)))
    connection = CConnection(rig.channel)
    status, event = connection.data(DOWN, [b"x", b"y"], True)
    out = connection.take()

    assert (connection.begun, status, event) == (None, "OK", None)
    assert (out.action, out.downstream, out.downstream_ended, out.cause) == (BYPASS, b"xy", True, None)
    assert connection.peer_close(layout.DOWNSTREAM_CLOSE) == ("OK", None)


@pytest.mark.parametrize(("policy", "action"), [("", RESET), ("failure: {policy: open}", BYPASS)])
def test_a_silent_vm(rigs: Any, policy: str, action: int) -> None:
    """Times out; open needs all bytes."""
    rig = rigs(blob(policy))
    connection = rig.connect()
    _, event = connection.data(DOWN, [b"x"])
    out = connection.wait(event, 20_000_000)
    assert (out.action, out.cause, out.downstream) == (action, TIMEOUT, b"x" if action == BYPASS else b"")
    other = CConnection(rig.channel)
    rig.vm.poll()
    other.wait(other.begun)
    rig.step(other, DOWN, b"y", lambda e: [e.verdict(state=DOWN_HELD)])
    _, event = other.data(DOWN, [b"z"])
    rig.lib.sbx_event_free(event)
    assert (other.take().action, other.take().cause) == (RESET, TIMEOUT)


def test_a_failed_vm_takes_what_is_held(rigs: Any) -> None:
    """Without an event, and whether or not the next one is there."""
    rig = rigs(blob("failure: {policy: open}"))
    held, idle = rig.connect(), rig.connect()
    rig.step(held, DOWN, b"x", lambda e: [e.verdict(state=DOWN_HELD)])
    rig.vm.fail()

    assert held.take() == Outcome(BYPASS, TRAP, b"x", b"", False, False)
    assert idle.take().action == CONTINUE
    status, event = idle.data(UP, [b"later"])
    assert (status, event) == ("OK", None)
    assert idle.take() == Outcome(BYPASS, 4, b"", b"later", False, False)
    held.close()
    idle.close()


def test_what_is_kept_is_bounded(rigs: Any) -> None:
    """More than the policy's buffer, from the caller; and more than an event may bring, from the VM."""
    rig = rigs(blob("limits: {body_buffer: 64KiB}", reads=False))
    connection = rig.connect()
    rig.step(connection, DOWN, bytes(40_000), lambda e: [e.verdict()])
    status, event = connection.data(DOWN, [bytes(40_000)])
    assert (status, event, connection.take().action) == ("OK", None, RESET)

    rig = rigs(blob("limits: {body_buffer: 64KiB}"))
    connection = rig.connect()
    out = rig.step(connection, DOWN, b"x", lambda e: [e.effect(DOWN, bytes(70_000)), e.verdict()])
    assert (out.action, out.cause, out.downstream) == (RESET, None, b"")


# --- beside the Python client ---

EFFECTS = st.tuples(
    st.sampled_from([DOWN, UP, DOWN, UP, layout.CLOSE_STREAM, layout.REQUEST_BODY]),
    st.sampled_from([0, END, AS_SUBMITTED, AS_SUBMITTED | END]),
    st.sampled_from([b"", b"made", b"m" * 300]),
)
STEPS = st.tuples(
    st.sampled_from([DOWN, UP]), st.binary(max_size=40), st.booleans(), st.lists(EFFECTS, max_size=3),
    st.sampled_from([0, 0, 1, 2, 3, 16, 48]), st.sampled_from([0, 0, 0, 0, 0, 1, 2, 3, 4]),
)  # fmt: skip


def records_of(event: Event, effects: Iterable[tuple[int, int, bytes]], state: int, code: int) -> list[Record]:
    """The completions of a step; AS_SUBMITTED comes without bytes."""
    made = [
        event.effect(kind, b"" if flags & AS_SUBMITTED or kind == layout.CLOSE_STREAM else payload, flags)
        for kind, flags, payload in effects
    ]
    return [*made, event.verdict(code, state)]


def python_step(exchange: TcpExchange, intake: Intake, step: Any) -> tuple[TcpOutcome, bool]:
    """What the Python client makes of a step, and whether it broke the channel."""
    kind, data, end, effects, state, code = step
    flow = exchange.downstream if kind == DOWN else exchange.upstream
    ask = exchange.data(flow, data, end)
    if ask is None:
        return exchange.outcome(), False
    event = Event(kind, 0, 1, intake.take_seq(), 0, ask.payload)
    intake.expect(event.seq, 1, kind, ask.payload)
    causes = [None, Cause.VM_DOWN, Cause.PROTOCOL, Cause.LIMIT, Cause.PROTOCOL]
    try:
        for verdict in intake.take(records_of(event, effects, state, code)):
            assert isinstance(verdict, Verdict)
            cause = causes[verdict.code]
            if cause is not None:
                exchange.fail(cause)
            else:
                exchange.answer(verdict.effects, verdict.state)
    except ChannelBroken:
        exchange.fail(Cause.PROTOCOL)
        return exchange.outcome(), True
    return exchange.outcome(), False


def as_c(out: TcpOutcome) -> Outcome:
    """The Python client's outcome in the C client's words."""
    action = RESET if out.reset else CLOSE if out.closed else BYPASS if out.bypassed else PAUSE if out.paused else 0
    cause = None if out.failure is None else CAUSES[out.failure]
    return Outcome(action, cause, out.downstream, out.upstream, out.downstream_ended, out.upstream_ended)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(POLICIES), st.booleans(), st.lists(STEPS, max_size=6))
def test_the_python_client_says_the_same(shim: c.CDLL, policy: str, reads: bool, steps: list[Any]) -> None:
    """Of what an honest VM answers, and of what none would."""
    compiled_policy = blob(policy, reads=reads)
    exchange = TcpExchange(compiled.parse(compiled_policy))
    intake = Intake(EventLimits())
    intake.take_stream_id()
    intake.expect(intake.take_seq(), 1, layout.NEW_CONNECTION, None)
    intake.take([(layout.VERDICT, 0, 1, 1, 0, b"")])
    rig = Rig(shim, compiled_policy)
    try:
        connection, ended = rig.connect(), set()
        for step in steps:
            kind, data, end, *_ = step
            if kind in ended or exchange.finished:
                break
            ended |= {kind} if end else set()
            expected, broken = python_step(exchange, intake, step)
            found = rig.step(connection, kind, data, lambda e, s=step: records_of(e, s[3], s[4], s[5]), end)
            assert found == as_c(expected), step
            assert bool(rig.channel.reason) == broken
            if broken:
                break
    finally:
        rig.close()


# --- with a real worker ---


def sandboxed(guest: Guest, cache: Path) -> tuple[LocalSandbox, bytes]:
    module = ModuleRef(guest.path, hashlib.sha256(guest.path.read_bytes()).hexdigest())
    asked = PluginPolicy(
        guest.name, module, capabilities=capabilities.PRESETS["standard"], configuration=guest.configuration.encode()
    )
    needs = capabilities.needs(asked.capabilities, capability_names.TCP_CALLBACKS)
    return LocalSandbox(asked, cache_directory=cache, ring_bytes=65536), compile_policy("t", asked, needs, bytes(32))


def test_the_probe_in_a_real_worker(shim: c.CDLL, artefact_cache: Path) -> None:
    """Edits, and pieces larger than the ring."""
    sandbox, policy = sandboxed(tcp_probe("upper"), artefact_cache)
    with sandbox:
        fds = sandbox.open_channel()
        channel = CChannel(shim, fds, policy)
        fds.close()
        for number in range(200):
            connection = CConnection(channel)
            assert connection.wait(connection.begun).action == CONTINUE
            assert connection.send(DOWN, b"hello %d" % number).downstream == b"HELLO %d" % number
            size = 100_000 if number % 50 == 0 else 1000
            out = connection.send(UP, b"a" * size, True)
            assert (out.upstream, out.upstream_ended) == (b"A" * size, True)
            connection.wait(connection.peer_close(layout.DOWNSTREAM_CLOSE, 2)[1])
            connection.close()
        channel.close()


@pytest.mark.parametrize(
    ("behaviour", "sent", "expected"),
    [
        ("whole-lines", [b"half ", b"line\n"], (CONTINUE, b"half line\n")),
        ("whole-lines", [b"half "], (PAUSE, b"")),
        ("until-end", [b"a", b"b"], (PAUSE, b"")),
        ("close-down", [b"close"], (CLOSE, b"")),
        ("trap", [b"trap"], (RESET, b"")),
        ("surround", [b"x"], (CONTINUE, b"<x>")),
    ],
)
def test_the_probes_behaviours(
    shim: c.CDLL, artefact_cache: Path, behaviour: str, sent: list[bytes], expected: tuple[int, bytes]
) -> None:
    """The last action, and all that went on."""
    sandbox, policy = sandboxed(tcp_probe(behaviour), artefact_cache)
    with sandbox:
        fds = sandbox.open_channel()
        channel = CChannel(shim, fds, policy)
        fds.close()
        connection = CConnection(channel)
        connection.wait(connection.begun)
        outs = [connection.send(DOWN, data) for data in sent]
        assert (outs[-1].action, b"".join(out.downstream for out in outs)) == expected
        assert (outs[-1].cause == TRAP) == (behaviour == "trap")
        channel.close()


def test_flow_control_in_a_real_worker(shim: c.CDLL, artefact_cache: Path) -> None:
    """The second connection at a time is one too many."""
    guest = Guest("flow", C_TCP_FLOW.file, '{"connections": 1}')
    sandbox, policy = sandboxed(guest, artefact_cache)
    with sandbox:
        fds = sandbox.open_channel()
        channel = CChannel(shim, fds, policy)
        fds.close()
        first, second = CConnection(channel), CConnection(channel)
        assert first.wait(first.begun).action == CONTINUE
        assert second.wait(second.begun).action == CLOSE
        first.close()
        third = CConnection(channel)
        assert third.wait(third.begun).action == CONTINUE
        assert third.send(DOWN, b"x").downstream == b"x"
        channel.close()
