"""``sandboxd status``: how the running daemon is, for a person or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from sandboxd.commands import crashes
from sandboxd.commands.ask import ask
from sandboxd.commands.common import Colours, Subparsers, add_config_arguments
from sandboxd.log import one_line
from sandboxd.protos import admin_pb2 as admin

Json = dict[str, Any]


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "status",
        help="show tenants, plugins, VMs and processes of the running daemon",
        description="Show tenants, plugins, VMs and processes of the running daemon. Exit status 1 if "
        "something does not run as its policy says.",
    )
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask the daemon and print its answer."""
    body = ask(args, admin.ADMIN_COMMAND_STATUS)
    if args.json:
        print(json.dumps(body, indent=2))
    else:
        print("\n".join(lines(body, Colours())))
    return 0 if is_well(body) else 1


def is_well(body: Json) -> bool:
    """Return whether every tenant, front and policy file is as it should be."""
    tenants = all(tenant["state"] == "running" and not tenant["last_error"] for tenant in body["tenants"])
    return tenants and not body["policy_errors"] and all(front["ready"] for front in body["fronts"])


def lines(body: Json, colours: Colours) -> Iterator[str]:
    """Yield the human form."""
    yield (
        f"sandboxd {body['version']}  pid {body['pid']}  up {_duration(body['uptime_s'])}"
        f"  {_size(body['rss_bytes'])}  policies {body['policies']}"
    )
    if missing := body["cgroup"]["missing"]:
        yield f"{colours.yellow}No cgroups{colours.off}: {one_line(missing, 500)}"
    yield from _jail_lines(body["jail"], colours)
    yield ""
    yield from table(
        ("FRONT", "PID", "UP", "MEMORY", "CPU", "STREAMS", "ADDRESSES"),
        [_front_row(front) for front in body["fronts"]],
    )
    yield ""
    yield from _callout_lines(body["egress"])
    yield from table(
        ("TENANT", "STATE", "WORKER", "UP", "LAYERS", "MEMORY", "CPU", "WAITED", "RESTARTS", "STREAMS", "CRASHES"),
        [_tenant_row(tenant) for tenant in body["tenants"]],
    )
    yield ""
    plugins = [_plugin_row(tenant, plugin) for tenant in body["tenants"] for plugin in tenant["plugins"]]
    yield from table(("PLUGIN", "ABI", "MODULE", "VMS", "GUEST MEMORY", "STREAMS", "CRASHES", "CPU"), plugins)
    problems = list(_problems(body))
    if problems:
        yield ""
        yield f"{colours.red}Problems{colours.off}"
        yield from (f"  {problem}" for problem in problems)


def _jail_lines(jail: Json, colours: Colours) -> Iterator[str]:
    for layer, reason in jail["tolerated"].items():
        yield f"{colours.red}WORKERS ARE LESS ISOLATED{colours.off}: no {layer} ({one_line(reason, 300)})"
    yield (
        f"Jail: {len(jail['layers'])} layers, {jail['identity']}, self-test {jail['self_test']};"
        f" missing: {', '.join(jail['missing']) or 'none'}"
    )


def _callout_lines(egress: Json) -> Iterator[str]:
    rows = [
        (plugin, upstream, *(str(_sum(counters, begin)) for begin in ("calls", "answered", "failed.", "denied.")))
        for plugin, upstreams in sorted(egress["callouts"].items())
        for upstream, counters in sorted(upstreams.items())
    ]
    if rows:
        yield from table(("CALLOUTS OF", "UPSTREAM", "CALLS", "ANSWERED", "FAILED", "DENIED"), rows)
        yield ""


def _sum(counters: dict[str, int], begin: str) -> int:
    return sum(value for name, value in counters.items() if name.startswith(begin))


def _front_row(front: Json) -> tuple[str, ...]:
    return (
        str(front["index"]),
        str(front["pid"]),
        _duration(front["uptime_s"]),
        _size(front["rss_bytes"]),
        f"{front['cpu_s']:.1f}s",
        str(front["streams"]),
        " ".join(front["addresses"]) or "starting",
    )


def _tenant_row(tenant: Json) -> tuple[str, ...]:
    worker = tenant["worker"]
    vms = [vm for plugin in tenant["plugins"] for vm in plugin["vms"]]
    return (
        tenant["tenant"],
        tenant["state"],
        str(worker["pid"]) if worker else "-",
        _duration(worker["uptime_s"]) if worker else "-",
        str(len(worker["layers"])) if worker else "-",
        _size(worker["rss_bytes"]) if worker else "-",
        f"{worker['cpu_s']:.1f}s" if worker else "-",
        _waited(worker["cgroup"]) if worker and worker["cgroup"] else "-",
        str(tenant["restarts"]),
        str(sum(vm["streams"] for vm in vms)),
        str(sum(sum(plugin["crash_counts"].values()) for plugin in tenant["plugins"])),
    )


def _waited(cgroup: Json) -> str:
    """
    Return how long the worker's threads wanted CPU or memory and had to wait: the kernel's pressure figures.
    """
    return f"cpu {cgroup['cpu_pressure_us'] / 1e6:.1f}s mem {cgroup['memory_pressure_us'] / 1e6:.1f}s"


def _plugin_row(tenant: Json, plugin: Json) -> tuple[str, ...]:
    vms = plugin["vms"]
    running = sum(vm["state"] == "running" for vm in vms)
    return (
        f"{tenant['tenant']}/{plugin['plugin']}{' (service)' if plugin['kind'] == 'service' else ''}",
        plugin["abi"] or "-",
        plugin["module_sha256"][:12],
        f"{running}/{len(vms)}",
        _size(sum(vm["guest_memory_bytes"] for vm in vms)),
        str(sum(vm["streams"] for vm in vms)),
        _crashes(plugin),
        f"{sum(vm['cpu_ms'] for vm in vms):.0f}ms",
    )


def _crashes(plugin: Json) -> str:
    total = sum(plugin["crash_counts"].values())
    return f"{total} QUARANTINE" if plugin["quarantine"] else str(total)


def _problems(body: Json) -> Iterator[str]:
    for error in body["policy_errors"].values():
        yield one_line(error, 1000)
    for tenant in body["tenants"]:
        if tenant["last_error"]:
            yield f"tenant {tenant['tenant']}: {one_line(tenant['last_error'], 1000)}"
        for plugin in tenant["plugins"]:
            for failure in plugin["last_failures"][-2:]:
                text = f"{crashes.moment(failure['time_s'])} {crashes.crash_text(failure)}"
                yield f"{tenant['tenant']}/{plugin['plugin']}: {one_line(text, 300)}"
            if len(plugin["crash_counts"]) > 1:
                causes = crashes.counts_text(plugin["crash_counts"])
                yield f"{tenant['tenant']}/{plugin['plugin']}: {causes} (`sandboxd crashes` shows them)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table's lines, columns as wide as they need."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _size(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 10 * 1024:
            return f"{count} {unit}"
        count //= 1024
    return f"{count} GiB"
