"""The soak's judgement, and a short soak over each transport."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.demo import envoy, envoy_config
from tests.bench import load, soak, soak_everything, soak_scenes, soak_verdict
from tests.bench.processes import Usage
from tests.bench.soak_running import Trouble
from tests.support import guests, stage

pytestmark = pytest.mark.long

OPEN = soak_scenes.Lane("open", guests.C_ADD_HEADER, True)
CLOSED = soak_scenes.Lane("closed", guests.C_ADD_HEADER, False)
ZERO = dict.fromkeys((*soak_verdict.NEVER, *soak_verdict.ANSWERS, "seen", "seen_unfiltered", "slowest_us"), 0)
PACE = "were (filtered|whole|answered)|came to the service"
"""What is said of too little of something: a busy machine starts workers slowly, and callouts have but 300 ms."""
CALM = Usage(50 << 20, 40, 8)


def outcome(opened: dict[str, int], closed: dict[str, int], last: Usage = CALM) -> soak_verdict.Outcome:
    """Return what a soak with these totals found; 1000 exchanges in each lane, filtered but for what is said."""
    totals = {
        lane.path: {**ZERO, "sent": 1000, "seen": 1000, "filtered": 1000 - sum(more.values()), **more}
        for lane, more in ((OPEN, opened), (CLOSED, closed))
    }
    return soak_verdict.Outcome((OPEN, CLOSED), totals, {"envoy": [CALM] * 15 + [last] * 5})


def wrong(found: soak_verdict.Outcome) -> str:
    """Return all that is wrong, as one text."""
    return "; ".join(soak_verdict.problems(found))


def test_failure_policies_are_no_problem() -> None:
    assert wrong(outcome({"unfiltered": 10}, {"refused": 10})) == ""
    assert soak_verdict.figures(outcome({"unfiltered": 10}, {"refused": 5}))["failure_policy_answers"] == 15
    assert any("duplicates 0" in line for line in soak_verdict.table(outcome({}, {})))


@pytest.mark.parametrize("name", soak_verdict.NEVER)
def test_what_must_never_be(name: str) -> None:
    found = outcome({}, {})
    found.totals[OPEN.path][name] = 1  # type: ignore[index]
    assert soak_verdict.NEVER[name] in wrong(found)


def test_each_lane_has_its_policy() -> None:
    assert "1 answers of 503 or 504, though it fails open" in wrong(outcome({"refused": 1}, {}))
    assert "though it fails closed" in wrong(outcome({}, {"unfiltered": 1}))
    passed = outcome({}, {})
    passed.totals[CLOSED.path]["seen_unfiltered"] = 1  # type: ignore[index]
    assert "1 requests and 0 responses passed unfiltered" in wrong(passed)


def test_requests_without_answers_are_missed() -> None:
    found = outcome({}, {})
    found.totals[OPEN.path]["filtered"] = 998  # type: ignore[index]
    assert wrong(found) == "open: 1000 requests, 998 answers"


def test_failure_policies_alone_are_no_soak() -> None:
    assert "only 1400 of 2000" in wrong(outcome({"unfiltered": 600}, {}))


def test_growth_is_seen() -> None:
    assert "memory grew from 50.0 to 80.0" in wrong(outcome({}, {}, replace(CALM, rss_bytes=80 << 20)))
    assert "descriptors grew from 40 to 60" in wrong(outcome({}, {}, replace(CALM, fds=60)))
    assert "3 streams" in wrong(replace(outcome({}, {}), streams_left=3))
    assert wrong(replace(outcome({}, {}), said=["reload: no"])) == "reload: no"


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    """Return a listening socket for the program at both ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as found:
        yield found


@pytest.mark.envoy
def test_both_ends_see_what_a_proxy_does_wrong(tmp_path: Path, upstream: socket.socket) -> None:
    """Requests sent twice, answers that are not the upstream's, unmarked ones: each is counted, each on its path."""
    program = load.build(Path("build"), soak.EXCHANGES)
    port = upstream.getsockname()[1]
    mirror = envoy_config.route("/mirrored/", "upstream")
    mirror["route"]["request_mirror_policies"] = [{"cluster": "upstream"}]
    forged = {**envoy_config.direct_route("forged"), "match": {"prefix": "/forged/"}}
    lost = {"match": {"prefix": "/lost/"}, "direct_response": {"status": 404}}
    routes = [mirror, forged, lost, envoy_config.route("/plain/", "upstream")]
    bootstrap = envoy_config.bootstrap(
        [envoy_config.listener("front", [], routes)], [envoy_config.http_cluster("upstream", port)]
    )
    with envoy.running(bootstrap, tmp_path) as proxy:
        paths = ("/mirrored/", "/forged/", "/lost/", "/plain/")
        words = [str(program), *map(str, (upstream.fileno(), proxy.ports["front"], 4, 400, 0)), *paths]
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=True, pass_fds=[upstream.fileno()]
        )
    found = json.loads(done.stdout.splitlines()[-1])
    totals = found["paths"]

    assert found["last"] is True
    assert [totals[path]["sent"] for path in paths] == [100] * 4
    assert (totals["/mirrored/"]["seen"], totals["/mirrored/"]["seen_twice"]) == (200, 100)
    assert (totals["/forged/"]["unseen"], totals["/forged/"]["wrong"]) == (100, 100)
    assert (totals["/lost/"]["other"], totals["/lost/"]["seen"]) == (100, 0)
    plain = totals["/plain/"]
    assert (plain["unfiltered"], plain["seen"], plain["seen_unfiltered"]) == (100, 100, 100)
    assert all(totals[path][name] == 0 for path in paths for name in ("twice", "stuck", "broken", "strange"))


@pytest.mark.envoy
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("transport", "requests", "scene"),
    [
        (stage.SHM, 20_000, soak_scenes.PLAIN),
        (stage.EXT_PROC, 5_000, soak_scenes.PLAIN),
        (stage.SHM, 4_000, soak_everything.scene),
    ],
    ids=["shm", "ext_proc", "shm-everything"],
)
def test_a_short_soak(tmp_path: Path, transport: str, requests: int, scene: soak_scenes.Scene) -> None:
    """Workers die and plugins are reloaded; every exchange is answered once, by its lane's policy."""
    plan = soak.Plan(scene, transport, requests, 100, trouble=Trouble(1.5, 3, 2.5), settle_s=5)
    found = soak.soak(plan, tmp_path)

    # Memory is no measure in so short a time.
    wrong = list(soak_verdict.problems(replace(found, samples={})))
    assert [line for line in wrong if not re.search(PACE, line)] == []
    assert found.sum("filtered") > found.sum("sent") / 2
    assert found.sum("sent") == requests
    assert found.workers_killed > 0


@pytest.mark.envoy
def test_a_soak_tells_when_nothing_is_at_work(tmp_path: Path) -> None:
    """The harmless twin: a plugin without timer, queue and shared data does not pass for one that has them."""
    lanes = (soak_scenes.Lane("open", guests.C_ADD_HEADER, True),)
    part = replace(soak_scenes.BUSY, lanes=lanes, prove=lambda port: soak_scenes.all_at_work(lanes, port, 0.3))
    found = soak.soak(soak.Plan(soak_scenes.only(part), requests=50, trouble=Trouble(0)), tmp_path)

    assert wrong(found) == "; ".join(f"open: {name} does not move" for name in soak_scenes.PROOFS)
