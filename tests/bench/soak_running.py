"""A soak while it runs: what its processes hold, and what is done to them meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandboxd.demo import daemon, envoy
from sandboxd.egress.http import KEPT_S
from sandboxd.errors import SandboxdError
from tests.bench import processes
from tests.bench.soak_scenes import Lane, Part

ROLES = ("envoy", "daemon", "fronts", "egress")


@dataclass(frozen=True)
class Trouble:
    """What happens now and then, each in seconds; 0: never."""

    kill_every_s: float = 3.0
    """A worker, of one lane after the other."""
    reload_every_s: float = 0.0
    kill_broker_every_s: float = 0.0
    broker_killed_until_s: float = 0.0
    """After that none is killed, so that the last one has time to show what it leaks; 0: no such end."""


@dataclass
class Running:
    """The running whole, and what happens to it."""

    parts: Sequence[Part]
    trouble: Trouble
    sandbox: daemon.Daemon
    proxy: envoy.Envoy
    policies: Path
    killed: int = 0
    brokers_killed: int = 0
    reloads: int = 0
    samples: dict[str, list[processes.Usage]] = field(default_factory=lambda: {role: [] for role in ROLES})
    said: list[str] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes of all parts."""
        return tuple(lane for part in self.parts for lane in part.lanes)

    def usage(self) -> dict[str, processes.Usage]:
        """Return what the processes hold that live as long as the soak, and the broker."""
        status = self.sandbox.status()
        pids = {
            "envoy": [self.proxy.child.pid],
            "daemon": [self.sandbox.child.pid],
            "fronts": [front["pid"] for front in status["fronts"]],
            "egress": [pid for pid in (status["egress"]["pid"],) if pid],
        }
        return {role: processes.usage(pids[role]) for role in ROLES}

    def sample(self) -> None:
        """Note what they hold, and let the parts look."""
        for role, found in self.usage().items():
            if found.rss_bytes:  # else the broker is not there just now
                self.samples[role].append(found)
        for part in self.parts:
            self.said += part.check(self.sandbox)

    def kill(self, lane: Lane) -> None:
        """Kill a lane's worker, if it has one just now."""
        worker = self.sandbox.tenants()[lane.name]["worker"]
        self.killed += _killed(worker["pid"] if worker else 0)

    def kill_broker(self, _lane: Lane) -> None:
        """Kill the egress broker, if there is one just now and it is still its time."""
        until_s = self.trouble.broker_killed_until_s
        if not until_s or time.monotonic() - self.started_s < until_s:
            self.brokers_killed += _killed(self.sandbox.status()["egress"]["pid"])

    def reload(self, lane: Lane) -> None:
        """Bring another version of a lane's plugin."""
        lane.version(self.reloads + 1).write(self.policies)
        done = self.sandbox.command("reload")
        self.reloads += 1
        # A worker that was killed in the middle of its start may make the reload fail; the last version serves on.
        if done.returncode not in (0, 1):
            self.said.append(f"reload: {done.stdout}{done.stderr}")

    def settle(self, seconds: float) -> None:
        """
        Wait until no stream is open by the workers' reports, no worker of an older version is left, and the broker has
        closed the connections that nobody uses.
        """
        deadline = time.monotonic() + seconds
        while (self.streams() or self._draining()) and time.monotonic() < deadline:
            time.sleep(0.2)
        if self.samples["egress"]:
            time.sleep(min(seconds, KEPT_S + 1))

    def _draining(self) -> int:
        return sum(len(tenant["draining_workers"]) for tenant in self.sandbox.tenants().values())

    def streams(self) -> int:
        """Return how many streams the VMs have open by their last report."""
        tenants = self.sandbox.tenants().values()
        return sum(vm["streams"] for tenant in tenants for plugin in tenant["plugins"] for vm in plugin["vms"])

    @contextlib.contextmanager
    def disturbed(self) -> Iterator[None]:
        """Make trouble for the length of a ``with`` block."""
        stop = threading.Event()
        deeds = (
            (self.trouble.kill_every_s, self.kill),
            (self.trouble.reload_every_s, self.reload),
            (self.trouble.kill_broker_every_s, self.kill_broker),
        )
        threads = [threading.Thread(target=self._every, args=(*deed, stop)) for deed in deeds if deed[0]]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _every(self, seconds: float, act: Callable[[Lane], None], stop: threading.Event) -> None:
        turn = 0
        while not stop.wait(seconds):
            try:
                act(self.lanes[turn % len(self.lanes)])
            except (SandboxdError, OSError, subprocess.TimeoutExpired) as error:
                self.said.append(f"{act.__name__}: {error}")
            turn += 1


def _killed(pid: int) -> int:
    """Kill a process; return 1, or 0 if it is gone. 0 as ``pid``: nobody."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return 1
    return 0
