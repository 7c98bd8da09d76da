"""
What a soak has running: lanes, each a tenant whose plugin marks every request and response that it has filtered.

`EVERYTHING` is the place for whatever a plugin can keep busy with: a part that needs a server, a section of
``sandboxd.yaml`` or a lane of its own is one more `Part` there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sandboxd.demo import daemon
from sandboxd.demo.client import Request, fetch
from tests.support import guests, stage
from tests.support.guests import Guest

RESTART = {"backoff": "10ms", "max_crashes": 1000, "window": "1s"}
"""A window shorter than the time between two kills: each crash is the first, and followed by a start at once."""


PROOFS = ("x-requests", "x-ticks", "x-dequeued")
"""Response headers of `c_all_on.wasm`: numbers that are 0 if shared data, timer or queue does not work."""
PROOF_S = 10.0
PROOF_PREFIX = "/proof"
"""Before a lane's path: the same filter, and Envoy answers by itself."""


@dataclass(frozen=True)
class Lane:
    """One tenant with one plugin, which fails open or closed."""

    name: str
    guest: Guest
    fails_open: bool
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the plugin's entry."""

    @property
    def tenant(self) -> stage.Tenant:
        """The tenant as its policy file has it."""
        return self.version(0)

    def version(self, number: int) -> stage.Tenant:
        """Return the tenant with a configuration of that number, so that a reload has something to do."""
        failure = {"policy": "open" if self.fails_open else "closed", "restart": RESTART}
        plugin = self.guest.plugin(**{"failure": failure, "configuration": f"version {number}", **self.more})
        return stage.Tenant(self.name, [plugin])

    @property
    def path(self) -> str:
        """The beginning of the paths that its route takes."""
        return f"/{self.name}/{self.guest.name}/"


@dataclass(frozen=True)
class Part:
    """Something that a soak has on."""

    lanes: tuple[Lane, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    """Further sections of ``sandboxd.yaml``."""
    helper: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    """What must run beside, such as the server that callouts reach; entered before the daemon starts."""
    check: Callable[[daemon.Daemon], list[str]] = lambda _sandbox: []
    """Asked once a second: what is wrong. Asked again at the end."""
    prove: Callable[[int], list[str]] = lambda _port: []
    """Asked once, after the last exchange, with Envoy's port: what was not at work at all."""


def _pair(guest: Guest) -> tuple[Lane, ...]:
    return (Lane("open", guest, True), Lane("closed", guest, False))


PLAIN = (Part(_pair(guests.C_ADD_HEADER)),)
"""Header filters, and nothing else."""


def all_at_work(lanes: tuple[Lane, ...], port: int, patience_s: float = PROOF_S) -> list[str]:
    """Ask each lane for the numbers of its VM, which may be young, until all of them have moved."""
    idle: list[str] = []
    for lane in lanes:
        deadline = time.monotonic() + patience_s
        while True:
            answer = asyncio.run(fetch(port, Request("GET", f"{PROOF_PREFIX}{lane.path}"), PROOF_S))
            idle = [f"{lane.name}: {name} does not move" for name in PROOFS if answer.value(name, "0") == "0"]
            if not idle:
                break
            if time.monotonic() > deadline:
                return idle
            time.sleep(0.1)
    return []


_BUSY = _pair(guests.C_ALL_ON)
EVERYTHING = (Part(_BUSY, prove=partial(all_at_work, _BUSY)),)
"""Timers, shared data, queues and metrics in both lanes."""
