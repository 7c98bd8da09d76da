"""Proofs: reload, watchdog, death, restart and reboot of the service."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import exchange
import system
import tenants

_WATCHDOG_S = 30
_START_S = 120


def reload_moves_the_changed_tenant_alone() -> dict[str, Any]:
    """``systemctl reload`` and SIGHUP swap the worker of the changed tenant; the others keep theirs."""
    workers = {name: system.worker_pid(name) for name in ("calm", "hungry", "busy")}
    daemon = system.main_pid()
    system.write_policy("calm", tenants.calm("second version"))
    system.run("systemctl", "reload", "sandboxd")
    second = system.worker_pid("calm")
    assert second != workers["calm"]
    exchange.check_calm()
    system.write_policy("calm", tenants.calm("third version"))
    system.run("systemctl", "kill", "--signal=HUP", "--kill-whom=main", "sandboxd")

    def moved() -> int:
        pid = system.worker_pid("calm")
        return pid if pid != second else 0

    third = system.wait_for(moved, "the tenant to move after SIGHUP", 90)
    exchange.check_calm()
    assert system.main_pid() == daemon
    for name in ("hungry", "busy"):
        assert system.worker_pid(name) == workers[name], f"{name} moved too"
    for pid in (workers["calm"], second):
        system.wait_for_end(pid, 60)
    leaves = sorted(path.name for path in system.SUBTREE.glob("tenant-calm.*"))
    assert leaves == [system.leaf_of(third).name], leaves
    return {"workers": f"{workers['calm']}, {second}, {third}"}


def reload_keeps_the_last_good_version() -> dict[str, Any]:
    """A bad file leaves its tenant where it was, and the reload says so."""
    pid = system.worker_pid("calm")
    system.write_policy("calm", tenants.calm().replace("isolation:", "isolatoin:"))
    result = system.run("systemctl", "reload", "sandboxd", ok=False)
    assert result.returncode != 0, "the reload of a bad file went unnoticed"
    item = system.tenant("calm")
    assert item["state"] == "running", item
    assert item["worker"]["pid"] == pid, item
    assert "isolatoin" in item["last_error"], item
    exchange.check_calm()
    system.write_policy("calm", tenants.calm("mended"))
    system.run("systemctl", "reload", "sandboxd")
    assert not system.tenant("calm")["last_error"]
    return {"status said": item["last_error"][:200]}


def hung_daemon_is_replaced_by_the_watchdog() -> dict[str, Any]:
    """A stopped daemon gives no sign of life: systemd kills it with all its processes and starts another."""
    old, everybody, began_s = system.main_pid(), system.everybody(), time.monotonic()
    os.kill(old, signal.SIGSTOP)
    new = system.wait_for(lambda: _other_main_pid(old), "another daemon", _WATCHDOG_S * 2 + _START_S)
    assert "watchdog" in system.run("journalctl", "-q", "-b", "-u", system.UNIT).stdout.lower()
    _nobody_left(everybody)
    exchange.check_calm()
    return {"seconds": round(time.monotonic() - began_s, 1), "daemons": f"{old}, {new}"}


def killed_daemon_leaves_no_worker() -> dict[str, Any]:
    """A daemon that is killed takes its fronts and workers with it, and is started again."""
    old, everybody, began_s = system.main_pid(), system.everybody(), time.monotonic()
    os.kill(old, signal.SIGKILL)
    system.wait_for(lambda: _other_main_pid(old), "another daemon", _START_S)
    _nobody_left(everybody)
    exchange.check_calm()
    return {"seconds": round(time.monotonic() - began_s, 1)}


def service_restarts() -> dict[str, Any]:
    """``systemctl restart`` ends everything in peace and starts anew."""
    old, everybody, began_s = system.main_pid(), system.everybody(), time.monotonic()
    system.run("systemctl", "restart", "sandboxd")
    assert _other_main_pid(old)
    _nobody_left(everybody)
    assert system.show("Result") == "success"
    log = system.run("journalctl", "-q", "-o", "cat", "-b", f"_PID={old}").stdout
    assert "stopping" in log
    exchange.check_calm()
    for name in ("calm", "hungry", "busy"):
        system.worker_pid(name)
    return {"seconds": round(time.monotonic() - began_s, 1)}


def service_is_back_after_reboot() -> dict[str, Any]:
    """The enabled service starts by itself, with cgroups and the compiled modules of before."""
    system.wait_for(lambda: system.show("ActiveState") == "active", "the service", _START_S)
    assert system.show("NRestarts") == "0"
    exchange.check_calm()
    for name in ("calm", "hungry", "busy"):
        assert system.leaf_of(system.worker_pid(name)).parent == system.SUBTREE
    log = system.run("journalctl", "-q", "-o", "cat", "-b", "-u", system.UNIT).stdout
    assert "compiled module" not in log, "the cache did not survive"
    active_ms = int(system.show("ActiveEnterTimestampMonotonic")) // 1000
    return {"ms after power on": active_ms}


def _other_main_pid(old: int) -> int:
    if system.show("ActiveState") != "active":
        return 0
    pid = system.main_pid()
    return pid if pid not in (0, old) else 0


def _nobody_left(before: set[int]) -> None:
    left = before & system.everybody()
    assert not left, f"processes of the old daemon are still there: {sorted(left)}"
    orphans = sorted(pid for pid in before if system.alive(pid))
    assert not orphans, f"processes of the old daemon live outside of the service: {orphans}"
