"""``sandboxd envoy-config``: the modes that follow from a module, and that a real Envoy takes the result."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandboxd.cli import main
from sandboxd.commands.envoy_filters import cluster, http_filter, processing_mode
from sandboxd.commands.envoy_network import network_filter
from sandboxd.demo.envoy import find_envoy
from sandboxd.policy import capabilities as caps
from sandboxd.policy.model import ModuleRef, PluginPolicy
from tests.support.daemon_client import ADD_HEADER, RUST_HEADERS, policy_text
from tests.support.guests import C_TCP_FLOW

HEADERS = {"proxy_on_context_create", "proxy_on_request_headers"}


def mode(callbacks: set[str], functions: set[str] = frozenset({"proxy_get_header_map_value"})) -> dict[str, str]:  # type: ignore[assignment]
    """Return the processing mode of a plugin."""
    return dict(processing_mode(caps.needs(frozenset(functions | callbacks), callbacks)))


def test_only_what_is_needed_is_sent() -> None:
    """A filter of request headers gets no more than that."""
    assert mode(HEADERS) == {
        "request_header_mode": "SEND",
        "response_header_mode": "SKIP",
        "request_body_mode": "NONE",
        "response_body_mode": "NONE",
        "request_trailer_mode": "SKIP",
        "response_trailer_mode": "SKIP",
    }


def test_a_body_callback_gets_full_duplex_with_trailers() -> None:
    """In the direction that has one."""
    found = mode(HEADERS | {"proxy_on_response_body"}, {"proxy_get_buffer_bytes"})
    assert found["response_body_mode"] == "FULL_DUPLEX_STREAMED"
    assert found["response_trailer_mode"] == "SEND"
    assert found["response_header_mode"] == "SEND"
    assert found["request_body_mode"] == "NONE"
    assert found["request_trailer_mode"] == "SKIP"


def test_a_logger_sees_all_headers() -> None:
    """proxy_on_log reads every map."""
    found = mode(HEADERS | {"proxy_on_log"})
    assert found["response_header_mode"] == "SEND"
    assert found["response_body_mode"] == "NONE"


def filter_of(**changes: Any) -> dict[str, Any]:
    """Return the filter's configuration of a plugin with these fields."""
    plugin = PluginPolicy("p", ModuleRef(Path("m"), "0" * 64), capabilities=caps.PRESETS["standard"], **changes)
    made = http_filter("t", plugin, callbacks=HEADERS, functions={"proxy_get_property", "proxy_log"})
    return dict(made["typed_config"])


def test_the_plugin_is_named_in_the_metadata() -> None:
    """The front finds it by these."""
    pairs = filter_of()["grpc_service"]["initial_metadata"]
    assert {pair["key"]: pair["value"] for pair in pairs} == {
        "x-sandboxd-tenant": "t",
        "x-sandboxd-plugin": "p",
    }


def test_a_mode_of_headers_alone_says_that_they_are_the_last_message() -> None:
    """The front then ends the stream with its last reply; a mode that sends more must not say so."""

    def metadata(*more: str) -> dict[str, str]:
        plugin = PluginPolicy("p", ModuleRef(Path("m"), "0" * 64), capabilities=caps.PRESETS["standard"])
        made = http_filter("t", plugin, callbacks=HEADERS | set(more), functions={"proxy_get_header_map_value"})
        return {pair["key"]: pair["value"] for pair in made["typed_config"]["grpc_service"]["initial_metadata"]}

    key = "x-sandboxd-last-message"
    assert metadata("proxy_on_response_headers")[key] == "response_headers"
    assert key not in metadata()
    assert key not in metadata("proxy_on_response_headers", "proxy_on_response_trailers")
    assert key not in metadata("proxy_on_response_headers", "proxy_on_request_body")


def test_hidden_attributes_are_not_asked_for() -> None:
    """The client's address is hidden by default."""
    attributes = filter_of()["request_attributes"]
    assert "source.address" not in attributes
    assert "request.path" in attributes


def test_time_and_failure_follow_the_policy() -> None:
    """Envoy waits a little longer than sandboxd does."""
    assert filter_of()["message_timeout"] == "0.3s"
    assert filter_of()["failure_mode_allow"] is False
    from sandboxd.policy.model import FailurePolicy, OnFailure

    assert filter_of(failure=FailurePolicy(OnFailure.OPEN))["failure_mode_allow"] is True


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """Return a directory with two tenants."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "a.yaml").write_text(policy_text("alpha", ADD_HEADER))
    (tmp_path / "policies" / "b.yaml").write_text(policy_text("beta", RUST_HEADERS))
    return tmp_path / "policies"


def test_prints_filters_and_all_fronts(
    policies: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One filter per plugin, one endpoint per front, in plain YAML."""
    arguments = ["--runtime-directory", "/run/x", "--fronts", "3", "--cache-directory", str(artefact_cache)]
    assert main(["envoy-config", str(policies), *arguments]) == 0

    out = capsys.readouterr().out
    made = yaml.safe_load(out)
    assert "&id" not in out
    assert [entry["name"] for entry in made["http_filters"]] == ["sandboxd.alpha.main", "sandboxd.beta.main"]
    (cluster,) = made["clusters"]
    endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [entry["endpoint"]["address"]["pipe"]["path"] for entry in endpoints] == [
        "/run/x/front-0.sock",
        "/run/x/front-1.sock",
        "/run/x/front-2.sock",
    ]


@pytest.mark.envoy
def test_a_real_envoy_takes_it(
    policies: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """``envoy --mode validate``."""
    arguments = ["--bootstrap", "--runtime-directory", "/run/x", "--cache-directory", str(artefact_cache)]
    assert main(["envoy-config", str(policies), *arguments]) == 0
    (tmp_path / "envoy.yaml").write_text(capsys.readouterr().out)

    command = [str(find_envoy()), "--mode", "validate", "-c", str(tmp_path / "envoy.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert "OK" in done.stdout + done.stderr


def test_a_bad_policy_is_an_error(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never half a configuration."""
    (policies / "c.yaml").write_text("tenant: [")
    assert main(["envoy-config", str(policies)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "c.yaml" in captured.err


def test_a_front_that_is_away_costs_no_request() -> None:
    """Another front is tried, and not only for three streams at a time."""
    assert filter_of()["grpc_service"]["retry_policy"]["retry_on"] == "connect-failure,refused-stream"
    (threshold,) = cluster(["/run/a.sock", "/run/b.sock"])["circuit_breakers"]["thresholds"]
    assert threshold["max_retries"] >= 1000


def test_the_dynamic_module_needs_no_front_and_no_compiler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One filter per plugin with the attach socket; without such a socket an error that says so."""
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "t.yaml").write_text(policy_text("t", ADD_HEADER))
    config = tmp_path / "sandboxd.yaml"
    config.write_text(f"policies: {policies}\nattach: {{socket: /run/x/attach.sock}}\n")

    assert main(["envoy-config", "--config", str(config), "--transport", "shm"]) == 0
    (found,) = yaml.safe_load(capsys.readouterr().out)["http_filters"]
    own = found["typed_config"]["filter_config"]["value"]
    assert (own["socket"], own["tenant"], own["failure"]) == ("/run/x/attach.sock", "t", "closed")

    config.write_text(f"policies: {policies}\n")
    assert main(["envoy-config", "--config", str(config), "--transport", "shm"]) == 2
    assert "attach" in capsys.readouterr().err


@pytest.mark.parametrize("transport", ["ext_proc", "shm"])
def test_services_are_left_out(
    policies: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, transport: str
) -> None:
    """Over each transport: a proxy has no business with them."""
    service = policy_text("beta", ADD_HEADER, name="ship", more="kind: service").partition("plugins:\n")[2]
    (policies / "b.yaml").write_text((policies / "b.yaml").read_text() + service)
    (tmp_path / "config.yaml").write_text("attach: {}")
    arguments = ["--config", str(tmp_path / "config.yaml"), "--cache-directory", str(artefact_cache)]
    assert main(["envoy-config", str(policies), "--transport", transport, *arguments]) == 0

    made = yaml.safe_load(capsys.readouterr().out)
    assert [entry["name"] for entry in made["http_filters"]] == ["sandboxd.alpha.main", "sandboxd.beta.main"]


def network_of(callbacks: set[str], **changes: Any) -> dict[str, Any]:
    """Return the network filter's configuration of a plugin with these callbacks."""
    plugin = PluginPolicy("p", ModuleRef(Path("m"), "0" * 64), capabilities=caps.PRESETS["standard"], **changes)
    return dict(network_filter("t", plugin, callbacks=callbacks, functions={"proxy_get_property"})["typed_config"])


def test_the_network_filter_follows_from_the_callbacks() -> None:
    """Downstream always, upstream for those who have a business with it; time and failure from the policy."""
    from sandboxd.policy.model import FailurePolicy, OnFailure

    down = network_of({"proxy_on_downstream_data"})
    assert down["processing_mode"] == {"process_read": "STREAMED", "process_write": "SKIP"}
    assert network_of({"proxy_on_upstream_data"})["processing_mode"]["process_write"] == "STREAMED"
    assert network_of({"proxy_on_new_connection"})["processing_mode"]["process_write"] == "STREAMED"
    assert down["message_timeout"] == "0.300s"
    assert down["failure_mode_allow"] is False
    assert network_of(set(), failure=FailurePolicy(OnFailure.OPEN))["failure_mode_allow"] is True
    assert [entry["value"] for entry in down["grpc_service"]["initial_metadata"]] == ["t", "p"]
    assert "destination.port" in down["connection_attributes"]
    assert "source.address" not in down["connection_attributes"]


@pytest.mark.envoy
def test_a_real_envoy_takes_the_network_filter(
    policies: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of the plugins that have callbacks for TCP, with the runtime key that the filter needs."""
    (policies / "t.yaml").write_text(policy_text("tau", C_TCP_FLOW.path))
    arguments = ["--filter", "network", "--cache-directory", str(artefact_cache), "--runtime-directory", "/run/x"]
    assert main(["envoy-config", str(policies), *arguments]) == 0
    parts = yaml.safe_load(capsys.readouterr().out)
    # A module made with the Rust SDK exports every callback, so nobody can tell what it is for.
    assert [entry["name"] for entry in parts["filters"]] == ["sandboxd.beta.main", "sandboxd.tau.main"]
    (layer,) = parts["layered_runtime"]["layers"]
    assert layer["static_layer"] == {"envoy.reloadable_features.connection_close_through_filter_manager": True}
    assert main(["envoy-config", str(policies), *arguments, "--bootstrap"]) == 0
    (tmp_path / "envoy.yaml").write_text(capsys.readouterr().out)

    command = [str(find_envoy()), "--mode", "validate", "-c", str(tmp_path / "envoy.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr


def test_network_filters_need_a_plugin_for_tcp(
    policies: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And have no shared memory."""
    cache = ["--cache-directory", str(artefact_cache)]
    (policies / "b.yaml").unlink()
    assert main(["envoy-config", str(policies), "--filter", "network", *cache]) != 0
    assert "no plugin has a callback for TCP" in capsys.readouterr().err
    assert main(["envoy-config", str(policies), "--filter", "network", "--transport", "shm"]) != 0
    assert "no network filter" in capsys.readouterr().err
