"""Capability names, presets and what follows from them."""

from __future__ import annotations

import pytest

from sandboxd.policy import capability_names
from sandboxd.policy.capabilities import PRESETS, DataNeeds, needs, resolve, validate_combination

SDK_EXPORTS = {*capability_names.CALLBACKS, "malloc", "_initialize", "memory"}
"""What the Rust SDK exports whatever the plugin does."""


def test_the_list_is_complete() -> None:
    """36 common host functions and 7 of single versions; 28 callbacks; every WASI name once."""
    assert len(capability_names.HOST_FUNCTIONS) == 43
    assert len(capability_names.CALLBACKS) == 28
    assert len(capability_names.WASI_FUNCTIONS) == 46
    assert len(capability_names.ALL) == 43 + 28 + 46
    assert capability_names.WASI_BASICS <= capability_names.WASI_FUNCTIONS
    assert capability_names.UNAVAILABLE <= capability_names.ALL


def test_presets_grow() -> None:
    assert PRESETS["none"] == frozenset()
    assert PRESETS["minimal"] < PRESETS["standard"] < PRESETS["full"] == capability_names.ALL


def test_minimal_cannot_write_nor_see_bodies() -> None:
    minimal = PRESETS["minimal"]

    assert minimal.isdisjoint(capability_names.MAP_WRITES | capability_names.UNAVAILABLE)
    assert minimal.isdisjoint({"proxy_on_request_body", "proxy_set_buffer_bytes", "proxy_send_local_response"})
    assert {"proxy_log", "proxy_get_header_map_value", "proxy_on_context_create", "fd_write"} <= minimal


def test_standard_is_all_that_this_version_serves() -> None:
    assert PRESETS["standard"].isdisjoint(capability_names.UNAVAILABLE | capability_names.CALLOUT_FUNCTIONS)
    assert PRESETS["standard"] >= capability_names.HOST_FUNCTIONS - capability_names.CALLOUT_FUNCTIONS
    assert (
        PRESETS["standard"]
        >= capability_names.HTTP_CALLBACKS | capability_names.TENANT_CALLBACKS | capability_names.CALLOUT_CALLBACKS
    )


def test_deny_wins() -> None:
    assert resolve("none", ["proxy_log", "fd_write"], ["proxy_log"]) == {"fd_write"}
    assert "proxy_log" not in resolve("full", ["proxy_log"], ["proxy_log"])


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_can_work(preset: str) -> None:
    assert validate_combination(PRESETS[preset], capability_names.WASI_BASICS if preset != "none" else None) == ()


def test_callbacks_without_context_create_are_fatal() -> None:
    (problem,) = validate_combination(frozenset({"proxy_on_request_headers"}))

    assert problem.name == "proxy_on_context_create"
    assert problem.fatal
    assert validate_combination(frozenset({"proxy_log"})) == ()


def test_go_modules_need_their_start_functions() -> None:
    granted = PRESETS["standard"] - {"fd_prestat_get", "args_sizes_get"}

    assert validate_combination(granted) == ()
    assert validate_combination(granted, ["fd_write"]) == ()
    problems = validate_combination(granted, ["fd_prestat_get", "fd_write", "args_sizes_get"])
    assert [(problem.name, problem.fatal) for problem in problems] == [
        ("args_sizes_get", False),
        ("fd_prestat_get", False),
    ]


def fields(found: DataNeeds) -> set[str]:
    return {name for name in DataNeeds.__dataclass_fields__ if name != "callbacks" and getattr(found, name)}


ALL_DATA = set(DataNeeds.__dataclass_fields__) - {"callbacks"}
BYTES = {"request_body", "response_body", "downstream_data", "upstream_data"}


@pytest.mark.parametrize(
    ("granted", "exports", "expected"),
    [
        (PRESETS["full"], SDK_EXPORTS, ALL_DATA),
        (PRESETS["standard"], SDK_EXPORTS, ALL_DATA),
        (PRESETS["none"], SDK_EXPORTS, set()),
        (PRESETS["full"], set(), set()),
        (PRESETS["minimal"], SDK_EXPORTS, ALL_DATA - BYTES),
        (
            PRESETS["standard"] - capability_names.BUFFER_FUNCTIONS,
            SDK_EXPORTS,
            ALL_DATA - BYTES,
        ),
        (PRESETS["standard"] - {"proxy_get_property"}, SDK_EXPORTS, ALL_DATA - {"properties"}),
        (PRESETS["standard"], {"proxy_on_request_headers"}, {"request_headers", "properties"}),
        (PRESETS["standard"], {"proxy_on_response_body"}, {"response_body", "properties"}),
        (PRESETS["standard"], {"proxy_on_request_trailers"}, {"request_trailers", "properties"}),
        (PRESETS["standard"] - {"proxy_on_request_body"}, {"proxy_on_request_body"}, set()),
        (
            PRESETS["standard"] - capability_names.MAP_READS - capability_names.MAP_WRITES,
            SDK_EXPORTS,
            {*BYTES, "properties"},
        ),
        (
            {"proxy_on_request_headers", "proxy_add_header_map_value"},
            {"proxy_on_request_headers"},
            {"request_headers"},
        ),
        ({"proxy_on_request_body", "proxy_get_buffer_status"}, {"proxy_on_request_body"}, {"request_body"}),
        (PRESETS["minimal"] | {"proxy_on_upstream_data"}, {"proxy_on_upstream_data"}, {"upstream_data", "properties"}),
        ({"proxy_on_downstream_data", "proxy_log"}, {"proxy_on_downstream_data"}, set()),
    ],
)
def test_needs(granted: frozenset[str], exports: set[str], expected: set[str]) -> None:
    assert fields(needs(frozenset(granted), exports)) == expected


def test_needs_names_the_events() -> None:
    found = needs(frozenset({"proxy_on_log", "proxy_log"}), {"proxy_on_log", "proxy_on_done", "malloc"})

    assert found.callbacks == {"proxy_on_log"}
