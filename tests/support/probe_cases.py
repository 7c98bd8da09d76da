"""Requests for the probe guest, one probe each: `tests/guests/README.md` says what each name does."""

from __future__ import annotations

from dataclasses import replace

from sandboxd.demo.client import Request
from sandboxd.demo.echo import pattern
from tests.support.cases import Case

HEADERS = (("x-in", "one"), ("x-in", "two"), ("x-in-empty", ""))
RESPONSE_HEADERS = ("x-echo-headers", "x-in=r1;x-in=r2;x-in-empty=")
TRAILERS = (("x-in-trailer", "t1"), ("x-in-trailer-remove", "t2"))
RESPONSE_TRAILERS = ("x-echo-trailers", "x-in-trailer=t1;x-in-trailer-remove=t2")

HEADER_PROBES = (
    "get",
    "pairs",
    "count",
    "size",
    "add",
    "set",
    "remove",
    "whole",
    "case",
    "bytes",
    "empty",
    "pseudo",
)
BODY_CHUNK_PROBES = ("append", "prepend", "upper", "drop", "size")
BODY_WHOLE_PROBES = ("pause", "pause-upper", "replace", "empty", "front", "middle", "tail", "part")
HOST_PROBES = (
    "log-levels",
    "metrics",
    "set-property",
    "time",
    "random",
    "env",
    "stdout",
    "clear-route-cache",
    "unknown-foreign",
    "effective-context",
    "wrong-phase",
    "bad-arguments",
    "log-headers",
    "local",
    "local-empty",
    "local-grpc",
    "local-twice",
    "local-late",
)
TRAPPING_PROBES = ("panic", "response-panic", "exit")
PROPERTIES = (
    "plugin_name,plugin_root_id,plugin_vm_id,request/path,request/url_path,request/host,request/scheme,"
    "request/method,request/query,request/protocol,request/headers/x-in,request/headers/x-not-there,"
    "response/code,response/headers/x-in,connection/mtls,connection/requested_server_name,node/id,"
    "cluster_name,route_name,xds/route_name,listener_direction,request/no-such,nothing"
)

BODY = b"The quick brown fox jumps over the lazy dog."


def _get(*headers: tuple[str, str], path: str = "/probe?a=1") -> Request:
    return Request("GET", path, (*HEADERS, RESPONSE_HEADERS, *headers))


def _post(body: bytes, chunks: tuple[int, ...] | None, *headers: tuple[str, str], trailers: bool = False) -> Request:
    sent = TRAILERS if trailers else ()
    return Request("POST", "/probe", (*HEADERS, RESPONSE_HEADERS, *headers), body, chunks, sent)


def _probe(*names: str) -> tuple[str, str]:
    return ("x-probe", ",".join(names))


def _bodies(direction: str, name: str) -> list[Case]:
    probe = f"{direction}-{name}"
    found = []
    for label, body, sizes in (("small", BODY, None), ("chunked", pattern(100_000), (1, 4093, 30_011))):
        if direction == "request":
            request = _post(body, sizes, _probe(probe))
        else:
            cut = [("x-echo-chunks", ",".join(map(str, sizes)))] if sizes else []
            request = _get(_probe(probe), ("x-echo-body-size", str(len(body))), *cut)
        found.append(Case(f"{probe}-{label}", request))
    return found


def _direction(direction: str) -> list[Case]:
    found = [Case(f"{direction}-{name}", _get(_probe(f"{direction}-{name}"))) for name in HEADER_PROBES]
    for name in (*BODY_CHUNK_PROBES, *BODY_WHOLE_PROBES):
        found += _bodies(direction, f"body-{name}")
    for name in ("trailers", "add-trailers", "body-pause-upper"):
        probe = _probe(f"{direction}-{name}")
        with_trailers = (
            _post(BODY, (7,), probe, trailers=True) if direction == "request" else _get(probe, RESPONSE_TRAILERS)
        )
        found.append(Case(f"{direction}-{name}-with-trailers", with_trailers))
    probe = _probe(f"{direction}-add-trailers")
    without = _post(BODY, (7,), probe) if direction == "request" else _get(probe, ("x-echo-chunks", "7"))
    found.append(Case(f"{direction}-add-trailers-chunked", without))
    # What the upstream has seen by the time the exchange is cut short is a matter of luck.
    found.append(Case(f"{direction}-close", _get(_probe(f"{direction}-close")), upstream_races=True))
    local = [replace(case, upstream_races=True) for case in _bodies(direction, "body-local")]
    return [*found, *local]


CASES = (
    *_direction("request"),
    *_direction("response"),
    Case("request-pause-resume", _get(_probe("request-pause-resume"))),
    # Envoy's own filter never wakes from this one, so the time is kept short.
    Case("response-pause-resume", _get(_probe("response-pause-resume")), timeout_s=2),
    *(Case(name, _get(_probe(name))) for name in HOST_PROBES),
    Case("local-with-body", _post(pattern(100_000), (1, 4093), _probe("local"))),
    Case("local-grpc-request", _post(BODY, None, _probe("local-grpc"), ("content-type", "application/grpc"))),
    Case("properties", _get(("x-probe-properties", PROPERTIES))),
    Case("several", _get(_probe("request-add", "request-get", "response-add", "time"))),
)
TRAPPING_CASES = tuple(Case(name, _get(_probe(name))) for name in TRAPPING_PROBES)
