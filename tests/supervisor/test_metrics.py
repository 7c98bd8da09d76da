"""sandboxd's own metrics: families from plain data, sums over fronts that come and go, and text that parses."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sandboxd.supervisor.front_totals import MAX_NAMES, OTHER, UNKNOWN, FrontTotals, read
from sandboxd.supervisor.metrics_source import FRESH_S, MetricsText, Snapshot
from sandboxd.supervisor.metrics_text import Family, Kind, exposition, from_json, only, to_json
from sandboxd.supervisor.own_metrics import own_families
from sandboxd.supervisor.plugin_families import PluginTotals, plugin_families
from sandboxd.supervisor.plugin_metrics import Key, MetricType, Value

ROOT = Path(__file__).resolve().parents[2]
SERIES = re.compile(r'[a-z_]+(\{([a-z]+="(\\[\\"n]|[^\\"\n])*",?)+\})? -?\d+(\.\d+)?(e[+-]?\d+)?')
USE = dict.fromkeys(
    ("size_bytes", "used_bytes", "entries", "sets", "cas_mismatches", "full", "repairs", "lock_waits", "enqueued"), 3
)
VM = {"state": "running", "streams": 2, "guest_memory_bytes": 65536, "heap_bytes": 10, "cpu_ms": 1500.0}
CGROUP = {"memory_bytes": 7, "throttled_us": 2_500_000, "cpu_pressure_us": 0, "memory_pressure_us": 1}
STATUS: dict[str, Any] = {
    "version": "1.0",
    "uptime_s": 12.5,
    "rss_bytes": 100,
    "cpu_s": 0.25,
    "policy_errors": {"a.yaml": "bad"},
    "jail": {"tolerated": {}},
    "front_restarts": 4,
    "egress": {"pid": 0, "restarts": 0, "callouts": {}},
    "fronts": [{"index": 0, "ready": True, "rss_bytes": 5, "cpu_s": 1.0, "streams": 6}],
    "tenants": [
        {
            "tenant": "a",
            "state": "degraded",
            "last_error": "plugin q: trap",
            "restarts": 2,
            "draining_workers": [77],
            "worker": {"rss_bytes": 8, "cpu_s": 0.5, "cgroup": CGROUP},
            "shared": {**USE, "queue_full": 9},
            "shared_store": {"asked": 12, "failed": 5},
            "plugins": [
                {
                    "plugin": "p",
                    "quarantine": None,
                    "crash_counts": {"trap": 2, "cpu_limit": 1},
                    "folders": [{"name": "/data", "refused": 6, "failed": 1}],
                    "vms": [VM, VM],
                },
                {"plugin": "q", "quarantine": {"reason": "x"}, "crash_counts": {}, "folders": [], "vms": []},
            ],
        },
        {
            "tenant": "b",
            "state": "failed",
            "last_error": "",
            "restarts": 0,
            "draining_workers": [],
            "worker": None,
            "shared": {**USE, "queue_full": 0},
            "shared_store": None,
            "plugins": [],
        },
    ],
}
EVENTS = {
    "a/p": {"streams": 5, "guest_log.dropped": 3, "failed.timeout": 2, "denied.proxy_log": 1, "refused.a b": 4, "x": 6},
    UNKNOWN: {"unknown_plugin": 8},
}


def text() -> str:
    """The whole text."""
    return exposition(own_families(STATUS, EVENTS))


@pytest.mark.parametrize(
    "line",
    [
        'sandboxd_info{version="1.0"} 1',
        "sandboxd_uptime_seconds 12.5",
        "sandboxd_policy_file_errors 1",
        "sandboxd_front_restarts_total 4",
        'sandboxd_front_streams{front="0"} 6',
        'sandboxd_front_events_total{event="unknown_plugin"} 8',
        'sandboxd_tenant_state{tenant="a",state="degraded"} 1',
        'sandboxd_tenant_state{tenant="a",state="running"} 0',
        'sandboxd_tenant_error{tenant="a"} 1',
        'sandboxd_tenant_restarts_total{tenant="a"} 2',
        'sandboxd_worker_up{tenant="a"} 1',
        'sandboxd_worker_up{tenant="b"} 0',
        'sandboxd_workers_draining{tenant="a"} 1',
        'sandboxd_worker_cgroup_memory_bytes{tenant="a"} 7',
        'sandboxd_worker_throttled_seconds_total{tenant="a"} 2.5',
        'sandboxd_shared_queue_full_total{tenant="a"} 9',
        'sandboxd_shared_store_asked_total{tenant="a"} 12',
        'sandboxd_shared_store_failed_total{tenant="a"} 5',
        'sandboxd_folder_refused_total{tenant="a",plugin="p",folder="/data"} 6',
        'sandboxd_folder_failed_total{tenant="a",plugin="p",folder="/data"} 1',
        'sandboxd_plugin_up{tenant="a",plugin="p"} 1',
        'sandboxd_plugin_up{tenant="a",plugin="q"} 0',
        'sandboxd_plugin_quarantined{tenant="a",plugin="q"} 1',
        'sandboxd_plugin_crashes_total{tenant="a",plugin="p",cause="trap"} 2',
        'sandboxd_plugin_vms{tenant="a",plugin="p",state="running"} 2',
        'sandboxd_plugin_cpu_seconds_total{tenant="a",plugin="p"} 3.0',
        'sandboxd_plugin_exchanges_total{tenant="a",plugin="p"} 5',
        'sandboxd_plugin_log_lines_dropped_total{tenant="a",plugin="p"} 3',
        'sandboxd_plugin_failures_total{tenant="a",plugin="p",cause="timeout"} 2',
        'sandboxd_plugin_denied_calls_total{tenant="a",plugin="p",function="proxy_log"} 1',
        'sandboxd_plugin_refused_writes_total{tenant="a",plugin="p",reason="a b"} 4',
        'sandboxd_plugin_events_total{tenant="a",plugin="p",event="x"} 6',
    ],
)
def test_every_kind_of_number_is_there(line: str) -> None:
    assert f"{line}\n" in text()


def test_text_is_well_formed() -> None:
    """Each family has its help and type once and before its series; no series is there twice; names say the type."""
    families = [*own_families(STATUS, EVENTS), *plugin_families([PluginTotals("a", "p", {}, 0)])]
    lines = exposition(families).splitlines()

    series = [line for line in lines if not line.startswith("#")]
    assert all(SERIES.fullmatch(line) for line in series)
    assert len({line.rpartition(" ")[0] for line in series}) == len(series)
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    for family in families:
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)
        assert not set("\\\n") & set(family.help)
        assert lines.index(f"# HELP {family.name} {family.help}") + 1 == lines.index(
            f"# TYPE {family.name} {family.kind}"
        )


def test_documented() -> None:
    """Every family stands in docs/metrics.md, and nothing else does."""
    families = [*own_families(STATUS, EVENTS), *plugin_families([])]
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(sandboxd_[a-z_]+)` \| (\w+) \|", page, re.MULTILINE)

    assert rows == [(family.name, str(family.kind)) for family in families]


def test_one_tenant_or_plugin_alone() -> None:
    found = only(own_families(STATUS, EVENTS), "a", "p")
    assert found
    assert all(dict(one.labels).items() >= {("tenant", "a"), ("plugin", "p")} for f in found for one in f.samples)
    assert {one.labels["tenant"] for f in only(own_families(STATUS, EVENTS), "b", "") for one in f.samples} == {"b"}
    assert from_json(json.loads(json.dumps(to_json(found)))) == found


def test_number_of_lines_is_bounded() -> None:
    """What there is no room for is counted, and a histogram is there whole or not at all."""
    totals = {Key(MetricType.COUNTER, str(n)): Value(n) for n in range(5)}
    totals[Key(MetricType.HISTOGRAM, "h")] = Value(3, (1, 1))
    families = plugin_families([PluginTotals("a", "p", totals), PluginTotals("b", "p", totals)], most_lines=8)

    samples = [one for family in families[:3] for one in family.samples]
    assert len(samples) == 8
    assert families[2].samples == []
    assert exposition(families).endswith("sandboxd_plugin_metrics_left_out 4\n")


def test_fronts_counters_never_go_back() -> None:
    """A front's last word stays in the sum; a plugin that is gone does not."""
    totals = FrontTotals()
    one, two = {"a/p": {"streams": 5}, "a/q": {"streams": 1}}, {"a/p": {"streams": 2, "x": 1}}
    assert totals.totals([one, two], {"a/p", "a/q"})["a/p"] == {"streams": 7, "x": 1}

    totals.gone(one)
    assert totals.totals([two, {}], {"a/p", "a/q"}) == {"a/p": {"streams": 7, "x": 1}, "a/q": {"streams": 1}}
    assert "a/q" not in totals.totals([two], {"a/p"})
    assert "a/q" not in totals.totals([two], {"a/p", "a/q"})


def test_fronts_counters_are_bounded() -> None:
    totals = FrontTotals()
    counted = {"a/p": {f"denied.{n}": 1 for n in range(MAX_NAMES + 10)}}
    found = totals.totals([counted, counted], {"a/p"})["a/p"]

    assert len(found) == MAX_NAMES + 1
    assert found[OTHER] == 20
    assert sum(found.values()) == 2 * (MAX_NAMES + 10)


@pytest.mark.parametrize("word", ["", "[]", "null", '{"a/p": 3}', "{", pytest.param("[" * 30_000, id="deep")])
def test_a_front_that_says_nothing(word: str) -> None:
    assert read(word) == {}


def test_labels_are_escaped() -> None:
    family = Family("x_total", Kind.COUNTER, "X.")
    family.add(1, name='a"b\\c\nd')
    assert exposition([family]).splitlines()[2] == r'x_total{name="a\"b\\c\nd"} 1'


def test_what_many_ask_for_is_gathered_once_a_second() -> None:
    """From several threads at a time; and a loop that does not answer is a time-out, not a scraper that hangs."""

    async def test() -> None:
        gathered = 0

        async def gather() -> Snapshot:
            nonlocal gathered
            gathered += 1
            await asyncio.sleep(0.02)
            return Snapshot(STATUS, EVENTS, ())

        text = MetricsText(asyncio.get_running_loop(), gather)
        found = await asyncio.gather(*(asyncio.to_thread(text.get) for _ in range(6)))
        assert gathered == 1
        assert len(set(found)) == 1
        assert found[0].startswith(b"# HELP sandboxd_info")
        await asyncio.sleep(FRESH_S + 0.05)
        await asyncio.to_thread(text.get)
        assert gathered == 2

        async def hangs() -> Snapshot:
            await asyncio.sleep(60)
            raise AssertionError

        stuck = MetricsText(asyncio.get_running_loop(), hangs, timeout_s=0.1)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(stuck.get)

    asyncio.run(test())
