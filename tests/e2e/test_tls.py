"""The TCP listener: TLS, and only for clients with a certificate of the right authority."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from sandboxd.demo import daemon
from tests.support import guests, stage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

PKI = Path(__file__).with_name("pki")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tls_cluster(port: int, client: str) -> dict[str, Any]:
    """Return the gRPC cluster of a TLS server, approached with a client's certificate; empty: with none."""
    context: dict[str, Any] = {
        "alpn_protocols": ["h2"],
        "validation_context": {"trusted_ca": {"filename": str(PKI / "ca.pem")}},
    }
    if client:
        files = {"certificate_chain": f"{client}.pem", "private_key": f"{client}.key"}
        context["tls_certificates"] = [{name: {"filename": str(PKI / file)} for name, file in files.items()}]
    kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "name": "sandboxd",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "sandboxd",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"type.googleapis.com/{kind}",
                "sni": "localhost",
                "common_tls_context": context,
            },
        },
    }


@pytest.mark.parametrize(("client", "status"), [("client", 200), ("stranger", 500), ("", 500)])
def test_only_known_clients_are_served(tmp_path: Path, client: str, status: int) -> None:
    """A certificate of another authority, or none, gets nowhere."""
    port = free_port()
    tls = {name: str(PKI / file) for name, file in (("certificate", "server.pem"), ("key", "server.key"))}
    listen = [{"tcp": f"127.0.0.1:{port}", "tls": {**tls, "client_ca": str(PKI / "ca.pem")}}]

    def clusters(_sandbox: daemon.Daemon) -> list[dict[str, Any]]:
        return [tls_cluster(port, client)]

    tenants = [stage.Tenant("tenant", [guests.C_ADD_HEADER.plugin()])]
    with stage.running(tmp_path, tenants, fronts=2, config={"front": {"listen": listen}}, clusters=clusters) as running:
        answer = running.get(f"/tenant/{guests.C_ADD_HEADER.name}/")

        assert answer.status == 200 if status == 200 else answer.status in (500, 503, 504)
        assert answer.values("x-wasm-processed") == (("Yes",) if status == 200 else ())
