"""Case files: what they may say, and errors that name file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.commands.cases import (
    Action,
    BodyExpectation,
    Case,
    HeaderExpectation,
    LogExpectation,
)
from sandboxd.commands.read_cases import load_cases, parse_cases
from sandboxd.errors import ConfigError


def one(text: str) -> Case:
    """Parse a file with one case whose keys are given, indented by four."""
    (case,) = parse_cases(f"cases:\n  - name: n\n{text}", "c.yaml")
    return case


def test_defaults() -> None:
    """A case needs a name and an expectation."""
    case = one("    expect: {}\n")
    assert case.request.headers == [
        (b":method", b"GET"),
        (b":path", b"/"),
        (b":authority", b"example.com"),
        (b":scheme", b"http"),
    ]
    assert case.request.pieces() == []
    assert case.response.headers == [(b":status", b"200")]
    assert case.expect.action is Action.CONTINUE
    assert case.line == 2


def test_headers_in_both_forms() -> None:
    """A mapping with lists, or a list of pairs."""
    case = one("    request: {headers: {X-A: ['1', '2'], b: ''}, trailers: [[T, x], [t, y]]}\n    expect: {}\n")
    assert case.request.headers[4:] == [(b"x-a", b"1"), (b"x-a", b"2"), (b"b", b"")]
    assert case.request.trailers == [(b"t", b"x"), (b"t", b"y")]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("hello", b"hello"),
        ("''", b""),
        ("{text: hi}", b"hi"),
        ("{base64: aGk=}", b"hi"),
        ("{json: {a: [1, null]}}", b'{"a":[1,null]}'),
        ("{size: 20B}", b"0123456789abcdef0123"),
    ],
)
def test_bodies(body: str, expected: bytes) -> None:
    """Each way to write one."""
    case = one(f"    request: {{body: {body}}}\n    expect: {{}}\n")
    assert case.request.body == expected
    assert case.request.pieces() == [expected]


@pytest.mark.parametrize(
    ("chunks", "sizes"), [("4", [4, 4, 2]), ("[1, 2]", [1, 2, 7]), ("[10]", [10]), ("[0, 10]", [0, 10])]
)
def test_chunks(chunks: str, sizes: list[int]) -> None:
    """One size for all, or a list that the rest follows."""
    case = one(f"    request: {{body: '0123456789', chunks: {chunks}}}\n    expect: {{}}\n")
    assert [len(piece) for piece in case.request.pieces()] == sizes


def test_expectations() -> None:
    """Every kind of expectation."""
    case = one(
        "    expect:\n"
        "      upstream:\n        headers: {A: x, b: [1x, 2x], c: null, d: {matches: 'v\\d'}}\n"
        "        body: {json: {b: 1, a: 2}}\n"
        "      local_response: {status: 403, grpc_status: 7, details: d}\n"
        "      logs: [plain, {level: warn, contains: w}]\n"
        "      properties: {a.b: v}\n"
        "      denied: [proxy_log]\n"
    )
    expect = case.expect
    assert expect.upstream is not None
    assert expect.upstream.headers == {
        "a": HeaderExpectation(("x",)),
        "b": HeaderExpectation(("1x", "2x")),
        "c": HeaderExpectation(()),
        "d": HeaderExpectation(pattern="v\\d"),
    }
    assert expect.upstream.body == BodyExpectation(json='{"a":2,"b":1}')
    assert expect.action is Action.RESPOND
    assert expect.logs == (LogExpectation("plain"), LogExpectation("w", "warn"))
    assert expect.properties == {"a.b": "v"}
    assert expect.denied == ("proxy_log",)


def test_attributes() -> None:
    """Text, integers and booleans."""
    case = one("    attributes: {source.address: 'a:1', n: 5, b: true}\n    expect: {}\n")
    assert case.attributes == {"source.address": "a:1", "n": 5, "b": True}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("    expct: {}\n", r"c.yaml:3: cases\[0\].expct: is not a known key .did you mean expect"),
        ("    request: {}\n", r"c.yaml:2: cases\[0\]: needs the key expect"),
        ("    expect: {action: explode}\n", "expect.action.*allowed: continue, respond, pause, reset, fail"),
        ("    expect: {client: {status: 99}}\n", r"expect.client.status.*100 to 599"),
        ("    request: {body: {size: 1MB}}\n    expect: {}\n", "request.body.size.*MiB"),
        ("    request: {body: {base64: '?'}}\n    expect: {}\n", "request.body.base64: is not base64"),
        ("    request: {body: {base64: é}}\n    expect: {}\n", "request.body.base64: is not base64"),
        ("    request: {body: {text: a, size: 1B}}\n    expect: {}\n", "exactly one key"),
        ("    request: {body: abc, chunks: [5]}\n    expect: {}\n", "adds up to 5 bytes, but the body has 3"),
        ("    request: {headers: [[a]]}\n    expect: {}\n", r"headers\[0\]: must be a name and a value"),
        ("    request: {headers: {a: 5}}\n    expect: {}\n", "headers.a: must be a string"),
        ("    attributes: {a: [1]}\n    expect: {}\n", "attributes.a: must be a string, an integer or"),
        ("    expect: {upstream: {headers: {a: {matches: '('}}}}\n", "is not a regular expression"),
        ("    expect: {logs: [{level: loud, contains: x}]}\n", "logs.*level.*trace, debug"),
        ("    expect: {}\n  - name: n\n    expect: {}\n", "c.yaml:4.*there twice, first in line 2"),
    ],
)
def test_errors_name_the_place(text: str, error: str) -> None:
    """File, line, key, and what is allowed."""
    with pytest.raises(ConfigError, match=error):
        one(text)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Missing, binary, empty."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_cases(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_cases(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("cases: []")
    with pytest.raises(ConfigError, match="at least one case"):
        load_cases(tmp_path / "c.yaml")
