"""Proof: a machine that gives the daemon no cgroups."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import system
import tenants

_UNIT = "sandboxd-undelegated.service"
_PLACE = Path("/var/tmp/undelegated")
_SANDBOX = ("--property=User=nobody", "--property=RuntimeDirectory=undelegated", "--property=Type=notify")


def without_delegation_a_policy_that_requires_it_is_refused() -> dict[str, Any]:
    """A daemon without a delegated subtree refuses the policy that insists, and runs the other."""
    policies = _PLACE / "policies"
    policies.mkdir(parents=True)
    shutil.copytree(system.PROOF / "guests" / "c", _PLACE / "c")
    config = _PLACE / "sandboxd.yaml"
    text = f"front: {{processes: 1}}\nruntime_directory: /run/undelegated\npolicies: {policies}\n"
    config.write_text(text + "cache_directory: /run/undelegated/cache\nstate_directory: /run/undelegated/state\n")
    insists = tenants.calm().replace("tenant: calm", "tenant: insists")
    (policies / "insists.yaml").write_text(insists)
    (policies / "modest.yaml").write_text(tenants.calm().replace("tenant: calm", "tenant: modest").replace(
        ", require: [cgroup]", ""))  # fmt: skip
    system.run("chown", "-R", "nobody:nogroup", str(_PLACE))
    command = [
        "systemd-run",
        f"--unit={_UNIT}",
        "--quiet",
        *_SANDBOX,
        system.SANDBOXD,
        "serve",
        "--config",
        str(config),
    ]
    system.run(*command)
    try:
        found = system.status(config)
        states = {item["tenant"]: item for item in found["tenants"]}
        assert states["insists"]["state"] == "refused", states["insists"]
        assert "cgroup" in states["insists"]["last_error"], states["insists"]
        assert states["modest"]["state"] == "running", states["modest"]
        assert "cgroup" not in states["modest"]["worker"]["layers"]
        assert found["cgroup"]["live"] is False
        assert "deleg" in found["cgroup"]["missing"], found["cgroup"]
        shown = system.run(system.SANDBOXD, "status", "--config", str(config), ok=False).stdout
        assert "No cgroups" in shown, shown
    finally:
        system.run("systemctl", "stop", _UNIT)
        shutil.rmtree(_PLACE)
    return {"refusal": states["insists"]["last_error"], "status line": found["cgroup"]["missing"]}
