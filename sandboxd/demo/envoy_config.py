"""
Envoy's bootstrap configuration as plain data: pure functions from what is wanted to dictionaries.

Listeners take port 0, so that the kernel chooses; `sandboxd.demo.envoy` asks Envoy afterwards what it got.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxd.commands.envoy_filters import CIRCUIT_BREAKERS, RETRY, dynamic_module_filter, dynamic_module_route
from sandboxd.commands.envoy_network import RUNTIME, tcp_proxy

Json = dict[str, Any]

_TYPE = "type.googleapis.com"
_HTTP_OPTIONS = f"{_TYPE}/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_EXT_PROC = f"{_TYPE}/envoy.extensions.filters.http.ext_proc.v3"

ATTRIBUTES = (
    "request.path",
    "request.url_path",
    "request.host",
    "request.scheme",
    "request.method",
    "request.time",
    "request.id",
    "request.protocol",
    "request.query",
    "request.size",
    "source.address",
    "source.port",
    "destination.address",
    "destination.port",
    "connection.id",
    "connection.mtls",
    "xds.route_name",
    "xds.cluster_name",
)
"""Request attributes that a filter may ask for with ``proxy_get_property``."""

RESPONSE_ATTRIBUTES = ("response.code", "response.code_details", "response.flags", "upstream.address")
"""The same for the response."""


def metadata(tenant: str, plugin: str) -> list[Json]:
    """Return the gRPC metadata that tells sandboxd which plugin a stream belongs to."""
    return [{"key": "x-sandboxd-tenant", "value": tenant}, {"key": "x-sandboxd-plugin", "value": plugin}]


def processing_mode(body: str = "NONE", *, trailers: bool = False) -> Json:
    """Return a processing mode that is the same for both directions; full duplex needs its trailers sent."""
    trailer_mode = "SEND" if trailers or body == "FULL_DUPLEX_STREAMED" else "SKIP"
    return {
        "request_header_mode": "SEND",
        "response_header_mode": "SEND",
        "request_body_mode": body,
        "response_body_mode": body,
        "request_trailer_mode": trailer_mode,
        "response_trailer_mode": trailer_mode,
    }


def ext_proc(cluster: str, *, timeout_s: float = 2.0, **overrides: Any) -> Json:
    """
    Return the ext_proc HTTP filter; ``overrides`` are further fields of ExternalProcessor.

    A filter inside Envoy may write every header, so the mutation rules allow all; policies narrow it.
    """
    return {
        "name": "envoy.filters.http.ext_proc",
        "typed_config": {
            "@type": f"{_EXT_PROC}.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": cluster}, "retry_policy": RETRY},
            "message_timeout": f"{timeout_s}s",
            "processing_mode": processing_mode(),
            "mutation_rules": {"allow_all_routing": True, "allow_envoy": True},
            "request_attributes": list(ATTRIBUTES),
            "response_attributes": list(RESPONSE_ATTRIBUTES),
            **overrides,
        },
    }


def ext_proc_route(tenant: str, plugin: str, mode: Json | None = None) -> Json:
    """Return the ``typed_per_filter_config`` that hands a route to one plugin of one tenant."""
    overrides: Json = {"grpc_initial_metadata": metadata(tenant, plugin)}
    if mode is not None:
        overrides["processing_mode"] = mode
    return {"envoy.filters.http.ext_proc": {"@type": f"{_EXT_PROC}.ExtProcPerRoute", "overrides": overrides}}


def shm(socket: Path, tenant: str = "", plugin: str = "", **more: Any) -> Json:
    """Return the dynamic-module HTTP filter; ``more`` are further keys of its own configuration."""
    config = {"socket": str(socket), "tenant": tenant, "plugin": plugin, **more}
    return dynamic_module_filter("sandboxd.shm", config)


def shm_route(tenant: str, plugin: str) -> Json:
    """Return the ``typed_per_filter_config`` that hands a route to one plugin of one tenant."""
    return {"sandboxd.shm": dynamic_module_route(tenant, plugin)}


def text(value: str) -> Json:
    """Return a configuration that the guest reads as this very text."""
    return {"@type": f"{_TYPE}/google.protobuf.StringValue", "value": value}


def wasm(name: str, module: Path, configuration: str = "", **plugin: Any) -> Json:
    """Return Envoy's own Wasm HTTP filter (V8); ``plugin`` are further fields of its PluginConfig."""
    vm = {"runtime": "envoy.wasm.runtime.v8", "vm_id": name, "code": {"local": {"filename": str(module)}}}
    config = {"name": name, "vm_config": vm, "configuration": text(configuration), **plugin}
    return {
        "name": "envoy.filters.http.wasm",
        "typed_config": {"@type": f"{_TYPE}/envoy.extensions.filters.http.wasm.v3.Wasm", "config": config},
    }


def route(prefix: str, cluster: str, per_filter: Json | None = None, *, rewrite: str = "") -> Json:
    """Return a route to a cluster; ``rewrite`` takes the prefix's place on the way to the upstream."""
    action: Json = {"cluster": cluster, "timeout": "30s"}
    if rewrite:
        action["prefix_rewrite"] = rewrite
    return {"match": {"prefix": prefix}, "route": action, "typed_per_filter_config": per_filter or {}}


def direct_route(body: str) -> Json:
    """Return a route that Envoy answers itself, without an upstream."""
    return {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": body}}}


def listener(
    name: str, filters: Iterable[Json], routes: Sequence[Json], *, buffer_bytes: int = 1 << 20, port: int = 0
) -> Json:
    """Return an HTTP listener on the loopback interface; the router is added after the filters."""
    router = {"name": "envoy.filters.http.router", "typed_config": _typed("filters.http.router.v3.Router")}
    manager = {
        **_typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "http_protocol_options": {"enable_trailers": True},
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": list(routes)}]},
        "http_filters": [*filters, router],
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": name,
        "address": _loopback(port),
        "per_connection_buffer_limit_bytes": buffer_bytes,
        "filter_chains": [{"filters": [network]}],
    }


def tcp_listener(name: str, filters: Iterable[Json], cluster: str, *, buffer_bytes: int = 1 << 20) -> Json:
    """Return a TCP listener on the loopback interface that forwards to a cluster what passes the filters."""
    return {
        "name": name,
        "address": _loopback(0),
        "per_connection_buffer_limit_bytes": buffer_bytes,
        "filter_chains": [{"filters": [*filters, tcp_proxy(cluster, name)]}],
    }


def tcp_cluster(name: str, port: int, *, buffer_bytes: int = 1 << 20) -> Json:
    """Return a cluster of one TCP upstream on the loopback interface."""
    cluster = _cluster(name, [_loopback(port)], {}, buffer_bytes)
    cluster.pop("typed_extension_protocol_options", None)
    return cluster


def network_wasm(name: str, module: Path, configuration: str = "", **plugin: Any) -> Json:
    """Return Envoy's own Wasm network filter (V8); as `wasm`."""
    config = wasm(name, module, configuration, **plugin)["typed_config"]["config"]
    typed = {"@type": f"{_TYPE}/envoy.extensions.filters.network.wasm.v3.Wasm", "config": config}
    return {"name": "envoy.filters.network.wasm", "typed_config": typed}


def http_cluster(name: str, port: int, *, buffer_bytes: int = 1 << 20) -> Json:
    """Return a cluster of one HTTP/1.1 upstream on the loopback interface."""
    options = {"http_protocol_options": {"enable_trailers": True}}
    return _cluster(name, [_loopback(port)], options, buffer_bytes)


def grpc_cluster(name: str, sockets: Iterable[Path], *, buffer_bytes: int = 1 << 20) -> Json:
    """Return a cluster of gRPC servers, one endpoint for each Unix socket."""
    addresses = [{"pipe": {"path": str(path)}} for path in sockets]
    cluster = _cluster(name, addresses, {"http2_protocol_options": {}}, buffer_bytes)
    return {**cluster, "circuit_breakers": CIRCUIT_BREAKERS}


def bootstrap(listeners: Sequence[Json], clusters: Sequence[Json]) -> Json:
    """Return the whole configuration, with the admin interface on a port of the kernel's choice."""
    return {
        "admin": {"address": _loopback(0)},
        # Envoy warns when nobody has said how many connections are too many.
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        **_typed("resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"),
                        "max_active_downstream_connections": 10000,
                    },
                }
            ]
        },
        "layered_runtime": RUNTIME,
        "static_resources": {"listeners": list(listeners), "clusters": list(clusters)},
    }


def _typed(name: str) -> Json:
    return {"@type": f"{_TYPE}/envoy.extensions.{name}"}


def _loopback(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, addresses: Iterable[Json], options: Mapping[str, Json], buffer_bytes: int) -> Json:
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": buffer_bytes,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _HTTP_OPTIONS,
                "explicit_http_config": dict(options),
            }
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }
