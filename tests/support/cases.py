"""The requests of the differential test, and which of them fit which guest."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxd.demo.client import Request
from sandboxd.demo.echo import pattern

KIB = 1024
MIB = 1024 * KIB

BODY_SIZES = {"0": 0, "1": 1, "16k": 16 * KIB, "64k": 64 * KIB, "1m": MIB, "4m": 4 * MIB}
ODD_CHUNKS = (1, 4093, 7, 65521)
"""Sizes without a common factor, so that every buffer boundary is crossed somewhere."""
RESPONSE_CHUNKS = ",".join(map(str, ODD_CHUNKS))

HEADERS = (
    ("x-token", "sesame"),
    ("x-repeated", "one"),
    ("x-repeated", "two"),
    ("x-empty", ""),
    ("X-Case", "Mixed"),
)


@dataclass(frozen=True)
class Case:
    """One request, by a name that says what is odd about it."""

    name: str
    request: Request
    upstream_races: bool = False
    """How much the upstream sees is a matter of timing, so that only the client's side is compared."""
    timeout_s: float = 15.0


def _post(body: bytes, chunked: bool, *more: tuple[str, str], trailers: bool = False) -> Request:
    return Request(
        "POST",
        "/post?query=1",
        (*HEADERS, *more),
        body,
        ODD_CHUNKS if chunked or trailers else None,
        (("x-trailer", "t1"), ("x-trailer", "t2")) if trailers else (),
    )


def _sized() -> list[Case]:
    found = []
    for label, size in BODY_SIZES.items():
        body, answer = pattern(size), ("x-echo-body-size", str(size))
        found.append(Case(f"request-{label}", _post(body, chunked=False)))
        found.append(Case(f"request-{label}-chunked", _post(body, chunked=True)))
        if size:
            found.append(Case(f"response-{label}", Request("GET", "/", (*HEADERS, answer))))
            chunks = ("x-echo-chunks", RESPONSE_CHUNKS)
            found.append(Case(f"response-{label}-chunked", Request("GET", "/", (*HEADERS, answer, chunks))))
    return found


def _plain() -> list[Case]:
    trailers = ("x-echo-trailers", "x-end=e1;x-end=e2")
    return [
        Case("get", Request("GET", "/get?a=1&b=%20", HEADERS)),
        Case("get-without-token", Request("GET", "/get", HEADERS[1:])),
        Case("head", Request("HEAD", "/", HEADERS)),
        Case("hello", Request("GET", "/hello", HEADERS)),
        Case("hello-post", Request("POST", "/hello", HEADERS, pattern(64 * KIB))),
        Case("status-404", Request("GET", "/", (*HEADERS, ("x-echo-status", "404")))),
        Case("status-204", Request("GET", "/", (*HEADERS, ("x-echo-status", "204"), ("x-echo-body-size", "0")))),
        Case(
            "repeated-response",
            Request("GET", "/", (*HEADERS, ("x-echo-headers", "x-r=1;x-r=2;set-cookie=a"))),
        ),
        Case("secret-request", _post(b"the secret word", chunked=False)),
        Case("secret-request-chunked", _post(b"the secret word", chunked=True)),
        Case("secret-request-trailers", _post(b"the secret word", chunked=True, trailers=True)),
        Case("secret-response", Request("GET", "/", (*HEADERS, ("x-echo-body", "a secret")))),
        Case(
            "secret-response-chunked",
            Request("GET", "/", (*HEADERS, ("x-echo-body", "a secret"), ("x-echo-chunks", "3"))),
        ),
        Case("secret-response-trailers", Request("GET", "/", (*HEADERS, ("x-echo-body", "a secret"), trailers))),
        Case("json-reflect", _post(b'{"a": 1}', False, ("x-echo-body", "reflect"))),
        Case("json-empty-object", Request("GET", "/", (*HEADERS, ("x-echo-body", " { }")))),
        Case("json-not-an-object", Request("GET", "/", (*HEADERS, ("x-echo-body", "[1]")))),
        Case("not-json", Request("GET", "/", (*HEADERS, ("x-echo-body", "{}"), ("x-echo-type", "text/plain")))),
        Case("trailers-request", _post(pattern(16 * KIB), chunked=True, trailers=True)),
        Case("trailers-response", Request("GET", "/", (*HEADERS, ("x-echo-body-size", "16384"), trailers))),
        Case("trailers-both", _post(pattern(KIB), True, trailers, ("x-echo-chunks", "100"), trailers=True)),
        Case("long-header", Request("GET", "/", (*HEADERS, ("x-long", "v" * 16000)))),
        Case("many-headers", Request("GET", "/", (*HEADERS, *((f"x-n{n}", str(n)) for n in range(80))))),
        Case("absolute-odd-path", Request("GET", "//a/../b;c=d?e=f#g".partition("#")[0], HEADERS)),
    ]


CASES = tuple(_plain() + _sized())
