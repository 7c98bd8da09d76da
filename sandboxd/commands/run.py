"""
``sandboxd run``: a plugin against request and response cases, offline, with the same engine as the daemon's.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from sandboxd.channel.sync_vm import SyncVm
from sandboxd.commands.cases import Case
from sandboxd.commands.common import (
    Colours,
    Compiling,
    Subparsers,
    add_compiling_arguments,
    compiling_of,
)
from sandboxd.commands.compare import differences
from sandboxd.commands.exchange import Exchange, Outcome
from sandboxd.commands.read_cases import load_cases
from sandboxd.errors import PolicyError
from sandboxd.front.plugin import Plugin, prepare
from sandboxd.log import GUEST_LEVELS, one_line
from sandboxd.policy.load import load_policy
from sandboxd.policy.model import PluginPolicy, TenantPolicy
from sandboxd.supervisor.local import LocalSandbox
from sandboxd.supervisor.prepare import prepare_plugin


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "run",
        help="drive a plugin offline with request and response cases",
        description="Send the cases of a YAML file through a plugin: compiler, worker, channel, redaction "
        "and write rules are the daemon's own, only the proxy is missing. Exit status 1 if an "
        "expectation was not met.",
    )
    parser.add_argument("policy", metavar="POLICY", type=Path, help="the tenant's policy file")
    parser.add_argument("cases", metavar="CASES", type=Path, help="the case file (docs/run.md)")
    parser.add_argument("--plugin", metavar="NAME", help="which plugin, if the tenant has several")
    parser.add_argument("--verbose", action="store_true", help="show what the plugin logged in every case")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_compiling_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the cases and print what was not as expected."""
    policy = load_policy(args.policy)
    plugin_policy = _choose(policy, args.plugin)
    cases = load_cases(args.cases)
    results = _run_all(policy, plugin_policy, cases, compiling_of(args))
    if args.json:
        print(json.dumps(_as_json(results), indent=2))
    else:
        _print(args.cases, results, verbose=args.verbose)
    return 1 if any(found for _, _, found in results) else 0


Result = tuple[Case, Outcome, list[str]]


def _choose(policy: TenantPolicy, name: str | None) -> PluginPolicy:
    names = tuple(plugin.name for plugin in policy.plugins)
    if name is None:
        if len(policy.plugins) > 1:
            problem = "the tenant has several plugins; say which with --plugin"
            raise PolicyError(problem, path=policy.source_path, key="plugins", allowed=names)
        return policy.plugins[0]
    plugin = policy.plugin(name)
    if plugin is None:
        raise PolicyError(f"there is no plugin {name}", path=policy.source_path, key="plugins", allowed=names)
    return plugin


def _run_all(
    policy: TenantPolicy, plugin_policy: PluginPolicy, cases: list[Case], compiling: Compiling
) -> list[Result]:
    """Run every case; a VM that failed is replaced by a fresh one for the next."""
    results: list[Result] = []
    prepared = prepare_plugin(plugin_policy, *compiling)
    with LocalSandbox(
        plugin_policy, prepared=prepared, tenant=policy.tenant, jailer=compiling.jailer, shared=policy.shared
    ) as sandbox:
        plugin = _as_front_has_it(policy, sandbox)
        vm: SyncVm | None = None
        for case in cases:
            if vm is None:
                vm = sandbox.open_vm()
            outcome = Exchange(vm, plugin, case).run()
            if outcome.failure:
                outcome.failure += sandbox.last_failure()
                vm = None
            results.append((case, outcome, differences(case.expect, outcome)))
    return results


def _as_front_has_it(policy: TenantPolicy, sandbox: LocalSandbox) -> Plugin:
    manifest = sandbox.prepared.manifest
    return prepare(
        policy.tenant,
        sandbox.plugin,
        callbacks=manifest.granted_callbacks,
        imported_functions=sandbox.prepared.imported_functions,
        redaction_key=os.urandom(32),
        imports=[item.name for item in manifest.imports],
    )


def _as_json(results: list[Result]) -> dict[str, Any]:
    return {
        "ok": not any(found for _, _, found in results),
        "cases": [
            {
                "name": case.name,
                "line": case.line,
                "ok": not found,
                "differences": found,
                "action": str(outcome.action),
                "failure": outcome.failure,
                "logs": [{"level": GUEST_LEVELS[level], "text": text} for level, text in outcome.logs],
                "denied": outcome.denied,
                "refused": [f"{refusal.name}: {refusal.reason}" for refusal in outcome.refusals],
                "notes": outcome.notes,
            }
            for case, outcome, found in results
        ],
    }


def _print(path: Path, results: list[Result], *, verbose: bool) -> None:
    colours = Colours()
    for case, outcome, found in results:
        mark = f"{colours.red}FAIL{colours.off}" if found else f"{colours.green}ok{colours.off}  "
        place = f"  {colours.dim}{path}:{case.line}{colours.off}" if found else ""
        print(f"{mark} {case.name}{place}")
        for difference in found:
            print(f"  {difference}")
        if verbose or found:
            _print_outcome(outcome, colours)
    failed = sum(bool(found) for _, _, found in results)
    colour = colours.red if failed else colours.green
    print(f"{colour}{len(results) - failed} of {len(results)} cases as expected{colours.off}")


def _print_outcome(outcome: Outcome, colours: Colours) -> None:
    lines = [f"log [{GUEST_LEVELS[level]}] {text}" for level, text in outcome.logs[:50]]
    lines += [f"denied: {name}" for name in outcome.denied]
    lines += [f"left out: {refusal.name} ({refusal.reason})" for refusal in outcome.refusals]
    lines += [f"note: {note}" for note in outcome.notes]
    if outcome.failure:
        lines.append(f"failure: {outcome.failure}")
    for line in lines:
        print(f"  {colours.dim}{one_line(line, 500)}{colours.off}")
