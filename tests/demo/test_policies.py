"""The demo's policy files: they load, and pin the very modules of this checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.demo import tour
from sandboxd.demo.__main__ import POLICIES
from sandboxd.policy.load import load_directory, verify_module

FILES = sorted(POLICIES.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_digests_are_fresh(path: Path) -> None:
    """After a guest was rebuilt, `python -m sandboxd.demo.pin` writes the new digest."""
    (policy,) = (policy for policy in load_directory(POLICIES).policies.values() if policy.source_path == str(path))
    for plugin in policy.plugins:
        verify_module(plugin.module)


def test_every_tenant_of_the_tour_has_its_policy() -> None:
    """And every policy is shown."""
    loaded = load_directory(POLICIES)

    assert loaded.errors == {}
    named = {(tenant.name, tenant.plugin) for tenant in tour.TENANTS}
    assert {(name, plugin.name) for name, policy in loaded.policies.items() for plugin in policy.plugins} == named
    assert {stop.tenant for stop in tour.STOPS} == loaded.policies.keys()
