"""Policy files for the tests of the client: plugins of all manners."""

from __future__ import annotations

import json

from tests.support import guests

JAIL = "jail: {self_test: false}\n"
MORE = JAIL + "attach: {channels: 4}\n"
QUICK = {"cpu_per_call": "50ms", "time_per_event": "1s"}
PATIENT = {"body_buffer": "4MiB", "cpu_per_call": "2s", "time_per_event": "10s"}
"""The guest searches the whole of a body byte by byte."""
CALM = {"cpu_per_call": "2s", "time_per_event": "10s"}
"""A machine that stands still for a moment shall not look like a plugin that does."""


def policy(tenant: str, *plugins: dict[str, object]) -> str:
    """Return a policy file."""
    isolation = {"pids": 64, "memory": "1GiB"}
    return f"tenant: {tenant}\nisolation: {json.dumps(isolation)}\nplugins: {json.dumps(plugins)}\n"


def failing(file: str, how: str) -> dict[str, object]:
    """Return a plugin that does one thing wrong."""
    restart = {"backoff": "50ms", "max_crashes": 1000}
    return guests.misdeed(file).plugin(limits=QUICK, failure={"policy": how, "status": 555, "restart": restart})


POLICIES = {
    "acme": policy(
        "acme",
        guests.C_ADD_HEADER.plugin(limits=CALM),
        guests.HTTP_HEADERS.plugin(),
        guests.TOKEN_GATE.plugin(),
        guests.HTTP_BODY_REQUEST.plugin(limits=PATIENT),
        guests.HTTP_BODY_RESPONSE.plugin(),
        guests.C_JSON_BODY.plugin(),
    ),
    "strict": policy(
        "strict",
        guests.C_ADD_HEADER.plugin(write={"deny_headers": ["x-wasm-processed"]}),
        guests.HTTP_BODY_RESPONSE.plugin(write={"body": False}),
        guests.TOKEN_GATE.plugin(write={"local_response": False}),
    ),
    "closed": policy("closed", *(failing(f, "closed") for f in ("trap_in_request_body", "pause_forever"))),
    "open": policy(
        "open",
        *(failing(f, "open") for f in ("trap_in_request_body", "trap_in_response_headers", "pause_forever")),
    ),
    "probing": policy(
        "probing",
        guests.PROBE.plugin(redact={"request_headers": {"x-in": "mask", "x-in-empty": "presence", ":path": "hash"}}),
    ),
}
