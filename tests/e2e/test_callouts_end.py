"""Callouts under way when something ends: the broker, the VM, the worker, the policy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.demo import http1
from sandboxd.demo.client import Request, fetch
from tests.e2e.test_callouts import Callers, plugin
from tests.support import guests, stage, upstream

pytestmark = [pytest.mark.long, pytest.mark.envoy, pytest.mark.timeout(180)]

TIMES = {"time_per_event": "300ms"}


@pytest.fixture(params=stage.TRANSPORTS)
def callers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    with upstream.running() as known:
        tenants = [
            stage.Tenant(
                "caller", [plugin(known, limits=TIMES, failure={"restart": {"backoff": "50ms", "max_crashes": 100}})]
            )
        ]
        directory = tmp_path_factory.mktemp("callouts")
        with stage.running(directory, tenants, transport=request.param, ext_proc={"timeout_s": 10.0}) as found:
            yield Callers(found, known)


def under_way(callers: Callers, commands: str, then: object, count: int = 1) -> list[http1.Message]:
    """Send requests whose plugins call out, do something meanwhile, and return the answers."""

    async def run() -> list[http1.Message]:
        request = Request("GET", "/caller/callouts/", (("x-do", commands),), b"")
        before = len(callers.upstream.heads)
        sent = [asyncio.ensure_future(fetch(callers.stage.port, request, 15)) for _ in range(count)]
        while len(callers.upstream.heads) < before + count:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(then)  # type: ignore[arg-type]
        return list(await asyncio.gather(*sent))

    return asyncio.run(asyncio.wait_for(run(), 30))


def broker_pid(callers: Callers) -> int:
    return int(callers.stage.sandbox.status()["egress"]["pid"])


def test_the_broker_has_no_privileges(callers: Callers) -> None:
    """It is not root where the daemon is, in any thread, and cannot become it."""
    assert callers.result("http web GET /ok 0; grpc rpc test.Echo Unary x") == "200 2 ok []; message 6 echo:x"
    for thread in Path(f"/proc/{broker_pid(callers)}/task").iterdir():
        found = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
        assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == int(found["CapAmb"], 16) == 0
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == "2"
        assert os.getuid() != 0 or "0" not in found["Uid"].split()


def test_a_broker_that_dies_fails_what_is_under_way_and_comes_back(callers: Callers) -> None:
    pid = broker_pid(callers)
    answers = under_way(callers, "http web GET /slow/1900 0", lambda: os.kill(pid, signal.SIGKILL), count=5)
    assert [answer.value("x-callouts") for answer in answers] == ["failed 11 the egress broker is gone"] * 5
    stage.eventually(lambda: callers.result("http web GET /ok 0") == "200 2 ok []", "a new broker serves")
    status = callers.stage.sandbox.status()["egress"]
    assert status["pid"] != pid
    assert status["restarts"] == 1
    assert callers.result("grpc rpc test.Echo Unary hello") == "message 10 echo:hello"


def test_a_broker_that_hangs_holds_up_no_other_tenant_work(callers: Callers) -> None:
    """It is stopped, not dead: streams without callouts go on, and callouts when it goes on."""
    pid = broker_pid(callers)
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(20):
            started = time.monotonic()
            assert callers.stage.get("/caller/callouts/").status == 200
            assert time.monotonic() - started < 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert callers.result("http web GET /ok 0") == "200 2 ok []"


def test_a_worker_that_dies_takes_its_calls_along(callers: Callers) -> None:
    def kill() -> None:
        os.kill(callers.stage.worker_pid("caller"), signal.SIGKILL)

    answers = under_way(callers, "http web GET /slow/1900 0", kill, count=3)
    assert [answer.status for answer in answers] == [503] * 3
    stage.eventually(lambda: callers.result("http web GET /ok 0") == "200 2 ok []", "its successor calls out")


def test_a_vm_that_fails_takes_its_calls_along(callers: Callers) -> None:
    """What waits gets the failure policy; an answer that comes later reaches nobody of the next VM."""

    def trap() -> None:
        assert callers.do("trap").status == 503

    answers = under_way(callers, "http web GET /slow/1500 0; stream rpc test.Echo Stuck -", trap, count=3)
    assert [answer.status for answer in answers] == [503] * 3
    stage.eventually(lambda: callers.result("http web GET /ok 0") == "200 2 ok []", "the next VM calls out")
    time.sleep(1.6)  # the late answers of the first one come now
    assert callers.result("http web GET /slow/100 0; grpc rpc test.Echo Unary x") == "200 4 late []; message 6 echo:x"
    assert callers.upstream.cancelled == 3


def test_a_stream_that_is_held_for_too_long_gets_the_failure_policy(callers: Callers) -> None:
    """A pause has the time of an event and of one callout: what comes one after the other does not fit."""
    started = time.monotonic()
    answer = callers.do("http web GET /slow/1500 0", ("x-then", "http web GET /slow/1500 0"))
    assert answer.status == 504
    assert 2.2 < time.monotonic() - started < 3.0
    assert callers.result("http web GET /ok 0") == "200 2 ok []"


def test_a_reload_changes_the_rules_of_new_calls(callers: Callers) -> None:
    assert callers.result("http web POST /ok 0") == "200 2 ok []"
    path = callers.stage.policies / "caller.yaml"
    policy = json.loads(path.read_text())
    policy["plugins"][0]["callouts"]["upstreams"]["web"]["methods"] = ["GET"]
    path.write_text(json.dumps(policy))
    assert callers.stage.sandbox.command("reload").returncode == 0
    assert callers.result("http web POST /ok 0") == "failed 11 denied by the policy: methods"
    assert callers.result("http web GET /ok 0") == "200 2 ok []"


def test_callouts_at_the_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    """From proxy_on_configure, before anybody serves; of a plugin whose policy names no upstream as well."""
    with upstream.running() as known:
        starting = plugin(known, configuration="http web GET /ok 0; grpc rpc test.Echo Unary hello")
        without = {**guests.CALLOUTS.plugin(capabilities=upstream.CAPABILITIES), "name": "without"}
        tenants = [stage.Tenant("caller", [starting]), stage.Tenant("other", [without])]
        directory = tmp_path_factory.mktemp("start")
        with stage.running(directory, tenants, ext_proc={"timeout_s": 10.0}) as found:
            callers = Callers(found, known)
            expected = "200 2 ok []; message 10 echo:hello"
            stage.eventually(lambda: callers.do("").value("x-start") == expected, "both answers are there")
            answer = callers.do("http web GET /ok 0; grpc rpc test.Echo Unary x", path="/other/without/")
            assert answer.value("x-callouts") == "refused BadArgument; refused ParseFailure"
            stage.eventually(
                lambda: (
                    found.sandbox.status()["egress"]["callouts"].get("other/without")
                    == {"(unknown)": {"denied.upstreams": 2}}
                ),
                "the denials are counted",
            )
