"""
Secrets that a policy hides are nowhere in the worker's address space: not in a guest, a channel, a stack, a free block.

A canary of each kind goes through a real daemon; the worker's whole memory is searched from outside while the streams
are open. The twin, the same module with a policy that shows everything, has every one of them: so the search finds what
is there, and what it does not find is not there.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.struct_pb2 import Struct

from sandboxd.demo import daemon
from tests.support.daemon_client import ROOT
from tests.support.front_rig import REQUEST, Call, modes, request_headers
from tests.support.guests import C_ADD_HEADER, PROBE

STREAMED = 1
UNREAD = ["request_body", "response_body", "request_trailers", "response_trailers", "log"]
"""Callbacks without which there is no way to read a body or trailers."""
HEADERS = {
    "authorization": "drop",
    "cookie": "drop",
    "x-forwarded-for": "drop",
    "x-masked": "mask",
    "x-hashed": "hash",
    "x-present": "presence",
}
KINDS = (*HEADERS, "source.address", "body", "trailer")
CHUNK = 16 << 20

HIDING = {
    "redact": {"request_headers": HEADERS, "properties": ["source.address"]},
    "capabilities": {"preset": "standard", "deny": [f"proxy_on_{name}" for name in UNREAD]},
}
SHOWING = {
    "redact": {
        "request_headers": dict.fromkeys(HEADERS, "show"),
        "properties": {"source.address": "show"},
    },
}
TENANTS = {
    "defaults": C_ADD_HEADER.plugin(redact={"request_headers": {k: v for k, v in HEADERS.items() if "x-" in k}}),
    "hidden": PROBE.plugin(**HIDING),
    "shown": PROBE.plugin(**SHOWING),
}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the memory of a jailed worker")


@pytest.fixture(scope="module")
def running() -> Iterator[daemon.Daemon]:
    with tempfile.TemporaryDirectory(prefix="sbx") as name:
        directory = Path(name)
        (directory / "policies").mkdir()
        for tenant, plugin in TENANTS.items():
            policy = {"tenant": tenant, "plugins": [plugin]}
            (directory / "policies" / f"{tenant}.yaml").write_text(json.dumps(policy))
        with daemon.running(directory / "policies", directory) as found:
            found.expect_tenants()
            yield found


def canaries() -> dict[str, str]:
    """Return a fresh secret of each kind, and one that everybody may see."""
    return {kind: f"canary{secrets.token_hex(16)}" for kind in (*KINDS, "visible")}


@asynccontextmanager
async def stream(running: daemon.Daemon, tenant: str, secret: dict[str, str]) -> AsyncIterator[None]:
    """Keep a stream open that every secret went into."""
    async with grpc.aio.insecure_channel(f"unix:{running.sockets[0]}") as channel:
        method = channel.stream_stream(
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        one = Call(method(metadata=[("x-sandboxd-tenant", tenant)]))
        attributes = Struct()
        attributes.update({"source.address": secret["source.address"]})
        headers = [*REQUEST, *((name, secret[name]) for name in HEADERS), ("x-visible", secret["visible"])]
        answers = [
            await one.ask(
                request_headers(
                    headers,
                    attributes={"envoy.filters.http.ext_proc": attributes},
                    protocol_config=modes(STREAMED, STREAMED),
                )
            ),
            await one.ask(pb.ProcessingRequest(request_body={"body": secret["body"].encode()})),
            await one.ask(pb.ProcessingRequest(request_trailers=trailers(secret["trailer"]))),
        ]
        assert not any(answer.HasField("immediate_response") for answer in answers)
        yield


def trailers(value: str) -> dict[str, Any]:
    return {"trailers": {"headers": [{"key": "x-trailer", "raw_value": value.encode()}]}}


def found_in_memory(pid: int, texts: dict[str, str]) -> set[str]:
    """Return which of the texts are in the memory of a process, whatever mapping they lie in."""
    found: set[str] = set()
    longest = max(map(len, texts.values()))
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            area, permissions = line.split()[:2]
            if "r" not in permissions or line.rstrip().endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            start, end = (int(part, 16) for part in area.split("-"))
            for at in range(start, end, CHUNK):
                memory.seek(at)
                data = memory.read(min(CHUNK + longest, end - at))
                found |= {kind for kind, text in texts.items() if text.encode() in data}
    return found


def searched(running: daemon.Daemon, tenant: str, secret: dict[str, str]) -> set[str]:
    """Send the secrets through a tenant's filter and return which of them its processes hold."""

    async def whole() -> set[str]:
        async with stream(running, tenant, secret), stream(running, tenant, secret):
            worker = running.tenants()[tenant]["worker"]
            pids = (worker["pid"], worker["waiter_pid"])
            return set().union(*(found_in_memory(pid, secret) for pid in pids))

    return asyncio.run(whole())


@pytest.mark.parametrize("tenant", ["defaults", "hidden"])
def test_what_the_policy_hides_is_nowhere_in_the_worker(running: daemon.Daemon, tenant: str) -> None:
    """Headers in every mode, a property, a body and trailers that no granted function can read."""
    assert searched(running, tenant, canaries()) == {"visible"}


def test_twin_that_may_see_everything_has_everything(running: daemon.Daemon) -> None:
    """The search finds each kind where the policy shows it."""
    secret = canaries()

    assert searched(running, "shown", secret) == {*KINDS, "visible"}


def test_one_tenants_traffic_is_not_in_anothers_worker(running: daemon.Daemon) -> None:
    """Not even what everybody of the first tenant may see."""
    secret = canaries()

    async def whole() -> set[str]:
        async with stream(running, "shown", secret):
            return found_in_memory(running.tenants()["hidden"]["worker"]["pid"], secret)

    assert asyncio.run(whole()) == set()


def test_search_crosses_the_ends_of_its_pieces() -> None:
    """A text that lies across two reads is found."""
    text = secrets.token_hex(16)
    with mmap.mmap(-1, 2 * CHUNK) as area:
        area[CHUNK - 5 : CHUNK - 5 + len(text)] = text.encode()
        del text
        shown = bytes(area[CHUNK - 5 : CHUNK + 27])[::-1].decode()  # backwards, so that it is nowhere else
        code = (
            "import sys; from pathlib import Path; from tests.escape import test_canary as t;"
            "print(sorted(t.found_in_memory(int(sys.argv[1]), {'a': sys.argv[2][::-1], 'b': 'x' + sys.argv[2][::-1]})))"
        )
        command = [sys.executable, "-c", code, str(os.getpid()), shown]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['a']"
