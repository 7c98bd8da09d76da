"""
What the broker knows of tenants: the rules of each worker's callouts, and what lasts longer than a worker.

Rules come and go with workers; counters, concurrency, rates and connections belong to the tenant's plugins, whatever
workers they run in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from sandboxd.egress.admission import Admission
from sandboxd.egress.budget import Budget
from sandboxd.egress.counters import Counters, PluginCounters
from sandboxd.egress.grpc import GrpcUpstream
from sandboxd.egress.http import HttpUpstream
from sandboxd.egress.resolve import Lookup, SystemLookup
from sandboxd.policy.callouts import CalloutPolicy, Upstream
from sandboxd.policy.model import HeaderRule, PluginPolicy, RedactionPolicy, RedactMode, TenantPolicy
from sandboxd.policy.redact import Redactor
from sandboxd.supervisor.upstream_tls import Material, material_of


@dataclass(frozen=True, slots=True)
class Destination:
    """One upstream as a policy has it, ready for use."""

    upstream: Upstream
    material: Material
    redactor: Redactor = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PluginRules:
    """What one plugin may call."""

    policy: CalloutPolicy
    destinations: dict[str, Destination]


@dataclass(frozen=True, slots=True)
class WorkerRules:
    """What the plugins of one worker may call."""

    tenant: str
    plugins: dict[str, PluginRules]


def worker_rules(policy: TenantPolicy, files: dict[str, bytes], redaction_key: bytes) -> WorkerRules:
    """Prepare a tenant's policy; a file that is missing is a KeyError."""
    return WorkerRules(
        policy.tenant,
        {plugin.name: _plugin_rules(plugin, files, redaction_key) for plugin in policy.plugins},
    )


def _plugin_rules(plugin: PluginPolicy, files: dict[str, bytes], key: bytes) -> PluginRules:
    found = {
        upstream.name: Destination(upstream, material_of(upstream.tls, files), Redactor(_redaction(upstream), key))
        for upstream in plugin.callouts.upstreams
    }
    return PluginRules(plugin.callouts, found)


def _redaction(upstream: Upstream) -> RedactionPolicy:
    """The defaults stay unless a rule names the very header, as in ``redact`` of a plugin."""
    default = RedactionPolicy()
    rules = {rule.pattern: rule for rule in default.response_headers}
    rules.update((pattern, HeaderRule(pattern, RedactMode(mode))) for pattern, mode in upstream.redact)
    return RedactionPolicy(response_headers=tuple(rules.values()))


@dataclass(slots=True)
class PluginDesk:
    """What lasts of one plugin."""

    admission: Admission
    counters: PluginCounters


class TenantDesk:
    """
    What lasts of one tenant.

    Args:
        name: the tenant's.
        counters: of all plugins.
        lookup: resolves names; a test's, or None: the system's.
    """

    def __init__(self, name: str, counters: Counters, lookup: Lookup | None = None) -> None:
        self.name = name
        self.budget = Budget()
        self._counters = counters
        self._lookup = lookup or SystemLookup()
        self._plugins: dict[str, PluginDesk] = {}
        self._clients: dict[tuple[str, Upstream, Material], HttpUpstream | GrpcUpstream] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def plugin(self, name: str) -> PluginDesk:
        """Return what lasts of a plugin."""
        if name not in self._plugins:
            self._plugins[name] = PluginDesk(Admission(), self._counters.plugin(self.name, name))
        return self._plugins[name]

    def http(self, plugin: str, found: Destination) -> HttpUpstream:
        """Return the connections of a plugin to an HTTP upstream."""
        key = (plugin, found.upstream, found.material)
        if key not in self._clients:
            self._clients[key] = HttpUpstream(found.upstream, found.material, self._lookup)
        client = self._clients[key]
        assert isinstance(client, HttpUpstream)
        return client

    def grpc(self, plugin: str, found: Destination) -> GrpcUpstream:
        """Return the connections of a plugin to a gRPC upstream."""
        key = (plugin, found.upstream, found.material)
        if key not in self._clients:
            self._clients[key] = GrpcUpstream(found.upstream, found.material, self._lookup)
        client = self._clients[key]
        assert isinstance(client, GrpcUpstream)
        return client

    def keep(self, rules: Iterable[WorkerRules]) -> None:
        """Close the connections that no rules speak of any more, when the calls on them are over."""
        wanted = {
            (name, found.upstream, found.material)
            for worker in rules
            for name, plugin in worker.plugins.items()
            for found in plugin.destinations.values()
        }
        for key in [key for key in self._clients if key not in wanted]:
            client = self._clients.pop(key)
            last = client.finish() if isinstance(client, GrpcUpstream) else _close_later(client, key[1].timeout_ms)
            task = asyncio.ensure_future(last)
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all connections, now."""
        for task in self._closing:
            task.cancel()
        clients, self._clients = self._clients, {}
        await asyncio.gather(*self._closing, *(client.close() for client in clients.values()), return_exceptions=True)


async def _close_later(client: HttpUpstream, timeout_ms: int) -> None:
    try:
        await asyncio.sleep(timeout_ms / 1000 + 1)
    finally:
        await client.close()
