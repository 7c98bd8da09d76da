"""What a VM may have the client keep for events without a verdict."""

from __future__ import annotations

import pytest

from sandboxd.channel import layout
from sandboxd.channel.completions import Completion, EventLimits, VmRestarted
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.intake import Intake
from sandboxd.channel.ring import Record

BODY = layout.REQUEST_BODY
MAX_BYTES = 100_000


@pytest.fixture
def intake() -> Intake:
    made = Intake(EventLimits(max_bytes=MAX_BYTES))
    made.take([(layout.VM_STARTED, 0, 0, 0, 1, b"")])
    return made


def ask(intake: Intake) -> tuple[int, int]:
    """Expect a verdict of a new stream's body; returns (event_seq, stream_id)."""
    stream_id, seq = intake.take_stream_id(), intake.take_seq()
    intake.expect(seq, stream_id, BODY, b"body")
    return seq, stream_id


def most(seq: int, stream_id: int) -> list[Record]:
    """Nine tenths of what one event may bring, and no verdict."""
    return [(BODY, 0, stream_id, seq, 0, bytes(9_936))] * 9


def take_all(intake: Intake, batches: list[list[Record]]) -> int:
    """Return how many batches the client took until it had enough."""
    for taken, records in enumerate(batches):
        try:
            intake.take(records)
        except ChannelBroken as error:
            assert str(error) == f"events without a verdict hold more than {2 * MAX_BYTES} bytes"  # noqa: PT017
            return taken
    return len(batches)


def test_all_events_without_a_verdict_share_one_limit_of_bytes(intake: Intake) -> None:
    """A VM that answers none of a hundred events must not have a hundred times the room of one."""
    assert take_all(intake, [most(*ask(intake)) for _ in range(100)]) == 2


def test_pieces_share_it_too(intake: Intake) -> None:
    asked = [ask(intake) for _ in range(100)]
    pieces = [[(BODY, layout.FLAG_MORE, stream_id, seq, 0, bytes(90_000))] for seq, stream_id in asked]

    assert take_all(intake, pieces) == 2


@pytest.mark.parametrize("flags", [0, layout.FLAG_MORE])
def test_effects_on_other_streams_share_it_after_their_event_was_abandoned(intake: Intake, flags: int) -> None:
    other = intake.take_stream_id()
    for _ in range(2):
        seq, _ = ask(intake)
        intake.take([(BODY, flags, other, seq, 0, bytes(90_000))])
        intake.abandon(seq)
    seq, _ = ask(intake)

    assert take_all(intake, [[(BODY, flags, other, seq, 0, bytes(90_000))]]) == 0


@pytest.mark.parametrize("how", ["verdict", "abandoned before", "abandoned after", "restart"])
def test_events_that_are_over_leave_their_room_to_others(intake: Intake, how: str) -> None:
    for generation in range(2, 100):
        seq, stream_id = ask(intake)
        if how == "abandoned before":
            intake.abandon(seq)
        intake.take(most(seq, stream_id))
        if how == "abandoned after":
            intake.abandon(seq)
        elif how == "verdict":
            (verdict,) = intake.take([(layout.VERDICT, 0, stream_id, seq, 0, b"")])
            assert len(verdict.effects) == 9  # type: ignore[union-attr]
        elif how == "restart":
            lost: list[Completion] = [VmRestarted(generation, [(seq, stream_id)])]
            assert intake.take([(layout.VM_STARTED, 0, 0, 0, generation, b"")]) == lost
