"""Any order of messages and pauses of an honest VM: every byte goes on once, every message gets one reply."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.front.conversation import Ask
from sandboxd.front.network_codec import NetworkExchange
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
