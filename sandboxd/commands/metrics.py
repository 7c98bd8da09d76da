"""``sandboxd metrics``: the running daemon's metrics, and those that plugins have defined."""

from __future__ import annotations

import argparse
import json

from sandboxd.commands.ask import ask
from sandboxd.commands.common import Subparsers, add_config_arguments
from sandboxd.protos import admin_pb2 as admin


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "metrics",
        help="show the metrics of sandboxd and of plugins, as Prometheus reads them",
        description="Show the metrics of sandboxd and those that plugins have defined, in Prometheus's text format. "
        "With TENANT or TENANT/PLUGIN only the series that carry these labels. For Prometheus itself, declare "
        "`metrics` in the daemon's file.",
    )
    parser.add_argument("plugin", metavar="TENANT[/PLUGIN]", nargs="?", help="only these (default: all)")
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask the daemon and print its answer."""
    from sandboxd.supervisor.metrics_text import exposition, from_json  # noqa: PLC0415

    families = ask(args, admin.ADMIN_COMMAND_METRICS)["families"]
    if args.json:
        print(json.dumps({"families": families}, indent=2))
    else:
        print(exposition(from_json(families)), end="")
    return 0
