"""
What several commands share: where the daemon's files are, which policies are meant, and how text is coloured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sandboxd.config import DEFAULT_CONFIG_PATH, DaemonConfig, UnixListen, default_config, load_config
from sandboxd.errors import PolicyError
from sandboxd.policy.load import load_directory, load_policy
from sandboxd.policy.model import TenantPolicy

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = object


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which daemon is meant."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"the daemon's file (default: {DEFAULT_CONFIG_PATH} if it is there)",
    )
    parser.add_argument(
        "--runtime-directory", metavar="DIR", type=Path, help="sockets; instead of the file's"
    )


def config_of(args: argparse.Namespace) -> DaemonConfig:
    """
    Return the daemon's configuration as file and arguments have it.

    Raises:
        ConfigError: the file cannot be accepted.
    """
    path: Path | None = args.config
    if path is None and DEFAULT_CONFIG_PATH.exists():
        path = DEFAULT_CONFIG_PATH
    config = load_config(path) if path else default_config()
    if args.runtime_directory is None:
        return config
    return with_runtime_directory(config, args.runtime_directory.absolute())


def with_runtime_directory(config: DaemonConfig, directory: Path) -> DaemonConfig:
    """Return the configuration with another runtime directory; sockets that lie in the old one move along."""
    old = str(config.runtime_directory)

    def moved(listen: UnixListen) -> UnixListen:
        if not listen.template.startswith(old + "/"):
            return listen
        return UnixListen(str(directory) + listen.template[len(old) :])

    front = replace(
        config.front,
        listen=tuple(moved(item) if isinstance(item, UnixListen) else item for item in config.front.listen),
        tenant_sockets={name: moved(listen) for name, listen in config.front.tenant_sockets.items()},
    )
    return replace(config, runtime_directory=directory, front=front)


def policies_of(paths: Sequence[Path]) -> tuple[list[TenantPolicy], list[PolicyError]]:
    """
    Load policy files and directories; return the good ones and what is wrong with the others.

    Two files of one tenant are an error of the second one.
    """
    policies: list[TenantPolicy] = []
    errors: list[PolicyError] = []
    for path in paths:
        try:
            if path.is_dir():
                found = load_directory(path)
                policies += found.policies.values()
                errors += found.errors.values()
            else:
                policies.append(load_policy(path))
        except PolicyError as error:
            errors.append(error)
    seen: dict[str, str] = {}
    unique = []
    for policy in policies:
        first = seen.setdefault(policy.tenant, policy.source_path)
        if first == policy.source_path:
            unique.append(policy)
        else:
            problem = f"tenant {policy.tenant} is defined here and in {first}; each tenant has one file"
            errors.append(PolicyError(problem, path=policy.source_path, key="tenant"))
    return unique, errors


class Colours:
    """Escape sequences, or nothing when the output is no terminal or ``NO_COLOR`` is set."""

    def __init__(self) -> None:
        on = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.red, self.green, self.yellow, self.bold, self.dim, self.off = (
            ("\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[1m", "\x1b[2m", "\x1b[0m") if on else ("",) * 6
        )


def cache_directory() -> Path:
    """Return the user's cache of compiled modules."""
    return default_config().cache_directory
