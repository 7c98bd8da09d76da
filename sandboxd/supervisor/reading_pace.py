"""How fast a worker is read, so that what it says does not keep the supervisor from the others. Pure."""

from __future__ import annotations

from sandboxd.errors import WorkerError
from sandboxd.supervisor.throttle import Throttle

FRAMES_PER_SECOND = 2000
FRAMES_BURST = 20_000
"""A worker with 64 plugins x 32 fronts says 2000 things at its start."""
CALLOUTS_PER_SECOND = 8000
CALLOUTS_BURST = 4000
"""
Of callouts, and of shared data kept elsewhere, a worker may ask as fast as it likes: it is read no faster than this, in
pieces of 16 KiB.
"""
CALLOUT_UNIT_BYTES = 16 * 1024
CONGESTION_PAUSE_S = 0.005
WORK_SHARE = 10
"""At most one part in so many of the supervisor's time goes into what one worker says of its own accord."""
WORK_UNIT_S = 0.001
"""Work that is paid for at once; an answer to a ping is much less."""
LONGEST_PAUSE_S = 2.0
"""However long a piece of work took, or a worker that waits would be taken for one that hangs."""


class ReadingPace:
    """
    Of one worker. What it says of its own accord is bounded, and more is a fault; what it does for guests costs pauses.

    Args:
        now_s: as all times here, the event loop's.
    """

    def __init__(self, now_s: float) -> None:
        self._allowance = float(FRAMES_BURST)
        self._allowance_s = now_s
        self._callouts = Throttle(CALLOUTS_PER_SECOND, CALLOUTS_BURST)
        self._unpaid_s = 0.0

    def frame(self, now_s: float) -> None:
        """
        Take note of a frame.

        Raises:
            WorkerError: too many.
        """
        self._allowance = min(FRAMES_BURST, self._allowance + (now_s - self._allowance_s) * FRAMES_PER_SECOND) - 1
        self._allowance_s = now_s
        if self._allowance < 0:
            raise WorkerError("floods its control socket")

    def callout(self, size: int, now_s: float, *, congested: bool) -> float:
        """
        Take note of a frame of a callout; callouts are slowed down, never a reason to kill.

        Args:
            size: in bytes.
            now_s: see above.
            congested: callouts wait elsewhere already.

        Returns:
            For how many seconds the worker is not to be read.
        """
        wait_s = self._callouts.spend(1 + size / CALLOUT_UNIT_BYTES, now_s)
        return max(wait_s, CONGESTION_PAUSE_S) if congested else wait_s

    def worked(self, spent_s: float) -> float:
        """
        Take note of the time that a frame has cost the supervisor: its reading, and what followed from it.

        Returns:
            For how many seconds the worker is not to be read.
        """
        self._unpaid_s += spent_s
        if self._unpaid_s < WORK_UNIT_S:
            return 0.0
        wait_s, self._unpaid_s = min(WORK_SHARE * self._unpaid_s, LONGEST_PAUSE_S), 0.0
        return wait_s
