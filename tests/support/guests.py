"""The guest modules of `tests/guests`, each with the settings that make it do its work."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GUESTS = Path(__file__).resolve().parents[1] / "guests"


@dataclass(frozen=True)
class Guest:
    """A module with its settings, the same for Envoy's own filter and for sandboxd."""

    name: str
    file: str
    configuration: str = ""
    root_id: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The module's file."""
        return GUESTS / self.file

    def plugin(self, **more: Any) -> dict[str, Any]:
        """Return the plugin's entry in a policy file; ``more`` are further keys."""
        entry: dict[str, Any] = {
            "name": self.name,
            "module": {"file": str(self.path), "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()},
            "capabilities": {"preset": "standard"},
        }
        if self.configuration:
            entry["configuration"] = self.configuration
        if self.root_id:
            entry["root_id"] = self.root_id
        if self.environment:
            entry["vm"] = {"environment": self.environment}
        return {**entry, **more}


HTTP_HEADERS = Guest("http-headers", "rust/http_headers.wasm")
HTTP_BODY_RESPONSE = Guest("http-body-response", "rust/http_body.wasm")
HTTP_BODY_REQUEST = Guest("http-body-request", "rust/http_body.wasm", "request")
HTTP_CONFIG = Guest("http-config", "rust/http_config.wasm", '{"header":"x-configured","value":"by the plugin"}')
TOKEN_GATE = Guest("token-gate", "rust/token_gate.wasm", "sesame")
C_ADD_HEADER = Guest("c-add-header", "c/c_add_header.wasm")
C_JSON_BODY = Guest("c-json-body", "c/c_json_body.wasm")
C_ABI_0_1_0 = Guest("c-abi-0-1-0", "c/c_abi_0_1_0.wasm", "as configured")
PROBE = Guest("probe", "rust/probe.wasm", "as configured", environment={"PROBE_ENV": "from outside"})
C_BENCH = Guest("c-bench", "c/c_bench.wasm")
C_ACCESS_LOG = Guest("c-access-log", "c/c_access_log.wasm")
C_LOG_SHIPPER = Guest("c-log-shipper", "c/c_log_shipper.wasm")
C_TWENTY_CALLS = Guest("c-twenty-calls", "c/c_twenty_calls.wasm")
C_SLOW_BODY = Guest("c-slow-body", "c/c_slow_body.wasm")
C_UPPER_BODY = Guest("c-upper-body", "c/c_upper_body.wasm")
C_GATE = Guest("c-gate", "c/c_gate.wasm")
C_ALL_ON = Guest("c-all-on", "c/c_all_on.wasm")
C_ALL_CALLS = Guest("c-all-calls", "c/c_all_calls.wasm")
C_STATE_PROBE = Guest("c-state-probe", "c/c_state_probe.wasm")
C_FOREIGN_PROBE = Guest("c-foreign-probe", "c/c_foreign_probe.wasm")
C_TCP_FLOW = Guest("c-tcp-flow", "c/c_tcp_flow.wasm")
CALLOUTS = Guest("callouts", "rust/callouts.wasm")
GO_FILTER = Guest(
    "go-filter",
    "go/go_filter.wasm",
    '{"headers":{"x-go-one":"1","x-go-two":"2"},"uppercase_request_body":true}',
    environment={"REGION": "eu"},
)
AS_FILTER = Guest("as-filter", "assemblyscript/as_filter.wasm", "from AssemblyScript", root_id="as_filter")


def misdeed(file: str) -> Guest:
    """Return a guest of `tests/guests/misdeeds` by its file's stem; its plugin is named after it."""
    return Guest(file.replace("_", "-"), f"misdeeds/{file}.wasm")


def tcp_probe(behaviour: str) -> Guest:
    """Return the TCP probe that behaves so; its plugin is named ``tcp-BEHAVIOUR``."""
    return Guest(f"tcp-{behaviour}", "c/c_tcp_probe.wasm", behaviour)
