"""Which guest is compared with Envoy's own filter in which body modes, by which requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support import cases, guests, probe_cases
from tests.support.cases import Case
from tests.support.guests import Guest

DUPLEX = "FULL_DUPLEX_STREAMED"
BODIES = ("BUFFERED", "STREAMED", DUPLEX)


@dataclass(frozen=True)
class Subject:
    """A guest with the ext_proc body modes that fit what it does."""

    guest: Guest
    modes: tuple[str, ...]
    cases: tuple[Case, ...] = cases.CASES
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of its entry in the policy."""


def _trapping() -> list[Subject]:
    """Return the probes that end their VM: each has one to itself, in either filter."""
    return [
        Subject(replace(guests.PROBE, name=f"probe-{case.name}-{mode[:4].lower()}"), (mode,), (case,))
        for case in probe_cases.TRAPPING_CASES
        for mode in ("NONE", DUPLEX)
    ]


# Envoy's own filter sends a request twice if a module of ABI 0.1.0 continues it without having paused it, and
# the second may come after the answer; so what the upstream sees is no measure.
ABI_0_1_0_CASES = tuple(replace(case, upstream_races=True) for case in cases.CASES)

SUBJECTS = (
    Subject(guests.HTTP_HEADERS, ("NONE", *BODIES)),
    Subject(guests.HTTP_CONFIG, ("NONE", DUPLEX)),
    Subject(guests.TOKEN_GATE, ("NONE", DUPLEX)),
    Subject(guests.HTTP_BODY_REQUEST, BODIES),
    Subject(guests.HTTP_BODY_RESPONSE, BODIES),
    Subject(guests.C_ADD_HEADER, ("NONE", DUPLEX)),
    Subject(guests.C_JSON_BODY, ("BUFFERED", "BUFFERED_PARTIAL", DUPLEX)),
    Subject(guests.C_ABI_0_1_0, ("NONE", DUPLEX), ABI_0_1_0_CASES),
    Subject(guests.GO_FILTER, ("STREAMED", DUPLEX)),
    Subject(guests.AS_FILTER, ("NONE", DUPLEX)),
    Subject(guests.PROBE, BODIES, probe_cases.CASES),
    *_trapping(),
)
