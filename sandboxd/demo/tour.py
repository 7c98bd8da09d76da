"""
The stops of the tour: a request each, and what must be true of it afterwards. Pure data and predicates.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sandboxd.demo import http1
from sandboxd.demo.client import Request


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a request led to, at both ends."""

    answer: http1.Message
    upstream: http1.Message | None
    """What the upstream saw; None if nothing reached it."""

    def json(self) -> Any:
        """Return the answer's body as JSON, None if it is none."""
        try:
            return json.loads(self.answer.body)
        except ValueError:
            return None

    def seen(self, name: str) -> tuple[str, ...]:
        """Return the values of a request header as the upstream saw it."""
        return self.upstream.values(name) if self.upstream is not None else ()


@dataclass(frozen=True, slots=True)
class Check:
    """A sentence about an exchange, and whether it holds."""

    sentence: str
    holds: Callable[[Exchange], bool]


@dataclass(frozen=True, slots=True)
class Stop:
    """One request of the tour."""

    tenant: str
    request: Request
    checks: tuple[Check, ...]

    def curl(self, port: int) -> str:
        """Return the request as a command for the user's own shell."""
        words = ["curl", "-i"]
        for name, value in self.request.headers:
            words += ["-H", f"{name}: {value}"]
        if self.request.body is not None:
            words += ["-d", self.request.body.decode()]
        return shlex.join([*words, f"http://127.0.0.1:{port}{self.request.path}"])


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant of the demo and how Envoy hands it its traffic."""

    name: str
    plugin: str
    language: str
    does: str
    body: str = "NONE"
    """Envoy's body mode for the route."""


TENANTS = (
    Tenant("shop", "add-header", "C", "adds a header to every request and response"),
    Tenant("press", "rewrite-json", "C", "rewrites JSON bodies", "FULL_DUPLEX_STREAMED"),
    Tenant("bank", "token-gate", "Rust", "turns requests without a token away"),
    Tenant("clinic", "token-gate", "Rust", "the same filter, blind to credentials"),
    Tenant(
        "harbor",
        "go-filter",
        "Go",
        "adds headers, turns request bodies to upper case",
        "FULL_DUPLEX_STREAMED",
    ),
    Tenant("studio", "as-filter", "AssemblyScript", "greets"),
)

_TOKEN = ("x-token", "sesame")
_SECRET = ("authorization", "Bearer s3cret")

_OK = Check("The request was answered with 200.", lambda e: e.answer.status == 200)

STOPS = (
    Stop(
        "shop",
        Request("GET", "/shop/"),
        (
            _OK,
            Check(
                "The filter added x-wasm-processed: Yes to the response.",
                lambda e: e.answer.values("x-wasm-processed") == ("Yes",),
            ),
            Check(
                "It added it to the request as well: the upstream saw it.",
                lambda e: e.seen("x-wasm-processed") == ("Yes",),
            ),
        ),
    ),
    Stop(
        "press",
        Request("GET", "/press/news"),
        (
            _OK,
            Check(
                'The filter wrote "sandboxed": true into the JSON object that the upstream sent.',
                lambda e: isinstance(e.json(), dict) and e.json().get("sandboxed") is True,
            ),
            Check(
                "The rest of the object is as it was.",
                lambda e: (e.json() or {}).get("path") == "/press/news",
            ),
        ),
    ),
    Stop(
        "bank",
        Request("GET", "/bank/"),
        (
            Check("The filter answered 403 by itself: there was no token.", lambda e: e.answer.status == 403),
            Check("The body is the filter's own.", lambda e: e.answer.body == b"Access forbidden.\n"),
            Check("Nothing of the request reached the upstream.", lambda e: e.upstream is None),
        ),
    ),
    Stop(
        "bank",
        Request("GET", "/bank/", (_TOKEN, _SECRET)),
        (
            _OK,
            Check(
                "bank's policy shows authorization to its filter, which says so: x-saw-authorization: yes.",
                lambda e: e.seen("x-saw-authorization") == ("yes",),
            ),
        ),
    ),
    Stop(
        "clinic",
        Request("GET", "/clinic/", (_TOKEN, _SECRET)),
        (
            _OK,
            Check(
                "The same filter under clinic's policy saw no authorization: x-saw-authorization: no.",
                lambda e: e.seen("x-saw-authorization") == ("no",),
            ),
            Check(
                "The upstream received it all the same.",
                lambda e: e.seen("authorization") == ("Bearer s3cret",),
            ),
        ),
    ),
    Stop(
        "harbor",
        Request("POST", "/harbor/", (("content-type", "text/plain"),), b"all hands on deck"),
        (
            _OK,
            Check(
                "The Go filter turned the request's body to upper case.",
                lambda e: e.upstream is not None and e.upstream.body == b"ALL HANDS ON DECK",
            ),
            Check(
                "It added x-go-greeting from its configuration and x-go-region from its environment.",
                lambda e: e.answer.value("x-go-greeting") == "hello from Go" and e.answer.value("x-go-region") == "eu",
            ),
        ),
    ),
    Stop(
        "studio",
        Request("GET", "/studio/"),
        (
            _OK,
            Check(
                "The AssemblyScript filter added hello: from AssemblyScript.",
                lambda e: e.answer.value("hello") == "from AssemblyScript",
            ),
        ),
    ),
)
