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
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from sandboxd.compiler.cache import KEY_NAME, read_or_make_key
from sandboxd.config import DEFAULT_CONFIG_PATH, DaemonConfig, UnixListen, default_config
from sandboxd.config_file import load_config
from sandboxd.errors import ConfigError, PolicyError
from sandboxd.jail.jailer import Jailer, this_machine
from sandboxd.jail.layers import GROUPS, Layer, resolve
from sandboxd.policy.load import load_directory, load_policy
from sandboxd.policy.model import TenantPolicy
from sandboxd.supervisor.rundir import make_directory

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
    parser.add_argument("--runtime-directory", metavar="DIR", type=Path, help="sockets; instead of the file's")


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


def split_plugin(text: str) -> tuple[str, str]:
    """
    Return tenant and plugin of ``TENANT`` or ``TENANT/PLUGIN``; an empty plugin means all of them.

    Raises:
        ConfigError: it is neither.
    """
    tenant, slash, plugin = text.partition("/")
    if not tenant or (slash and not plugin) or "/" in plugin:
        raise ConfigError(f"{text!r} is not TENANT or TENANT/PLUGIN", key="TENANT[/PLUGIN]")
    return tenant, plugin


class Colours:
    """Escape sequences, or nothing when the output is no terminal or ``NO_COLOR`` is set."""

    def __init__(self) -> None:
        on = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.red, self.green, self.yellow, self.bold, self.dim, self.off = (
            ("\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[1m", "\x1b[2m", "\x1b[0m") if on else ("",) * 6
        )


class Compiling(NamedTuple):
    """How modules are compiled: the arguments of `sandboxd.supervisor.prepare.prepare_plugin` after the first."""

    cache_directory: Path
    jailer: Jailer
    artefact_key: bytes | None


def add_compiling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where compiled modules are kept, and how compilers and workers are jailed."""
    parser.add_argument(
        "--cache-directory",
        metavar="DIR",
        type=Path,
        help="compiled modules, with the key that authenticates them (default: the user's)",
    )
    parser.add_argument(
        "--tolerate",
        metavar="LAYER,...",
        default="",
        help="isolation layers that may be missing, as jail.tolerate in the daemon's file",
    )


def compiling_of(args: argparse.Namespace) -> Compiling:
    """
    Return how modules are compiled.

    Raises:
        ConfigError: an unknown layer, or a directory that cannot be used.
        JailError: the machine cannot be asked what it can give.
    """
    jailer = this_machine(layers_of(args.tolerate))
    if args.cache_directory is not None:
        return Compiling(args.cache_directory, jailer, None)
    config = default_config()
    make_directory(config.state_directory, 0o700)
    return Compiling(config.cache_directory, jailer, read_or_make_key(config.state_directory / KEY_NAME))


def layers_of(names: str) -> frozenset[Layer]:
    """Return the layers behind a list with commas. Raises ConfigError."""
    try:
        return resolve(tuple(name for name in names.split(",") if name))
    except ValueError as error:
        raise ConfigError(str(error), key="--tolerate", allowed=(*Layer, *GROUPS)) from None
