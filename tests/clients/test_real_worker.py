"""libsandboxd against a real, jailed worker and a real guest, beside the Python client on a channel of its own."""

from __future__ import annotations

import ctypes as c
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import decode_map
from sandboxd.policy import capabilities, capability_names
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.model import ModuleRef, PluginPolicy, Section
from sandboxd.policy.redact import Redactor
from sandboxd.policy.write_rules import WriteRules
from sandboxd.supervisor.local import LocalSandbox
from tests.support.c_client import CChannel, effects_of
from tests.support.daemon_client import ADD_HEADER

KEY = bytes(32)
POLICY = PluginPolicy(
    "filter",
    ModuleRef(ADD_HEADER, hashlib.sha256(ADD_HEADER.read_bytes()).hexdigest()),
    capabilities=capabilities.PRESETS["standard"],
)
NEEDS = capabilities.needs(capabilities.PRESETS["standard"], capability_names.HTTP_CALLBACKS)
REQUEST = [(b":path", b"/x"), (b":method", b"GET"), (b"cookie", b"hidden"), (b"a", b"1")]
RESPONSE = [(b":status", b"200"), (b"set-cookie", b"hidden"), (b"b", b"2")]


@pytest.fixture(scope="module")
def sandbox(artefact_cache: Path) -> Iterator[LocalSandbox]:
    with LocalSandbox(POLICY, cache_directory=artefact_cache, ring_bytes=65536) as running:
        yield running


def through_python(sandbox: LocalSandbox) -> list[tuple[bytes, bytes]]:
    vm = sandbox.open_vm()
    redactor, rules = Redactor(POLICY.redact, KEY), WriteRules(POLICY.write)
    stream = vm.client.open_stream(b"", 1)
    added: list[tuple[bytes, bytes]] = []
    for kind, section, headers in ((2, "request_headers", REQUEST), (5, "response_headers", RESPONSE)):
        view = redactor.view(headers, Section(section))
        for effect in vm.call(stream, kind, pairs.encode(view), end_of_stream=True).effects:
            if effect.flags & layout.FLAG_MODIFIED:
                changes = redactor.changes(headers, view, decode_map(effect.payload), Section(section))
                added += rules.headers(changes, Section(section))[0].added
    return added


def through_c(shim: c.CDLL, sandbox: LocalSandbox, rounds: int) -> list[tuple[bytes, bytes]]:
    fds = sandbox.open_channel()
    client = CChannel(shim, fds, compile_policy("t", POLICY, NEEDS, KEY))
    fds.close()
    found: list[tuple[bytes, bytes]] = []
    for _ in range(rounds):
        found = []
        stream = client.open()
        for kind, headers in ((2, REQUEST), (5, RESPONSE)):
            event = client.headers(stream, kind, headers, end=True)
            for effect in effects_of(client.wait(event)):
                if effect.changes:
                    changes = effect.changes.contents
                    for index in range(changes.added_count):
                        found.append((changes.added[index].name.get(), changes.added[index].value.get()))
            shim.sbx_event_free(event)
        shim.sbx_stream_close(stream, False, 9)
    client.close()
    return found


def test_both_clients_see_the_same_filter(shim: c.CDLL, sandbox: LocalSandbox) -> None:
    """1000 streams: both rings wrap many times."""
    expected = through_python(sandbox)
    assert (b"x-wasm-processed", b"Yes") in expected
    assert through_c(shim, sandbox, 1000) == expected
