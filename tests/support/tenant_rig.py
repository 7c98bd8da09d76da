"""
A tenant without a machine: workers that are played in the event loop, a front that keeps what it is told, and versions
that are prepared without a compiler.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sandboxd.jail.full_plan import decode
from sandboxd.policy.model import Isolation, PluginPolicy, TenantPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames
from sandboxd.supervisor.crash_reports import subject_of
from sandboxd.supervisor.deployer import Services
from sandboxd.supervisor.launch import Launched, WorkerSpec
from sandboxd.supervisor.ledger import Crash, Ledger
from sandboxd.supervisor.prepare import Blob, PreparedPlugin, PreparedTenant
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.tenant import Tenant
from sandboxd.supervisor.users import ChannelUser
from sandboxd.vm.abi import AbiVersion
from sandboxd.vm.artefacts import Manifest
from tests.support.front_rig import policy

MANIFEST = Manifest(
    abi=AbiVersion.V0_2_1,
    module_sha256="0" * 64,
    engine="",
    settings_sha256="0" * 64,
    allocator="malloc",
    memory_pages=(1, 1),
    callbacks=(),
    granted_callbacks=(),
    imports=(),
    blobs={},
)


class PlayedWorker:
    """
    A worker that does what it is told, in the loop of whom it serves. Its process only waits to be killed.

    ``dies``: with the start of its first VM. ``fails``: each VM, while it starts. ``started``: set once it was told to
    open a VM; nothing more happens until ``go`` is set.
    """

    def __init__(self, *, dies: bool = False, fails: bool = False) -> None:
        self.dies = dies
        self.fails = fails
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.process: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_alive(self) -> bool:
        """Whether its process was launched and runs."""
        return self.process is not None and self.process.poll() is None

    def launch(self) -> Launched:
        """Return the process and the socket."""
        with frames.Pair() as pair:
            self._socket = pair.theirs.dup()
            self._socket.setblocking(False)
            self.process = subprocess.Popen(["sleep", "60"], stderr=subprocess.PIPE)
            asyncio.get_running_loop().add_reader(self._socket, self._readable)
            return Launched(self.process, pair.ours, pair.theirs.fileno())

    def _readable(self) -> None:
        packet = frames.receive_with_fds(self._socket)
        packet.close()
        if not packet.data:
            self.end()
            return
        frame = control.ToWorker.FromString(packet.data)
        match frame.WhichOneof("frame"):
            case "setup":
                layers = [layer.value for layer in decode(frame.setup.jail_plan).layers()]
                self.say(ready=control.WorkerReady(layers=layers))
            case "load_plugin":
                self.say(plugin_loaded=control.PluginLoaded(plugin_id=frame.load_plugin.plugin_id))
            case "open_vm":
                self._tasks.append(asyncio.get_running_loop().create_task(self._open(frame.open_vm.vm_id)))
            case "close_vm":
                self.say(vm_closed=control.VmClosed(vm_id=frame.close_vm.vm_id))
            case "ping":
                self.say(pong=control.Pong(number=frame.ping.number))

    async def _open(self, vm_id: int) -> None:
        self.started.set()
        await self.go.wait()
        if self.fails:
            cause = control.FAILURE_CAUSE_TRAP
            self.say(vm_failed=control.VmFailed(vm_id=vm_id, generation=1, cause=cause, while_starting=True))
        else:
            self.say(vm_started=control.VmStarted(vm_id=vm_id, generation=1))
        if self.dies and self.process is not None:
            self.process.kill()
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def say(self, **frame: Any) -> None:
        """Send a frame; a supervisor that does not listen any more is no matter."""
        with contextlib.suppress(OSError):
            self._socket.send(control.FromWorker(**frame).SerializeToString())

    def end(self) -> None:
        """Leave, as a worker does at the end of its socket."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        if self.process is not None:
            self.process.kill()


@dataclass
class PlayedFront:
    """A front that keeps what it is told."""

    index: int = 0
    told: list[control.ToFront] = field(default_factory=list)

    def wants(self, tenant: str, plugin: str) -> bool:
        """Everything."""
        return bool(tenant and plugin)

    def send(self, frame: control.ToFront, fds: Sequence[int] = ()) -> None:  # noqa: ARG002
        """Keep it."""
        self.told.append(frame)

    def superseded(self, channel_id: int) -> None:
        """It sees so by itself."""

    @property
    def last(self) -> str:
        """The kind of the last frame; empty: none."""
        return self.told[-1].WhichOneof("frame") or "" if self.told else ""


def version(number: int = 0, **changes: Any) -> TenantPolicy:
    """A version of the tenant ``acme`` with one plugin, ``filter``; versions differ by their digest."""
    plugin = replace(policy(), **changes)
    return TenantPolicy("acme", (plugin,), Isolation(), source_path="acme.yaml", digest=str(number))


class Rig:
    """
    What a tenant needs of a daemon.

    ``workers`` are handed out one after the other; ``prepare`` and ``spec`` may be replaced.
    """

    def __init__(self, *workers: PlayedWorker) -> None:
        self.workers = list(workers)
        self._given = 0
        self.front = PlayedFront()
        self.fronts = {0: self.front}
        self.ledger = Ledger(chance=lambda: 0.0)
        self.prepare: Callable[[TenantPolicy], Awaitable[PreparedTenant]] = _prepare
        self.spec: Callable[[TenantPolicy], WorkerSpec] = self._spec
        self.services = Services(
            fronts=self,
            settings=Settings(ring_bytes=65536, worker_spin=0, drain_timeout_s=30.0),
            prepare=lambda asked: self.prepare(asked),  # noqa: PLW0108  (it may be replaced)
            redaction_key=lambda _: bytes(32),
            worker_spec=lambda asked: self.spec(asked),  # noqa: PLW0108  (as above)
            ledger=self.ledger,
        )
        self.tenant = Tenant("acme", self.services)

    @property
    def ready(self) -> Mapping[int, ChannelUser]:
        """The fronts."""
        return self.fronts

    def _spec(self, asked: TenantPolicy) -> WorkerSpec:
        self._given += 1
        return WorkerSpec(asked.tenant, launch=self.workers[self._given - 1].launch)

    def crash(self, plugin: PluginPolicy, times: int = 1) -> None:
        """Have the ledger know of crashes."""
        for _ in range(times):
            crash = Crash(self.ledger.now_s(), "trap", "x")
            self.ledger.crashed(subject_of("acme", plugin), plugin.failure.restart, crash)

    async def end(self) -> None:
        """End all workers, also those that nobody knows of any more; a test looks before."""
        await asyncio.wait_for(self.tenant.stop(), 10)
        for worker in self.workers:
            if worker.is_alive:
                worker.end()


def prepared(asked: TenantPolicy) -> PreparedTenant:
    """Return a version whose plugins all can run."""
    plugins = {plugin.name: PreparedPlugin(plugin, MANIFEST, Blob("bundle", b"x")) for plugin in asked.plugins}
    return PreparedTenant(asked, Blob("policy", b""), plugins, {})


async def _prepare(asked: TenantPolicy) -> PreparedTenant:
    return prepared(asked)
