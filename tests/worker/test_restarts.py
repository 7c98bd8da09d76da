"""The schedule of restarts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxd.worker.restarts import MAX_DOUBLINGS, RestartPolicy, Restarts


def test_first_at_once_then_doubling() -> None:
    """Without chance (0.5 is the middle of the jitter)."""
    restarts = Restarts(RestartPolicy(100, 5, 10_000), lambda: 0.5)

    assert [restarts.delay_ns(now) for now in range(5)] == [0, 100, 200, 400, 800]
    assert restarts.total == 5


def test_too_many_crashes_are_quarantined() -> None:
    """Ten back-offs each."""
    restarts = Restarts(RestartPolicy(100, 2, 10_000), lambda: 0.5)

    assert [restarts.delay_ns(now) for now in range(4)] == [0, 100, 1000, 1000]


def test_old_crashes_are_forgotten() -> None:
    """A crash after a quiet window counts as the first."""
    restarts = Restarts(RestartPolicy(100, 5, 1000), lambda: 0.5)
    restarts.delay_ns(0)
    assert restarts.delay_ns(10) == 100

    assert restarts.delay_ns(1011) == 0


def test_no_crash_allowed() -> None:
    """Then even the first waits."""
    assert Restarts(RestartPolicy(100, 0, 1000), lambda: 0.5).delay_ns(0) == 1000


def test_growth_is_bounded() -> None:
    """By the window, and by a number of doublings."""
    long = Restarts(RestartPolicy(1, 100, 10**9), lambda: 0.5)
    short = Restarts(RestartPolicy(100, 100, 300), lambda: 0.5)

    assert max(long.delay_ns(0) for _ in range(50)) == 1 << MAX_DOUBLINGS
    assert max(short.delay_ns(0) for _ in range(50)) == 300


@given(
    st.integers(1, 10**10),
    st.integers(0, 1000),
    st.integers(1, 10**13),
    st.lists(st.integers(0, 10**12), max_size=50),
    st.floats(0, 1),
)
def test_delays_are_always_in_range(backoff: int, crashes: int, window: int, gaps: list[int], chance: float) -> None:
    """Never negative, never above ten back-offs or the grown back-off, with their jitter."""
    restarts = Restarts(RestartPolicy(backoff, crashes, window), lambda: chance)
    now = 0
    for gap in gaps:
        now += gap
        assert 0 <= restarts.delay_ns(now) <= backoff * (1 << MAX_DOUBLINGS) * 1.1 + 1
