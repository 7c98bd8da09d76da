"""The example filters through Envoy and a whole daemon, under the policies that people copy."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandboxd.demo import http1
from tests.support import authz_server, examples, stage
from tests.support.authz_server import AuthzServer

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(180)]

AUTHZ = "/ext-authz/authz/"
LIMIT = "/rate-limiter/limit/"
EXACT = "/exact/limit/"
BREAKER = "/circuit-breaker/breaker/"
FAULT = "/fault-injection/fault/"
QUICK_BREAKER = {"requests": 4, "window_ms": 60000, "open_ms": 1500, "probes": 2}
QUICK_LIMIT = {"burst": 3, "per_second": 2}
EXACT_BURST = 200
DELAY_MS = 250


class Stage:
    """The stage and the service that authorizes."""

    def __init__(self, running: stage.Stage, authz: AuthzServer) -> None:
        self.running = running
        self.authz = authz

    def get(self, path: str, *headers: tuple[str, str]) -> http1.Message:
        """Send a request."""
        return self.running.get(path, *headers)

    def seen(self) -> dict[str, str]:
        """Return the headers of the last request that reached the upstream; empty if none did."""
        taken = self.running.recorder.take()
        return {name.lower(): value for name, value in taken[-1].headers} if taken else {}


def tenants(authz: AuthzServer) -> list[stage.Tenant]:
    """Return the examples, with what is quick enough for a test."""
    callouts = examples.policy("ext-authz")["plugins"][0]["callouts"]
    callouts["upstreams"]["authz"] |= {"url": f"http://127.0.0.1:{authz.port}", "allow_addresses": ["127.0.0.0/8"]}
    return [
        examples.tenant("ext-authz", callouts=callouts),
        examples.tenant("ext-authz", {"open": 1}, as_tenant="open-authz", callouts=callouts),
        examples.tenant("ext-authz", {"header": "x-token"}, as_tenant="token-authz", callouts=callouts),
        examples.tenant("rate-limiter", QUICK_LIMIT),
        examples.tenant("rate-limiter", {"burst": EXACT_BURST, "per_second": 0}, as_tenant="exact"),
        examples.tenant("circuit-breaker", QUICK_BREAKER),
        examples.tenant("fault-injection", {"abort_percent": 50, "delay_percent": 100, "delay_ms": DELAY_MS}),
    ]


@pytest.fixture(scope="module", params=stage.TRANSPORTS)
def staged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("examples")
    with (
        authz_server.running() as authz,
        stage.running(
            directory, tenants(authz), transport=request.param, fronts=2, ext_proc={"timeout_s": 5.0}
        ) as running,
    ):
        yield Stage(running, authz)


# ---- external authorization


def test_authorization_lets_a_request_pass_with_what_the_service_says(staged: Stage) -> None:
    answer = staged.get(f"{AUTHZ}page?x=1", ("authorization", "Bearer good"), ("x-auth-user", "forged"))

    assert answer.status == 200
    seen = staged.seen()
    assert seen["x-auth-user"] == "alice"
    assert "x-other" not in seen
    assert seen["authorization"] == "Bearer good"
    question = staged.authz.questions[-1]
    assert question["x-original-path"] == f"{AUTHZ}page?x=1"
    assert question["x-original-method"] == "GET"
    assert question["authorization"] == "Bearer good"
    assert "x-auth-user" not in question


def test_authorization_removes_what_clients_say_under_its_prefix(staged: Stage) -> None:
    assert staged.get(AUTHZ, ("authorization", "Bearer good"), ("x-auth-admin", "yes")).status == 200
    assert "x-auth-admin" not in staged.seen()


def test_authorization_denies_with_the_services_words(staged: Stage) -> None:
    answer = staged.get(AUTHZ, ("authorization", "Bearer bad"))

    assert (answer.status, answer.body, answer.value("www-authenticate")) == (403, b"bad token", "Bearer")
    assert staged.seen() == {}


def test_authorization_of_one_of_two_tokens_is_none(staged: Stage) -> None:
    """The service would see one, the upstream might take the other. Envoy joins some headers, and leaves others."""
    good, bad = "Bearer good", "Bearer bad"
    assert staged.get(AUTHZ, ("authorization", good), ("authorization", bad)).status == 403
    assert staged.get("/token-authz/authz/", ("x-token", good)).status == 200
    answer = staged.get("/token-authz/authz/", ("x-token", good), ("x-token", bad))

    assert (answer.status, answer.body) == (400, b"Too many headers.\n")
    assert staged.seen() == {}


@pytest.mark.parametrize("token", ["slow", "broken", "redirect"])
def test_authorization_without_an_answer(staged: Stage, token: str) -> None:
    """Neither too late an answer nor a strange one opens the gate, unless the configuration says so."""
    started = time.monotonic()
    answer = staged.get(AUTHZ, ("authorization", f"Bearer {token}"))

    assert (answer.status, answer.body) == (503, b"Authorization is not available.\n")
    assert time.monotonic() - started < 3
    assert staged.seen() == {}
    assert staged.get("/open-authz/authz/", ("authorization", f"Bearer {token}")).status == 200


def test_many_requests_wait_for_their_own_answers(staged: Stage) -> None:
    def ask(number: int) -> tuple[int, int]:
        token = "good" if number % 2 else "bad"
        return number % 2, staged.get(AUTHZ, ("authorization", f"Bearer {token}")).status

    with ThreadPoolExecutor(16) as pool:
        assert Counter(pool.map(ask, range(100))) == {(1, 200): 50, (0, 403): 50}


# ---- rate limiter


def test_a_key_has_its_bucket_which_fills_again(staged: Stage) -> None:
    key = ("x-api-key", f"one-{time.monotonic_ns()}")
    started = time.monotonic()
    answers = [staged.get(LIMIT, key) for _ in range(10)]
    came_back = 2 * (time.monotonic() - started)
    assert 3 <= [answer.status for answer in answers].count(200) <= 3 + came_back
    refused = next(answer for answer in answers if answer.status == 429)
    assert (refused.value("retry-after"), refused.body) == ("1", b"Too many requests.\n")
    assert staged.get(LIMIT, ("x-api-key", f"two-{time.monotonic_ns()}")).status == 200
    time.sleep(0.6)
    assert staged.get(LIMIT, key).status == 200


def test_the_limit_is_exact_over_all_vms(staged: Stage) -> None:
    """Two fronts, or two channels, have VMs of their own; they count together."""
    key = ("x-api-key", "everybody")
    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(lambda _: staged.get(EXACT, key).status, range(2 * EXACT_BURST)))

    assert statuses == {200: EXACT_BURST, 429: EXACT_BURST}


# ---- circuit breaker


def test_the_breaker_opens_tries_and_closes(staged: Stage) -> None:
    def send(status: int) -> int:
        return staged.get(BREAKER, ("x-echo-status", str(status))).status

    assert [send(200), send(200)] == [200, 200]
    assert [send(500), send(502)] == [500, 502]
    opened = staged.get(BREAKER)
    assert (opened.status, opened.body) == (503, b"The service is recovering.\n")
    assert staged.seen() == {}

    time.sleep(1.6)
    assert send(500) == 500  # half open: it tries, and fails
    assert staged.get(BREAKER).body == b"The service is recovering.\n"

    time.sleep(1.6)
    assert [send(200), send(200), send(200)] == [200] * 3  # two probes close it
    assert [send(500), send(200), send(200)] == [500, 200, 200]  # and it counts anew


# ---- fault injection


def test_faults_hit_marked_requests_evenly(staged: Stage) -> None:
    """Half of them fail at once; the others wait, and arrive."""
    statuses: Counter[int] = Counter()
    for _ in range(8):
        started = time.monotonic()
        answer = staged.get(FAULT, ("x-inject-fault", "1"))
        took_ms = 1000 * (time.monotonic() - started)
        statuses[answer.status] += 1
        if answer.status == 200:
            assert took_ms >= DELAY_MS
            assert staged.seen() != {}
        else:
            assert answer.body == b"Fault injected.\n"
            assert staged.seen() == {}

    assert statuses[200] + statuses[503] == 8
    assert 3 <= statuses[503] <= 5  # by two VMs, each of which takes turns


def test_faults_leave_other_requests_alone(staged: Stage) -> None:
    started = time.monotonic()
    assert {staged.get(FAULT).status for _ in range(4)} == {200}
    assert time.monotonic() - started < 4 * DELAY_MS / 1000


def test_many_delayed_requests_wait_together(staged: Stage) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: staged.get(FAULT, ("x-inject-fault", "1")).status, range(32)))

    assert Counter(answers)[200] >= 14
    assert set(answers) == {200, 503}
    assert time.monotonic() - started < 3
