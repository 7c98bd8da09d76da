"""Whatever a guest does with a body, hostcore's word of it is one that the front takes, and no byte goes astray."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.exchange.side import Ask
from sandboxd.vm.config_blob import Flag
from sandboxd.vm.messages import Delivery, DeliveryKind
from tests.hostcore.driver import Driver, Record
from tests.hostcore.guest_wat import guest
from tests.support import front_rig as rig
from tests.support.ext_proc_play import DUPLEX, STREAMED, Play

TICK = Delivery(DeliveryKind.TICK)
PERIOD_NS = 10_000_000
CONTINUE = ("proxy_continue_stream", 0)
WRITES: dict[str, list[tuple[Any, ...]]] = {
    "reads": [],
    "shortens": [("proxy_set_buffer_bytes", 0, 0, 0x7FFF_FFFF, "x")],
    "empties": [("proxy_set_buffer_bytes", 0, 0, 0x7FFF_FFFF, "")],
    "appends": [("proxy_set_buffer_bytes", 0, 0x7FFF_FFFF, 0, "more")],
    "resumes": [CONTINUE],
}
CHUNKS = [b"one ", b"", b"two two ", b"three"]
TRAILERS = [("t", "1")]


class Both:
    """A front's half of an exchange, and hostcore with a guest."""

    def __init__(self, vm: Driver, play: Play, chance: random.Random) -> None:
        self.vm = vm
        self.play = play
        self.stream = vm.open()
        self._chance = chance
        self.sent = self.came = b""
        self.ended = False
        self.damaged = False

    def says(self, asks: list[Ask], chunk: bytes = b"") -> None:
        """The proxy's message has become these events. At times a tick comes before, between or after them."""
        for ask in asks:
            if self._chance.random() < 0.2:
                self.tick(chunk)
            before = self.vm.seq + 1
            flags = layout.FLAG_END_OF_STREAM if ask.end_of_stream else 0
            outcome = self.vm.event(ask.kind, self.stream, ask.payload, flags)
            assert self.vm.seq == before
            self.play.exchange.answer(ask, self._effects(outcome.effects, ask), outcome.state)
            self._replies(chunk)
        if self._chance.random() < 0.2:
            self.tick(chunk)

    def tick(self, chunk: bytes = b"") -> None:
        """The guest lets the request go on."""
        _, records = self.vm.turn(TICK, after_ns=PERIOD_NS)
        effects = self._effects([record for record in records if record.kind < layout.LOG], None)
        if effects:
            self.play.exchange.late(effects)
            self._replies(chunk)

    def _effects(self, records: Iterable[Record], ask: Ask | None) -> list[Effect]:
        made = []
        for record in records:
            payload = record.payload
            if record.flags & layout.FLAG_AS_SUBMITTED:
                assert ask is not None
                payload = ask.payload
            made.append(Effect(record.kind, record.flags, record.stream_id, record.seq, record.arg, payload))
        return made

    def _replies(self, chunk: bytes) -> None:
        for reply in self.play.replies():
            if reply.HasField("immediate_response"):
                self.damaged = True
            elif reply.HasField("request_body"):
                mutation = reply.request_body.response.body_mutation
                streamed = mutation.streamed_response
                unchanged = not reply.request_body.HasField("response")
                self.sent += chunk if unchanged else mutation.body + streamed.body
                assert not (self.ended and self.play.config.request_body_mode == DUPLEX), "more after the end"
                self.ended |= streamed.end_of_stream
            else:
                self.ended |= reply.HasField("request_trailers")


def run(both: Both, trailers: bool) -> None:
    """A whole request, and as many ticks as free everything."""
    play = both.play
    both.says(play.headers())
    for index, chunk in enumerate(CHUNKS):
        if both.damaged or (play.exchange.waiting and play.config.request_body_mode == STREAMED):
            break
        both.came += chunk
        both.says(play.body(chunk, index == len(CHUNKS) - 1 and not trailers), chunk)
    else:
        if trailers and not both.damaged:
            both.says(play.say(pb.ProcessingRequest(request_trailers={"trailers": rig.header_map(TRAILERS)})))
    for _ in range(4):
        if not both.damaged:
            both.tick(both.came and CHUNKS[-1])


@pytest.mark.parametrize("write", ["true", "false"])
@pytest.mark.parametrize("does", WRITES)
@pytest.mark.parametrize("headers", [0, 1])
def test_bodies(headers: int, does: str, write: str) -> None:
    chance = random.Random(f"{headers}{does}{write}")
    for body, trailers_action, flags in itertools.product(
        (0, 1, 2, 3), (0, 1), (0, Flag.ALLOW_ON_HEADERS_STOP_ITERATION)
    ):
        calls = {
            "vm_start": [("proxy_set_tick_period_milliseconds", PERIOD_NS // 1_000_000)],
            "tick": [("proxy_set_effective_context", 2), CONTINUE],
            "request_headers": (headers, []),
            "request_body": (body, WRITES[does]),
            "request_trailers": (trailers_action, []),
        }
        for mode, trailers in itertools.product((STREAMED, DUPLEX), (False, True)):
            with Driver(guest(calls), flags=Flag(flags)) as vm:
                both = Both(vm, Play(rig.plugin(f"write: {{body: {write}}}"), request=mode), chance)
                run(both, trailers)
            case = (body, trailers_action, flags, mode, trailers)
            if mode == DUPLEX:
                assert not both.damaged, case
                assert both.ended, case
                assert not both.play.exchange.waiting, case
            if (
                not both.damaged
                and both.came == b"".join(CHUNKS)
                and (write == "false" or (does == "reads" and body != 3))
            ):
                assert both.sent == both.came, case
