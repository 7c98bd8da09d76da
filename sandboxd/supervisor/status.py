"""What `sandboxd status` shows: the daemon's state as plain data for JSON."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import Any

import psutil

import sandboxd
from sandboxd.config import DaemonConfig
from sandboxd.jail.jailer import Jailer, WorkerWishes
from sandboxd.supervisor.cgroups import Cgroups, usage_status
from sandboxd.supervisor.crash_reports import subject_of
from sandboxd.supervisor.deployment import Deployment
from sandboxd.supervisor.egress import Egress
from sandboxd.supervisor.folders import Mount
from sandboxd.supervisor.front_totals import read
from sandboxd.supervisor.fronts import Front, Fronts
from sandboxd.supervisor.ledger import Ledger, Subject
from sandboxd.supervisor.ledger_file import crash_json, entry_json
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.tenant import Tenant
from sandboxd.supervisor.vms import Vm

Json = dict[str, Any]
SHOWN_CRASHES = 5


class DaemonStatus:
    """
    Args:
        config: the daemon's file.
        pool: the tenants.
        fronts: the front processes.
        egress: the broker of callouts.
        ledger: of the tenants' crashes.
        cgroups: of the workers.
        jailer: of the workers.
    """

    def __init__(
        self,
        config: DaemonConfig,
        pool: Pool,
        fronts: Fronts,
        *,
        egress: Egress,
        ledger: Ledger,
        cgroups: Cgroups,
        jailer: Jailer,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._config = config
        self._pool = pool
        self._fronts = fronts
        self._egress = egress
        self._ledger = ledger
        self._cgroups = cgroups
        self._jailer = jailer

    async def gather(self) -> Json:
        """Describe everything, with fresh numbers of the fronts."""
        await asyncio.gather(*(front.refresh(0.5) for front in self._fronts.ready.values()))
        now_s = self._loop.time()
        return {
            "version": sandboxd.__version__,
            "pid": os.getpid(),
            "uptime_s": round(now_s - self._started_s, 1),
            "policies": str(self._config.policies),
            "policy_errors": self._pool.file_errors,
            "cgroup": self._cgroups.status(),
            "jail": jail_status(self._jailer, self_test=self._config.jail.self_test),
            "front_restarts": self._fronts.restarts,
            "egress": self._egress.status(),
            "fronts": fronts_status(self._fronts, self._pool, now_s),
            "tenants": await pool_status(self._pool, self._ledger, now_s),
            **process_usage(os.getpid()),
        }

    def summary(self) -> str:
        """Return one line for the service manager and the log."""
        tenants, bad_files = self._pool.tenants, self._pool.file_errors
        running = sum(tenant.state == "running" for tenant in tenants.values())
        bad = f", {len(bad_files)} bad policy files" if bad_files else ""
        return f"{running} of {len(tenants)} tenants run, {len(self._fronts.ready)} fronts{bad}"


def jail_status(jailer: Jailer, *, self_test: bool) -> Json:
    """Describe the jail that every worker gets, beside what its policy asks for."""
    plan = jailer.worker(3, 1, WorkerWishes())
    return {
        "identity": "own uid" if jailer.own_uids else "user namespace",
        "self_test": "passed" if self_test else "off",
        "layers": [layer.value for layer in plan.layers()],
        "missing": {layer.value: reason for layer, reason in plan.missing},
        "tolerated": {layer.value: reason for layer, reason in jailer.tolerated()},
    }


def fronts_status(fronts: Fronts, pool: Pool, now_s: float) -> list[Json]:
    """Describe the front processes."""
    return [_front(front, _streams(pool, front), now_s) for front in fronts.all]


def _streams(pool: Pool, front: Front) -> int:
    deployments = [tenant.current for tenant in pool.tenants.values() if tenant.current is not None]
    vms = [vm for deployment in deployments for vm in deployment.vms.all() if vm.front is front]
    return sum(vm.usage.streams_open for vm in vms if vm.usage is not None)


def _front(front: Front, streams: int, now_s: float) -> Json:
    return {
        "index": front.index,
        "pid": front.pid,
        "ready": front.is_ready,
        "addresses": list(front.addresses),
        "uptime_s": round(now_s - front.started_s, 1),
        "streams": streams,
        "counters": read(front.counters_json),
        **process_usage(front.pid),
    }


async def pool_status(pool: Pool, ledger: Ledger, now_s: float) -> list[Json]:
    """Describe the tenants, by name; others have their turn in between, since there may be many."""
    found = []
    for name in sorted(pool.tenants):
        tenant = pool.tenants.get(name)
        if tenant is not None:
            found.append(_tenant(tenant, ledger, now_s))
        await asyncio.sleep(0)
    return found


def crashes_status(ledger: Ledger, tenant: str, plugin: str) -> list[Json]:
    """Describe what the ledger knows, by tenant and plugin; empty names mean all."""
    entries = sorted(ledger.find(tenant, plugin), key=lambda entry: entry.subject)
    return [{**entry_json(entry), "total": entry.total} for entry in entries]


def _tenant(tenant: Tenant, ledger: Ledger, now_s: float) -> Json:
    deployment = tenant.current
    policy = deployment.prepared.policy if deployment else tenant.policy
    return {
        "tenant": tenant.name,
        "state": str(tenant.state),
        "policy_path": policy.source_path if policy else "",
        "policy_sha256": policy.digest if policy else "",
        "last_error": tenant.last_error,
        "restarts": tenant.restarts,
        "draining_workers": [draining.worker.pid for draining in tenant.draining],
        "shared": _shared(tenant),
        "shared_store": deployment.requests.store_counts() if deployment else None,
        "worker": _worker(deployment, now_s) if deployment else None,
        "plugins": _plugins(deployment, ledger) if deployment else [],
    }


def _shared(tenant: Tenant) -> Json:
    use = asdict(tenant.deployer.shared.use())
    return {**use.pop("counts"), **use}


def _worker(deployment: Deployment, now_s: float) -> Json:
    worker = deployment.worker
    return {
        "pid": worker.pid,
        "waiter_pid": worker.waiter_pid,
        "uptime_s": round(now_s - worker.started_s, 1),
        "layers": list(worker.layers),
        "cgroup": usage_status(worker.cgroup.usage()) if worker.cgroup else None,
        **process_usage(worker.pid),
    }


def _plugins(deployment: Deployment, ledger: Ledger) -> list[Json]:
    return [_plugin(deployment, ledger, plugin.name) for plugin in deployment.prepared.policy.plugins]


def _crashes(ledger: Ledger, subject: Subject | None) -> Json:
    entry = ledger.get(subject) if subject is not None else None
    quarantine = entry.quarantine if entry is not None else None
    return {
        "crash_counts": dict(entry.counts) if entry is not None else {},
        "quarantine": {"since_s": quarantine.since_s, "reason": quarantine.reason} if quarantine is not None else None,
        "last_failures": [crash_json(crash) for crash in list(entry.crashes)[-SHOWN_CRASHES:]] if entry else [],
    }


def _plugin(deployment: Deployment, ledger: Ledger, name: str) -> Json:
    policy = deployment.prepared.policy.plugin(name)
    prepared = deployment.prepared.plugins.get(name)
    vms = deployment.vms.of(name)
    return {
        "plugin": name,
        "kind": str(policy.kind) if policy else "",
        "module": str(policy.module.path) if policy else "",
        "module_sha256": policy.module.sha256 if policy else "",
        "abi": prepared.manifest.abi.text if prepared else "",
        "problem": deployment.problems.get(name, ""),
        "load_ms": round(deployment.load_ns.get(name, 0) / 1e6, 2),
        "folders": [_folder(mount) for mount in prepared.folders] if prepared else [],
        "vms": [_vm(deployment, vm) for vm in vms],
        **_crashes(ledger, subject_of(deployment.tenant, policy) if policy else None),
    }


def _folder(mount: Mount) -> Json:
    return {"name": mount.policy.name, "refused": mount.folder.refused, "failed": mount.folder.failed}


def _vm(deployment: Deployment, vm: Vm) -> Json:
    view = deployment.worker.view.vms.get(vm.vm_id)
    usage = vm.usage
    return {
        "id": vm.vm_id,
        "front": vm.front.index,
        "state": str(view.state) if view else "closed",
        "generation": view.generation if view else 0,
        "start_ms": round(vm.start_ns / 1e6, 2),
        "streams": usage.streams_open if usage else 0,
        "heap_bytes": usage.heap_used_bytes if usage else 0,
        "guest_memory_bytes": usage.guest_memory_bytes if usage else 0,
        "cpu_ms": round(usage.cpu_ns / 1e6, 2) if usage else 0.0,
        "crashes": view.crashes if view else 0,
    }


def process_usage(pid: int) -> Json:
    """Return memory and CPU time of a process; zeros if it is gone."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return {"rss_bytes": process.memory_info().rss, "cpu_s": round(times.user + times.system, 2)}
    except psutil.Error:
        return {"rss_bytes": 0, "cpu_s": 0.0}
