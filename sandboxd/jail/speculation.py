"""Speculation controls of one thread and those it starts. Source: Documentation/userspace-api/spec_ctrl."""

from __future__ import annotations

from typing import Final

from sandboxd.jail.syscalls import prctl, step

_PR_GET_SPECULATION_CTRL, _PR_SET_SPECULATION_CTRL = 52, 53
_PR_SPEC_PRCTL, _PR_SPEC_ENABLE, _PR_SPEC_FORCE_DISABLE = 1, 2, 8

CONTROLS: Final = {"store_bypass": 0, "indirect_branch": 1}
"""
Controls by name. L1D_FLUSH is left out: its ENABLE means to flush, and only an administrator may allow it.
"""

_PR_SET_TSC, _PR_TSC_SIGSEGV = 26, 2
_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, _SCOPE_PROCESS = 62, 1, 1


def state(control: str) -> str:
    """
    Return what the kernel says of one control.

    ``not affected``, ``controllable`` (a thread may give it up), ``off`` (it is given up already), ``fixed
    on`` (the machine runs with it and lets nobody give it up) or ``unknown``.
    """
    try:
        value = prctl(_PR_GET_SPECULATION_CTRL, CONTROLS[control])
    except OSError:
        return "unknown"
    if value == 0:
        return "not affected"
    if value & _PR_SPEC_PRCTL:
        return "controllable"
    return "fixed on" if value & _PR_SPEC_ENABLE else "off"


def disable(control: str) -> None:
    """Give up one kind of speculation for good. Raises JailError."""
    with step(f"speculation {control}", "the machine announced it as controllable"):
        prctl(_PR_SET_SPECULATION_CTRL, CONTROLS[control], _PR_SPEC_FORCE_DISABLE)


def disable_tsc() -> None:
    """
    Make RDTSC and RDTSCP trap. x86 only; the vDSO must not read clocks by it any more (see `vdso`). Raises
    JailError.
    """
    with step("tsc", "only x86 has PR_SET_TSC"):
        prctl(_PR_SET_TSC, _PR_TSC_SIGSEGV)


def own_core() -> None:
    """Ask the scheduler never to run another process beside this one on the same core. Raises JailError."""
    with step("core_scheduling", "needs CONFIG_SCHED_CORE and a processor with sibling threads"):
        prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _SCOPE_PROCESS)
