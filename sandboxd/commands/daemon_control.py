"""``sandboxd reload`` and ``sandboxd restart TENANT[/PLUGIN]``: commands to a running daemon."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sandboxd.commands.ask import ask
from sandboxd.commands.common import Colours, Subparsers, add_config_arguments
from sandboxd.protos import admin_pb2 as admin

RELOAD_TIMEOUT_S = 300.0
"""A reload may compile modules of many tenants."""


def add_parser(commands: Subparsers) -> None:
    """Declare both commands."""
    reload = commands.add_parser(
        "reload",
        help="re-read the policy files",
        description="Re-read the policy files. Each changed tenant is swapped on its own, without losing a "
        "request; a tenant with a bad file stays on its last good version. Exit status 1 if "
        "any did.",
    )
    restart = commands.add_parser(
        "restart",
        help="replace the worker of a tenant, lift quarantines",
        description="Replace a tenant's worker by a fresh one; streams that are open end in the old one. Lifts the "
        "quarantine of the plugin, or without one of all plugins of the tenant.",
    )
    restart.add_argument("plugin", metavar="TENANT[/PLUGIN]", help="a tenant, or one plugin of it")
    for parser, command in ((reload, admin.ADMIN_COMMAND_RELOAD), (restart, admin.ADMIN_COMMAND_RESTART)):
        add_config_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(run=run, admin_command=command)


def run(args: argparse.Namespace) -> int:
    """Send the command and print what came of each tenant."""
    body = ask(args, args.admin_command, RELOAD_TIMEOUT_S)
    if args.json:
        print(json.dumps(body, indent=2))
    else:
        _print(body["results"])
    return 1 if any(result["error"] for result in body["results"].values()) else 0


def _print(results: dict[str, dict[str, Any]]) -> None:
    colours = Colours()
    if not results:
        print("no tenants")
    for name, result in sorted(results.items()):
        colour = colours.red if result["error"] else colours.green
        error = f": {result['error']}" if result["error"] else ""
        print(f"{name}: {colour}{result['result']}{colours.off}{error}")
