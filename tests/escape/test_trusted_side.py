"""
Native code in a worker against the trusted side: what it says is believed as far as its policy goes, and no further.

A whole daemon with gRPC fronts; the workers of the ``evil-`` tenants are an attacker's program inside the real jail.
Whatever it does costs its own tenant its own requests. The twins: the same program without the misdeed is served, and
its allowed change arrives.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from sandboxd.limits import DEFAULT_LOG_LINES_PER_EVENT
from sandboxd.protos import admin_pb2 as admin
from sandboxd.supervisor.admin import call
from tests.support.daemon_client import ADD_HEADER, GUESTS, ROOT, policy_text, wait_for
from tests.support.front_rig import Call, request_headers
from tests.support.hostile_worker import ALLOWED, LOCKED, LOG_LINES

DEEDS = (
    *("twin", "forged-verdict", "other-streams", "forbidden-headers", "changing", "wild-tail", "wild-head"),
    *(
        "log-flood",
        "silent",
        "long-frame",
        "frame-flood",
        "give-up",
        "smuggle",
        "system-call",
        "crash",
        "unasked-start",
    ),
)
TOKEN_GATE = GUESTS / "rust" / "token_gate.wasm"
MORE = 'write: {deny_headers: ["x-locked", "authorization"]}\nlimits: {time_per_event: 300ms}\n'
MORE += "failure: {restart: {backoff: 0ms, max_crashes: 1000}}"
UNGRANTED = {
    f"evil-{deed}": policy_text(f"evil-{deed}", TOKEN_GATE, more=MORE).replace("preset: standard", f"preset: {preset}")
    for deed, preset in {
        **dict.fromkeys(("ungranted", "ungranted-answer"), "minimal"),
        **dict.fromkeys(("granted", "granted-answer"), "standard"),
    }.items()
}
"""One module, which imports every function; what counts is what it is granted."""
METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
REQUEST = [
    *((":method", "GET"), (":path", "/"), (":authority", "example.com"), (":scheme", "http")),
    ("authorization", "Bearer true"),
]


class Target:
    """The daemon under attack."""

    def __init__(
        self, directory: Path, deeds: tuple[str, ...] = DEEDS, more: str = MORE, attach: str = "", **extra: str
    ) -> None:
        self.directory = directory
        policies = directory / "policies"
        policies.mkdir()
        for tenant in ("calm", *(f"evil-{deed}" for deed in deeds)):
            (policies / f"{tenant}.yaml").write_text(policy_text(tenant, ADD_HEADER, more=more))
        for tenant, text in extra.items():
            (policies / f"{tenant}.yaml").write_text(text)
        config = directory / "c.yaml"
        directories = "".join(f"{name}_directory: {directory / name}\n" for name in ("runtime", "cache", "state"))
        config.write_text(
            f"policies: {policies}\n{directories}front: {{processes: 1}}\njail: {{self_test: false}}\n"
            f"log: {{level: debug}}\nchannel: {{ring_bytes: 64KiB}}\n{attach}"
        )
        self.log_path = directory / "log"
        with self.log_path.open("wb") as log:
            command = [sys.executable, "-m", "tests.support.hostile_daemon", str(config)]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        wait_for(lambda: " ready: " in self.log or self.process.poll() is not None, 90, "ready")
        assert self.process.poll() is None, self.log
        self.before = self.status()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        request = admin.AdminRequest(command=admin.ADMIN_COMMAND_STATUS)
        return call(self.directory / "runtime" / "admin.sock", request, 10)

    def tenant(self, name: str) -> dict[str, Any]:
        return next(tenant for tenant in self.status()["tenants"] if tenant["tenant"] == name)

    def request(self, tenant: str, *headers: tuple[str, str]) -> pb.ProcessingResponse:
        """Send request headers through the tenant's filter and return the answer."""
        return asyncio.run(self._request(tenant, *headers))

    async def _request(self, tenant: str, *headers: tuple[str, str]) -> pb.ProcessingResponse:
        async with grpc.aio.insecure_channel(f"unix:{self.directory}/runtime/front-0.sock") as channel:
            method = channel.stream_stream(
                METHOD,
                request_serializer=pb.ProcessingRequest.SerializeToString,
                response_deserializer=pb.ProcessingResponse.FromString,
            )
            one = Call(method(metadata=[("x-sandboxd-tenant", tenant)]))
            return await one.ask(request_headers([*REQUEST, *headers], eos=True))

    def attack(self, deed: str) -> pb.ProcessingResponse:
        """Have one done; the bystander is served before and after, and the trusted processes are the same."""
        wait_for(lambda: self.tenant(f"evil-{deed}")["state"] == "running", 20, "its worker runs")
        assert served(self.request("calm"))
        answer = self.request(f"evil-{deed}")
        assert served(self.request("calm"))
        after = self.status()
        assert (after["pid"], after["front_restarts"]) == (self.before["pid"], 0)
        assert after["fronts"][0]["pid"] == self.before["fronts"][0]["pid"]
        calm = self.tenant("calm")
        assert (calm["state"], calm["restarts"]) == ("running", 0)
        return answer

    def killed_for(self, deed: str, reason: str) -> None:
        """Wait until the worker was ended, for this reason."""
        pattern = rf"tenant evil-{deed}: worker \d+ .*{reason}"
        wait_for(lambda: bool(re.search(pattern, self.log)), 10, f"{pattern} in the log")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def served(answer: pb.ProcessingResponse) -> bool:
    return not answer.HasField("immediate_response")


def set_headers(answer: pb.ProcessingResponse) -> dict[bytes, bytes]:
    """Return the headers that the proxy is told to set."""
    mutation = answer.request_headers.response.header_mutation
    return {item.header.key.encode(): item.header.raw_value for item in mutation.set_headers}


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="sbx") as directory:
        found = Target(Path(directory), **UNGRANTED)
        try:
            yield found
        finally:
            found.process.terminate()
            found.process.wait(30)
        assert "Traceback" not in found.log


def test_twin_is_served(target: Target) -> None:
    """The same program in the same jail, without a misdeed: its change arrives, its worker lives."""
    worker = target.tenant("evil-twin")["worker"]["pid"]
    for _ in range(3):
        assert set_headers(target.attack("twin")) == {ALLOWED: b"1"}
    assert target.tenant("evil-twin")["worker"]["pid"] == worker


@pytest.mark.parametrize("deed", ["forged-verdict", "other-streams", "wild-tail"])
def test_broken_rules_of_the_channel_cost_the_worker(target: Target, deed: str) -> None:
    """Completions for events and streams that are not its own, a counter outside the ring."""
    assert not served(target.attack(deed))
    target.killed_for(deed, "broke a channel")


def test_wild_submission_counter_costs_the_worker_when_it_is_looked_at(target: Target) -> None:
    """Which is when the ring seems to be full; what lies outside of it is never touched."""
    target.attack("wild-head")
    for _ in range(1000):
        if not served(target.request("evil-wild-head")):
            break
    target.killed_for("wild-head", "broke a channel")
    assert served(target.attack("twin"))


def test_answers_for_other_streams_reach_nobody_else(target: Target) -> None:
    """While they are sent, another tenant's stream is answered by its own filter alone."""

    async def both() -> tuple[Any, ...]:
        evil = [target._request("evil-other-streams") for _ in range(2)]
        return await asyncio.gather(*evil, *(target._request("evil-twin") for _ in range(20)))

    wait_for(lambda: target.tenant("evil-other-streams")["state"] == "running", 20, "its worker runs")
    answers = asyncio.run(both())[2:]

    assert all(served(answer) and set_headers(answer) == {ALLOWED: b"1"} for answer in answers)


def test_headers_that_the_policy_forbids_are_not_written(target: Target) -> None:
    """The allowed one in the same answer is; the hidden one keeps the proxy's value."""
    answer = target.attack("forbidden-headers")

    assert served(answer)
    assert set_headers(answer) == {ALLOWED: b"1"}
    assert not answer.request_headers.response.header_mutation.remove_headers


def test_effects_without_a_function_that_has_them_do_not_happen(target: Target) -> None:
    """Neither the header nor the property; the twin that is granted the functions has both."""
    forged, twin = target.attack("ungranted"), target.attack("granted")

    assert served(forged)
    assert not set_headers(forged)
    assert not forged.HasField("dynamic_metadata")
    assert set_headers(twin) == {ALLOWED: b"1"}
    assert twin.HasField("dynamic_metadata")


def test_an_answer_without_the_function_is_not_sent(target: Target) -> None:
    """The stream ends, in our words; the twin that is granted the function is heard."""
    forged = target.attack("ungranted-answer").immediate_response
    twin = target.attack("granted-answer").immediate_response

    assert (forged.status.code, forged.details, forged.body) == (500, "sandboxd_local_response_denied", b"")
    assert (twin.status.code, twin.details, twin.body) == (403, "forged", b"forged")


def test_record_that_changes_while_it_is_read(target: Target) -> None:
    """Checked and used is one copy: the forbidden header never gets out, whatever comes of the stream."""
    outcomes = [target.attack("changing")]
    for _ in range(150):
        wait_for(lambda: target.tenant("evil-changing")["state"] == "running", 20, "its worker runs")
        outcomes.append(target.request("evil-changing"))

    assert all(LOCKED not in set_headers(answer) for answer in outcomes)
    assert any(set_headers(answer) == {ALLOWED: b"1"} for answer in outcomes), "the attack was never in time"
    assert any(served(answer) and not set_headers(answer) for answer in outcomes), "it was always too late"


def test_log_flood_and_forged_lines(target: Target) -> None:
    """Bounded by the policy; every line of the log begins as ours do, and says whose words it holds."""
    target.attack("log-flood")
    time.sleep(0.5)
    lines = target.log.splitlines()
    flood = [line for line in lines if "flood 0" in line or "flood 1" in line]

    assert flood
    assert sum("evil-log-flood" in line for line in lines) < DEFAULT_LOG_LINES_PER_EVENT + 20 < LOG_LINES / 2
    assert not [line for line in lines if line.startswith("2026-01-01")]
    assert "\x1b" not in target.log
    assert "\r" not in target.log


def test_worker_that_never_answers(target: Target) -> None:
    """The failure policy answers in its time; one that stays silent far beyond is ended."""
    start_s = time.monotonic()
    answer = target.attack("silent")

    assert answer.immediate_response.status.code == 504
    assert time.monotonic() - start_s < 5
    target.killed_for("silent", "broke a channel")


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("long-frame", "more than 65536 bytes"),
        ("frame-flood", r"failed VM \d+ of generation 1 after 1"),
        ("unasked-start", r"speaks of generation 9 of VM \d+; it had leave for [12]\b"),
        ("give-up", "gave up twice"),
        ("system-call", r"forbids \(SIGSYS\)"),
        ("crash", "ended by itself with status 0"),
    ],
)
def test_misdeeds_on_the_control_socket_cost_the_worker(target: Target, deed: str, reason: str) -> None:
    """And are told to the operator with their reason, on one line."""
    target.attack(deed)

    target.killed_for(deed, reason)
    assert not [line for line in target.log.splitlines() if line.startswith("2026-01-01")]


def test_smuggled_descriptors_are_never_taken(target: Target) -> None:
    """Three thousand of them leave the supervisor's table as it was."""
    before = target.descriptors()
    assert served(target.attack("smuggle"))
    wait_for(lambda: smuggled_frames(target) == 50, 5, "all frames were read")

    assert abs(target.descriptors() - before) < 10


def smuggled_frames(target: Target) -> int:
    """Return how many of the frames the supervisor has taken note of."""
    plugin = target.tenant("evil-smuggle")["plugins"][0]
    return int(plugin["vms"][0]["crashes"])
