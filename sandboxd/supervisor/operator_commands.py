"""What the operator can have the daemon do while it runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from sandboxd.errors import ConfigError, OperatorError
from sandboxd.log import one_line
from sandboxd.policy.load import load_directory
from sandboxd.protos import admin_pb2 as admin
from sandboxd.supervisor.ledger import Ledger
from sandboxd.supervisor.metrics_source import DaemonMetrics
from sandboxd.supervisor.notify import Notifier
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.status import DaemonStatus, crashes_status

_log = logging.getLogger(__name__)


class Commands:
    """
    Args:
        policies: the directory that a reload reads.
        pool: the tenants.
        ledger: of their crashes.
        status: the daemon's.
        metrics: the daemon's.
        notifier: tells the service manager of a reload.
        started: set once the tenants that the daemon began with have been started. Until then nothing is reloaded or
            restarted: the jail may not have passed its test yet.
    """

    def __init__(
        self,
        policies: Path,
        pool: Pool,
        ledger: Ledger,
        *,
        status: DaemonStatus,
        metrics: DaemonMetrics,
        notifier: Notifier,
        started: asyncio.Event,
    ) -> None:
        self._policies = policies
        self._pool = pool
        self._ledger = ledger
        self._status = status
        self._metrics = metrics
        self._notifier = notifier
        self._started = started

    async def handle(self, request: admin.AdminRequest) -> dict[str, Any]:
        """
        Do what a request asks for and return the answer.

        Raises:
            OperatorError: it cannot be done.
        """
        match request.command:
            case admin.ADMIN_COMMAND_STATUS:
                return await self._status.gather()
            case admin.ADMIN_COMMAND_RELOAD:
                return await self.reload()
            case admin.ADMIN_COMMAND_RESTART:
                await self._started.wait()
                self._check_names(request)
                return {"results": await self._pool.restart(request.tenant, request.plugin)}
            case admin.ADMIN_COMMAND_CRASHES:
                return {"entries": crashes_status(self._ledger, request.tenant, request.plugin)}
            case admin.ADMIN_COMMAND_METRICS:
                self._check_names(request)
                return await self._metrics.shown(request.tenant, request.plugin)
        raise ConfigError("this daemon does not know the command")

    async def reload(self) -> dict[str, Any]:
        """
        Read the policies again and return what came of each tenant, as `Pool.apply` does.

        Raises:
            OperatorError: the directory cannot be read; it is in the log as well.
        """
        await self._started.wait()
        self._notifier.reloading()
        try:
            results = await self._pool.reload(lambda: asyncio.to_thread(load_directory, self._policies))
        except OperatorError as error:
            _log.error("reload: %s", error)
            raise
        finally:
            self._notifier.ready(self._status.summary())
        for name, result in sorted(results.items()):
            if result["result"] != "unchanged":
                _log.info("reload: %s: %s", name, result["result"])
        return {"results": results}

    def _check_names(self, request: admin.AdminRequest) -> None:
        tenants = self._pool.tenants
        if request.tenant and request.tenant not in tenants:
            problem = f"there is no tenant {one_line(request.tenant, 80)}"
            raise ConfigError(problem, allowed=tuple(sorted(tenants)))
        plugins = tuple(plugin.name for plugin in self._pool.plugins(request.tenant))
        if request.plugin and request.plugin not in plugins:
            problem = f"tenant {request.tenant} has no plugin {one_line(request.plugin, 80)}"
            raise ConfigError(problem, allowed=plugins)
