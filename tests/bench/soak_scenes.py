"""
What a soak has running: lanes, each a tenant whose plugin marks every request and response that it has filtered.

`soak_everything.scene` is the place for whatever a plugin can keep busy with: what needs a server, a listener, a
section of ``sandboxd.yaml`` or a lane of its own is one more `Part` there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
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
    beside: tuple[Mapping[str, Any], ...] = ()
    """Entries of further plugins of the tenant, which have no route."""
    configuration: str = "version %d"
    """The plugin's, with a place for the number of its version."""
    is_http: bool = True
    """Whether the exchanges take it in turns; if not, its part drives it."""

    @property
    def tenant(self) -> stage.Tenant:
        """The tenant as its policy file has it."""
        return self.version(0)

    def version(self, number: int) -> stage.Tenant:
        """Return the tenant with a configuration of that number, so that a reload has something to do."""
        failure = {"policy": "open" if self.fails_open else "closed", "restart": RESTART}
        plugin = self.guest.plugin(**{"failure": failure, "configuration": self.configuration % number, **self.more})
        return stage.Tenant(self.name, [plugin, *map(dict, self.beside)])

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
    listeners: Sequence[Mapping[str, Any]] = ()
    """Of Envoy's, beside that of the exchanges."""
    clusters: Sequence[Mapping[str, Any]] = ()
    drive: Callable[[Mapping[str, int]], contextlib.AbstractContextManager[object]] = lambda _ports: (
        contextlib.nullcontext()
    )
    """Entered while the exchanges go on, with Envoy's ports by listener."""
    check: Callable[[daemon.Daemon], list[str]] = lambda _sandbox: []
    """Asked once a second: what is wrong. Asked again at the end."""
    prove: Callable[[int], list[str]] = lambda _port: []
    """Asked once, after the last exchange, with Envoy's port: what was not at work at all."""
    judge: Callable[[daemon.Daemon], list[str]] = lambda _sandbox: []
    """Asked once, after the last exchange: what is wrong."""
    figures: Callable[[daemon.Daemon], Mapping[str, int]] = lambda _sandbox: {}
    """Asked once, after the last exchange."""


Scene = Callable[[], contextlib.AbstractContextManager[Sequence[Part]]]
"""Starts the servers that the parts need, such as those that callouts reach, and gives the parts."""


def pair(guest: Guest) -> tuple[Lane, ...]:
    return (Lane("open", guest, True), Lane("closed", guest, False))


def only(*parts: Part) -> Scene:
    """Return the scene of parts that need no server."""
    return lambda: contextlib.nullcontext(parts)


PLAIN = only(Part(pair(guests.C_ADD_HEADER)))
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


_BUSY = pair(guests.C_ALL_ON)
BUSY = Part(_BUSY, prove=partial(all_at_work, _BUSY))
"""Timers, shared data, queues and metrics in both lanes."""
