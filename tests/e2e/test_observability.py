"""Observability mode: the filter sees the traffic, and nothing that it does has an effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import guests, stage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]


def test_an_observing_filter_changes_nothing(tmp_path: Path) -> None:
    """Not a header, and no local response; yet it ran: it logged what it saw."""
    tenants = [
        stage.Tenant("quiet", [guests.C_ADD_HEADER.plugin(), guests.TOKEN_GATE.plugin(), guests.HTTP_HEADERS.plugin()])
    ]
    with stage.running(tmp_path, tenants, ext_proc={"observability_mode": True}) as running:
        added = running.get(f"/quiet/{guests.C_ADD_HEADER.name}/")
        rejected = running.get(f"/quiet/{guests.TOKEN_GATE.name}/")
        running.get(f"/quiet/{guests.HTTP_HEADERS.name}/", ("x-marker", "seen-by-the-filter"))

        assert (added.status, added.values("x-wasm-processed")) == (200, ())
        assert rejected.status == 200
        log = running.sandbox.child.log
        stage.eventually(lambda: "x-marker: seen-by-the-filter" in log.read_text(), "the filter's log line")
