"""Counters and log lines stay bounded, whatever a plugin does."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.front.counters import (
    GUEST_BYTES_BURST,
    GUEST_BYTES_PER_SECOND,
    GUEST_LINES_BURST,
    GUEST_LINES_PER_SECOND,
    Counters,
    PluginCounters,
)
from sandboxd.policy.failure import Cause
from sandboxd.policy.model import ModuleRef, PluginLimits, PluginPolicy, VmPolicy

ROOMY = (100_000, 1 << 30)
"""A policy that allows many lines and bytes."""


def policy(asked: PluginLimits) -> PluginPolicy:
    return PluginPolicy("p", ModuleRef(Path("x.wasm"), "0" * 64), limits=asked, vm=VmPolicy(memory_bytes=1 << 20))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def line(text: bytes = b"x", level: int = 2, flags: int = 0) -> Effect:
    return Effect(layout.LOG, flags, 7, 1, level, text)


def guest_lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what was logged on behalf of guests."""
    return [record for record in caplog.records if record.name == "sandboxd.guest"]


def test_guest_lines_are_rate_limited(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    counters = PluginCounters("t/p", clock)
    with caplog.at_level(logging.INFO, "sandboxd.guest"):
        counters.notices([line()] * (GUEST_LINES_BURST + 10), (), *ROOMY)
        assert len(guest_lines(caplog)) == GUEST_LINES_BURST
        clock.now += 5 / GUEST_LINES_PER_SECOND
        counters.notices([line()] * 10, (), *ROOMY)
        assert len(guest_lines(caplog)) == GUEST_LINES_BURST + 5

    assert counters.values == {"guest_log.lines": GUEST_LINES_BURST + 20, "guest_log.dropped": 15}


def test_guest_bytes_are_rate_limited(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    counters = PluginCounters("t/p", clock)
    whole = GUEST_BYTES_BURST // 8192
    with caplog.at_level(logging.INFO, "sandboxd.guest"):
        counters.notices([line(b"x" * 8192)] * (whole + 10), (), *ROOMY)
        assert len(guest_lines(caplog)) == whole
        clock.now += 2 * 8192 / GUEST_BYTES_PER_SECOND
        counters.notices([line(b"x" * 8192)] * 10, (), *ROOMY)
        assert len(guest_lines(caplog)) == whole + 2


@pytest.mark.parametrize(("max_lines", "max_bytes", "logged"), [(3, 1000, 3), (100, 25, 2), (0, 0, 0)])
def test_one_event_logs_what_its_policy_allows(
    caplog: pytest.LogCaptureFixture, max_lines: int, max_bytes: int, logged: int
) -> None:
    """A worker that was taken over sends more than hostcore would."""
    counters = PluginCounters("t/p")
    with caplog.at_level(logging.INFO, "sandboxd.guest"):
        counters.notices([line(b"0123456789")] * 10, (), max_lines, max_bytes)

    assert len(guest_lines(caplog)) == logged
    assert counters.values["guest_log.dropped"] == 10 - logged


def test_levels_and_cut_lines(caplog: pytest.LogCaptureFixture) -> None:
    counters = PluginCounters("t/p")
    with caplog.at_level(logging.DEBUG, "sandboxd.guest"):
        counters.notices([line(b"%s %d", level, layout.FLAG_TRUNCATED) for level in range(6)], (), *ROOMY)

    assert [record.levelname for record in caplog.records] == [
        "DEBUG",
        "DEBUG",
        "INFO",
        "WARNING",
        "ERROR",
        "CRITICAL",
    ]
    assert caplog.records[0].getMessage() == "t/p stream=7: %s %d [cut]"


def test_findings_are_logged_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    counters = PluginCounters("t/p")
    for _ in range(100):
        counters.report("ext_proc.ignored_write", "host\n")

    assert len(caplog.records) == 7
    assert caplog.records[0].getMessage() == "t/p: ext_proc.ignored_write (host\\n), 1 so far"


def test_names_are_bounded() -> None:
    counters = PluginCounters("t/p")
    for n in range(10_000):
        counters.count(f"denied.{n}")

    assert len(counters.values) <= 513
    assert sum(counters.values.values()) == 10_000


def test_notes_and_dropped_lines() -> None:
    counters = PluginCounters("t/p")
    counters.notices(
        [
            Effect(layout.NOTE, 0, 1, 1, 5, b""),
            Effect(layout.NOTE, 0, 1, 1, 99, b""),
            Effect(layout.LOGS_DROPPED, 0, 1, 1, 2**63, b""),
        ],
        (),
        *ROOMY,
    )

    assert counters.values == {"note.body_limit": 1, "note.unknown": 1, "guest_log.dropped": 1_000_000}


def test_a_budget_that_bites_is_named_with_its_value(caplog: pytest.LogCaptureFixture) -> None:
    counters = PluginCounters("t/p")
    counters.name_budgets(policy(PluginLimits(metrics=7, body_buffer_bytes=4096)))
    for note in [layout.NOTE_METRICS_LIMIT] * 5 + [layout.NOTE_BODY_LIMIT]:
        counters.notices([Effect(layout.NOTE, 0, 0, 1, note, b"")], (), *ROOMY)

    assert [record.getMessage() for record in caplog.records] == [
        "t/p: limits.metrics (7) was reached: 1 times so far",
        "t/p: limits.metrics (7) was reached: 2 times so far",
        "t/p: limits.metrics (7) was reached: 4 times so far",
        "t/p: limits.body_buffer (4096 bytes) was reached: 1 times so far",
    ]
    assert counters.values == {"note.metrics_limit": 5, "note.body_limit": 1}


@pytest.mark.parametrize(
    ("cause", "named"),
    [
        (Cause.CPU_LIMIT, "limits.cpu_per_call (2.5ms)"),
        (Cause.HOST_CALL_LIMIT, "limits.host_calls_per_event (9)"),
        (Cause.MEMORY_LIMIT, "vm.memory (1048576 bytes)"),
        (Cause.LIMIT, "limits.open_streams (3) or limits.body_buffer (4096 bytes)"),
        (Cause.TIMEOUT, "limits.time_per_event (150ms) or limits.time_per_pause (150ms)"),
    ],
)
def test_a_stream_that_failed_of_a_budget_names_it(cause: Cause, named: str, caplog: pytest.LogCaptureFixture) -> None:
    counters = PluginCounters("t/p")
    counters.name_budgets(
        policy(
            PluginLimits(
                cpu_per_call_ns=2_500_000,
                host_calls_per_event=9,
                open_streams=3,
                body_buffer_bytes=4096,
                time_per_event_ns=150_000_000,
            )
        )
    )
    for _ in range(3):
        counters.report(f"failed.{cause.value}", "")

    assert [record.getMessage() for record in caplog.records] == [
        f"t/p: failed.{cause.value} ({named}), {n} so far" for n in (1, 2)
    ]
    assert counters.values == {f"failed.{cause.value}": 3}


def test_a_missing_property_brings_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    counters = PluginCounters("t/p")
    counters.notices([Effect(layout.NOTE, 0, 1, 1, 8, b"xds\0na\nme")] * 3, (), *ROOMY)

    assert counters.values == {"note.property_missing": 3}
    assert len(caplog.records) == 2
    assert caplog.records[0].getMessage().startswith("t/p: the plugin asked for xds.na\\nme, which nobody sent")


def test_json_fits() -> None:
    counters = Counters()
    for n in range(100):
        counters.plugin(f"t{n}/p").count("streams")
    whole = counters.to_json(100_000)
    cut = counters.to_json(200)

    assert json.loads(whole)["t99/p"] == {"streams": 1}
    assert len(cut) <= 200
    assert json.loads(cut)["t0/p"] == {"streams": 1}


@pytest.mark.parametrize(("per_second", "at_once"), [(0, 0), (10, 10), (5000, 2500)])
def test_the_policys_limits_of_the_log_hold(caplog: pytest.LogCaptureFixture, per_second: int, at_once: int) -> None:
    """Fewer or more lines each second than the default; the same limits again give no fresh burst."""
    clock = Clock()
    counters = PluginCounters("t/p", clock)
    with caplog.at_level(logging.INFO, "sandboxd.guest"):
        for _ in range(2):
            counters.limit_log(per_second, 1 << 20)
            counters.notices([line()] * 4000, (), *ROOMY)
        assert len(guest_lines(caplog)) == at_once
        clock.now += 0.1
        counters.notices([line()] * 4000, (), *ROOMY)

    assert len(guest_lines(caplog)) == at_once + per_second // 10


def test_dropped_lines_are_told_with_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    """Ever more seldom: a flood of lines must not become a flood of messages about it. Just below, nothing is told."""
    caplog.set_level(logging.INFO, "sandboxd.guest")
    counters = PluginCounters("t/p", Clock())
    counters.notices([line()] * GUEST_LINES_BURST, (), *ROOMY)
    assert not [record for record in caplog.records if record.name != "sandboxd.guest"]
    for _ in range(1000):
        counters.notices([line()], (), *ROOMY)
        counters.notices([Effect(layout.LOGS_DROPPED, 0, 7, 1, 1, b"")], (), *ROOMY)

    told = [record.getMessage() for record in caplog.records if record.name != "sandboxd.guest"]
    assert counters.values["guest_log.dropped"] == 2000
    assert 2 <= len(told) <= 11
    assert told[0].startswith("t/p: log lines are dropped, limits.log_lines_per_second")
    assert told[1].startswith("t/p: log lines are dropped, limits.log_lines_per_event")
