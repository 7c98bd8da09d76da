"""Any order of messages and pauses of an honest VM: every byte goes on once, every message gets one reply."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.front.conversation import Ask
from sandboxd.front.network_codec import NetworkExchange
from sandboxd.policy.failure import Cause
from sandboxd.protos import network_ext_proc_pb2 as pb
from tests.support.front_rig import FUNCTIONS, plugin

DOWN, UP = layout.DOWNSTREAM_DATA, layout.UPSTREAM_DATA
END = layout.FLAG_END_OF_STREAM
PAUSED = {DOWN: layout.STATE_REQUEST_PAUSED, UP: layout.STATE_RESPONSE_PAUSED}

MESSAGES = st.lists(
    st.tuples(st.sampled_from([DOWN, UP]), st.binary(max_size=9), st.booleans(), st.booleans()), max_size=12
)
"""Direction, bytes, whether the VM holds them, whether it frees the other direction."""


class HonestVm:
    """Holds bytes as hostcore does."""

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}
        self.ended: set[int] = set()

    def answer(self, ask: Ask, hold: bool, free_other: bool) -> tuple[list[Effect], int]:
        """Return effects and state."""
        effects = []
        if ask.end_of_stream:
            self.ended.add(ask.kind)
        self.held[ask.kind] = self.held.get(ask.kind, b"") + ask.payload
        for kind in (ask.kind, DOWN + UP - ask.kind):
            wanted = not hold if kind == ask.kind else free_other
            if wanted and kind in self.held:
                flags = END if kind in self.ended else 0
                effects.append(Effect(kind, flags, 1, 1, 0, self.held.pop(kind)))
        return effects, sum(PAUSED[kind] for kind in self.held)


@settings(max_examples=300, deadline=None)
@given(MESSAGES, st.booleans(), st.booleans())
def test_every_byte_once_and_every_message_one_reply(
    messages: list[tuple[int, bytes, bool, bool]], readable: bool, parks: bool
) -> None:
    """Held bytes wait for the end at the latest; a park in between changes nothing but the time."""
    now = [0.0]
    reports: list[str] = []
    made = plugin(functions=FUNCTIONS if readable else ("proxy_log",))
    exchange = NetworkExchange(made, lambda name, _: reports.append(name), clock=lambda: now[0])
    vm = HonestVm()
    sent: dict[int, bytes] = {DOWN: b"", UP: b""}
    count = {DOWN: 0, UP: 0}
    # Without a park no direction is freed when nothing of it waits for a reply.
    script = [(kind, data, hold, other and not parks, False) for kind, data, hold, other in messages]
    script += [(kind, b"", False, False, True) for kind in (DOWN, UP)]
    for kind, data, hold, other, end in script:
        field = {"data": data, "end_of_stream": end}
        message = pb.ProcessingRequest(**{"read_data" if kind == DOWN else "write_data": field})
        sent[kind] += data
        count[kind] += 1
        for ask in exchange.receive(message):
            effects, state = vm.answer(ask, hold, other) if ask.kind in PAUSED else ([], 0)
            exchange.answer(ask, effects, state if ask.kind in PAUSED else sum(PAUSED[held] for held in vm.held))
        if parks and exchange.waiting:
            now[0] += exchange.pause_s + 0.001
            assert exchange.pause_over()
            assert not exchange.waiting

    replies = [pb.ProcessingResponse.FromString(reply) for reply in exchange.replies]
    for kind, name in ((DOWN, "read_data"), (UP, "write_data")):
        mine = [getattr(reply, name) for reply in replies if reply.HasField(name)]
        assert b"".join(reply.data for reply in mine) == sent[kind]
        assert len(mine) == count[kind]
        assert [reply.end_of_stream for reply in mine] == [False] * (len(mine) - 1) + [True]
    assert not exchange.finished
    assert not [report for report in reports if "cannot_carry" in report]


def withheld() -> tuple[NetworkExchange, list[str]]:
    """Return an exchange of a plugin that cannot read bytes, past its first event, and its reports."""
    reports: list[str] = []
    exchange = NetworkExchange(plugin(functions=("proxy_log",)), lambda name, _: reports.append(name))
    _, data = exchange.receive(pb.ProcessingRequest(read_data={"data": b"first"}))
    assert data.payload == bytes(5)
    exchange.answer(Ask(layout.NEW_CONNECTION, b"", False), [], 0)
    exchange.answer(data, [], PAUSED[DOWN])
    return exchange, reports


def carried(exchange: NetworkExchange) -> bytes:
    """Return the downstream bytes that have gone on."""
    replies = [pb.ProcessingResponse.FromString(reply) for reply in exchange.replies]
    return b"".join(reply.read_data.data for reply in replies)


def test_what_is_freed_late_is_not_what_the_plugin_has_yet_to_see() -> None:
    """A timer frees the first bytes while the second are on their way to the plugin: these wait for its verdict."""
    exchange, _ = withheld()
    (second,) = exchange.receive(pb.ProcessingRequest(read_data={"data": b"second"}))
    exchange.late([Effect(DOWN, 0, 1, 0, 0, bytes(5))])
    assert carried(exchange) == b"first"
    exchange.answer(second, [], PAUSED[DOWN])
    assert carried(exchange) == b"first"
    (third,) = exchange.receive(pb.ProcessingRequest(read_data={"data": b"third"}))
    exchange.answer(third, [Effect(DOWN, 0, 1, 1, 0, bytes(11))], 0)
    assert carried(exchange) == b"firstsecondthird"


def test_a_worker_that_lets_nothing_go_cannot_fill_the_fronts_memory() -> None:
    """It says that it holds nothing, so that nothing seems to be held."""
    exchange, reports = withheld()
    piece = bytes(64 * 1024)
    for _ in range(1000):
        for ask in exchange.receive(pb.ProcessingRequest(read_data={"data": piece})):
            exchange.answer(ask, [], 0)
        if exchange.finished:
            break
    assert exchange.finished
    assert "network_ext_proc.cannot_carry.data_held" in reports


def begun(text: str = "", functions: tuple[str, ...] = FUNCTIONS) -> tuple[NetworkExchange, list[str], list[float]]:
    """Return an exchange whose plugin has seen the connection and holds its first bytes, its reports and its clock."""
    reports: list[str] = []
    now = [0.0]
    made = plugin(text, functions=functions)
    exchange = NetworkExchange(made, lambda name, _: reports.append(name), clock=lambda: now[0])
    _, data = exchange.receive(pb.ProcessingRequest(read_data={"data": b"first"}))
    exchange.answer(Ask(layout.NEW_CONNECTION, b"", False), [], 0)
    exchange.answer(data, [], PAUSED[DOWN])
    return exchange, reports, now


def answers(exchange: NetworkExchange) -> list[bytes]:
    """Return the data of each downstream reply; nothing else was said."""
    replies = [pb.ProcessingResponse.FromString(reply) for reply in exchange.replies]
    assert all(reply.HasField("read_data") for reply in replies)
    return [reply.read_data.data for reply in replies]


@pytest.mark.parametrize("parked", [False, True])
def test_what_is_freed_late_leaves_the_next_message_its_reply(parked: bool) -> None:
    """A timer frees the first bytes while the second are with the plugin, which lets them go as well."""
    exchange, _, now = begun()
    if parked:
        now[0] += exchange.pause_s + 1
        exchange.pause_over()
    (second,) = exchange.receive(pb.ProcessingRequest(read_data={"data": b"second"}))
    exchange.late([Effect(DOWN, 0, 1, 0, 0, b"first")])
    exchange.answer(second, [Effect(DOWN, 0, 1, 2, 0, b"second")], 0)

    assert b"".join(answers(exchange)) == b"firstsecond"
    assert len(exchange.replies) == 2
    assert not exchange.finished


def test_what_happens_in_one_direction_leaves_the_other_its_reply() -> None:
    """Upstream bytes are freed while the plugin looks at downstream ones."""
    exchange, _, _ = begun()
    (up,) = exchange.receive(pb.ProcessingRequest(write_data={"data": b"answer"}))
    exchange.late([Effect(DOWN, 0, 1, 0, 0, b"first")])
    assert answers(exchange) == [b"first"]
    exchange.answer(up, [Effect(UP, 0, 1, 2, 0, b"answer")], 0)

    assert pb.ProcessingResponse.FromString(exchange.replies[1]).write_data.data == b"answer"
    assert not exchange.finished


@pytest.mark.parametrize("functions", [FUNCTIONS, ("proxy_log",)])
def test_failing_open_lets_go_what_the_plugin_has_yet_to_see(functions: tuple[str, ...]) -> None:
    """It fails on the second bytes, after a timer has freed the first: none are lost."""
    exchange, _, _ = begun("failure: {policy: open}", functions)
    exchange.receive(pb.ProcessingRequest(read_data={"data": b"second"}))
    exchange.late([Effect(DOWN, 0, 1, 0, 0, b"first")])
    exchange.fail(Cause.TRAP)

    assert exchange.bypassed
    assert b"".join(answers(exchange)) == b"firstsecond"
    assert len(exchange.replies) == 2


def test_a_pause_that_lasts_does_not_answer_what_the_plugin_looks_at() -> None:
    """Its event may take longer than a pause."""
    exchange, _, now = begun("limits: {time_per_event: 5s, time_per_pause: 100ms}")
    (second,) = exchange.receive(pb.ProcessingRequest(read_data={"data": b"second"}))
    now[0] += 1
    assert not exchange.waiting  # else the pause's timer would run out again and again until the verdict
    exchange.pause_over()
    exchange.answer(second, [Effect(DOWN, 0, 1, 2, 0, b"firstsecond")], 0)

    assert b"".join(answers(exchange)) == b"firstsecond"
    assert len(exchange.replies) == 2
    assert not exchange.finished


def test_what_comes_late_before_a_verdict_is_bounded() -> None:
    """An honest VM frees what it holds once; another one goes on until the event's time is over."""
    exchange, reports, now = begun("limits: {body_buffer: 64KiB}")
    now[0] += exchange.pause_s + 1
    exchange.pause_over()
    exchange.receive(pb.ProcessingRequest(read_data={"data": b"second"}))
    for _ in range(3):
        exchange.late([Effect(DOWN, 0, 1, 0, 0, bytes(40 * 1024))])

    assert exchange.finished
    assert "network_ext_proc.cannot_carry.data_held" in reports


def test_failing_open_needs_a_message_for_what_is_kept() -> None:
    """The worker says that it holds nothing, so the proxy was answered: it waits for no bytes any more."""
    exchange, _, _ = begun("failure: {policy: open}", ("proxy_log",))
    (last,) = exchange.receive(pb.ProcessingRequest(read_data={"data": b"second", "end_of_stream": True}))
    exchange.answer(last, [], 0)
    exchange.fail(Cause.TRAP)

    reply = pb.ProcessingResponse.FromString(exchange.replies[-1])
    assert reply.connection_status == reply.CLOSE_RST
    assert exchange.finished


def test_nothing_is_said_after_the_last_word() -> None:
    """A message that came before the proxy has met it."""
    exchange, _, _ = begun()
    exchange.late([Effect(layout.CLOSE_STREAM, 0, 1, 0, 0, b"")])
    assert len(exchange.replies) == 1
    assert exchange.receive(pb.ProcessingRequest(write_data={"data": b"more"})) == []
    assert len(exchange.replies) == 1
