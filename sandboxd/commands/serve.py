"""``sandboxd serve``: the daemon."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from sandboxd import limits
from sandboxd.commands.common import Subparsers, add_config_arguments, config_of
from sandboxd.config import DaemonConfig, UnixListen
from sandboxd.errors import ConfigError


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "serve",
        help="run the daemon",
        description="Run the daemon until SIGTERM. SIGHUP reloads the policy files. Needs no privilege; as "
        "root, each tenant's worker gets a user of its own.",
    )
    add_config_arguments(parser)
    parser.add_argument("--policies", metavar="DIR", type=Path, help="policy files; instead of the file's")
    parser.add_argument("--fronts", metavar="N", type=int, help="front processes; instead of the file's")
    parser.add_argument("--cache-directory", metavar="DIR", type=Path, help="compiled modules")
    parser.add_argument("--state-directory", metavar="DIR", type=Path, help="the redaction key")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the daemon."""
    # Only here: other commands need not load it.
    from sandboxd.supervisor.serve import serve  # noqa: PLC0415

    return serve(_with_arguments(config_of(args), args))


def _with_arguments(config: DaemonConfig, args: argparse.Namespace) -> DaemonConfig:
    directories = {
        name: getattr(args, name).absolute()
        for name in ("policies", "cache_directory", "state_directory")
        if getattr(args, name) is not None
    }
    config = replace(config, **directories)
    if args.fronts is None:
        return config
    if not 1 <= args.fronts <= limits.MAX_FRONT_PROCESSES:
        raise ConfigError(
            "is not a number of front processes",
            key="--fronts",
            allowed=(f"1 to {limits.MAX_FRONT_PROCESSES}",),
        )
    for listen in (*config.front.listen, *config.front.tenant_sockets.values()):
        if args.fronts > 1 and isinstance(listen, UnixListen) and "{index}" not in listen.template:
            problem = f"{listen.template} needs {{index}}: each front process has its own socket"
            raise ConfigError(problem, path=config.source_path, key="front.listen")
    return replace(config, front=replace(config.front, processes=args.fronts))
