"""
Sets of capabilities: the presets, what a policy grants, and what follows from it. Pure.

The names are in `sandboxd.policy.capability_names`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sandboxd.policy.capability_names import (
    ALL,
    BASIC_FUNCTIONS,
    BUFFER_FUNCTIONS,
    CALLBACKS,
    CALLOUT_CALLBACKS,
    CALLOUT_FUNCTIONS,
    GO_START_FUNCTIONS,
    HEADER_CALLBACKS,
    HOST_FUNCTIONS,
    HTTP_CALLBACKS,
    LIFE_CALLBACKS,
    MAP_READS,
    MAP_WRITES,
    TCP_CALLBACKS,
    TENANT_CALLBACKS,
    WASI_BASICS,
)
from sandboxd.policy.model import ResolvedCapabilities

_MINIMAL = BASIC_FUNCTIONS | MAP_READS | {"proxy_get_buffer_bytes"} | WASI_BASICS | LIFE_CALLBACKS | HEADER_CALLBACKS

PRESETS: dict[str, ResolvedCapabilities] = {
    "none": frozenset(),
    "minimal": _MINIMAL,
    "standard": (
        (HOST_FUNCTIONS - CALLOUT_FUNCTIONS)
        | WASI_BASICS
        | LIFE_CALLBACKS
        | HTTP_CALLBACKS
        | TCP_CALLBACKS
        | TENANT_CALLBACKS
        | CALLOUT_CALLBACKS
    ),
    "full": ALL,
}
"""
``none``: deny-all. ``minimal``: start, look at headers and properties, log. ``standard``: the whole HTTP
side and the whole TCP side, timers, shared data and queues; no callouts, which have to be granted by name (their
callbacks are granted). ``full``: every name, also those that this version does not serve.
"""

DEFAULT_PRESET = "minimal"


def resolve(preset: str, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> ResolvedCapabilities:
    """
    Return what is granted: the preset, plus ``allow``, minus ``deny``. Deny wins.

    All names must be known (`PRESETS`, `ALL`); an unknown preset is a KeyError.
    """
    return (PRESETS[preset] | frozenset(allow)) - frozenset(deny)


@dataclass(frozen=True, slots=True)
class CapabilityProblem:
    """A set of capabilities that cannot work."""

    name: str
    """The capability that is missing."""
    problem: str
    fatal: bool
    """True if no module can work so; False if only modules of some toolchains cannot."""


def validate_combination(
    capabilities: ResolvedCapabilities, imports: Iterable[str] | None = None
) -> tuple[CapabilityProblem, ...]:
    """
    Return what cannot work about a set of capabilities.

    Args:
        capabilities: the names granted.
        imports: the function names that the module imports, without their module; None if not known yet.
    """
    return (*_missing_context_create(capabilities), *_missing_imports(capabilities, imports))


def _missing_context_create(capabilities: ResolvedCapabilities) -> Iterable[CapabilityProblem]:
    others = sorted((capabilities & CALLBACKS) - {"proxy_on_context_create"})
    if others and "proxy_on_context_create" not in capabilities:
        yield CapabilityProblem(
            "proxy_on_context_create",
            f"must be granted when another callback is ({others[0]}): it is how SDKs learn of a context",
            fatal=True,
        )


def _missing_imports(capabilities: ResolvedCapabilities, imports: Iterable[str] | None) -> Iterable[CapabilityProblem]:
    for name in sorted(GO_START_FUNCTIONS.intersection(imports or ()) - capabilities):
        problem = "is imported by the module but not granted; Go modules die without it"
        yield CapabilityProblem(name, problem, fatal=False)


@dataclass(frozen=True, slots=True)
class DataNeeds:
    """What a plugin can read at all. What is False here need not, and must not, reach the worker."""

    callbacks: frozenset[str]
    """Callbacks that are both exported and granted: the events that the plugin gets."""
    request_headers: bool
    request_body: bool
    request_trailers: bool
    response_headers: bool
    response_body: bool
    response_trailers: bool
    properties: bool
    downstream_data: bool = False
    upstream_data: bool = False


def needs(capabilities: ResolvedCapabilities, module_callbacks: Iterable[str]) -> DataNeeds:
    """
    Return what a plugin can read.

    A header map can be read in its own callback and in ``proxy_on_log``; a writer needs it as well, since
    what it wrote is told from what was there. A body can be read in its own callback alone.

    Args:
        capabilities: the names granted.
        module_callbacks: the module's exported function names.
    """
    callbacks = frozenset(module_callbacks) & capabilities & CALLBACKS
    maps = not capabilities.isdisjoint(MAP_READS | MAP_WRITES)
    buffers = not capabilities.isdisjoint(BUFFER_FUNCTIONS)

    def map_needed(callback: str) -> bool:
        return maps and (callback in callbacks or "proxy_on_log" in callbacks)

    return DataNeeds(
        callbacks=callbacks,
        request_headers=map_needed("proxy_on_request_headers"),
        request_body=buffers and "proxy_on_request_body" in callbacks,
        request_trailers=map_needed("proxy_on_request_trailers"),
        response_headers=map_needed("proxy_on_response_headers"),
        response_body=buffers and "proxy_on_response_body" in callbacks,
        response_trailers=map_needed("proxy_on_response_trailers"),
        properties="proxy_get_property" in capabilities and bool(callbacks),
        downstream_data=buffers and "proxy_on_downstream_data" in callbacks,
        upstream_data=buffers and "proxy_on_upstream_data" in callbacks,
    )
