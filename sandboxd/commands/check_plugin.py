"""What `sandboxd check` finds out about one tenant: data, and the steps that gather it."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sandboxd.commands.common import Compiling
from sandboxd.errors import ModuleRejected, SandboxdError
from sandboxd.log import GUEST_LEVELS, one_line
from sandboxd.policy import capabilities as caps
from sandboxd.policy import capability_names, conformance
from sandboxd.policy.load import verify_module
from sandboxd.policy.model import PluginKind, PluginPolicy, TenantPolicy
from sandboxd.supervisor.local import LocalSandbox, VmStartError
from sandboxd.supervisor.prepare import PreparedPlugin, prepare_plugin
from sandboxd.vm.abi import EXTRA_FUNCTIONS, AbiVersion
from sandboxd.vm.link import Binding

_SERVICE_WORK = frozenset(("proxy_on_tick", "proxy_on_queue_ready"))
"""What can keep a service busy."""


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
    foreign_to_abi: tuple[str, ...] = ()
    """Imported, though its version of the ABI does not have it: other hosts may refuse such a module."""
    transports: tuple[str, ...] = ()
    """What can carry the events of the granted callbacks: ``ext_proc``, ``network ext_proc``, ``shm``."""
    foreign_functions: tuple[str, ...] = ()
    """Foreign functions of Envoy that are not offered and whose names stand in the module: a hint, no proof."""
    denied_answers: dict[str, conformance.Answer] = field(default_factory=dict)
    """What the functions that are not granted answer: a status of the ABI or of WASI, or ``trap``."""
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
        report = dataclasses.replace(report, foreign_functions=self._foreign_names(prepared))
        findings = list(self._grants(report, prepared))
        if start:
            started, report = self._start(prepared, report)
            findings += started
        return findings, report

    def _foreign_names(self, prepared: PreparedPlugin) -> tuple[str, ...]:
        if not any(item.name == "proxy_call_foreign_function" for item in prepared.manifest.imports):
            return ()
        code = verify_module(self._plugin.module)
        return tuple(sorted(name for name in conformance.load().foreign_not_offered if _holds(code, name.encode())))

    def _grants(self, report: PluginReport, prepared: PreparedPlugin) -> Iterator[Finding]:
        yield from self._denied(report)
        if report.unavailable_functions:
            names = ", ".join(report.unavailable_functions)
            text = f"the module imports what this version does not offer: {names}"
            yield self._finding(Severity.NOTE, "unavailable_functions", text)
        if report.foreign_functions:
            names = ", ".join(report.foreign_functions)
            text = f"the module holds names of Envoy's foreign functions that are not offered, and answer 1: {names}"
            yield self._finding(Severity.NOTE, "foreign_functions", text)
        if report.foreign_to_abi:
            names = ", ".join(report.foreign_to_abi)
            text = f"the module imports what ABI {report.abi} does not have, other hosts may refuse it: {names}"
            yield self._finding(Severity.NOTE, "foreign_to_abi", text)
        never = [name for name in report.withheld_callbacks if _never_called(name, prepared.manifest.abi)]
        withheld = [name for name in report.withheld_callbacks if name not in never]
        if withheld:
            text = f"the module has callbacks that the policy does not grant: {', '.join(withheld)}"
            yield self._warning("withheld_callbacks", text)
        if never:
            text = f"the module has callbacks that this version never calls: {', '.join(never)}"
            yield self._finding(Severity.NOTE, "unavailable_callbacks", text)
        if self._plugin.kind is PluginKind.SERVICE and not _SERVICE_WORK & set(report.granted_callbacks):
            text = f"a service that gets none of {', '.join(sorted(_SERVICE_WORK))} does nothing after its start"
            yield self._finding(Severity.NOTE, "idle_service", text)
        imports = {item.name for item in prepared.manifest.imports}
        for problem in caps.validate_combination(self._plugin.capabilities, imports):
            make = self._error if problem.fatal else self._warning
            yield make("capabilities", f"{problem.name} {problem.problem}")

    def _denied(self, report: PluginReport) -> Iterator[Finding]:
        """Modules of some SDKs import the functions for callouts whether they call out or not."""
        callouts = [name for name in report.denied_functions if name in capability_names.CALLOUT_FUNCTIONS]
        if self._plugin.callouts.upstreams:
            callouts = []
        names = ", ".join(name for name in report.denied_functions if name not in callouts)
        if names:
            yield self._warning("denied_functions", f"the module imports what the policy does not grant: {names}")
        if callouts:
            text = f"the module can call out, and the policy has no callouts: {', '.join(callouts)}"
            yield self._finding(Severity.NOTE, "no_callouts", text)

    def _start(self, prepared: PreparedPlugin, report: PluginReport) -> tuple[list[Finding], PluginReport]:
        try:
            with LocalSandbox(
                self._plugin,
                prepared=prepared,
                tenant=self._policy.tenant,
                jailer=self._compiling.jailer,
                shared=self._policy.shared,
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
    unavailable = by_binding[Binding.UNAVAILABLE] | ((granted | denied) & capability_names.UNAVAILABLE)
    facts = conformance.load()
    version = manifest.abi.text
    called = {name for name in manifest.granted_callbacks if not _never_called(name, manifest.abi)}
    imported = {item.name for item in manifest.imports}
    return dataclasses.replace(
        report,
        abi=version,
        granted_functions=tuple(sorted(granted - unavailable)),
        denied_functions=tuple(sorted(denied - unavailable)),
        unavailable_functions=tuple(sorted(unavailable)),
        granted_callbacks=tuple(sorted(called)),
        withheld_callbacks=tuple(sorted(set(manifest.callbacks) - called)),
        foreign_to_abi=tuple(
            sorted(n for n in imported - set(EXTRA_FUNCTIONS) if version not in facts.functions[n].versions)
        ),
        transports=_transports(called, version),
        denied_answers={name: facts.functions[name].denied[version] for name in sorted(denied - unavailable)},
    )


def _holds(code: bytes, name: bytes) -> bool:
    """
    Return whether the name stands there. A short one must be a word of its own, being common as a part of others; for
    long ones that would be too strict, since compilers put texts side by side.
    """
    if len(name) > 4:
        return name in code
    return re.search(rb"(?<![A-Za-z0-9_])" + re.escape(name) + rb"(?![A-Za-z0-9_])", code) is not None


def _transports(called: set[str], version: str) -> tuple[str, ...]:
    """Return what carries at least one event that is about a stream, or else whatever there is: ticks need none."""
    scopes = {scope for name in called for scope in conformance.load().callbacks[name].scopes[version]}
    own = {
        scope
        for scope in ("http", "tcp")
        if any(conformance.load().callbacks[name].scopes[version] == (scope,) for name in called)
    }
    return conformance.transports_of(sorted(own or scopes))


def _never_called(name: str, version: AbiVersion) -> bool:
    return name in capability_names.UNAVAILABLE or not conformance.load().callbacks[name].transports(version.text)


def _log_text(log_lines: tuple[tuple[int, str], ...]) -> str:
    if not log_lines:
        return ""
    shown = "; ".join(f"[{GUEST_LEVELS[level]}] {one_line(text, 300)}" for level, text in log_lines[-5:])
    return f"; its log: {shown}"
