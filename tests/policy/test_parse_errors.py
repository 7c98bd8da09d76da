"""Every bad policy file says where and what, and never a secret."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sandboxd import limits
from sandboxd.policy.load import ISOLATION_LAYERS
from tests.support.policy_files import FULL, SECRET, SHA, document, error

BAD_PLUGINS: list[tuple[dict[str, Any], str, str]] = [
    ({"nam": 1}, "nam", "did you mean name?"),
    ({"name": "Bad"}, "name", "is not a name"),
    ({"name": "-a"}, "name", "is not a name"),
    ({"name": "a" * 64}, "name", "is not a name"),
    ({"name": "a\n"}, "name", "is not a name"),
    ({"name": 5}, "name", "must be a string, but is an integer (put it in quotes)"),
    ({"name": ["a"]}, "name", "must be a string, but is a list"),
    ({"callouts": {}}, "callouts", "needs the key upstreams"),
    ({"callouts": {"upstreams": {"a": {}}}}, "callouts.upstreams.a", "needs the key url"),
    ({"module": "m.wasm"}, "module", "must be a mapping, but is a string"),
    ({"module": {"file": "m.wasm"}}, "module", "needs the key sha256"),
    ({"module": {"sha256": SHA}}, "module", "needs the key file"),
    ({"module": {"file": "m", "sha256": "12"}}, "module.sha256", "is not a SHA-256 digest"),
    ({"module": {"file": "m", "sha256": "g" * 64}}, "module.sha256", "is not a SHA-256 digest"),
    ({"module": {"file": "", "sha256": SHA}}, "module.file", "must not be empty"),
    ({"root_id": "a" * 257}, "root_id", "at most 256 bytes"),
    ({"vm": {"memory": 5}}, "vm.memory", "'5' is not a size"),
    ({"vm": {"memory": "5MB"}}, "vm.memory", "'5MB' is not a size"),
    ({"vm": {"memory": "1KiB"}}, "vm.memory", "out of range (allowed: 1MiB to 2GiB)"),
    ({"vm": {"memory": "1100KiB"}}, "vm.memory", "must be a multiple of a wasm page"),
    ({"vm": {"memory": "512MiB"}}, "", "vm.memory is more than isolation.memory"),
    ({"vm": {"clock": "wall"}}, "vm.clock", "allowed: event, live"),
    ({"vm": {"environment": {"A=B": "1"}}}, "vm.environment.A=B", "nor hold '=' or NUL"),
    ({"vm": {"environment": {"A\0": "1"}}}, "vm.environment.A\0", "nor hold '=' or NUL"),
    ({"vm": {"environment": {"": "1"}}}, "vm.environment.", "must not be empty"),
    ({"vm": {"environment": {"A": "\0"}}}, "vm.environment.A", "must not hold NUL"),
    ({"vm": {"environment": {"A": 1}}}, "vm.environment.A", "put it in quotes"),
    ({"vm": {"environment": {"A": True}}}, "vm.environment.A", "put it in quotes"),
    ({"vm": {"environment": {"A": "x" * 70_000}}}, "vm.environment", "larger than 65536 bytes"),
    ({"vm": {"environment": {f"A{n}": "" for n in range(257)}}}, "vm.environment", "at most 256"),
    ({"limits": {"cpu_per_call": "5 msec"}}, "limits.cpu_per_call", "one of ns us ms s m, such as 5ms"),
    ({"limits": {"cpu_per_call": 5}}, "limits.cpu_per_call", "is not a duration"),
    ({"limits": {"cpu_per_call": 0.5}}, "limits.cpu_per_call", "is not a duration"),
    ({"limits": {"cpu_per_call": "-5ms"}}, "limits.cpu_per_call", "is not a duration"),
    ({"limits": {"cpu_per_call": "5MS"}}, "limits.cpu_per_call", "is not a duration"),
    ({"limits": {"cpu_per_call": "100000.5ns"}}, "limits.cpu_per_call", "finer than a duration can be"),
    ({"limits": {"cpu_per_call": "0ms"}}, "limits.cpu_per_call", "allowed: 100us to 10s"),
    ({"limits": {"time_per_event": "2m"}}, "limits.time_per_event", "out of range"),
    ({"limits": {"start_time": "1ns"}}, "limits.start_time", "out of range"),
    ({"limits": {"body_buffer": "1ms"}}, "limits.body_buffer", "is not a size"),
    ({"limits": {"open_streams": "many"}}, "limits.open_streams", "must be an integer"),
    ({"limits": {"open_streams": 0}}, "limits.open_streams", "allowed: 1 to 1000000"),
    ({"limits": {"open_streams": True}}, "limits.open_streams", "must be an integer"),
    ({"limits": {"cpu": "5ms"}}, "limits.cpu", "is not a known key"),
    ({"capabilities": {"preset": "std"}}, "capabilities.preset", "none, minimal, standard, full"),
    ({"capabilities": {"allow": ["proxy_htp_call"]}}, "capabilities.allow[0]", "mean proxy_http_call?"),
    ({"capabilities": {"deny": ["nope"]}}, "capabilities.deny[0]", "'nope' is not a capability"),
    ({"capabilities": {"allow": "proxy_log"}}, "capabilities.allow", "must be a list, but is a string"),
    (
        {"capabilities": {"preset": "minimal", "deny": ["proxy_on_context_create"]}},
        "capabilities",
        "proxy_on_context_create must be granted",
    ),
    ({"redact": {"headers": {}}}, "redact.headers", "is not a known key"),
    ({"redact": {"request_headers": {"a": "hide"}}}, "redact.request_headers.a", "show, drop, mask, hash"),
    ({"redact": {"request_headers": {"a b": "drop"}}}, "redact.request_headers.a b", "not a header pattern"),
    ({"redact": {"request_headers": {"a*b": "drop"}}}, "redact.request_headers.a*b", "not a header pattern"),
    ({"redact": {"request_headers": {"A": "drop", "a": "mask"}}}, "redact.request_headers.a", "given twice"),
    ({"redact": {"properties": ["a..b"]}}, "redact.properties[0]", "no empty segment"),
    ({"redact": {"properties": [[]]}}, "redact.properties[0]", "no empty segment"),
    ({"redact": {"properties": {"a.b": "mask"}}}, "redact.properties.a.b", "allowed: drop, show"),
    ({"redact": {"properties": [{"path": "a"}]}}, "redact.properties[0]", "needs the key mode"),
    ({"write": {"deny_headers": ["x y"]}}, "write.deny_headers[0]", "is not a header pattern"),
    ({"write": {"body": "maybe"}}, "write.body", "allowed: true, false"),
    ({"write": {"max_headers": 5000}}, "write.max_headers", "allowed: 0 to 1024"),
    ({"failure": {"policy": "opn"}}, "failure.policy", "did you mean open?"),
    ({"failure": {"status": 200}}, "failure.status", "allowed: 400 to 599"),
    ({"failure": {"restart": {"backoff": "1.5us"}}}, "failure.restart.backoff", "whole number of milli"),
    ({"failure": {"restart": {"backoff": "1"}}}, "failure.restart.backoff", "is not a duration"),
    ({"failure": "open"}, "failure", "must be a mapping, but is a string"),
    ({"header_leniency": "strict"}, "header_leniency", "lenient, envoy"),
    ({"allow_on_headers_stop_iteration": "x"}, "allow_on_headers_stop_iteration", "true, false"),
    ({"configuration": {"a": float("nan")}}, "configuration.a", "JSON cannot hold"),
    ({"configuration": "x" * 300_000}, "configuration", "at most 262144"),
]  # fmt: skip


@pytest.mark.parametrize(("plugin", "key", "problem"), BAD_PLUGINS)
def test_bad_plugins(plugin: dict[str, Any], key: str, problem: str) -> None:
    """Keys are relative to the plugin."""
    found = error(document(**plugin))

    assert found.key == (f"plugins[0].{key}" if key else "plugins[0]")
    assert problem in str(found)
    assert found.line > 0


@pytest.mark.parametrize(
    ("change", "key", "problem"),
    [
        ({"tenant": None}, "tenant", "must be a string, but is empty"),
        ({"tenants": "a"}, "tenants", "did you mean tenant?"),
        ({"plugins": []}, "plugins", "needs at least one plugin"),
        ({"plugins": {}}, "plugins", "must be a list, but is a mapping"),
        ({"plugins": [None]}, "plugins[0]", "must be a mapping, but is empty"),
        ({"isolation": {"memory": "1B"}}, "isolation.memory", "allowed: 64MiB to 64GiB"),
        ({"isolation": {"cpu": 0}}, "isolation.cpu", "must be a number"),
        ({"isolation": {"cpu": "50%"}}, "isolation.cpu", "must be a number"),
        ({"isolation": {"pids": 1}}, "isolation.pids", "must be an integer"),
        ({"isolation": {"require": ["jail"]}}, "isolation.require[0]", ", ".join(ISOLATION_LAYERS)),
    ],
)
def test_bad_tenants(change: dict[str, Any], key: str, problem: str) -> None:
    found = error({**document(), **change})

    assert found.key == key
    assert problem in str(found)


def test_missing_keys() -> None:
    assert "needs the key tenant" in str(error({"plugins": document()["plugins"]}))
    assert "needs the key plugins" in str(error({"tenant": "a"}))


def test_the_text_of_an_error_names_file_line_key_and_allowed_values() -> None:
    found = error(FULL.replace("policy: reload", "policy: shut"))

    assert found.line == 1 + FULL.splitlines().index(next(line for line in FULL.splitlines() if "failure:" in line))
    assert str(found) == (
        f"policies/acme.yaml:{found.line}: plugins[0].failure.policy: 'shut' is not one of the allowed "
        "values (allowed: closed, open, reload)"
    )
    assert found.allowed == ("closed", "open", "reload")
    assert str(copy.copy(found)) == str(found)


def test_two_plugins_of_one_name() -> None:
    twice = document()
    twice["plugins"] = twice["plugins"] + copy.deepcopy(twice["plugins"])

    assert "plugin p is defined twice" in str(error(twice))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 0, "is empty"),
        ("# only a comment\n", 0, "is empty"),
        ("tenant: [", 1, "is not valid YAML"),
        ("tenant: a\n\tplugins: b", 2, "is not valid YAML"),
        ("tenant: a\ntenant: b\n", 2, "is given twice, first in line 1"),
        ("tenant: &x a\n", 1, "anchors are not supported"),
        ("tenant: a\nplugins: *x\n", 2, "aliases are not supported"),
        ("<<: {tenant: a}\n", 1, "keys must be strings"),
        ("1: a\n", 1, "keys must be strings (quote it), but one is an integer"),
        ("[a]: b\n", 1, "keys must be strings"),
        ("tenant: !!python/object/apply:os.system [x]\n", 1, "must be a string"),
        ("tenant: !custom x\n", 1, "a value with a YAML tag"),
        ("- a\n", 1, "must be a mapping, but is a list"),
        ("--- a\n--- b\n", 2, "is not valid YAML"),
        ("a: " + "[" * 40 + "]" * 40, 1, "nested deeper than 32"),
        ("a: \x00", 0, "characters that YAML does not allow"),
        ('tenant: "\\ud800"', 1, "surrogate"),
        ("#" * (limits.MAX_POLICY_FILE_BYTES + 1), 0, "is larger than"),
    ],
)
def test_bad_yaml(text: str, line: int, problem: str) -> None:
    found = error(text)

    assert problem in str(found)
    if line:
        assert found.line == line


@pytest.mark.parametrize(
    "configuration",
    [
        f"{{token: {SECRET}, token: {SECRET}}}",
        f"{{token: !{SECRET} x}}",
        f"{{token: !{SECRET}!x y}}",
        f"{{token: *{SECRET}}}",
        f"{{token: &{SECRET} x}}",
        f"{{token: '{SECRET}}}",
        f'{{token: "{SECRET}\\q"}}',
        f"{{token: [{SECRET}}}",
        f"{{token: {SECRET}: {SECRET}}}",
        f"{{token: !!binary {SECRET}}}",
        f"{{token: {'9' * 5000}}}",
    ],
)
def test_secrets_are_not_in_error_texts(configuration: str) -> None:
    text = FULL.replace(FULL[FULL.index("{header:") : FULL.index("\n    vm:")], configuration)
    assert configuration in text

    found = error(text)

    assert SECRET not in str(found)
    assert "9999" not in str(found)
    assert found.__cause__ is None
    assert found.__suppress_context__ or found.__context__ is None
