"""``sandboxd crashes``: what the running daemon's crash ledger knows."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sandboxd.commands.ask import ask
from sandboxd.commands.common import Colours, Subparsers, add_config_arguments
from sandboxd.log import one_line
from sandboxd.protos import admin_pb2 as admin

Json = dict[str, Any]


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "crashes",
        help="show the last crashes of plugins, and which are in quarantine",
        description="Show the last crashes of plugins with their causes and backtraces, and which plugins are in "
        "quarantine. They outlive the daemon. Exit status 1 if a plugin is in quarantine.",
    )
    parser.add_argument("plugin", metavar="TENANT[/PLUGIN]", nargs="?", help="only these (default: all)")
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask the daemon and print its answer."""
    entries = ask(args, admin.ADMIN_COMMAND_CRASHES)["entries"]
    if args.json:
        print(json.dumps({"entries": entries}, indent=2))
    else:
        print("\n".join(lines(entries, Colours())))
    return 1 if any(entry["quarantine"] for entry in entries) else 0


def lines(entries: Sequence[Json], colours: Colours) -> Iterator[str]:
    """Yield the human form. Texts that came from a worker are made harmless once more."""
    if not entries:
        yield "no crashes"
    for number, entry in enumerate(entries):
        if number:
            yield ""
        yield from _entry(entry, colours)


def _entry(entry: Json, colours: Colours) -> Iterator[str]:
    name = f"{entry['tenant']}/{entry['plugin']}"
    yield f"{colours.bold}{one_line(name, 200)}{colours.off}  module {one_line(entry['module_sha256'], 12)}"
    yield f"  {entry['total']} crashes: {counts_text(entry['counts'])}"
    if quarantine := entry["quarantine"]:
        reason = one_line(quarantine["reason"], 1000)
        yield f"  {colours.red}in quarantine{colours.off} since {moment(quarantine['since_s'])}: {reason}"
        yield f"  `sandboxd restart {one_line(name, 200)}` lifts it"
    for crash in entry["crashes"]:
        yield f"  {moment(crash['time_s'])}  {crash_text(crash)}"
        yield from (f"      at {one_line(frame, 256)}" for frame in crash["backtrace"])


def crash_text(crash: Json) -> str:
    """Return a crash as one harmless line."""
    where = f" in {crash['callback']}" if crash["callback"] else ""
    when = " while starting" if crash["while_starting"] else ""
    return one_line(f"{crash['cause'].replace('_', ' ')}{when}{where}: {crash['message']}", 1200)


def counts_text(counts: dict[str, int]) -> str:
    """Return counters as ``3 trap, 1 cpu limit``, the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return one_line(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in ranked), 1000) or "none"


def moment(time_s: float) -> str:
    """Return a time as operators read it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))
