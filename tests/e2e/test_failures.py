"""Filters that trap, loop or hoard: each request is answered in time, and the next one finds a fresh VM."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sandboxd.demo import http1
from sandboxd.demo.client import Request
from tests.support import guests, stage

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(180)]

QUICK = {"cpu_per_call": "50ms", "time_per_event": "1s"}
ANSWER_WITHIN_S = 1.5
"""The CPU limit, the sampling of the watchdog, and a machine with other things to do."""

RESTART = {"backoff": "50ms", "max_crashes": 1000}

TRAPS = [
    "trap_in_request_headers",
    "trap_in_request_body",
    "trap_in_response_headers",
    "trap_in_response_body",
    "trap_in_allocator",
    "recurse_forever",
    "proc_exit_in_headers",
]
LOOPS = [
    "loop_in_context_create",
    "loop_in_request_headers",
    "loop_in_request_body",
    "loop_in_response_headers",
    "loop_in_response_body",
    "loop_in_allocator",
]
AFTERWARDS = ["loop_in_log", "loop_in_done", "loop_in_delete", "trap_in_log"]
HOARDERS = [
    "grow_forever",
    "table_grow_forever",
    "log_flood",
    "metric_flood",
    "property_flood",
    "many_headers",
]


def entry(file: str, policy: str) -> dict[str, object]:
    """Return a policy's plugin for a misdeed."""
    failure = {"policy": policy, "restart": RESTART}
    return guests.misdeed(file).plugin(limits=QUICK, failure=failure)


@pytest.fixture(scope="module", params=stage.TRANSPORTS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Stage]:
    """Every misdeed twice, failing closed and failing open, beside a tenant that does nothing wrong."""
    files = [*TRAPS, *LOOPS]
    tenants = [
        stage.Tenant("closed", [entry(file, "closed") for file in files], body="FULL_DUPLEX_STREAMED"),
        stage.Tenant("open", [entry(file, "open") for file in files], body="FULL_DUPLEX_STREAMED"),
        stage.Tenant("late", [entry(file, "closed") for file in [*AFTERWARDS, *HOARDERS]], body="FULL_DUPLEX_STREAMED"),
        stage.Tenant("good", [guests.C_ADD_HEADER.plugin()]),
    ]
    with stage.running(tmp_path_factory.mktemp("failures"), tenants, transport=request.param) as found:
        yield found


def post(running: stage.Stage, tenant: str, file: str) -> tuple[http1.Message | None, float]:
    """Send a request with a body; return the answer (None if the connection ended) and the time it took."""
    started = time.monotonic()
    try:
        answer = running.send(Request("POST", f"/{tenant}/{guests.misdeed(file).name}/", (), b"x" * 1000), 10)
    except (ConnectionError, EOFError):
        return None, time.monotonic() - started
    return answer, time.monotonic() - started


def assert_good(running: stage.Stage) -> None:
    """The tenant beside is none the worse."""
    answer = running.get(f"/good/{guests.C_ADD_HEADER.name}/")
    assert (answer.status, answer.values("x-wasm-processed")) == (200, ("Yes",))


@pytest.mark.parametrize("file", [*TRAPS, *LOOPS])
def test_failing_closed_answers_with_an_error(running: stage.Stage, file: str) -> None:
    """503, or what Envoy makes of a broken stream once the response has begun; in time, and again."""
    for _ in range(2):
        answer, taken_s = post(running, "closed", file)
        if file.endswith("response_body"):
            assert answer is None or answer.status in (500, 503)
        else:
            assert answer is not None
            assert answer.status == 503
        assert taken_s < ANSWER_WITHIN_S
        assert_good(running)
        time.sleep(0.2)


@pytest.mark.parametrize("file", [*TRAPS, *LOOPS])
def test_failing_open_passes_the_request_on(running: stage.Stage, file: str) -> None:
    """As if the filter were not there: the upstream's own answer, with the whole body."""
    answer, taken_s = post(running, "open", file)

    assert answer is not None
    assert answer.status == 200
    (seen,) = running.recorder.take()
    assert seen.body == b"x" * 1000
    assert taken_s < ANSWER_WITHIN_S
    assert_good(running)


@pytest.mark.parametrize("file", AFTERWARDS)
def test_misbehaving_after_the_exchange_does_not_touch_it(running: stage.Stage, file: str) -> None:
    """The client has its answer before the callbacks at the end are called."""
    for _ in range(2):
        answer, taken_s = post(running, "late", file)
        assert answer is not None
        assert answer.status == 200
        assert taken_s < ANSWER_WITHIN_S
        assert_good(running)
        time.sleep(0.5)


@pytest.mark.parametrize("file", HOARDERS)
def test_hoarding_is_bounded(running: stage.Stage, file: str) -> None:
    """An answer in time, whatever it is, and no harm to others."""
    for _ in range(3):
        answer, taken_s = post(running, "late", file)
        assert answer is not None
        assert answer.status in (200, 503)
        assert taken_s < ANSWER_WITHIN_S
    assert_good(running)


@pytest.mark.parametrize("transport", stage.TRANSPORTS)
def test_a_pause_without_end_is_answered(tmp_path_factory: pytest.TempPathFactory, transport: str) -> None:
    """Nobody waits for ever on a filter that never resumes: Envoy's timeout or ours answers with an error."""
    tenants = [stage.Tenant("tenant", [entry("pause_forever", "closed")])]
    directory = tmp_path_factory.mktemp("pause")
    with stage.running(directory, tenants, ext_proc={"message_timeout": "1s"}, transport=transport) as running:
        started = time.monotonic()
        answer = running.get("/tenant/pause-forever/")

        assert answer.status in (503, 504)
        assert time.monotonic() - started < 3
