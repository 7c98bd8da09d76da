"""How fast a worker is read: what it says is bounded, what it asks for guests is slowed down."""

from __future__ import annotations

import pytest

from sandboxd.errors import WorkerError
from sandboxd.supervisor import reading_pace
from sandboxd.supervisor.reading_pace import ReadingPace


def say(pace: ReadingPace, count: int, now_s: float) -> None:
    """Take so many frames."""
    for _ in range(count):
        pace.frame(now_s)


def test_a_burst_passes_and_one_more_is_a_flood() -> None:
    """The burst is for the start, when a worker answers for all that it was given."""
    pace = ReadingPace(10.0)
    say(pace, reading_pace.FRAMES_BURST, 10.0)

    with pytest.raises(WorkerError, match="floods"):
        pace.frame(10.0)


def test_the_allowance_comes_back_with_time() -> None:
    """So many frames a second, however long it goes on."""
    pace = ReadingPace(10.0)
    say(pace, reading_pace.FRAMES_BURST, 10.0)
    say(pace, reading_pace.FRAMES_PER_SECOND, 11.0)

    with pytest.raises(WorkerError):
        pace.frame(11.0)


def test_callouts_cost_pauses_by_their_size_and_are_never_a_fault() -> None:
    """The debt grows with what is sent beyond the burst."""
    pace = ReadingPace(10.0)
    free = [pace.callout(0, 10.0, congested=False) for _ in range(reading_pace.CALLOUTS_BURST)]
    small = pace.callout(0, 10.0, congested=False)
    large = pace.callout(3 * reading_pace.CALLOUT_UNIT_BYTES, 10.0, congested=False)

    assert set(free) == {0.0}
    assert small == pytest.approx(1 / reading_pace.CALLOUTS_PER_SECOND)
    assert large - small == pytest.approx(4 / reading_pace.CALLOUTS_PER_SECOND)


def test_a_congested_worker_waits_even_if_it_is_slow() -> None:
    """Its callouts would only queue elsewhere."""
    assert ReadingPace(10.0).callout(0, 10.0, congested=True) == reading_pace.CONGESTION_PAUSE_S


@pytest.mark.parametrize(
    ("spent_s", "wait_s"),
    [(0.0, 0.0), (0.01, 0.01 * reading_pace.WORK_SHARE), (60.0, reading_pace.LONGEST_PAUSE_S)],
)
def test_what_a_worker_says_gets_a_share_of_the_time_but_pings_go_on(spent_s: float, wait_s: float) -> None:
    """The pause is bounded, for a worker that is not read cannot answer."""
    assert ReadingPace(10.0).worked(spent_s) == wait_s


def test_many_cheap_frames_are_paid_for_as_few_dear_ones() -> None:
    """But together: a pause for each would cost more than the frames."""
    pace = ReadingPace(10.0)
    waits = [pace.worked(reading_pace.WORK_UNIT_S / 8) for _ in range(80)]

    assert sum(waits) == pytest.approx(10 * reading_pace.WORK_UNIT_S * reading_pace.WORK_SHARE)
    assert [wait > 0 for wait in waits] == ([False] * 7 + [True]) * 10
