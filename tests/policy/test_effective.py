"""Only what a plugin has a function for is left of what its policy lets it write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.policy.capabilities import PRESETS
from sandboxd.policy.capability_names import ALL, HOST_FUNCTIONS, MAP_WRITES
from sandboxd.policy.effective import narrowed, usable
from sandboxd.policy.model import ModuleRef, PluginPolicy, WritePolicy

POLICY = PluginPolicy("filter", ModuleRef(Path("a.wasm"), "0" * 64), capabilities=ALL)
SWITCHES = ("header_maps", "body", "local_response", "properties")
DOES = {
    **dict.fromkeys(MAP_WRITES, "header_maps"),
    "proxy_set_buffer_bytes": "body",
    "proxy_send_local_response": "local_response",
    "proxy_set_property": "properties",
    "proxy_call_foreign_function": "properties",
}


def switches(write: WritePolicy) -> set[str]:
    return {name for name in SWITCHES if getattr(write, name)}


@pytest.mark.parametrize("function", sorted(HOST_FUNCTIONS))
def test_each_function_lets_its_own_kind_of_write_through(function: str) -> None:
    write = narrowed(POLICY, frozenset({function})).write

    assert switches(write) == ({DOES[function]} if function in DOES else set())


def test_the_default_preset_writes_nothing() -> None:
    assert not switches(narrowed(POLICY, PRESETS["minimal"]).write)


def test_who_has_every_function_keeps_the_policy_as_it_is() -> None:
    assert narrowed(POLICY, HOST_FUNCTIONS) == POLICY


def test_what_the_policy_forbids_no_function_brings_back() -> None:
    forbids = replace(POLICY, write=WritePolicy(("a",), ("b",), False, False, False, 1, 2, 3, False))

    assert narrowed(forbids, HOST_FUNCTIONS) == forbids


def test_the_other_rules_stay() -> None:
    strict = replace(POLICY, write=WritePolicy(("a",), ("b",), max_headers=1, max_header_bytes=2, max_headers_bytes=3))

    assert narrowed(strict, frozenset()) == replace(
        strict, write=WritePolicy(("a",), ("b",), False, False, False, 1, 2, 3, False)
    )


def test_usable_is_what_is_granted_and_there() -> None:
    policy = replace(POLICY, capabilities=frozenset({"proxy_log", "proxy_on_tick", "proxy_done", "proxy_on_done"}))
    found = usable(policy, ["proxy_on_tick", "proxy_on_log"], ["proxy_log", "proxy_set_property"])

    assert found == {"proxy_log", "proxy_on_tick"}
