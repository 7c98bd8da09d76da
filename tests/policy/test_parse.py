"""What a good policy file gives."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest

from sandboxd import limits
from sandboxd.policy import capabilities as caps
from sandboxd.policy import capability_names
from sandboxd.policy.model import (
    DEFAULT_HEADER_RULES,
    Clock,
    FailurePolicy,
    HeaderLeniency,
    HeaderRule,
    Isolation,
    ModuleRef,
    OnFailure,
    PluginKind,
    PluginLimits,
    PropertyRule,
    RedactionPolicy,
    RedactMode,
    RestartPolicy,
    WritePolicy,
)
from tests.support.policy_files import FULL, SECRET, SHA, document, error, parse


def test_every_key() -> None:
    policy = parse(FULL)
    plugin = policy.plugins[0]

    assert policy.tenant == "acme"
    assert policy.isolation == Isolation(limits.GIB, 0.5, 8, ("cgroup", "seccomp"))
    assert policy.source_path == "policies/acme.yaml"
    assert policy.digest == hashlib.sha256(FULL.encode()).hexdigest()
    assert policy.plugin("add-header") is plugin
    assert policy.plugin("other") is None
    assert plugin.module == ModuleRef(Path("policies/modules/a.wasm"), SHA)
    assert plugin.root_id == "add_header"
    assert plugin.configuration == b'{"header":"x-a","value":"Yes","list":[1,2.5,null,true],"date":"2020-01-01"}'
    assert (plugin.vm.vm_id, plugin.vm.configuration) == ("shared", b"as it is")
    assert plugin.vm.environment == (("REGION", "eu"), ("EMPTY", ""))
    assert (plugin.vm.memory_bytes, plugin.vm.clock) == (16 * limits.MIB, Clock.LIVE)
    assert plugin.limits == PluginLimits(
        1_500_000, 10**9, 20 * 10**9, 2 * limits.MIB, 7, 1024, 3, 4, 5, 6, 7168, table_elements=2000, module_bytes=8192
    )
    assert plugin.capabilities == (caps.PRESETS["minimal"] | {"proxy_http_call"}) - {"proxy_get_property"}
    assert plugin.write == WritePolicy((":authority", "x-tenant-*"), (), False, False, False, 1, 2048, 3072)
    assert plugin.failure == FailurePolicy(OnFailure.RELOAD, 500, RestartPolicy(2000, 1, 60_000))
    assert plugin.allow_on_headers_stop_iteration
    assert plugin.header_leniency is HeaderLeniency.ENVOY


def test_redaction_is_the_defaults_and_what_the_file_says() -> None:
    redact = parse(FULL).plugins[0].redact
    modes = {rule.pattern: rule.mode for rule in redact.request_headers}

    assert modes["authorization"] is RedactMode.SHOW
    assert modes["cookie"] is RedactMode.HASH
    assert modes["x-internal-*"] is RedactMode.MASK
    assert modes["x-forwarded-for"] is RedactMode.DROP
    assert len(modes) == len(redact.request_headers) == len(DEFAULT_HEADER_RULES) + 1
    assert redact.response_headers == DEFAULT_HEADER_RULES
    assert HeaderRule("grpc-message", RedactMode.DROP) in redact.response_trailers
    assert set(redact.properties) == {
        PropertyRule(("source", "address")),
        PropertyRule(("source", "port"), shown=True),
        PropertyRule(("metadata", "a.b")),
    }


def test_the_least_file_gets_secure_defaults() -> None:
    policy = parse(document())
    plugin = policy.plugins[0]

    assert policy.isolation == Isolation(256 * limits.MIB, None, 16, ())
    assert plugin.capabilities == caps.PRESETS["minimal"]
    assert plugin.redact == RedactionPolicy()
    assert plugin.redact.request_headers
    assert plugin.limits == PluginLimits()
    assert plugin.limits.cpu_per_call_ns == 5_000_000
    assert plugin.limits.time_per_event_ns == 200_000_000
    assert plugin.failure.policy is OnFailure.CLOSED
    assert plugin.vm.clock is Clock.EVENT
    assert plugin.vm.environment == ()
    assert plugin.header_leniency is HeaderLeniency.LENIENT
    assert not plugin.allow_on_headers_stop_iteration


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, caps.PRESETS["minimal"]),
        ({}, caps.PRESETS["minimal"]),
        ({"preset": "none"}, frozenset()),
        ({"allow": []}, frozenset()),
        ({"allow": ["proxy_log"]}, {"proxy_log"}),
        ({"preset": "none", "allow": ["proxy_log", "fd_write"], "deny": ["proxy_log"]}, {"fd_write"}),
        ({"preset": "full"}, capability_names.ALL),
    ],
)
def test_capabilities(given: dict[str, Any] | None, expected: frozenset[str]) -> None:
    plugin = document() if given is None else document(capabilities=given)

    assert parse(plugin).plugins[0].capabilities == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("text\nas it is", b"text\nas it is"),
        ("", b""),
        (None, b""),
        ({}, b"{}"),
        ([], b"[]"),
        (False, b"false"),
        (7, b"7"),
        ({"ü": "ß"}, '{"ü":"ß"}'.encode()),
    ],
)
def test_configuration_is_json_or_a_string_as_it_is(given: Any, expected: bytes) -> None:
    plugin = parse(document(configuration=given, vm={"configuration": copy.copy(given)})).plugins[0]

    assert plugin.configuration == expected
    assert plugin.vm.configuration == expected


def test_secrets_are_not_in_a_repr() -> None:
    plugin = document(configuration=SECRET, vm={"configuration": SECRET, "environment": {"TOKEN": SECRET}})

    assert SECRET not in repr(parse(plugin))


def test_policies_are_hashable_and_comparable() -> None:
    assert parse(FULL) == parse(FULL)
    assert hash(parse(FULL)) == hash(parse(FULL))
    assert parse(FULL) != parse(FULL + "# changed\n")


def test_kinds_of_plugins() -> None:
    assert parse(document()).plugins[0].kind is PluginKind.FILTER
    assert parse(document(kind="service")).plugins[0].kind is PluginKind.SERVICE
    assert "allowed: filter, service" in str(error(document(kind="singleton")))


@pytest.mark.parametrize("period", ["500us", "1500us", "61m", "1.5ms"])
def test_tick_period_is_whole_milliseconds(period: str) -> None:
    assert parse(document(limits={"tick_period": "20ms"})).plugins[0].limits.tick_period_ns == 20_000_000
    assert error(document(limits={"tick_period": period})).key == "plugins[0].limits.tick_period"
