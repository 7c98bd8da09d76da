"""Envoy's filter and cluster for sandboxd as plain data. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sandboxd import limits
from sandboxd.policy.capabilities import DataNeeds, needs
from sandboxd.policy.model import OnFailure, PluginPolicy
from sandboxd.policy.redact import Redactor

Json = dict[str, Any]

CLUSTER = "sandboxd"
SLACK_NS = 100 * limits.MS_NS
"""
sandboxd answers by the failure policy when its own deadline is over; Envoy waits a little longer than that.
"""

_TYPE = "type.googleapis.com/envoy.extensions"
_EXT_PROC = f"{_TYPE}.filters.http.ext_proc.v3.ExternalProcessor"

_MODULE: Json = {"name": "sandboxd_envoy", "do_not_close": True}
"""Its threads outlive a configuration, so the file stays mapped."""

RETRY: Json = {
    "retry_on": "connect-failure,refused-stream",
    "num_retries": 3,
    "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.1s"},
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": f"{_TYPE}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
        }
    ],
    "host_selection_retry_max_attempts": 3,
}
"""A front that is away for a moment refuses connections; another one is tried."""

CIRCUIT_BREAKERS: Json = {"thresholds": [{"max_retries": 1024}]}
"""Three retries at a time, Envoy's default, are fewer than a front has streams in hand."""

CONNECTION_ATTRIBUTES = (
    "source.address",
    "source.port",
    "destination.address",
    "destination.port",
    "connection.id",
    "connection.mtls",
    "connection.requested_server_name",
    "connection.tls_version",
    "connection.subject_local_certificate",
    "connection.subject_peer_certificate",
    "connection.dns_san_local_certificate",
    "connection.dns_san_peer_certificate",
    "connection.uri_san_local_certificate",
    "connection.uri_san_peer_certificate",
)
REQUEST_ATTRIBUTES = (
    "request.path",
    "request.url_path",
    "request.host",
    "request.scheme",
    "request.method",
    "request.headers",
    "request.referer",
    "request.useragent",
    "request.time",
    "request.id",
    "request.protocol",
    "request.query",
    *CONNECTION_ATTRIBUTES,
    "xds.route_name",
    "xds.cluster_name",
    "xds.node",
    "xds.virtual_host_name",
    "xds.listener_direction",
)
RESPONSE_ATTRIBUTES = ("response.code", "response.code_details", "response.flags", "upstream.address")


NOTHING_AFTER_RESPONSE_HEADERS: Final = {"key": "x-sandboxd-last-message", "value": "response_headers"}
"""Metadata that go with a mode of headers alone: the front may end the stream with its last reply."""
_HEADERS_ALONE: Final = {
    "request_header_mode": "SEND",
    "response_header_mode": "SEND",
    "request_body_mode": "NONE",
    "response_body_mode": "NONE",
    "request_trailer_mode": "SKIP",
    "response_trailer_mode": "SKIP",
}


def http_filter(tenant: str, plugin: PluginPolicy, *, callbacks: Iterable[str], functions: Iterable[str]) -> Json:
    """
    Return the ext_proc filter that hands a stream to one plugin.

    Args:
        tenant: the plugin's tenant.
        plugin: its policy.
        callbacks: callbacks that the module has and that are granted.
        functions: granted host functions that the module imports.
    """
    callbacks = frozenset(callbacks)
    wanted = needs(plugin.capabilities & (frozenset(functions) | callbacks), callbacks)
    mode = processing_mode(wanted)
    metadata = [
        {"key": "x-sandboxd-tenant", "value": tenant},
        {"key": "x-sandboxd-plugin", "value": plugin.name},
    ]
    if mode == _HEADERS_ALONE:
        metadata.append(NOTHING_AFTER_RESPONSE_HEADERS)
    config: Json = {
        "@type": _EXT_PROC,
        "grpc_service": {
            "envoy_grpc": {"cluster_name": CLUSTER},
            "initial_metadata": metadata,
            "retry_policy": RETRY,
        },
        "processing_mode": mode,
        "message_timeout": _duration(plugin.time_per_pause_ns + SLACK_NS),
        "failure_mode_allow": plugin.failure.policy is OnFailure.OPEN,
        # Envoy drops writes of routing headers and x-envoy-* by default; which of them may be written is the
        # policy's decision, and sandboxd has made it already.
        "mutation_rules": {"allow_all_routing": True, "allow_envoy": True},
        "metadata_options": {"receiving_namespaces": {"untyped": [f"sandboxd.{tenant}.{plugin.name}"]}},
        "stat_prefix": f"{tenant}.{plugin.name}",
    }
    if wanted.properties:
        config["request_attributes"] = visible_attributes(plugin, REQUEST_ATTRIBUTES)
        config["response_attributes"] = visible_attributes(plugin, RESPONSE_ATTRIBUTES)
    return {"name": f"sandboxd.{tenant}.{plugin.name}", "typed_config": config}


def dynamic_module_filter(name: str, config: Json) -> Json:
    """Return the HTTP filter that talks to sandboxd over shared memory; ``config`` is its own configuration."""
    typed = {
        "@type": f"{_TYPE}.filters.http.dynamic_modules.v3.DynamicModuleFilter",
        "dynamic_module_config": _MODULE,
        "filter_name": "sandboxd",
        "filter_config": _struct(config),
    }
    return {"name": name, "typed_config": typed}


def dynamic_module_route(tenant: str, plugin: str) -> Json:
    """Return the ``typed_per_filter_config`` entry that hands a route to one plugin."""
    return {
        "@type": f"{_TYPE}.filters.http.dynamic_modules.v3.DynamicModuleFilterPerRoute",
        "dynamic_module_config": _MODULE,
        "per_route_config_name": "sandboxd",
        "filter_config": _struct({"tenant": tenant, "plugin": plugin}),
    }


def _struct(value: Json) -> Json:
    return {"@type": "type.googleapis.com/google.protobuf.Struct", "value": value}


def processing_mode(wanted: DataNeeds) -> Json:
    """
    Return which messages Envoy sends.

    A plugin with a body callback gets FULL_DUPLEX_STREAMED, the only mode in which it may hold headers back
    until it has seen the body; the mode wants trailers to be sent too.
    """
    request = _body_mode(wanted, "request")
    response = _body_mode(wanted, "response")
    return {
        # Also when there is no callback for them: the stream's context begins here.
        "request_header_mode": "SEND",
        "response_header_mode": _send(
            wanted.response_headers
            or response != "NONE"
            or not wanted.callbacks.isdisjoint({"proxy_on_response_headers", "proxy_on_response_trailers"})
        ),
        "request_body_mode": request,
        "response_body_mode": response,
        "request_trailer_mode": _trailer_mode(wanted, "request", request),
        "response_trailer_mode": _trailer_mode(wanted, "response", response),
    }


def _body_mode(wanted: DataNeeds, direction: str) -> str:
    return "FULL_DUPLEX_STREAMED" if f"proxy_on_{direction}_body" in wanted.callbacks else "NONE"


def _trailer_mode(wanted: DataNeeds, direction: str, body_mode: str) -> str:
    readable = wanted.request_trailers if direction == "request" else wanted.response_trailers
    called = f"proxy_on_{direction}_trailers" in wanted.callbacks
    return _send(body_mode == "FULL_DUPLEX_STREAMED" or called or readable)


def _send(wanted: bool) -> str:
    return "SEND" if wanted else "SKIP"


def visible_attributes(plugin: PluginPolicy, names: Sequence[str]) -> list[str]:
    """Return the attributes that are worth sending: the front drops the others before they reach a worker."""
    redactor = Redactor(plugin.redact, bytes(32))
    return [name for name in names if redactor.property_visible(tuple(name.split(".")))]


def _duration(ns: int) -> str:
    text = f"{ns / 1e9:.9f}".rstrip("0").rstrip(".")
    return f"{text}s"


def cluster(addresses: Iterable[str | tuple[str, int]]) -> Json:
    """Return the cluster of all fronts: each a Unix socket's path, or host and port."""
    endpoints = [{"endpoint": {"address": _address(address)}} for address in addresses]
    return {
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": CIRCUIT_BREAKERS,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": endpoints}]},
    }


def _address(address: str | tuple[str, int]) -> Json:
    if isinstance(address, str):
        return {"pipe": {"path": address}}
    host, port = address
    return {"socket_address": {"address": host, "port_value": port}}


def bootstrap(filters: Sequence[Json], clusters: Sequence[Json]) -> Json:
    """Return a whole configuration to try: a listener on port 10000 with all filters, answering by itself."""
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "direct_response": {"status": 200, "body": {"inline_string": "it works\n"}},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            *filters,
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
            },
        ],
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener = {
        "name": "ingress",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 10000}},
        "filter_chains": [{"filters": [network]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": list(clusters)}}
