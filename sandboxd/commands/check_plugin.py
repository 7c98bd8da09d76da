"""What `sandboxd check` finds out about one tenant: data, and the steps that gather it."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sandboxd.commands.common import Compiling
from sandboxd.errors import ModuleRejected, SandboxdError
from sandboxd.log import GUEST_LEVELS, one_line
from sandboxd.policy import capabilities as caps
from sandboxd.policy.model import PluginPolicy, TenantPolicy
from sandboxd.supervisor.local import LocalSandbox, VmStartError
from sandboxd.supervisor.prepare import PreparedPlugin, prepare_plugin
from sandboxd.vm.link import Binding


class Severity(enum.StrEnum):
    """How grave a finding is."""

    ERROR = "error"
    """The plugin cannot run."""
    WARNING = "warning"
    """It runs, but perhaps not as meant."""
    NOTE = "note"
    """Nothing to do: SDKs import and export far more than a filter uses."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the operator should know."""

    severity: Severity
    code: str
    """A stable word for scripts."""
    text: str
    path: str = ""
    tenant: str = ""
    plugin: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**dataclasses.asdict(self), "severity": str(self.severity)}


@dataclass(frozen=True, slots=True)
class PluginReport:
    """What a module needs and what it gets. Names are sorted."""

    tenant: str
    plugin: str
    policy_path: str
    module: str
    module_sha256: str
    abi: str = ""
    granted_functions: tuple[str, ...] = ()
    denied_functions: tuple[str, ...] = ()
    """Imported and not granted: each call is answered with an error."""
    unavailable_functions: tuple[str, ...] = ()
    """Imported, and not offered by this version whatever is granted."""
    granted_callbacks: tuple[str, ...] = ()
    withheld_callbacks: tuple[str, ...] = ()
    """Exported, and never called: not granted, or not offered by this version."""
    start_ms: float | None = None
    """None: not started."""
    load_ms: float | None = None
    layers: tuple[str, ...] = ()
    """Isolation layers that the worker had."""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return dataclasses.asdict(self)


def check_tenant(
    policy: TenantPolicy, compiling: Compiling, *, start: bool
) -> tuple[list[Finding], list[PluginReport]]:
    """Check every plugin of a tenant; ``start``: start each once in a worker."""
    findings: list[Finding] = []
    reports: list[PluginReport] = []
    for plugin in policy.plugins:
        found, report = _Check(policy, plugin, compiling).run(start=start)
        findings += found
        reports.append(report)
    return findings, reports


class _Check:
    """One plugin under examination."""

    def __init__(self, policy: TenantPolicy, plugin: PluginPolicy, compiling: Compiling) -> None:
        self._policy = policy
        self._plugin = plugin
        self._compiling = compiling

    def run(self, *, start: bool) -> tuple[list[Finding], PluginReport]:
        report = PluginReport(
            tenant=self._policy.tenant,
            plugin=self._plugin.name,
            policy_path=self._policy.source_path,
            module=str(self._plugin.module.path),
            module_sha256=self._plugin.module.sha256,
        )
        try:
            prepared = prepare_plugin(self._plugin, *self._compiling)
        except ModuleRejected as error:
            return [self._error("module", str(error))], report
        except SandboxdError as error:
            return [self._error("compiler", str(error))], report
        report = _described(report, prepared)
        findings = list(self._grants(report, prepared))
        if start:
            started, report = self._start(prepared, report)
            findings += started
        return findings, report

    def _grants(self, report: PluginReport, prepared: PreparedPlugin) -> Iterator[Finding]:
        if report.denied_functions:
            names = ", ".join(report.denied_functions)
            yield self._warning("denied_functions", f"the module imports what the policy does not grant: {names}")
        if report.unavailable_functions:
            names = ", ".join(report.unavailable_functions)
            text = f"the module imports what this version does not offer: {names}"
            yield self._finding(Severity.NOTE, "unavailable_functions", text)
        withheld = [name for name in report.withheld_callbacks if name not in caps.UNAVAILABLE_CALLBACKS]
        if withheld:
            text = f"the module has callbacks that the policy does not grant: {', '.join(withheld)}"
            yield self._warning("withheld_callbacks", text)
        never = [name for name in report.withheld_callbacks if name in caps.UNAVAILABLE_CALLBACKS]
        if never:
            text = f"the module has callbacks that this version never calls: {', '.join(never)}"
            yield self._finding(Severity.NOTE, "unavailable_callbacks", text)
        imports = {item.name for item in prepared.manifest.imports}
        for problem in caps.validate_combination(self._plugin.capabilities, imports):
            make = self._error if problem.fatal else self._warning
            yield make("capabilities", f"{problem.name} {problem.problem}")

    def _start(self, prepared: PreparedPlugin, report: PluginReport) -> tuple[list[Finding], PluginReport]:
        try:
            with LocalSandbox(
                self._plugin,
                prepared=prepared,
                tenant=self._policy.tenant,
                jailer=self._compiling.jailer,
            ) as sandbox:
                report = dataclasses.replace(report, layers=sandbox.layers, load_ms=sandbox.load_ns / 1e6)
                try:
                    sandbox.open_vm()
                except VmStartError as error:
                    return [self._error("start", f"{error}{_log_text(error.log_lines)}")], report
                return [], dataclasses.replace(report, start_ms=sandbox.start_ns / 1e6)
        except SandboxdError as error:
            return [self._error("worker", str(error))], report

    def _error(self, code: str, text: str) -> Finding:
        return self._finding(Severity.ERROR, code, text)

    def _warning(self, code: str, text: str) -> Finding:
        return self._finding(Severity.WARNING, code, text)

    def _finding(self, severity: Severity, code: str, text: str) -> Finding:
        return Finding(severity, code, text, self._policy.source_path, self._policy.tenant, self._plugin.name)


def _described(report: PluginReport, prepared: PreparedPlugin) -> PluginReport:
    manifest = prepared.manifest
    by_binding: dict[Binding, set[str]] = {binding: set() for binding in Binding}
    for item in manifest.imports:
        by_binding[item.binding].add(item.name)
    granted = by_binding[Binding.HOST]
    # hostcore has these functions and answers them honestly; for the operator they are not there.
    denied = by_binding[Binding.DENIED]
    unavailable = by_binding[Binding.UNAVAILABLE] | ((granted | denied) & caps.UNAVAILABLE)
    called = set(manifest.granted_callbacks) - caps.UNAVAILABLE
    return dataclasses.replace(
        report,
        abi=manifest.abi.text,
        granted_functions=tuple(sorted(granted - unavailable)),
        denied_functions=tuple(sorted(denied - unavailable)),
        unavailable_functions=tuple(sorted(unavailable)),
        granted_callbacks=tuple(sorted(called)),
        withheld_callbacks=tuple(sorted(set(manifest.callbacks) - called)),
    )


def _log_text(log_lines: tuple[tuple[int, str], ...]) -> str:
    if not log_lines:
        return ""
    shown = "; ".join(f"[{GUEST_LEVELS[level]}] {one_line(text, 300)}" for level, text in log_lines[-5:])
    return f"; its log: {shown}"
