"""Callouts as metrics: all families, documented, and series by tenant, plugin, upstream and rule."""

from __future__ import annotations

from pathlib import Path

from sandboxd.supervisor.egress_families import egress_families
from sandboxd.supervisor.metrics_text import exposition

DOCS = Path(__file__).parents[2] / "docs/metrics.md"
STATUS = {
    "pid": 7,
    "restarts": 2,
    "callouts": {
        "acme/auth": {
            "web": {"calls": 5, "answered": 3, "denied.paths": 2, "failed.timeout": 1, "request_bytes": 9},
            "(unknown)": {"denied.upstreams": 4},
        }
    },
}


def test_series() -> None:
    lines = exposition(egress_families(STATUS)).splitlines()
    names = 'tenant="acme",plugin="auth",upstream='
    for line in (
        "sandboxd_egress_up 1",
        "sandboxd_egress_restarts_total 2",
        f'sandboxd_callouts_total{{{names}"web"}} 5',
        f'sandboxd_callouts_answered_total{{{names}"web"}} 3',
        f'sandboxd_callout_request_bytes_total{{{names}"web"}} 9',
        f'sandboxd_callouts_denied_total{{{names}"web",rule="paths"}} 2',
        f'sandboxd_callouts_denied_total{{{names}"(unknown)",rule="upstreams"}} 4',
        f'sandboxd_callouts_failed_total{{{names}"web",reason="timeout"}} 1',
    ):
        assert line in lines


def test_every_family_is_documented() -> None:
    text = DOCS.read_text()
    for family in egress_families(STATUS):
        assert f"| `{family.name}` | {family.kind} |" in text
