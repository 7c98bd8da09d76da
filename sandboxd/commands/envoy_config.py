"""``sandboxd envoy-config``: the Envoy configuration that fits the policies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from sandboxd.commands.common import (
    Subparsers,
    add_compiling_arguments,
    add_config_arguments,
    compiling_of,
    config_of,
    policies_of,
)
from sandboxd.commands.envoy_filters import CLUSTER, Json, bootstrap, cluster, dynamic_module_filter, http_filter
from sandboxd.commands.envoy_network import network_bootstrap, network_filter, network_parts, works_on_tcp
from sandboxd.config import DaemonConfig, TcpListen, UnixListen
from sandboxd.errors import ConfigError, PolicyError
from sandboxd.policy.model import OnFailure, PluginKind, PluginPolicy, TenantPolicy
from sandboxd.supervisor.prepare import prepare_plugin

_HEAD = """\
# Envoy configuration for sandboxd, written by `sandboxd envoy-config`.
# One filter per plugin. A filter serves the listener or route that lists it: put each where its tenant's
# traffic is.
"""


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "envoy-config",
        help="print the Envoy filters and cluster that fit the policies",
        description="Print Envoy's filters (one per plugin) and the cluster that holds all fronts. The"
        " modes follow from the callbacks of each module.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "policies", metavar="POLICY", nargs="*", type=Path, help="files or directories; default: the daemon's"
    )
    parser.add_argument("--fronts", metavar="N", type=int, help="front processes; instead of the file's")
    parser.add_argument(
        "--transport",
        choices=("ext_proc", "shm"),
        default="ext_proc",
        help="how Envoy reaches sandboxd: gRPC to the fronts, or the dynamic module and shared memory",
    )
    parser.add_argument(
        "--filter",
        choices=("http", "network"),
        default="http",
        help="HTTP filters, or network filters of the plugins that have callbacks for TCP",
    )
    parser.add_argument("--bootstrap", action="store_true", help="print a whole configuration with a listener, to try")
    add_compiling_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the configuration."""
    config = config_of(args)
    policies, errors = policies_of(args.policies or [config.policies])
    if errors:
        raise errors[0]
    if not policies:
        raise PolicyError("there is no policy file", path=str(config.policies))
    network = args.filter == "network"
    if args.transport == "shm":
        if network:
            raise ConfigError("shm has no network filter: TCP goes over ext_proc", key="--transport")
        listed = [(policy.tenant, plugin) for policy in policies for plugin in _filters(policy)]
        _print([module_filter(config, tenant, plugin) for tenant, plugin in listed], [], args)
        return 0
    compiling = compiling_of(args)
    filters = []
    for policy in policies:
        for plugin in _filters(policy):
            prepared = prepare_plugin(plugin, *compiling)
            if network and not works_on_tcp(prepared.manifest.granted_callbacks):
                continue
            make = network_filter if network else http_filter
            filters.append(
                make(
                    policy.tenant,
                    plugin,
                    callbacks=prepared.manifest.granted_callbacks,
                    functions=prepared.imported_functions,
                )
            )
    fronts = cluster(addresses(config, args.fronts or config.front.processes))
    if not network:
        _print(filters, [fronts], args)
        return 0
    if not filters:
        raise PolicyError("no plugin has a callback for TCP that its policy grants", path=policies[0].source_path)
    print(_HEAD + _yaml((network_bootstrap if args.bootstrap else network_parts)(filters, [fronts])), end="")
    return 0


def _filters(policy: TenantPolicy) -> list[PluginPolicy]:
    """Return the plugins that serve streams: a proxy has no business with services."""
    return [plugin for plugin in policy.plugins if plugin.kind is PluginKind.FILTER]


def module_filter(config: DaemonConfig, tenant: str, plugin: PluginPolicy) -> Json:
    """
    Return the dynamic module's filter for one plugin.

    Raises:
        ConfigError: the daemon has no attach socket.
    """
    if config.attach is None:
        raise ConfigError("is missing, so nobody can attach; {} is enough", path=config.source_path, key="attach")
    own = {
        "socket": str(config.attach.socket),
        "tenant": tenant,
        "plugin": plugin.name,
        "failure": "open" if plugin.failure.policy is OnFailure.OPEN else "closed",
    }
    return dynamic_module_filter(f"sandboxd.{tenant}.{plugin.name}", own)


def _print(filters: list[Json], clusters: list[Json], args: argparse.Namespace) -> None:
    if args.bootstrap:
        print(_HEAD + _yaml(bootstrap(filters, clusters)), end="")
    else:
        print(_HEAD + _yaml({"http_filters": filters, **({"clusters": clusters} if clusters else {})}), end="")


def addresses(config: DaemonConfig, processes: int) -> list[str | tuple[str, int]]:
    """
    Return where the fronts listen: paths of Unix sockets if there are any, else host and port.

    Raises:
        ConfigError: the daemon listens for single tenants alone.
    """
    for listen in config.front.listen:
        if isinstance(listen, UnixListen):
            return [str(listen.path(index)) for index in range(processes)]
    for listen in config.front.listen:
        if isinstance(listen, TcpListen):
            return [(listen.host, listen.port)]
    raise ConfigError(f"names no socket for cluster {CLUSTER}", path=config.source_path, key="front.listen")


def _yaml(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes equal objects in full instead of as anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (PyYAML's signature)
        return True
