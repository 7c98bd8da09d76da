"""How a tenant's versions become deployments: what they need of the daemon, what they share, what is left out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from sandboxd.policy.model import TenantPolicy
from sandboxd.supervisor.crash_reports import CrashReports
from sandboxd.supervisor.deployment import Deployment
from sandboxd.supervisor.egress import Egress
from sandboxd.supervisor.exits import Exit
from sandboxd.supervisor.launch import WorkerSpec
from sandboxd.supervisor.ledger import Ledger
from sandboxd.supervisor.plugin_metrics import PluginMetrics
from sandboxd.supervisor.prepare import PluginProblem, PreparedTenant
from sandboxd.supervisor.settings import Settings
from sandboxd.supervisor.shared_region import SharedRegion
from sandboxd.supervisor.users import UserSet

Prepare: TypeAlias = Callable[[TenantPolicy], Awaitable[PreparedTenant]]


@dataclass(frozen=True, slots=True)
class Services:
    """What a tenant needs of the daemon."""

    fronts: UserSet
    settings: Settings
    prepare: Prepare
    redaction_key: Callable[[str], bytes]
    worker_spec: Callable[[TenantPolicy], WorkerSpec]
    ledger: Ledger
    egress: Egress | None = None


class Deployer:
    """
    Args:
        tenant: whose versions they are.
        services: the daemon's.
        on_gone: called once for each deployment, when its worker is gone.
    """

    def __init__(self, tenant: str, services: Services, on_gone: Callable[[Deployment, Exit], None]) -> None:
        self._tenant = tenant
        self._services = services
        self._on_gone = on_gone
        self.shared = SharedRegion()
        """Of the deployment that serves, and of each later one that wants the same size."""
        self.metrics: dict[str, PluginMetrics] = {}
        """What the plugins have reported, by name, over all deployments."""

    def deploy(self, prepared: PreparedTenant) -> Deployment:
        """
        Return a fresh deployment of a version, without the plugins that are in quarantine.

        Raises:
            JailError: the machine cannot give a layer that every worker needs.
            OSError, WorkerError: no worker can be started.
        """
        policy = prepared.policy
        crashes = CrashReports(self._services.ledger, policy)
        return Deployment(
            _without_quarantined(prepared, crashes),
            self._services.worker_spec(policy),
            self._services.fronts,
            self._services.settings,
            redaction_key=self._services.redaction_key(self._tenant),
            on_gone=self._on_gone,
            crashes=crashes,
            shared=self._region(policy),
            metrics=self.metrics,
            egress=self._services.egress,
        )

    def _region(self, policy: TenantPolicy) -> SharedRegion:
        """Return the region for a version: the one that there is, unless the version wants one of another size."""
        size = policy.shared.memory_bytes
        return self.shared if self.shared.size == size else SharedRegion(size)

    def took_over(self, deployment: Deployment) -> None:
        """From now on the tenant's data is this deployment's; what plugins reported that it does not have is gone."""
        self.shared = deployment.shared
        for name in self.metrics.keys() - {plugin.name for plugin in deployment.prepared.policy.plugins}:
            del self.metrics[name]


def _without_quarantined(prepared: PreparedTenant, crashes: CrashReports) -> PreparedTenant:
    """Return the version with each plugin that is in quarantine as one that cannot run."""
    reasons = {name: text for name in prepared.plugins if (text := crashes.quarantine(name))}
    return replace(
        prepared,
        plugins={name: plugin for name, plugin in prepared.plugins.items() if name not in reasons},
        problems={**prepared.problems, **{n: PluginProblem(text, permanent=True) for n, text in reasons.items()}},
    )
