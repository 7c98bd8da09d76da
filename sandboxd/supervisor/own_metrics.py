"""
sandboxd's own metrics: the numbers of `sandboxd.supervisor.status` and of the fronts as families. Pure.

Labels are names of the operator's (tenants, plugins), of ours (causes, states), and events of the fronts, whose number
per plugin is bounded; a guest's text is in none but ``denied`` calls, which carry names of the module's imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sandboxd.supervisor.egress_families import egress_families
from sandboxd.supervisor.front_totals import UNKNOWN, Counts
from sandboxd.supervisor.metrics_text import Family, Kind
from sandboxd.supervisor.tenant_state import TenantState
from sandboxd.supervisor.worker_protocol import VmState

Json = dict[str, Any]
VM_STATES: Final = (*(state.value for state in VmState), "closed")

_COUNTER, _GAUGE = Kind.COUNTER, Kind.GAUGE


def own_families(status: Json, events: Counts) -> list[Family]:
    """
    Return the families, in a fixed order.

    Args:
        status: what the status command answers.
        events: what the fronts have counted of each plugin.
    """
    return [
        *_daemon(status),
        *_fronts(status, events),
        *egress_families(status["egress"]),
        *_tenants(status["tenants"]),
        *_workers(status["tenants"]),
        *_shared(status["tenants"]),
        *_stores(status["tenants"]),
        *_plugins(status["tenants"]),
        *_folders(status["tenants"]),
        *_events(events),
    ]


def _daemon(status: Json) -> list[Family]:
    info = Family("sandboxd_info", _GAUGE, "Always 1; the version stands in the label.")
    info.add(1, version=status["version"])
    uptime = Family("sandboxd_uptime_seconds", _GAUGE, "Time since the daemon was started.")
    uptime.add(status["uptime_s"])
    memory = Family("sandboxd_supervisor_memory_bytes", _GAUGE, "Resident memory of the supervisor.")
    memory.add(status["rss_bytes"])
    cpu = Family("sandboxd_supervisor_cpu_seconds_total", _COUNTER, "CPU time of the supervisor.")
    cpu.add(status["cpu_s"])
    errors = Family("sandboxd_policy_file_errors", _GAUGE, "Policy files that belong to no tenant and are refused.")
    errors.add(len(status["policy_errors"]))
    tolerated = Family("sandboxd_jail_tolerated_layers", _GAUGE, "Layers of isolation that workers do without.")
    tolerated.add(len(status["jail"]["tolerated"]))
    return [info, uptime, memory, cpu, errors, tolerated]


def _fronts(status: Json, events: Counts) -> list[Family]:
    restarts = Family("sandboxd_front_restarts_total", _COUNTER, "Fronts that died and were replaced.")
    restarts.add(status["front_restarts"])
    up = Family("sandboxd_front_up", _GAUGE, "1 if the front serves.")
    memory = Family("sandboxd_front_memory_bytes", _GAUGE, "Resident memory of the front.")
    cpu = Family("sandboxd_front_cpu_seconds_total", _COUNTER, "CPU time of the front's process.")
    streams = Family("sandboxd_front_streams", _GAUGE, "Streams that are open on the front.")
    for front in status["fronts"]:
        index = str(front["index"])
        up.add(int(front["ready"]), front=index)
        memory.add(front["rss_bytes"], front=index)
        cpu.add(front["cpu_s"], front=index)
        streams.add(front["streams"], front=index)
    strays = Family("sandboxd_front_events_total", _COUNTER, "What fronts met that belongs to no plugin.")
    for name, value in sorted(events.get(UNKNOWN, {}).items()):
        strays.add(value, event=name)
    return [restarts, up, memory, cpu, streams, strays]


def _tenants(tenants: list[Json]) -> list[Family]:
    state = Family("sandboxd_tenant_state", _GAUGE, "1 for the state that the tenant is in.")
    error = Family("sandboxd_tenant_error", _GAUGE, "1 if the last reload or start failed, or a plugin does not run.")
    restarts = Family("sandboxd_tenant_restarts_total", _COUNTER, "Workers that died or did not start.")
    for tenant in tenants:
        name = tenant["tenant"]
        for one in TenantState:
            state.add(int(tenant["state"] == one.value), tenant=name, state=one.value)
        error.add(int(bool(tenant["last_error"])), tenant=name)
        restarts.add(tenant["restarts"], tenant=name)
    return [state, error, restarts]


_CGROUP = (
    ("sandboxd_worker_cgroup_memory_bytes", _GAUGE, "Memory that the kernel charges to the worker.", "memory_bytes", 1),
    ("sandboxd_worker_throttled_seconds_total", _COUNTER, "Time held back by isolation.cpu.", "throttled_us", 1e6),
    ("sandboxd_worker_cpu_wait_seconds_total", _COUNTER, "Time some thread waited for CPU.", "cpu_pressure_us", 1e6),
    (
        "sandboxd_worker_memory_wait_seconds_total",
        _COUNTER,
        "Time some thread waited for memory.",
        "memory_pressure_us",
        1e6,
    ),
)


def _workers(tenants: list[Json]) -> list[Family]:
    up = Family("sandboxd_worker_up", _GAUGE, "1 if the tenant has a worker.")
    draining = Family("sandboxd_workers_draining", _GAUGE, "Workers of older versions that end with their streams.")
    memory = Family("sandboxd_worker_memory_bytes", _GAUGE, "Resident memory of the worker.")
    cpu = Family("sandboxd_worker_cpu_seconds_total", _COUNTER, "CPU time of the worker.")
    kernel = [Family(name, kind, text) for name, kind, text, _, _ in _CGROUP]
    for tenant in tenants:
        name, worker = tenant["tenant"], tenant["worker"]
        up.add(int(worker is not None), tenant=name)
        draining.add(len(tenant["draining_workers"]), tenant=name)
        if worker is None:
            continue
        memory.add(worker["rss_bytes"], tenant=name)
        cpu.add(worker["cpu_s"], tenant=name)
        if worker["cgroup"]:
            for family, (*_, key, divisor) in zip(kernel, _CGROUP, strict=True):
                value = worker["cgroup"][key]
                family.add(value if divisor == 1 else value / divisor, tenant=name)
    return [up, draining, memory, cpu, *kernel]


_SHARED = (
    ("sandboxd_shared_size_bytes", _GAUGE, "Size of the tenant's shared region.", "size_bytes"),
    ("sandboxd_shared_used_bytes", _GAUGE, "Most of the region that was ever in use.", "used_bytes"),
    ("sandboxd_shared_entries", _GAUGE, "Keys of the shared data.", "entries"),
    ("sandboxd_shared_sets_total", _COUNTER, "Values set.", "sets"),
    ("sandboxd_shared_cas_mismatches_total", _COUNTER, "Values not set: another had been set since.", "cas_mismatches"),
    ("sandboxd_shared_full_total", _COUNTER, "Values refused for want of room.", "full"),
    ("sandboxd_shared_repairs_total", _COUNTER, "Repairs after a VM ended with the lock.", "repairs"),
    ("sandboxd_shared_lock_waits_total", _COUNTER, "Times that a VM slept for the lock.", "lock_waits"),
    ("sandboxd_shared_queue_items_total", _COUNTER, "Items that came to shared queues.", "enqueued"),
    ("sandboxd_shared_queue_full_total", _COUNTER, "Items that shared queues refused.", "queue_full"),
)


def _shared(tenants: list[Json]) -> list[Family]:
    families = []
    for name, kind, text, key in _SHARED:
        family = Family(name, kind, text)
        for tenant in tenants:
            family.add(tenant["shared"][key], tenant=tenant["tenant"])
        families.append(family)
    return families


def _stores(tenants: list[Json]) -> list[Family]:
    asked = Family("sandboxd_shared_store_asked_total", _COUNTER, "Questions that went to shared.backend.")
    failed = Family("sandboxd_shared_store_failed_total", _COUNTER, "Questions that shared.backend did not answer.")
    for tenant in tenants:
        if (store := tenant["shared_store"]) is not None:
            asked.add(store["asked"], tenant=tenant["tenant"])
            failed.add(store["failed"], tenant=tenant["tenant"])
    return [asked, failed]


def _folders(tenants: list[Json]) -> list[Family]:
    refused = Family(
        "sandboxd_folder_refused_total", _COUNTER, "Changes in a folder that were not made: over a quota, or not there."
    )
    failed = Family("sandboxd_folder_failed_total", _COUNTER, "Changes in a folder that the disk did not take.")
    for tenant in tenants:
        for plugin in tenant["plugins"]:
            for folder in plugin["folders"]:
                names = {"tenant": tenant["tenant"], "plugin": plugin["plugin"], "folder": folder["name"]}
                refused.add(folder["refused"], **names)
                failed.add(folder["failed"], **names)
    return [refused, failed]


def _plugins(tenants: list[Json]) -> list[Family]:
    up = Family("sandboxd_plugin_up", _GAUGE, "1 if a VM of the plugin runs.")
    quarantined = Family("sandboxd_plugin_quarantined", _GAUGE, "1 if the plugin is in quarantine.")
    crashes = Family("sandboxd_plugin_crashes_total", _COUNTER, "Crashes that the ledger knows, by cause.")
    vms = Family("sandboxd_plugin_vms", _GAUGE, "VMs by state.")
    streams = Family("sandboxd_plugin_streams", _GAUGE, "Streams that are open.")
    memory = Family("sandboxd_plugin_guest_memory_bytes", _GAUGE, "Linear memory of the plugin's VMs.")
    heap = Family("sandboxd_plugin_heap_bytes", _GAUGE, "What the host keeps for the streams of the plugin's VMs.")
    cpu = Family("sandboxd_plugin_cpu_seconds_total", _COUNTER, "CPU time of the VMs that there are now.")
    for tenant in tenants:
        for plugin in tenant["plugins"]:
            names = {"tenant": tenant["tenant"], "plugin": plugin["plugin"]}
            states = [vm["state"] for vm in plugin["vms"]]
            up.add(int("running" in states and not plugin["quarantine"]), **names)
            quarantined.add(int(plugin["quarantine"] is not None), **names)
            for cause, count in sorted(plugin["crash_counts"].items()):
                crashes.add(count, **names, cause=cause)
            for state in VM_STATES:
                vms.add(states.count(state), **names, state=state)
            streams.add(sum(vm["streams"] for vm in plugin["vms"]), **names)
            memory.add(sum(vm["guest_memory_bytes"] for vm in plugin["vms"]), **names)
            heap.add(sum(vm["heap_bytes"] for vm in plugin["vms"]), **names)
            cpu.add(sum(vm["cpu_ms"] for vm in plugin["vms"]) / 1000, **names)
    return [up, quarantined, crashes, vms, streams, memory, heap, cpu]


_EXACT: Mapping[str, tuple[str, str]] = {
    "streams": ("sandboxd_plugin_exchanges_total", "Exchanges that fronts had the plugin see."),
    "guest_log.lines": ("sandboxd_plugin_log_lines_total", "Lines that the plugin has logged."),
    "guest_log.dropped": ("sandboxd_plugin_log_lines_dropped_total", "Lines that were dropped over its limits."),
    "vm_restarts": ("sandboxd_plugin_vm_restarts_total", "VMs that were started again."),
}
_PREFIXES: Mapping[str, tuple[str, str, str]] = {
    "failed.": ("sandboxd_plugin_failures_total", "cause", "Streams that got the failure policy, by cause."),
    "denied.": ("sandboxd_plugin_denied_calls_total", "function", "Calls that the policy does not grant."),
    "refused.": ("sandboxd_plugin_refused_writes_total", "reason", "Writes that were left out, by reason."),
}
_REST = ("sandboxd_plugin_events_total", "event", "What else fronts have counted; docs/ext_proc.md has the names.")


def _events(events: Counts) -> list[Family]:
    exact = {key: Family(name, _COUNTER, text) for key, (name, text) in _EXACT.items()}
    prefixed = {prefix: Family(name, _COUNTER, text) for prefix, (name, _, text) in _PREFIXES.items()}
    rest = Family(_REST[0], _COUNTER, _REST[2])
    for key in sorted(events):
        tenant, _, plugin = key.partition("/")
        if key == UNKNOWN:
            continue
        for family_key, family in exact.items():
            family.add(events[key].get(family_key, 0), tenant=tenant, plugin=plugin)
        for name, value in sorted(events[key].items()):
            if name in exact:
                continue
            prefix = next((prefix for prefix in prefixed if name.startswith(prefix)), "")
            family = prefixed[prefix] if prefix else rest
            label = _PREFIXES[prefix][1] if prefix else _REST[1]
            family.add(value, tenant=tenant, plugin=plugin, **{label: name.removeprefix(prefix)})
    return [*exact.values(), *prefixed.values(), rest]
