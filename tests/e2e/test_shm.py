"""The dynamic module: traffic over shared memory, straight from Envoy's worker thread to the VM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandboxd.demo.client import Request
from sandboxd.demo.echo import pattern
from tests.support import guests, stage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", params=[0, 200], ids=["asleep", "spinning"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Stage]:
    """One tenant with filters of all kinds, with and without a spin budget."""
    plugins = [guests.HTTP_HEADERS.plugin(), guests.TOKEN_GATE.plugin(), guests.HTTP_BODY_REQUEST.plugin()]
    plugins.append(guests.HTTP_BODY_RESPONSE.plugin())
    tenants = [stage.Tenant("acme", plugins)]
    directory = tmp_path_factory.mktemp("shm")
    with stage.running(directory, tenants, transport=stage.SHM, shm={"spin_us": request.param}) as found:
        yield found


def counter(running: stage.Stage, name: str) -> int:
    """Return one of the module's counters in Envoy's statistics."""
    found = running.proxy.stats(f"sandboxd.{name}$")
    return sum(found.values())


def test_headers_pass_the_filter(running: stage.Stage) -> None:
    """Both directions were shown to the plugin, and Envoy counts it."""
    before = counter(running, "streams")
    for _ in range(3):
        answer = running.get("/acme/http-headers/hello", ("x-token", "sesame"))
        assert answer.status == 200

    assert counter(running, "streams") == before + 3
    assert counter(running, "failed_open") == counter(running, "failed_closed") == 0


def test_a_local_response_answers(running: stage.Stage) -> None:
    """Without the token the request never reaches the upstream."""
    denied = running.get("/acme/token-gate/")

    assert denied.status == 403
    assert running.recorder.take() == ()
    assert running.get("/acme/token-gate/", ("x-token", "sesame")).status == 200


def test_a_body_that_is_held_until_its_trailers_arrives_whole(running: stage.Stage) -> None:
    """Whether the verdict on it comes before the trailers or behind them, at once or later."""
    headers = (("x-echo-body-size", "16384"), ("x-echo-trailers", "x-end=e1"))
    for _ in range(400):
        answer = running.get("/acme/http-body-response/", *headers)
        assert (answer.body, answer.trailers) == (pattern(16384), (("x-end", "e1"),))


def test_bodies_pass_the_filter(running: stage.Stage) -> None:
    """A filter that waits for the whole body gets it, and so does the upstream."""
    body = b"x" * 100_000
    answer = running.send(Request("POST", "/acme/http-body-request/", (), body))

    assert answer.status == 200
    (seen,) = running.recorder.take()
    assert len(seen.body) == len(body)
