"""
``sandboxd check``: would these policies run, and what does each module need that its policy does not grant?

The policy is read, the module compiled and linked, and the plugin started once in a real worker.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sandboxd.commands.check_plugin import Finding, PluginReport, Severity, check_tenant
from sandboxd.commands.common import (
    Colours,
    Subparsers,
    add_compiling_arguments,
    compiling_of,
    policies_of,
)
from sandboxd.errors import PolicyError


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "check",
        help="validate policies, link and start their modules",
        description="Validate policy files, compile and link each module for real, start each plugin once "
        "in a real worker, and show which ABI functions the module needs and whether the "
        "policy grants them. Exit status 1 if there are findings.",
    )
    parser.add_argument("policies", metavar="POLICY", nargs="+", type=Path, help="a policy file or a directory of them")
    parser.add_argument("--no-start", action="store_true", help="do not start the plugins")
    parser.add_argument("--strict", action="store_true", help="warnings are findings too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_compiling_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything and print what was found."""
    policies, errors = policies_of(args.policies)
    compiling = compiling_of(args)
    findings = [_policy_finding(error) for error in errors]
    reports: list[PluginReport] = []
    for policy in policies:
        found, plugins = check_tenant(policy, compiling, start=not args.no_start)
        findings += found
        reports += plugins
    if args.json:
        print(json.dumps(_as_json(findings, reports), indent=2))
    else:
        _print(findings, reports)
    grave = {Severity.ERROR, Severity.WARNING} if args.strict else {Severity.ERROR}
    return 1 if any(finding.severity in grave for finding in findings) else 0


def _policy_finding(error: PolicyError) -> Finding:
    return Finding(Severity.ERROR, "policy", str(error), path=error.path)


def _as_json(findings: list[Finding], reports: list[PluginReport]) -> dict[str, Any]:
    return {
        "ok": not any(finding.severity is Severity.ERROR for finding in findings),
        "findings": [finding.as_json() for finding in findings],
        "plugins": [report.as_json() for report in reports],
    }


def _print(findings: list[Finding], reports: list[PluginReport]) -> None:
    colours = Colours()
    for report in reports:
        _print_report(report, colours)
    marks = {
        Severity.ERROR: f"{colours.red}error{colours.off}",
        Severity.WARNING: f"{colours.yellow}warning{colours.off}",
    }
    shown = [finding for finding in findings if finding.severity is not Severity.NOTE]
    for finding in shown:
        place = f"{finding.tenant}/{finding.plugin}: " if finding.plugin else ""
        print(f"{marks[finding.severity]}: {place}{finding.text}")
    errors = sum(finding.severity is Severity.ERROR for finding in shown)
    warnings = len(shown) - errors
    colour = colours.red if errors else colours.green
    counts = (_count(len(reports), "plugin"), _count(errors, "error"), _count(warnings, "warning"))
    print(f"{colour}{', '.join(counts)}{colours.off}")


def _print_report(report: PluginReport, colours: Colours) -> None:
    print(f"{colours.bold}{report.tenant}/{report.plugin}{colours.off}  {report.policy_path}")
    print(f"  module       {report.module}  sha256 {report.module_sha256[:12]}  ABI {report.abi or 'unknown'}")
    answers = report.denied_answers
    rows = (
        ("transports", tuple(name.replace(" ", "_") for name in report.transports)),
        ("functions", report.granted_functions),
        ("not granted", tuple(f"{name} (answers {answers[name]})" for name in report.denied_functions)),
        ("unavailable", report.unavailable_functions),
        ("callbacks", report.granted_callbacks),
        ("not called", report.withheld_callbacks),
    )
    for label, names in rows:
        if names:
            _print_names(label, names)
    if report.start_ms is not None:
        print(f"  started      in {report.start_ms:.1f} ms, loaded in {report.load_ms:.1f} ms")
    print()


def _print_names(label: str, names: tuple[str, ...]) -> None:
    line = f"  {label:<12}"
    for name in names:
        if len(line) + 1 + len(name) > 110:
            print(line)
            line = " " * 14
        line += " " + name
    print(line)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
