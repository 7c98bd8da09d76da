"""
Effects of a kind that the plugin has no function for do not get past libsandboxd, told what the daemon tells it of the
module; beside each its twin: the same effect of a plugin that has the function happens.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.channel import layout, pairs
from sandboxd.channel.completions import LocalResponse, encode_local_response
from sandboxd.channel.memfd import create_channel
from sandboxd.channel.ring import Record
from sandboxd.policy import capabilities, capability_names
from sandboxd.policy.model import ModuleRef, PluginPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.attach import compile_attached
from tests.support.c_client import CChannel, effects_of, refusals_of
from tests.support.fake_vm import Event, FakeVm

READS = ("proxy_get_header_map_pairs", "proxy_get_buffer_bytes")
POLICY = PluginPolicy("filter", ModuleRef(Path("a.wasm"), "0" * 64), capabilities=capabilities.PRESETS["standard"])
PATH = [(b":path", b"/")]
DENIED = 5
Open = Callable[..., CChannel]


def attached(*functions: str, granted: bool = True) -> bytes:
    """What the daemon hands over for a module that imports these and, unless told otherwise, is granted them."""
    policy = POLICY if granted else replace(POLICY, capabilities=POLICY.capabilities - set(functions))
    callbacks = sorted(capability_names.HTTP_CALLBACKS)
    attach = control.Attach(
        tenant="t", callbacks=callbacks, imported_functions=[*READS, *functions], redaction_key=bytes(32)
    )
    return compile_attached(attach, policy)


@contextmanager
def channel(shim: c.CDLL, compiled: bytes, forged: Callable[[Event], Record]) -> Iterator[CChannel]:
    """A client whose VM answers each event with one effect."""
    fds = create_channel(65536)
    vm = FakeVm(fds, lambda e: [] if e.kind in layout.WITHOUT_VERDICT else [forged(e), e.verdict()])
    vm.begin()
    client = CChannel(shim, fds, compiled, 20_000)
    vm.start()
    try:
        assert shim.sbx_ready(client.handle)
        yield client
    finally:
        client.close()
        vm.stop()
        fds.close()


def forgers(shim: c.CDLL, function: str, forged: Callable[[Event], Record]) -> Iterator[CChannel]:
    """A plugin that does not import the function; one that is not granted it; and the twin, which has it."""
    for compiled in (attached(), attached(function, granted=False), attached(function)):
        with channel(shim, compiled, forged) as client:
            yield client


@pytest.mark.parametrize("function", sorted(capability_names.MAP_WRITES))
def test_headers(shim: c.CDLL, function: str) -> None:
    after = pairs.encode([*PATH, (b"x-user", b"admin")])
    found = []
    for client in forgers(shim, function, lambda e: e.effect(2, after, layout.FLAG_MODIFIED)):
        verdict = client.wait(client.headers(client.open(), 2, PATH))
        (effect,) = effects_of(verdict)
        found.append((bool(effect.changes and effect.changes.contents.added_count), refusals_of(verdict)))

    assert found == [(False, [(DENIED, b"x-user")])] * 2 + [(True, [])]


def test_local_responses(shim: c.CDLL) -> None:
    headers = [(b"x-why", b"because")]
    made = encode_local_response(LocalResponse(403, -1, False, b"no", headers, b""), pairs.encode(headers))
    found = []
    for client in forgers(shim, "proxy_send_local_response", lambda e: e.effect(8, made)):
        (effect,) = effects_of(client.wait(client.headers(client.open(), 2, PATH)))
        found.append((effect.refused, effect.local.contents.header_count if effect.local else None))

    assert found == [(DENIED, None)] * 2 + [(0, 1)]


@pytest.mark.parametrize("function", ["proxy_set_property", "proxy_call_foreign_function"])
def test_properties(shim: c.CDLL, function: str) -> None:
    payload = pairs.encode([(b"a\0b", b"v")])
    found = []
    for client in forgers(shim, function, lambda e: e.effect(9, payload)):
        (effect,) = effects_of(client.wait(client.headers(client.open(), 2, PATH)))
        found.append(effect.refused)

    assert found == [DENIED, DENIED, 0]


def test_bodies(shim: c.CDLL) -> None:
    found = []
    for client in forgers(shim, "proxy_set_buffer_bytes", lambda e: e.effect(3, b"forged", layout.FLAG_END_OF_STREAM)):
        verdict = client.wait(client.body(client.open(), 3, [b"true"], end=True))
        found.append((b"".join(e.data.get() for e in effects_of(verdict)), refusals_of(verdict)))

    assert found == [(b"true", [(DENIED, b"body")])] * 2 + [(b"forged", [])]


@pytest.mark.parametrize(
    ("status", "details", "text"),
    [
        (413, b"request_payload_too_large", b"Payload Too Large"),
        (500, b"response_payload_too_large", b"Internal Server Error"),
    ],
)
@pytest.mark.parametrize("honest", [True, False])
def test_the_answer_to_a_body_over_its_limit_is_not_the_plugins(
    shim: c.CDLL, status: int, details: bytes, text: bytes, honest: bool
) -> None:
    """It may be sent, and nothing else in its guise."""
    headers = [(b"content-length", b"%d" % len(text)), (b"content-type", b"text/plain")]
    made = LocalResponse(status, -1, False, details, headers, text)
    if not honest:
        headers.append((b"location", b"http://evil.example"))
        made = LocalResponse(302, 7, False, details, headers, b"over here")
    payload = encode_local_response(made, pairs.encode(headers))
    with channel(shim, attached(), lambda e: e.effect(8, payload)) as client:
        verdict = client.wait(client.headers(client.open(), 2, PATH))
        (effect,) = effects_of(verdict)
        sent = effect.local.contents

        assert (effect.refused, sent.status, sent.grpc_status) == (0, status, -1)
        assert (sent.details.get(), sent.body.get()) == (details, text)
        assert [(sent.headers[i].name.get(), sent.headers[i].value.get()) for i in range(sent.header_count)] == [
            (b"content-type", b"text/plain")
        ]
        assert refusals_of(verdict) == ([] if honest else [(DENIED, b"local_response")])
