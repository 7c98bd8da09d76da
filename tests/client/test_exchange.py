"""One exchange without a VM: what effects let go, and what a plugin that may not write can do to a body."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from sandboxd import limits
from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.pairs import encode
from sandboxd.client import compiled
from sandboxd.client.exchange import Exchange
from sandboxd.client.outcome import Outcome
from sandboxd.policy.capabilities import needs
from sandboxd.policy.capability_names import CALLBACKS
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.failure import Cause
from sandboxd.policy.write_rules import Reason, Refusal
from tests.support.front_rig import FUNCTIONS, policy

HEADERS, BODY, TRAILERS = layout.REQUEST_HEADERS, layout.REQUEST_BODY, layout.REQUEST_TRAILERS
POST = [(b":method", b"POST"), (b":path", b"/"), (b":authority", b"a"), (b":scheme", b"http")]
PAUSED = layout.STATE_REQUEST_PAUSED
STOPPED = PAUSED | layout.STATE_REQUEST_HEADERS_HELD | layout.STATE_REQUEST_ALL_STOPPED
END, SAME = layout.FLAG_END_OF_STREAM, layout.FLAG_AS_SUBMITTED
NO_WRITE = "write: {body: false}"
OPEN = "failure: {policy: open}"


def exchange(extra: str = "", callbacks: Iterable[str] = CALLBACKS) -> Exchange:
    asked = policy(extra)
    granted = asked.capabilities & {*FUNCTIONS, *callbacks}
    return Exchange(compiled.parse(compile_policy("acme", asked, needs(granted, callbacks), bytes(32))))


def effect(kind: int, payload: bytes = b"", flags: int = 0) -> Effect:
    return Effect(kind, flags, 1, 1, 0, payload)


def out(exchange: Exchange) -> Outcome:
    return exchange.outcome(exchange.request)


def begun(extra: str = "") -> Exchange:
    """The request's headers have gone on."""
    made = exchange(extra)
    made.receive(HEADERS, POST, False)
    made.answer([effect(HEADERS)], 0)
    assert out(made).own.headers == POST
    return made


def stopped(extra: str, body: bytes, end_of_stream: bool) -> Exchange:
    """The plugin has stopped all from the headers, and the VM was told of a body behind them."""
    made = exchange(extra)
    made.receive(HEADERS, POST, False)
    made.answer([], STOPPED)
    made.receive(BODY, body, end_of_stream)
    made.answer([], STOPPED)
    return made


# --- late effects ---


@pytest.mark.parametrize("extra", [NO_WRITE, OPEN])
def test_headers_that_go_late_do_not_free_the_body_behind_them(extra: str) -> None:
    """The plugin was shown the body only then, and paused again."""
    made = stopped(extra, b"held", True)
    made.late([effect(HEADERS)])
    outcome = out(made)

    assert outcome.own.headers == POST
    assert (outcome.own.body, outcome.own.ended, outcome.paused) == (b"", False, True)
    assert made.waiting
    made.late([effect(BODY, b"held", END)])
    outcome = out(made)
    assert (outcome.own.body, outcome.own.ended, outcome.paused) == (b"held", True, False)


def test_a_body_that_is_held_again_is_kept_for_a_plugin_that_fails_open() -> None:
    made = stopped(OPEN, b"held", True)
    made.late([effect(HEADERS)])
    made.fail(Cause.TRAP)
    outcome = out(made)

    assert made.bypassed
    assert (outcome.own.body, outcome.own.ended) == (b"held", True)


def test_trailers_behind_late_headers_are_held_until_they_go() -> None:
    made = stopped(NO_WRITE, b"held", False)
    made.receive(TRAILERS, [(b"x", b"1")], False)
    made.answer([], STOPPED)
    made.late([effect(HEADERS), effect(BODY, b"held")])
    outcome = out(made)

    assert (outcome.own.body, outcome.own.trailers, outcome.paused) == (b"held", None, True)
    made.late([effect(TRAILERS)])
    outcome = out(made)
    assert (outcome.own.trailers, outcome.own.ended, outcome.paused) == ([(b"x", b"1")], True, False)


def test_late_headers_without_a_body_behind_them_free_all() -> None:
    made = exchange()
    made.receive(HEADERS, POST, True)
    made.answer([], STOPPED)
    made.late([effect(HEADERS, flags=END)])
    outcome = out(made)

    assert (outcome.own.headers, outcome.own.ended, outcome.paused) == (POST, True, False)


def test_late_effects_do_not_free_a_body_that_is_with_the_plugin() -> None:
    """Its verdict is still to come."""
    made = begun(NO_WRITE)
    made.receive(BODY, b"one", False)
    made.answer([], PAUSED)
    made.receive(BODY, b"two", False)
    made.late([effect(BODY, b"one")])

    assert out(made).own.body == b"one"
    made.answer([], PAUSED)
    assert out(made).own.body == b""
    assert out(made).paused


def test_a_shortened_body_that_goes_late_leaves_no_true_byte_behind() -> None:
    """A plugin that may not write says when bytes go on; those of a message that is with it wait for its verdict."""
    made = begun(NO_WRITE)
    made.receive(BODY, b"abcdef", False)
    made.answer([], PAUSED)
    made.receive(BODY, b"ghi", True)
    made.late([effect(BODY, b"xy")])
    assert out(made).own.body == b"abcdef"
    made.answer([effect(BODY, flags=SAME | END)], 0)
    outcome = out(made)
    assert (outcome.own.body, outcome.own.ended) == (b"ghi", True)


@pytest.mark.parametrize("claimed", [b"one", b"onetwo", b"more than there is"])
def test_late_effects_take_nothing_of_a_message_that_is_with_the_plugin(claimed: bytes) -> None:
    made = begun(f"{NO_WRITE}\n{OPEN}")
    made.receive(BODY, b"one", False)
    made.answer([], PAUSED)
    made.receive(BODY, b"two", True)
    made.late([effect(BODY, claimed)])
    assert (out(made).own.body, out(made).own.ended) == (b"one", False)
    made.fail(Cause.TRAP)
    outcome = out(made)
    assert (outcome.own.body, outcome.own.ended) == (b"two", True)


def test_a_late_property_does_not_lose_a_message_that_is_with_the_plugin() -> None:
    made = begun(OPEN)
    made.receive(BODY, b"abc", True)
    made.late([effect(layout.PROPERTY_SET, encode([(b"path", b"value")]))])
    made.fail(Cause.TRAP)
    outcome = out(made)

    assert (outcome.own.body, outcome.own.ended) == (b"abc", True)


def test_a_large_message_that_is_with_the_plugin_is_not_held() -> None:
    made = begun("limits: {body_buffer: 64KiB}")
    made.receive(BODY, b"one", False)
    made.answer([], PAUSED)
    made.receive(BODY, bytes(100_000), True)
    made.late([effect(BODY, b"one")])

    assert made.failure is None
    assert out(made).own.body == b"one"


# --- what a VM may not say ---


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ([effect(HEADERS), effect(BODY, b"forged")], "before there was one"),
        ([effect(BODY, b"forged"), effect(HEADERS)], "before the headers"),
        ([effect(HEADERS, flags=END)], "headers end a message that has a body"),
        ([effect(HEADERS), effect(TRAILERS)], "trailers before"),
        ([effect(TRAILERS)], "trailers before"),
    ],
)
def test_a_message_does_not_grow_a_body_or_an_end_with_its_headers(effects: list[Effect], words: str) -> None:
    made = exchange()
    made.receive(HEADERS, POST, False)
    with pytest.raises(ChannelBroken, match=words):
        made.answer(effects, 0)


@pytest.mark.parametrize("extra", ["", NO_WRITE])
@pytest.mark.parametrize(
    "effects",
    [
        [effect(BODY, b"abc", END)],
        [effect(BODY, flags=SAME | END)],
        [effect(BODY, b"abc"), effect(TRAILERS)],
    ],
)
def test_a_message_does_not_end_before_its_input(extra: str, effects: list[Effect]) -> None:
    """Else what the program has yet to give would come after the end."""
    made = begun(extra)
    made.receive(BODY, b"abc", False)
    with pytest.raises(ChannelBroken, match=r"body after its end|trailers before"):
        made.answer(effects, 0)


@pytest.mark.parametrize("more", [effect(BODY, b"more"), effect(TRAILERS)])
def test_nothing_follows_the_end(more: Effect) -> None:
    made = begun()
    made.receive(BODY, b"abc", True)
    made.answer([effect(BODY, b"abc", END)], 0)
    assert out(made).own.ended
    with pytest.raises(ChannelBroken, match=r"after its end|before the end"):
        made.late([more])


@pytest.mark.parametrize("late", [effect(BODY, b"", END), effect(TRAILERS)])
def test_a_late_end_does_not_come_before_the_last_message_was_answered(late: Effect) -> None:
    made = begun(NO_WRITE)
    made.receive(BODY, b"abc", True)
    with pytest.raises(ChannelBroken, match=r"never came|before the end"):
        made.late([late])


def test_a_body_without_a_callback_is_not_the_vms() -> None:
    made = exchange(callbacks=["proxy_on_request_headers"])
    made.receive(HEADERS, POST, False)
    made.answer([effect(HEADERS)], 0)
    assert made.receive(BODY, b"true", False) is None
    assert out(made).own.body == b"true"
    with pytest.raises(ChannelBroken, match="before there was one"):
        made.late([effect(BODY, b"forged")])


# --- bounds ---


@pytest.mark.parametrize("extra", ["", OPEN])
def test_late_bodies_that_nobody_fetches_are_bounded(extra: str) -> None:
    """What a VM lets go late was held, and no more than the body buffer may be."""
    made = begun(f"limits: {{body_buffer: 64KiB}}\n{extra}".strip())
    made.receive(BODY, b"abc", False)
    made.answer([effect(BODY, flags=SAME)], 0)
    for _ in range(1000):
        made.late([effect(BODY, bytes(10_000))])
    outcome = out(made)

    assert made.failure is Cause.LIMIT
    assert len(outcome.own.body) <= 65_536
    assert Refusal(Reason.TOO_LARGE, "body") in outcome.refusals


def test_late_bodies_that_are_fetched_go_on() -> None:
    made = begun("limits: {body_buffer: 64KiB}")
    for _ in range(100):
        made.receive(BODY, bytes(60_000), False)
        made.answer([], PAUSED)
        made.late([effect(BODY, bytes(60_000))])
        assert len(out(made).own.body) == 60_000
    assert made.failure is None


def test_properties_and_refusals_that_nobody_fetches_are_bounded() -> None:
    made = begun()
    legal = encode([(b"path", b"value")] * 100)
    illegal = encode([(b"", b"value")] * 100)
    for _ in range(50):
        made.late([effect(layout.PROPERTY_SET, legal), effect(layout.PROPERTY_SET, illegal)])
        assert len(made._refusals) <= 1000
    outcome = out(made)

    assert len(outcome.properties) == limits.MAX_WRITTEN_PROPERTIES
    assert len(outcome.refusals) == limits.MAX_WRITTEN_PROPERTIES
    assert Refusal(Reason.TOO_MANY, "property") in outcome.refusals
    made.late([effect(layout.PROPERTY_SET, legal)])
    assert out(made).properties[0] == (b"path", b"value")


# --- after the plugin failed ---


def test_a_verdict_after_the_exchange_goes_on_without_the_plugin_changes_nothing() -> None:
    """One direction can give up waiting while an event of the other is with the VM."""
    made = begun(OPEN)
    made.receive(BODY, b"abc", True)
    made.fail(Cause.TIMEOUT)
    assert out(made).own.body == b"abc"
    made.answer([effect(BODY, b"abc", END)], PAUSED)
    outcome = out(made)

    assert (outcome.own.body, outcome.paused, made.waiting) == (b"", False, False)


def test_effects_behind_the_one_that_failed_change_nothing() -> None:
    made = begun(f"limits: {{body_buffer: 64KiB}}\n{OPEN}")
    made.receive(BODY, b"abc", True)
    made.answer([], PAUSED)
    made.receive(layout.RESPONSE_HEADERS, [(b":status", b"200")], False)
    made.late([effect(BODY, bytes(100_000)), effect(BODY, b"forged", END)])
    outcome = out(made)

    assert made.bypassed
    assert (outcome.own.body, outcome.own.ended) == (b"abc", True)
