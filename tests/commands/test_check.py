"""``sandboxd check``: what it finds, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from sandboxd.cli import main
from sandboxd.policy.capability_names import CALLOUT_FUNCTIONS
from tests.hostcore.guest_wat import guest
from tests.support.daemon_client import ADD_HEADER, GUESTS, RUST_HEADERS, policy_text


class Checker:
    """Writes policies and checks them."""

    def __init__(self, directory: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._directory, self._cache, self._capsys = directory, cache, capsys

    def __call__(self, policies: dict[str, str], *arguments: str) -> tuple[int, str]:
        """Return exit status and output."""
        for name, text in policies.items():
            (self._directory / f"{name}.yaml").write_text(text)
        status = main(["check", str(self._directory), "--cache-directory", str(self._cache), *arguments])
        return status, self._capsys.readouterr().out

    def json(self, policies: dict[str, str], *arguments: str) -> dict[str, Any]:
        """Return the JSON output."""
        return dict(json.loads(self(policies, "--json", *arguments)[1]))


@pytest.fixture
def check(tmp_path: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str]) -> Checker:
    """Return the checker."""
    (tmp_path / "policies").mkdir()
    return Checker(tmp_path / "policies", artefact_cache, capsys)


def codes(result: dict[str, Any], severity: str = "error") -> list[str]:
    """Return the codes of the findings of one severity."""
    return [finding["code"] for finding in result["findings"] if finding["severity"] == severity]


def test_a_good_policy(check: Checker) -> None:
    """Functions, callbacks and the start are shown."""
    status, out = check({"a": policy_text("alpha", ADD_HEADER)})

    assert status == 0
    assert "alpha/main" in out
    assert "proxy_replace_header_map_value" in out
    assert "started" in out
    assert "1 plugin, 0 errors, 0 warnings" in out


def test_needed_against_granted(check: Checker) -> None:
    """Denied, unavailable, withheld: each under its name."""
    policy = policy_text("alpha", RUST_HEADERS).replace("standard}", "standard, deny: [proxy_set_property]}")
    result = check.json({"a": policy.replace("[proxy_set_property]", "[proxy_set_property, proxy_on_log]")})

    report = result["plugins"][0]
    assert report["abi"] == "0.2.1"
    assert set(report["denied_functions"]) == {"proxy_set_property", *CALLOUT_FUNCTIONS}
    assert "proxy_log" in report["granted_functions"]
    assert "proxy_on_log" in report["withheld_callbacks"]
    assert "proxy_on_request_headers" in report["granted_callbacks"]
    assert report["start_ms"] > 0
    assert "no_new_privs" in report["layers"]
    assert result["ok"] is True
    assert set(codes(result, "warning")) == {"denied_functions", "withheld_callbacks"}
    assert "no_callouts" in codes(result, "note")


def test_functions_that_a_policy_with_upstreams_forgot_to_grant(check: Checker) -> None:
    """Without upstreams it is a note: every module of the Rust SDK imports them."""
    callouts = "callouts: {upstreams: {auth: {url: 'http://auth.example', paths: [/]}}}"
    result = check.json({"a": policy_text("alpha", RUST_HEADERS, more=callouts)})

    (finding,) = [finding for finding in result["findings"] if finding["severity"] == "warning"]
    assert finding["code"] == "denied_functions"
    assert "proxy_http_call" in finding["text"]
    assert "no_callouts" not in codes(result, "note")


def test_strict_makes_warnings_count(check: Checker) -> None:
    """Notes do not: every module of the Rust SDK imports what this version does not have."""
    assert check({"a": policy_text("alpha", RUST_HEADERS)}, "--strict")[0] == 0
    policy = policy_text("alpha", RUST_HEADERS).replace("standard}", "standard, deny: [proxy_set_property]}")
    assert check({"a": policy})[0] == 0
    assert check({"a": policy}, "--strict")[0] == 1


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("tenant: [", "policy", "not valid YAML"),
        (policy_text("alpha", ADD_HEADER, sha256="0" * 64), "module", "sha256"),
        (policy_text("alpha", GUESTS / "c" / "c_add_header.c"), "module", "wasm"),
        (policy_text("alpha", GUESTS / "misdeeds" / "configure_false.wasm"), "start", "configure"),
        (policy_text("alpha", GUESTS / "misdeeds" / "no_marker.wasm"), "module", "proxy_abi_version"),
    ],
    ids=["yaml", "sha256", "not wasm", "refuses", "no marker"],
)
def test_errors(check: Checker, text: str, code: str, words: str) -> None:
    """Each bad policy is one finding, and does not hide the good one beside it."""
    result = check.json({"a": text, "b": policy_text("beta", ADD_HEADER)})

    assert codes(result) == [code]
    assert words in next(f["text"] for f in result["findings"] if f["severity"] == "error")
    assert "beta" in [report["tenant"] for report in result["plugins"]]
    assert result["ok"] is False
    assert check({})[0] == 1


def test_no_start(check: Checker) -> None:
    """A plugin that would not start passes if it is not started."""
    bad = {"a": policy_text("alpha", GUESTS / "misdeeds" / "configure_false.wasm")}
    assert check(bad, "--no-start")[0] == 0
    assert check(bad)[0] == 1


def test_duplicate_tenants(check: Checker) -> None:
    """Both files are named."""
    result = check.json({"a": policy_text("alpha", ADD_HEADER), "b": policy_text("alpha", ADD_HEADER)})

    assert set(codes(result)) == {"policy"}
    assert "a.yaml" in result["findings"][0]["text"]
    assert "b.yaml" in result["findings"][0]["text"]


def test_a_service_with_nothing_to_do(check: Checker) -> None:
    """It is told so; one that ticks is not."""
    result = check.json(
        {
            "a": policy_text("alpha", ADD_HEADER, more="kind: service"),
            "b": policy_text("beta", GUESTS / "c" / "c_log_shipper.wasm", more="kind: service"),
        }
    )

    assert [found["tenant"] for found in result["findings"] if found["code"] == "idle_service"] == ["alpha"]
    assert result["ok"] is True


def test_what_the_conformance_data_tell_of_a_module(check: Checker, tmp_path: Path) -> None:
    """Answers of what is denied, transports, functions of another ABI, foreign functions that nobody offers."""
    calls = [
        ("proxy_call_foreign_function", "verify_signature", "", 64, 68),
        ("proxy_call_foreign_function", "compress", "resigned", 64, 68),
        ("proxy_clear_route_cache",),
        ("path_open", 3, 0, "file", 0, 2, 0, 0, 64),
    ]
    http, tcp = tmp_path / "http.wasm", tmp_path / "tcp.wasm"
    http.write_bytes(wat2wasm(guest({"request_headers": calls})))
    tcp.write_bytes(wat2wasm(guest({"downstream_data": [], "tick": []})))
    policies = {"a": policy_text("alpha", http), "b": policy_text("beta", tcp).replace("standard", "full")}
    result = check.json(policies)
    first, second = result["plugins"]

    assert first["denied_functions"] == ["path_open"]
    assert first["denied_answers"] == {"path_open": 76}
    assert first["foreign_to_abi"] == ["proxy_clear_route_cache"]
    assert first["foreign_functions"] == ["verify_signature"]
    assert first["transports"] == ["ext_proc", "shm"]
    assert second["foreign_functions"] == []
    assert set(second["transports"]) <= {"ext_proc", "network ext_proc", "shm"}
    assert {"foreign_to_abi", "foreign_functions"} <= set(codes(result, "note"))
    assert "path_open (answers 76)" in check(policies)[1]
