"""The example rate limiter on eight VMs of one worker, each on its thread, which count in the same shared data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.channel import layout, pairs
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Verdict
from sandboxd.channel.memfd import create_channel, create_shared_region
from sandboxd.channel.sync_vm import SyncVm
from tests.support.guests import GUESTS
from tests.support.modules import bundle
from tests.support.worker_process import LIMITS, OneVm, configuration

VMS = 8
REGION_BYTES = 1 << 20
KEYS = [f"key-{number}" for number in range(12)]
"""No two of them share one of a million buckets."""
BURST, EACH = 500, 150


def settings() -> bytes:
    """Return a configuration: nothing comes back, so that what is allowed is the burst."""
    return json.dumps({"burst": BURST, "per_second": 0, "buckets": 1_000_000}).encode()


@pytest.fixture
def vms() -> Iterator[list[SyncVm]]:
    """Eight VMs that count together."""
    module = bundle((GUESTS / "c" / "c_rate_limiter.wasm").read_bytes())
    region = create_shared_region(REGION_BYTES)
    with ExitStack() as stack:
        stack.callback(os.close, region)
        told: dict[str, Any] = {"plugin_configuration": settings(), "limits": replace(LIMITS, open_streams=10_000)}
        one = stack.enter_context(OneVm(module, cpu_ms=1000, shared_fd=region, **told))
        found = [one.vm]
        for number in range(2, VMS + 1):
            vm = SyncVm(VmClient(create_channel(65536)))
            stack.callback(vm.close)
            blob = configuration(module.manifest, 65536, **told)
            one.worker.open(vm.client.fds, blob, number, shared_fd=region)
            found.append(vm)
        for vm in found:
            vm.wait_ready(10)
        yield found


def request(key: str) -> bytes:
    """Return the headers of a request with an API key."""
    pseudo = [(b":method", b"GET"), (b":path", b"/"), (b":authority", b"limited.local")]
    return pairs.encode([*pseudo, (b"x-api-key", key.encode())])


def allowed(vms: Sequence[SyncVm], key: str, each: int) -> int:
    """Send so many requests on each VM, all at once; return how many pass. The others must be answered with 429."""
    headers, verdicts = request(key), []
    for vm in vms:
        for _ in range(each):
            stream = vm.client.open_stream(b"", time.time_ns())
            vm.client.submit(stream, layout.REQUEST_HEADERS, headers, True, time.time_ns())
    for vm in vms:
        vm.client.flush()
    deadline = time.monotonic() + 20
    while len(verdicts) < each * len(vms):
        assert time.monotonic() < deadline, f"only {len(verdicts)} verdicts"
        for vm in vms:
            verdicts += [found for found in vm.client.drain() if isinstance(found, Verdict)]
    assert {verdict.code for verdict in verdicts} == {layout.CODE_OK}
    refused = [verdict for verdict in verdicts if any(e.kind == layout.LOCAL_RESPONSE for e in verdict.effects)]
    return len(verdicts) - len(refused)


def test_no_token_is_taken_twice(vms: list[SyncVm]) -> None:
    """Of many keys, which all VMs meet for the first time at the same moment: the bucket comes into being but once."""
    assert {key: allowed(vms, key, EACH) for key in KEYS} == dict.fromkeys(KEYS, BURST)


def test_what_one_vm_has_taken_the_others_lack(vms: list[SyncVm]) -> None:
    for _ in range(BURST // 100 - 1):
        assert allowed(vms[:1], "mine", 100) == 100
    assert allowed(vms[:1], "mine", 98) == 98
    assert allowed(vms[1:], "mine", 5) == 2
    assert allowed(vms[:1], "mine", 5) == 0
    assert allowed(vms[:1], "yours", 5) == 5
