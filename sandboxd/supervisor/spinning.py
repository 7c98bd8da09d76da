"""How long VMs look for their next event before they sleep, as hostcore's `poll` takes it. Pure."""

from __future__ import annotations

from typing import Final

from sandboxd import limits

LOOKS_PER_US: Final = 64
"""
Empty looks at a ring per microsecond of spinning: one takes about 11 ns, and giving the CPU away after 512 of them two
or three microseconds.
"""
SPIN_ALONE: Final = 1 << 31
"""Flag of hostcore's `poll` (`sandboxd/hostcore/channel.h`): look only while streams come one by one."""


def poll_argument(spin_us: int, cpus: int) -> int:
    """
    Return what a VM's thread hands to `poll`.

    Args:
        spin_us: ``worker.spin_us``.
        cpus: that the daemon may run on. With few of them a VM that looks takes the one that the other streams' proxy
            would run on; while there is one stream, everybody else waits for it anyway.
    """
    looks = spin_us * LOOKS_PER_US
    return looks | SPIN_ALONE if looks and cpus < limits.MIN_CPUS_TO_SPIN else looks
