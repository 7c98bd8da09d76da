"""Envoy's network filter for a plugin that works on TCP connections, as plain data. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sandboxd.commands.envoy_filters import (
    CLUSTER,
    CONNECTION_ATTRIBUTES,
    RETRY,
    SLACK_NS,
    Json,
    visible_attributes,
)
from sandboxd.limits import MS_NS
from sandboxd.policy.capabilities import DataNeeds, needs
from sandboxd.policy.capability_names import TCP_CALLBACKS
from sandboxd.policy.model import OnFailure, PluginPolicy

_TYPE: Final = "type.googleapis.com/envoy.extensions.filters.network"

RUNTIME: Final[Json] = {
    "layers": [
        {
            "name": "sandboxd",
            "static_layer": {"envoy.reloadable_features.connection_close_through_filter_manager": True},
        }
    ]
}
"""
Envoy's ``layered_runtime``. Without it Envoy 1.40 closes a connection while its filter still waits for bytes that it
has sent away, and they are lost. It is off by default.
"""


def network_filter(tenant: str, plugin: PluginPolicy, *, callbacks: Iterable[str], functions: Iterable[str]) -> Json:
    """
    Return the network ext_proc filter that hands a connection to one plugin.

    Args:
        tenant: the plugin's tenant.
        plugin: its policy.
        callbacks: callbacks that the module has and that are granted.
        functions: granted host functions that the module imports.
    """
    callbacks = frozenset(callbacks)
    wanted = needs(plugin.capabilities & (frozenset(functions) | callbacks), callbacks)
    return network_ext_proc(
        CLUSTER,
        tenant,
        plugin.name,
        timeout_ns=plugin.time_per_pause_ns + SLACK_NS,
        attributes=visible_attributes(plugin, CONNECTION_ATTRIBUTES) if wanted.properties else (),
        processing_mode=processing_mode(wanted),
        failure_mode_allow=plugin.failure.policy is OnFailure.OPEN,
        metadata_options={"receiving_namespaces": {"untyped": [f"sandboxd.{tenant}.{plugin.name}"]}},
        stat_prefix=f"{tenant}.{plugin.name}.",
    )


def network_ext_proc(
    cluster: str, tenant: str, plugin: str, *, timeout_ns: int, attributes: Sequence[str] = (), **more: Any
) -> Json:
    """Return the filter; ``attributes`` are what it tells of a connection, ``more`` are further fields of it."""
    metadata = [("x-sandboxd-tenant", tenant), ("x-sandboxd-plugin", plugin)]
    config: Json = {
        "@type": f"{_TYPE}.ext_proc.v3.NetworkExternalProcessor",
        "grpc_service": {
            "envoy_grpc": {"cluster_name": cluster},
            "initial_metadata": [{"key": key, "value": value} for key, value in metadata],
            "retry_policy": RETRY,
        },
        "message_timeout": f"{-(-timeout_ns // MS_NS) / 1000:.3f}s",
        "stat_prefix": f"{tenant}.{plugin}.",
        **({"connection_attributes": list(attributes)} if attributes else {}),
        **more,
    }
    return {"name": f"sandboxd.{tenant}.{plugin}", "typed_config": config}


def works_on_tcp(callbacks: Iterable[str]) -> bool:
    """Whether a plugin with these callbacks has any business with connections."""
    return not TCP_CALLBACKS.isdisjoint(callbacks)


def processing_mode(wanted: DataNeeds) -> Json:
    """
    Return which directions Envoy sends.

    What comes from downstream always: it is how the plugin hears of a connection at all.
    """
    answers = {"proxy_on_upstream_data", "proxy_on_upstream_connection_close", "proxy_on_new_connection"}
    return {
        "process_read": "STREAMED",
        "process_write": "SKIP" if wanted.callbacks.isdisjoint(answers) else "STREAMED",
    }


def tcp_proxy(cluster: str, name: str) -> Json:
    """Return Envoy's filter that ends a chain and forwards the bytes."""
    config = {"@type": f"{_TYPE}.tcp_proxy.v3.TcpProxy", "stat_prefix": name, "cluster": cluster}
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config}


def network_parts(filters: Sequence[Json], clusters: Sequence[Json]) -> Json:
    """Return what a configuration needs: the filters, which go before `tcp_proxy`, the clusters, and the runtime."""
    return {
        "layered_runtime": RUNTIME,
        "filters": list(filters),
        "clusters": list(clusters),
    }


def network_bootstrap(filters: Sequence[Json], clusters: Sequence[Json]) -> Json:
    """Return a whole configuration to try: a listener on port 10000 that forwards to port 10001."""
    upstream: Json = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _loopback(10001)}}]}],
        },
    }
    listener = {
        "name": "ingress",
        "address": _loopback(10000),
        "filter_chains": [{"filters": [*filters, tcp_proxy("upstream", "ingress")]}],
    }
    return {
        "layered_runtime": RUNTIME,
        "static_resources": {"listeners": [listener], "clusters": [upstream, *clusters]},
    }


def _loopback(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
