"""A soak's callouts: every request waits for one, over HTTP or gRPC; and a service that is handed a line for each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial

from sandboxd.demo import daemon
from sandboxd.protos import admin_pb2
from sandboxd.supervisor import admin, rundir
from tests.bench.soak_scenes import RESTART, Lane, Part
from tests.support import guests, upstream

ANSWERED = ("calls.http", "calls.grpc")
MUST_MOVE = (*ANSWERED, "calls.failed", "shipper.lines")
"""Counters of `c_all_calls.wasm` and `c_log_shipper.wasm`. Failed callouts too: the upstream sees to it."""
MIN_ANSWERED = 0.8
MIN_SHIPPED = 0.8
"""Of all requests: lines may be lost while the service is not there."""
REPORTED_S = 12.0
"""VMs tell their counters every five seconds."""
TIMEOUT_S = 20.0


def _service() -> dict[str, object]:
    return guests.C_LOG_SHIPPER.plugin(
        kind="service", limits={"tick_period": "100ms"}, failure={"restart": dict(RESTART)}
    )


def counters(sandbox: daemon.Daemon, tenant: str) -> dict[str, int]:
    """
    Return the counters that a tenant's plugins have defined, summed by name.

    Raises:
        SandboxdError: the daemon does not answer.
    """
    request = admin_pb2.AdminRequest(command=admin_pb2.ADMIN_COMMAND_METRICS, tenant=tenant)
    families = admin.call(sandbox.runtime / rundir.ADMIN_SOCKET_NAME, request, TIMEOUT_S)["families"]
    found: dict[str, int] = {}
    for family in families:
        if family["name"] == "sandboxd_plugin_counter_total":
            for one in family["samples"]:
                name = one["labels"]["name"]
                found[name] = found.get(name, 0) + int(one["value"])
    return found


def wrong_with(name: str, counted: dict[str, int]) -> list[str]:
    """Return what is wrong with a lane's counters. Pure."""
    wrong = [f"{name}: {counter} does not move" for counter in MUST_MOVE if not counted.get(counter)]
    if counted.get("calls.wrong"):
        wrong.append(f"{name}: {counted['calls.wrong']} answers to another callout")
    answered = sum(counted.get(counter, 0) for counter in ANSWERED)
    made = answered + counted.get("calls.failed", 0) + counted.get("calls.refused", 0)
    if answered < MIN_ANSWERED * made:
        wrong.append(f"{name}: only {answered} of {made} callouts were answered")
    shipped, lost = counted.get("shipper.lines", 0), counted.get("calls.lost", 0)
    if shipped < MIN_SHIPPED * (shipped + lost):
        wrong.append(f"{name}: {shipped} lines came to the service, and {lost} were lost")
    return wrong


def _judge(lanes: tuple[Lane, ...], sandbox: daemon.Daemon) -> list[str]:
    deadline = time.monotonic() + REPORTED_S
    while time.monotonic() < deadline:
        if all(counters(sandbox, lane.name).get(name) for lane in lanes for name in MUST_MOVE):
            break
        time.sleep(0.2)
    return [line for lane in lanes for line in wrong_with(lane.name, counters(sandbox, lane.name))]


def _figures(lanes: tuple[Lane, ...], sandbox: daemon.Daemon) -> dict[str, int]:
    sums: dict[str, int] = {}
    for lane in lanes:
        for name, value in counters(sandbox, lane.name).items():
            key = name.replace(".", "_")
            sums[key] = sums.get(key, 0) + value
    return sums


@contextlib.contextmanager
def part() -> Iterator[Part]:
    """Run the upstreams, and return the part, for the length of a ``with`` block."""
    with upstream.running() as known:
        more = {"capabilities": upstream.CAPABILITIES, "callouts": upstream.policy(known, concurrency=128)}
        lanes = tuple(
            Lane(f"calls-{name}", guests.C_ALL_CALLS, name == "open", more, (_service(),))
            for name in ("open", "closed")
        )
        yield Part(lanes, judge=partial(_judge, lanes), figures=partial(_figures, lanes))
