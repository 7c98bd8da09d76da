"""From the daemon's state to metrics: what is gathered in its loop, and the text that another thread makes of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sandboxd.config import MetricsConfig
from sandboxd.supervisor.front_totals import Counts, FrontTotals, read
from sandboxd.supervisor.metrics_server import MetricsServer
from sandboxd.supervisor.metrics_text import Family, Json, exposition, only, to_json
from sandboxd.supervisor.own_metrics import own_families
from sandboxd.supervisor.plugin_families import PluginTotals, plugin_families
from sandboxd.supervisor.pool import Pool

FRESH_S: Final = 1.0
"""Nothing is gathered more often: a scraper in a loop costs the daemon nothing."""
GATHER_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What metrics are made of."""

    status: Json
    """What the status command answers."""
    events: Counts
    """What the fronts have counted."""
    plugins: tuple[PluginTotals, ...]
    """What the plugins have defined; as old as their last report, five seconds at most."""


async def _plugin_totals(pool: Pool) -> tuple[PluginTotals, ...]:
    """Return the metrics that plugins have defined, of those that are configured now; others have their turn."""
    found = []
    for tenant in list(pool.tenants.values()):
        for plugin in tenant.policy.plugins if tenant.policy else ():
            metrics = tenant.deployer.metrics.get(plugin.name)
            if metrics is not None:
                found.append(PluginTotals(tenant.name, plugin.name, metrics.totals(), metrics.dropped))
            await asyncio.sleep(0)
    return tuple(found)


def _configured(pool: Pool) -> frozenset[str]:
    """Return the fronts' keys of all plugins that there are."""
    return frozenset(
        f"{tenant.name}/{plugin.name}"
        for tenant in pool.tenants.values()
        if tenant.policy is not None
        for plugin in tenant.policy.plugins
    )


def families(snapshot: Snapshot) -> list[Family]:
    """Return all metrics."""
    return [*own_families(snapshot.status, snapshot.events), *plugin_families(snapshot.plugins)]


class DaemonMetrics:
    """
    The daemon's metrics; lives in its loop.

    Args:
        pool: the tenants.
        status: what the status command answers.
        services: what the services' channels have counted.
        config: where Prometheus reads them; None: nowhere.
    """

    def __init__(
        self,
        pool: Pool,
        status: Callable[[], Awaitable[Json]],
        services: Callable[[], Counts],
        config: MetricsConfig | None,
    ) -> None:
        self._pool = pool
        self._status = status
        self._services = services
        self._fronts = FrontTotals()
        text = MetricsText(asyncio.get_running_loop(), self.snapshot)
        self._server = MetricsServer(config, text.get) if config else None

    def start(self) -> None:
        """Let Prometheus in; raises ConfigError."""
        if self._server is not None:
            self._server.start()

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)

    def front_gone(self, counters_json: str) -> None:
        """A front is gone, and this was its last word."""
        self._fronts.gone(read(counters_json))

    async def snapshot(self) -> Snapshot:
        """Gather everything."""
        status = await self._status()
        counted = [*(front["counters"] for front in status["fronts"]), self._services()]
        events = self._fronts.totals(counted, _configured(self._pool))
        return Snapshot(status, events, await _plugin_totals(self._pool))

    async def shown(self, tenant: str, plugin: str) -> Json:
        """Return the metrics as plain data; of one tenant, or of one plugin of it, if they are named."""
        snapshot = await self.snapshot()
        found = await asyncio.to_thread(lambda: to_json(only(families(snapshot), tenant, plugin)))
        return {"families": found}


class MetricsText:
    """
    The text for scrapers, made in their own threads; the daemon's loop only gathers.

    Args:
        loop: the daemon's.
        gather: runs in it.
        timeout_s: how long it may take.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        gather: Callable[[], Awaitable[Snapshot]],
        timeout_s: float = GATHER_TIMEOUT_S,
    ) -> None:
        self._timeout_s = timeout_s
        self._loop = loop
        self._gather = gather
        self._lock = threading.Lock()
        self._text = b""
        self._made_s = float("-inf")

    def get(self) -> bytes:
        """
        Return the text; blocks, never call it in the loop.

        Raises:
            TimeoutError: the loop does not answer.
        """
        with self._lock:
            if time.monotonic() - self._made_s > FRESH_S:
                gathering = asyncio.run_coroutine_threadsafe(self._gathered(), self._loop)
                try:
                    found = gathering.result(self._timeout_s)
                finally:
                    gathering.cancel()  # nobody waits for it any more
                self._text = exposition(families(found)).encode()
                self._made_s = time.monotonic()
            return self._text

    async def _gathered(self) -> Snapshot:
        return await self._gather()
