"""The daemon: puts fronts, tenants, the operator's socket and systemd together, and runs until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Any

from sandboxd import limits, log
from sandboxd.compiler import process as compiler
from sandboxd.config import DaemonConfig, LogLevel
from sandboxd.doctor.run import self_test
from sandboxd.errors import JailError, OperatorError, WorkerError
from sandboxd.jail.jailer import Jailer
from sandboxd.policy.load import PolicyDirectory
from sandboxd.policy.model import PluginKind, TenantPolicy
from sandboxd.supervisor.admin import AdminServer
from sandboxd.supervisor.attach import AttachClient, AttachServer, AttachSettings
from sandboxd.supervisor.cgroups import Cgroups
from sandboxd.supervisor.deployer import Services
from sandboxd.supervisor.egress import EGRESS_INDEX, Egress
from sandboxd.supervisor.fronts import Front, Fronts
from sandboxd.supervisor.leaving import UnwaitedExecutor
from sandboxd.supervisor.ledger import Ledger
from sandboxd.supervisor.ledger_file import FILE_NAME as LEDGER_NAME
from sandboxd.supervisor.ledger_file import LedgerFile
from sandboxd.supervisor.metrics_source import DaemonMetrics
from sandboxd.supervisor.notify import Notifier
from sandboxd.supervisor.operator_commands import Commands
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.prepare import PreparedTenant, prepare_tenant
from sandboxd.supervisor.rundir import RedactionKeys, RuntimeDirectory
from sandboxd.supervisor.services import ServiceChannels
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.spares import Spares
from sandboxd.supervisor.spinning import poll_argument
from sandboxd.supervisor.status import DaemonStatus
from sandboxd.supervisor.users import SERVICES_INDEX, AllUsers
from sandboxd.supervisor.worker_specs import WorkerSpecs
from sandboxd.supervisor.zygote import Zygote

_log = logging.getLogger(__name__)

FRONTS_READY_TIMEOUT_S = 60.0
EXTEND_START_S = 60.0
"""
How long the service manager goes on waiting for a start after each word from us. Each module may take two minutes to
compile, and there may be many; so no fixed time is enough for all.
"""
DRAIN_TIMEOUT_S = 30.0
"""How long streams of an older version may go on after a reload."""
STOP_GRACE_S = 10.0
"""How long streams may go on after SIGTERM; systemd's own limit is 90 s."""
GUEST_LEVELS = {LogLevel.DEBUG: 0, LogLevel.INFO: 2, LogLevel.WARNING: 3, LogLevel.ERROR: 4}
"""Proxy-Wasm's level for each of ours: a guest's lines below it are not even sent."""


class Daemon:
    """
    Args:
        config: the daemon's file.
        runtime: its locked runtime directory.
        keys: the tenants' redaction keys.
        zygote: forked already.
        cgroups: taken over already, or not to be had.
        jailer: makes the workers' and compilers' jails.
        artefact_key: authenticates compiled modules.
    """

    def __init__(
        self,
        config: DaemonConfig,
        runtime: RuntimeDirectory,
        keys: RedactionKeys,
        zygote: Zygote,
        *,
        cgroups: Cgroups,
        jailer: Jailer,
        artefact_key: bytes,
    ) -> None:
        self._config = config
        self._keys = keys
        self._zygote = zygote
        self._cgroups = cgroups
        self._jailer = jailer
        self._artefact_key = artefact_key
        self._notifier = Notifier()
        self._admin_path = runtime.admin_socket
        self._background: set[asyncio.Task[Any]] = set()
        self._exit_status = 0

    async def run(self, loaded: PolicyDirectory) -> int:
        """Start everything, serve, stop everything; return the exit status."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(UnwaitedExecutor(thread_name_prefix="work"))
        self._stop = asyncio.Event()
        self._started = asyncio.Event()
        self._compilers = asyncio.Semaphore(len(os.sched_getaffinity(0)))
        self.fronts = Fronts(self._zygote, self._config.front.processes, self)
        self.egress = Egress(self._zygote)
        self.fronts.siblings[EGRESS_INDEX] = self.egress
        self.attach = self._attach_server()
        self._spares = Spares(self._config.worker.spares)
        self._worker_specs = WorkerSpecs(
            self._config, self._jailer, self._cgroups, self._spares.take, lambda: self.pool.names
        )
        self._service_channels = ServiceChannels(self)
        self.ledger = Ledger()
        ledger_file = LedgerFile(self._config.state_directory / LEDGER_NAME, self.ledger)
        self.pool = Pool(self._services())
        commands = self._commands()
        server = AdminServer(self._admin_path, commands.handle)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(commands.reload()))
        await server.start()
        try:
            self.pool.expect(loaded)
            self.fronts.start()
            await self._start(loaded)
            await self._stop.wait()
        finally:
            self._notifier.stopping()
            _log.info("stopping")
            await server.stop()
            if self.attach is not None:
                self.attach.stop()
            await self._metrics.stop()
            await self.fronts.drain(STOP_GRACE_S)
            await self.pool.stop()
            self._service_channels.stop()
            self.egress.close()
            self._spares.close()
            await ledger_file.close()
            for task in self._background:
                task.cancel()
            compiler.stop()
        return self._exit_status

    async def _start(self, loaded: PolicyDirectory) -> None:
        starting = self._spawn(self._start_serving(loaded))
        extending = self._spawn(self._extend_start())
        stopping = self._loop.create_task(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        extending.cancel()
        if starting.done():
            starting.result()
        starting.cancel()

    async def _start_serving(self, loaded: PolicyDirectory) -> None:
        ready, _ = await asyncio.gather(self.fronts.wait_ready(FRONTS_READY_TIMEOUT_S), self._self_test())
        if not ready:
            raise WorkerError("the front processes did not start; their errors are in the log above")
        await self.pool.apply(loaded)
        if self.attach is not None:
            self.attach.start()
        self._metrics.start()
        self._spares.start()
        self._started.set()
        self._notifier.ready(self._status.summary())
        _log.info("ready: %s", self._status.summary())
        if self._notifier.watchdog_s:
            self._spawn(self._watchdog(self._notifier.watchdog_s / 3))

    async def _self_test(self) -> None:
        """
        Attack the jail as the workers get it.

        Raises:
            JailError: it does not hold.
        """
        if not self._config.jail.self_test:
            return
        uid = self._config.worker.uid_base if self._jailer.own_uids else 0
        through = await asyncio.to_thread(self_test, uid, tolerate=self._jailer.tolerate)
        if through:
            escapes = ", ".join(f"{name} ({answer})" for name, answer in sorted(through.items()))
            raise JailError("self-test", 0, f"attacks got through: {escapes}; see `sandboxd doctor`")
        _log.info("self-test: no attack gets out of the jail")

    def _services(self) -> Services:
        spin = poll_argument(self._config.worker.spin_us, len(os.sched_getaffinity(0)))
        return Services(
            fronts=AllUsers(
                (
                    lambda: self.fronts.reachable,
                    lambda: self.attach.ready if self.attach else {},
                    lambda: {SERVICES_INDEX: self._service_channels},
                )
            ),
            settings=Settings(
                self._config.channel.ring_bytes, spin, DRAIN_TIMEOUT_S, GUEST_LEVELS[self._config.log.level]
            ),
            prepare=self._prepare,
            redaction_key=self._keys.of,
            worker_spec=self._worker_specs.of,
            ledger=self.ledger,
            egress=self.egress,
        )

    def _commands(self) -> Commands:
        """Put together what the operator sees and does."""
        self._status = DaemonStatus(
            self._config,
            self.pool,
            self.fronts,
            egress=self.egress,
            ledger=self.ledger,
            cgroups=self._cgroups,
            jailer=self._jailer,
        )
        self._metrics = DaemonMetrics(
            self.pool, self._status.gather, lambda: self._service_channels.counters, self._config.metrics
        )
        return Commands(
            self._config.policies,
            self.pool,
            self.ledger,
            status=self._status,
            metrics=self._metrics,
            notifier=self._notifier,
            started=self._started,
        )

    def _attach_server(self) -> AttachServer | None:
        config = self._config.attach
        if config is None:
            return None
        spin_ns = self._config.channel.spin_us * limits.US_NS
        return AttachServer(AttachSettings(config.socket, config.uids, config.channels, spin_ns), self)

    async def _prepare(self, policy: TenantPolicy) -> PreparedTenant:
        self._worker_specs.check_threads(policy)
        compiling = self._config.cache_directory, self._jailer, self._artefact_key
        return await prepare_tenant(policy, self._compilers, *compiling)

    # --- FrontListener ---

    def front_asked(self, front: Front) -> None:
        """Tell a front of every plugin, and have its channels made."""
        self.pool.introduce(front)

    def front_ready(self, front: Front) -> None:
        """Say so."""
        _log.info("front %d (pid %d) serves on %s", front.index, front.pid, ", ".join(front.addresses))

    def front_gone(self, front: Front) -> None:
        """Close what a dead front had open."""
        _log.debug("front %d (pid %d) is gone", front.index, front.pid)
        self._metrics.front_gone(front.counters_json)
        self.pool.fronts_changed()

    def channel_broken(self, channel_id: int, reason: str) -> None:
        """Kill the worker behind a broken channel."""
        self.pool.channel_broken(channel_id, log.one_line(reason, 512))

    def channel_drained(self, channel_id: int) -> None:
        """No stream uses the channel any more."""
        self.pool.channel_drained(channel_id)

    # --- AttachHost ---

    def plugin_names(self, tenant: str) -> list[str]:
        """Return the plugins of a tenant that clients can attach to."""
        return [plugin.name for plugin in self.pool.plugins(tenant) if plugin.kind is not PluginKind.SERVICE]

    def client_ready(self, client: AttachClient) -> None:
        """Give a client of the attach socket its channel."""
        self.pool.fronts_changed(client)

    def client_gone(self, client: AttachClient) -> None:
        """Close what a client of the attach socket had open."""
        _log.debug("attach client %d left", client.index)
        self.pool.fronts_changed()

    def front_refused(self, index: int) -> None:
        """Stop: what front said about its sockets or certificates is in the log, and will not change."""
        _log.critical("front %d cannot serve", index)
        self._exit_status = 2
        self._stop.set()

    def zygote_gone(self) -> None:
        """Stop: fronts could not be replaced any more, and the service manager can start all anew."""
        self._exit_status = 1
        self._stop.set()

    # --- tasks ---

    async def _extend_start(self) -> None:
        while True:
            await asyncio.sleep(EXTEND_START_S / 3)
            self._notifier.still_starting(EXTEND_START_S)

    async def _watchdog(self, period_s: float) -> None:
        while True:
            self._notifier.watchdog()
            await asyncio.sleep(period_s)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_done)
        return task

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OperatorError | WorkerError | JailError):
            _log.error("a task of the supervisor failed", exc_info=error)
