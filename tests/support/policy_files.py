"""Policy files as texts: the least one, one with every key, and reading them."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
import yaml

from sandboxd.errors import PolicyError
from sandboxd.policy.load import parse_policy
from sandboxd.policy.model import TenantPolicy

SHA = "1f8c" * 16
SECRET = "hunter2"


def document(**plugin: Any) -> dict[str, Any]:
    """The least policy, with keys added to its one plugin."""
    return {
        "tenant": "acme",
        "plugins": [{"name": "p", "module": {"file": "m.wasm", "sha256": SHA}, **plugin}],
    }


def parse(document: dict[str, Any] | str) -> TenantPolicy:
    text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
    return parse_policy(text, "policies/acme.yaml", module_root=None)


def error(document: dict[str, Any] | str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        parse(document)
    assert caught.value.path == "policies/acme.yaml"
    return caught.value


FULL = textwrap.dedent(
    f"""\
    tenant: acme
    isolation: {{memory: 1GiB, cpu: 0.5, pids: 8, require: [cgroup, seccomp]}}
    plugins:
      - name: add-header
        module: {{file: modules/a.wasm, sha256: {SHA.upper()}}}
        root_id: add_header
        configuration: {{header: x-a, value: "Yes", list: [1, 2.5, null, true], date: 2020-01-01}}
        vm:
          id: shared
          configuration: "as it is"
          environment: {{REGION: eu, EMPTY: ""}}
          memory: 16MiB
          clock: live
        limits:
          cpu_per_call: 1.5ms
          time_per_event: 1s
          start_time: 20s
          body_buffer: 2MiB
          open_streams: 7
          log_bytes_per_event: 1KiB
          log_lines_per_event: 3
          log_lines_per_second: 6
          log_bytes_per_second: 7KiB
          metrics: 4
          host_calls_per_event: 5
          table_elements: 2000
          module_size: 8KiB
        capabilities: {{preset: minimal, allow: [proxy_http_call], deny: [proxy_get_property]}}
        redact:
          request_headers: {{authorization: show, Cookie: hash, x-internal-*: mask}}
          response_trailers: [grpc-message]
          properties: [source.address, [metadata, a.b], {{path: source.port, mode: show}}]
        write:
          deny_headers: [":authority", X-Tenant-*]
          allow_headers: []
          local_response: false
          body: false
          properties: false
          max_headers: 1
          max_header_bytes: 2KiB
          max_headers_bytes: 3KiB
        failure: {{policy: reload, status: 500, restart: {{backoff: 2s, max_crashes: 1, window: 1m}}}}
        allow_on_headers_stop_iteration: true
        header_leniency: envoy
    """
)
