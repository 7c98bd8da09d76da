"""One version of a tenant before the ledger: its plugins' crashes in, rulings out."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sandboxd.policy.model import PluginPolicy, RestartPolicy, TenantPolicy
from sandboxd.supervisor import budgets
from sandboxd.supervisor.exits import Exit
from sandboxd.supervisor.ledger import Crash, Ledger, Ruling, Subject, quarantine_text
from sandboxd.supervisor.worker_events import VmFailed

_log = logging.getLogger(__name__)

MAX_MESSAGE_CHARACTERS = 1024


def subject_of(tenant: str, plugin: PluginPolicy) -> Subject:
    """Return whose crashes a plugin's are."""
    return Subject(tenant, plugin.name, plugin.module.sha256)


class CrashReports:
    """
    Args:
        ledger: the daemon's.
        policy: the version.
    """

    def __init__(self, ledger: Ledger, policy: TenantPolicy) -> None:
        self._ledger = ledger
        self._tenant = policy.tenant
        self._plugins = {plugin.name: plugin for plugin in policy.plugins}
        self._subjects = {plugin.name: subject_of(policy.tenant, plugin) for plugin in policy.plugins}

    def vm_failed(self, name: str, event: VmFailed) -> Ruling:
        """A plugin's VM failed."""
        hint = budgets.hint(event.cause, event.message, self._plugins[name], while_starting=event.while_starting)
        message = f"{event.message}; {hint}" if hint else event.message
        return self._crashed(
            name,
            Crash(
                time_s=self._ledger.now_s(),
                cause=event.cause,
                message=message[:MAX_MESSAGE_CHARACTERS],
                while_starting=event.while_starting,
                callback=event.callback,
                generation=event.generation,
                backtrace=event.backtrace,
            ),
        )

    def worker_gone(self, names: Iterable[str], pid: int, end: Exit) -> float | None:
        """
        The worker died that ran these plugins, but for those in quarantine; nobody can tell whose doing it was.

        Returns:
            How many seconds to wait for the next worker; None: the ledger has no opinion.
        """
        message = f"worker {pid} {end.sentence}"[:MAX_MESSAGE_CHARACTERS]
        crash = Crash(self._ledger.now_s(), end.cause.value, message, worker=True)
        running = [name for name in names if not self.quarantine(name)]
        rulings = {name: self._crashed(name, crash) for name in running}
        for name, ruling in rulings.items():
            if ruling.quarantine is not None:
                _log.error("tenant %s: plugin %s: %s", self._tenant, name, self.quarantine(name))
        return max((ruling.delay_s for ruling in rulings.values()), default=None)

    def quarantine(self, name: str) -> str:
        """Return why a plugin must not run; empty if it may."""
        subject = self._subjects[name]
        found = self._ledger.quarantine(subject)
        return quarantine_text(subject, found) if found is not None else ""

    def _crashed(self, name: str, crash: Crash) -> Ruling:
        return self._ledger.crashed(self._subjects[name], self._restart_policy(name), crash)

    def _restart_policy(self, name: str) -> RestartPolicy:
        return self._plugins[name].failure.restart
