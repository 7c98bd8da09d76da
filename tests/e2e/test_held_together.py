"""
A plugin that holds requests and lets them go while it handles another one: each goes on whole.

All come in one turn of Envoy's event loop, so that what the plugin said of the held ones is not looked at before it
lets them go. Envoy's own Wasm filter is measured as well: it shows that the exchange can be done.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.support import at_once, guests, pair, stage
from tests.support.subjects import DUPLEX, Subject

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

KINDS = ("v8", stage.SHM, DUPLEX)
HELD = 4
ROUNDS = 50
"""How much of it the VM is through with when Envoy looks differs from one to the next."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pair.Pair]:
    """Envoy with both kinds of filter."""
    with pair.running((Subject(guests.C_GATE, (DUPLEX,)),), tmp_path_factory.mktemp("together")) as both:
        yield both


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held_goes_on_whole(running: pair.Pair, kind: str) -> None:
    bodies = [b"held %d" % i for i in range(HELD)]
    requests = [*(([], body) for body in bodies), ([("x-open", "1")], b"opens")]
    port = running.port(f"{kind}-{guests.C_GATE.name}")

    answers = [answer for _ in range(ROUNDS) for answer in asyncio.run(at_once.exchange(port, requests))]

    assert {answer.status for answer in answers} == {200}
    assert [json.loads(answer.body)["body"].encode() for answer in answers] == [*bodies, b"opens"] * ROUNDS
