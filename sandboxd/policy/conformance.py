"""
What each host function answers and when each callback runs, as observed.

``conformance.json`` beside this file is written by ``python -m tests.conformance``, which runs guests through every
function of the ABI. ``docs/compatibility.md`` shows it as tables, ``sandboxd check`` tells of a module from it. Pure
but for reading that file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

DATA: Final = Path(__file__).with_name("conformance.json")

Answer: TypeAlias = int | str | None
"""A status; ``trap``; ``nothing`` of a function without a result; None: the case does not exist."""

TRANSPORTS: Final = {
    "http": ("ext_proc", "shm"),
    "tcp": ("network ext_proc", "shm"),
    "root": ("ext_proc", "network ext_proc", "shm"),
    "start": ("ext_proc", "network ext_proc", "shm"),
}
"""
By scope, what carries it: Envoy's two filters, and channels in shared memory. What runs in the root context depends on
no transport.
"""

CARRIED_ELSE: Final = {
    "proxy_close_stream": "D4 over ext_proc",
    "proxy_continue_request": "D7",
    "proxy_continue_response": "D7",
    "proxy_set_buffer_bytes": "D2 and D6",
    "proxy_add_header_map_value": "D3 and D12",
    "proxy_define_metric": "D8",
    "proxy_get_buffer_bytes": "D9",
    "proxy_get_property": "D10 and D11",
    "proxy_send_local_response": "D5",
}
"""Differences to Envoy's own filter, by their number in ``docs/compatibility.md``."""

STATUS_NAMES: Final = {
    0: "OK",
    1: "NOT_FOUND",
    2: "BAD_ARGUMENT",
    3: "SERIALIZATION_FAILURE",
    4: "PARSE_FAILURE",
    6: "INVALID_MEMORY_ACCESS",
    7: "EMPTY",
    8: "CAS_MISMATCH",
    10: "INTERNAL_FAILURE",
    12: "UNIMPLEMENTED",
}
"""``proxy_status_t``."""

ERRNO_NAMES: Final = {
    0: "success",
    8: "badf",
    19: "dquot",
    20: "exist",
    21: "fault",
    22: "fbig",
    28: "inval",
    31: "isdir",
    33: "mfile",
    37: "nametoolong",
    44: "noent",
    51: "nospc",
    52: "nosys",
    54: "notdir",
    55: "notempty",
    58: "notsup",
    69: "rofs",
    75: "xdev",
    76: "notcapable",
}
"""WASI's ``errno``."""


@dataclass(frozen=True, slots=True)
class FunctionFacts:
    """What one host function does. Answers are by ABI version (``0.2.1``)."""

    name: str
    versions: tuple[str, ...]
    """Those whose specification has it; empty only for what real modules import beside it."""
    answers: dict[str, dict[str, Answer]]
    """To a well-formed call, by scope (``start``, ``root``, ``http``, ``tcp``)."""
    denied: dict[str, Answer]
    """Not granted; None: no capability withholds it."""
    wild: dict[str, Answer]
    """Called with an address outside the guest's memory; None: it takes none."""
    while_initialising: bool
    """Whether ``_initialize`` may call it; the VM ends otherwise."""
    in_allocator: bool


@dataclass(frozen=True, slots=True)
class CallbackFacts:
    """When one callback runs. Scopes are by ABI version."""

    name: str
    versions: tuple[str, ...]
    scopes: dict[str, tuple[str, ...]]
    withheld: bool
    """Whether it never runs once its capability is not granted."""

    def transports(self, version: str) -> tuple[str, ...]:
        """Return what carries its events; empty: nothing calls it."""
        return transports_of(self.scopes[version])


@dataclass(frozen=True, slots=True)
class Conformance:
    """All of it."""

    functions: dict[str, FunctionFacts]
    callbacks: dict[str, CallbackFacts]
    foreign: dict[str, Answer]
    """What Envoy's foreign functions answer; 1 (NOT_FOUND): it is not offered here."""

    @property
    def foreign_not_offered(self) -> frozenset[str]:
        """Envoy's foreign functions that every caller is told do not exist."""
        return frozenset(name for name, answer in self.foreign.items() if answer == 1)


def transports_of(scopes: Iterable[str]) -> tuple[str, ...]:
    """Return the transports that carry any of these scopes, each once."""
    return tuple(dict.fromkeys(transport for scope in scopes for transport in TRANSPORTS[scope]))


@cache
def load() -> Conformance:
    """Read the data that came with the package."""
    data = json.loads(DATA.read_text())
    return Conformance(
        {name: _function(name, facts) for name, facts in data["functions"].items()},
        {name: _callback(name, facts) for name, facts in data["callbacks"].items()},
        dict(data["foreign"]),
    )


_VERSIONS: Final = ("0.1.0", "0.2.0", "0.2.1")
_SCOPES: Final = tuple(TRANSPORTS)


def _by_version(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else dict.fromkeys(_VERSIONS, value)


def _function(name: str, facts: dict[str, Any]) -> FunctionFacts:
    return FunctionFacts(
        name=name,
        versions=tuple(facts["versions"]),
        answers={scope: _by_version(facts[scope]) for scope in _SCOPES},
        denied=_by_version(facts["denied"]),
        wild=_by_version(facts["wild"]),
        while_initialising=facts["initialising"],
        in_allocator=facts["allocating"],
    )


def _callback(name: str, facts: dict[str, Any]) -> CallbackFacts:
    return CallbackFacts(
        name=name,
        versions=tuple(facts["versions"]),
        scopes={version: tuple(scopes) for version, scopes in _by_version(facts["scopes"]).items()},
        withheld=all(_by_version(facts["withheld"]).values()),
    )
