"""All tenants: which exist, and what a reload changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator

from sandboxd.policy.load import PolicyDirectory
from sandboxd.policy.model import PluginPolicy, TenantPolicy
from sandboxd.supervisor.deployer import Services
from sandboxd.supervisor.tenant import Tenant
from sandboxd.supervisor.tenant_state import TenantState
from sandboxd.supervisor.users import ChannelUser

_log = logging.getLogger(__name__)


class Pool:
    """
    Args:
        services: what tenants need of the daemon.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = asyncio.Lock()
        self._leaving: set[Tenant] = set()
        self.tenants: dict[str, Tenant] = {}
        self.file_errors: dict[str, str] = {}
        """Policy files that cannot be accepted and belong to no running tenant: path to error."""

    def expect(self, loaded: PolicyDirectory) -> None:
        """Know the tenants that `apply` is about to start, so that the first fronts are told of them."""
        for policy in loaded.policies.values():
            self.tenants[policy.tenant] = Tenant(policy.tenant, self._services, policy)

    def plugins(self, tenant: str) -> tuple[PluginPolicy, ...]:
        """Return what a tenant is to run; nothing if there is no such tenant."""
        known = self.tenants.get(tenant)
        return known.policy.plugins if known and known.policy else ()

    async def apply(self, loaded: PolicyDirectory) -> dict[str, dict[str, str]]:
        """
        Make the tenants those of a policy directory; each on its own, none waits for another.

        Returns:
            What came of each tenant, and of each bad file by its path: ``{"result", "error"}``, where the
            result is ``unchanged``, ``started``, ``swapped``, ``kept`` (the version before goes on),
            ``failed`` or ``removed``.
        """
        async with self._lock:
            return await self._apply(loaded)

    async def reload(self, read: Callable[[], Awaitable[PolicyDirectory]]) -> dict[str, dict[str, str]]:
        """
        Do as `apply` with what ``read`` returns; what it raises goes on.

        It reads while nobody else applies anything: of two reloads, the last one to apply is the last one to read.
        """
        async with self._lock:
            return await self._apply(await read())

    async def _apply(self, loaded: PolicyDirectory) -> dict[str, dict[str, str]]:
        results = self._note_file_errors(loaded)
        changed = [policy for policy in loaded.policies.values() if self._has_changed(policy)]
        for name in loaded.policies.keys() - {policy.tenant for policy in changed}:
            self.tenants[name].error = ""
            results[name] = {"result": "unchanged", "error": ""}
        removed = [name for name, tenant in self.tenants.items() if self._is_removed(name, tenant, loaded)]
        outcomes = await asyncio.gather(*(self._apply_one(policy) for policy in changed))
        results.update(outcomes)
        for name in removed:
            results[name] = {"result": "removed", "error": ""}
            await self._remove(name)
        return results

    async def restart(self, name: str, plugin: str = "") -> dict[str, dict[str, str]]:
        """
        Replace the worker of one tenant, or of all if the name is empty; lift the quarantine of one plugin, or of all
        if its name is empty. An unknown name is a KeyError.
        """
        names = [name] if name else list(self.tenants)
        tenants = [self.tenants[one] for one in names]
        errors = await asyncio.gather(*(tenant.restart(plugin) for tenant in tenants))
        return {
            one: {"result": "failed" if error else "restarted", "error": error}
            for one, error in zip(names, errors, strict=True)
        }

    async def stop(self) -> None:
        """End all workers."""
        await asyncio.gather(*(tenant.stop() for tenant in self._everybody()))

    def introduce(self, front: ChannelUser) -> None:
        """Tell a new front of every plugin that is configured, and have its channels made."""
        for tenant in self.tenants.values():
            with _alone(tenant):
                tenant.introduce(front)

    def fronts_changed(self, arrived: ChannelUser | None = None) -> None:
        """A front came or went."""
        for tenant in self._everybody():
            with _alone(tenant):
                tenant.fronts_changed(arrived)

    def channel_drained(self, channel_id: int) -> None:
        """No stream uses the channel any more."""
        any(tenant.channel_drained(channel_id) for tenant in self._everybody())

    def channel_broken(self, channel_id: int, reason: str) -> None:
        """A VM broke its channel's rules."""
        any(tenant.channel_broken(channel_id, reason) for tenant in self._everybody())

    @property
    def names(self) -> set[str]:
        """The names of all tenants, also of those that are removed and have workers yet."""
        return {tenant.name for tenant in self._everybody()}

    def _everybody(self) -> Iterable[Tenant]:
        # Until it is removed, a worker of it may start to serve yet.
        self._leaving = {t for t in self._leaving if t.draining or t.state is not TenantState.REMOVED}
        return [*self.tenants.values(), *self._leaving]

    def _note_file_errors(self, loaded: PolicyDirectory) -> dict[str, dict[str, str]]:
        by_path = {t.policy.source_path: t for t in self.tenants.values() if t.policy is not None}
        self.file_errors = {}
        results = {}
        for path, error in loaded.errors.items():
            tenant = by_path.get(path)
            if tenant is None:
                self.file_errors[path] = str(error)
                results[path] = {"result": "failed", "error": str(error)}
                _log.error("%s", error)
            else:
                tenant.refuse(str(error))
                results[tenant.name] = {"result": "kept", "error": str(error)}
        return results

    def _has_changed(self, policy: TenantPolicy) -> bool:
        tenant = self.tenants.get(policy.tenant)
        if tenant is None or tenant.policy is None or tenant.current is None:
            return True
        same = (tenant.policy.digest, tenant.policy.source_path) == (policy.digest, policy.source_path)
        return not same or not (tenant.state is TenantState.RUNNING or tenant.only_quarantined)

    def _is_removed(self, name: str, tenant: Tenant, loaded: PolicyDirectory) -> bool:
        if name in loaded.policies:
            return False
        # Its file is there but bad, or another file claims the tenant too: the last good version goes on.
        return tenant.policy is None or tenant.policy.source_path not in loaded.errors

    async def _apply_one(self, policy: TenantPolicy) -> tuple[str, dict[str, str]]:
        tenant = self.tenants.get(policy.tenant)
        is_new = tenant is None
        if tenant is None:
            tenant = self.tenants[policy.tenant] = Tenant(policy.tenant, self._services)
        before = tenant.current
        error = await tenant.apply(policy)
        if error:
            result = "kept" if tenant.current is before and before is not None else "failed"
        else:
            result = "started" if is_new or before is None else "swapped"
        return policy.tenant, {"result": result, "error": error}

    async def _remove(self, name: str) -> None:
        tenant = self.tenants.pop(name)
        self._leaving.add(tenant)
        await tenant.remove()
        _log.info("tenant %s: removed", name)


@contextlib.contextmanager
def _alone(tenant: Tenant) -> Iterator[None]:
    """An error that nobody reckoned with is this tenant's alone."""
    try:
        yield
    except Exception:
        _log.exception("tenant %s: unexpected error", tenant.name)
