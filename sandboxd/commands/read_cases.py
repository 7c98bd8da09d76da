"""
Case files of `sandboxd run`: YAML to frozen data (``docs/run.md``). Every error names file, line and key.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from sandboxd import limits
from sandboxd.commands.cases import (
    Action,
    BodyExpectation,
    Case,
    Expectations,
    HeaderExpectation,
    LogExpectation,
    Message,
    MessageExpectation,
    canonical_json,
)
from sandboxd.errors import ConfigError
from sandboxd.log import GUEST_LEVELS
from sandboxd.policy.redact import Headers
from sandboxd.yaml_compose import compose
from sandboxd.yaml_nodes import Section, Source, Value

MAX_CASES = 10_000
MAX_HEADERS = limits.MAX_PAIRS_COUNT
MAX_WAIT_NS = 60 * limits.S_NS
MAX_BODY_BYTES = 64 * limits.MIB
_FILL = b"0123456789abcdef"


def load_cases(path: Path) -> list[Case]:
    """
    Read a case file.

    Raises:
        ConfigError: it cannot be read or accepted.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_POLICY_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", path=str(path)) from None
    return parse_cases(text, str(path))


def parse_cases(text: str, path: str) -> list[Case]:
    """Read a case file's text; raises as `load_cases`."""
    root = compose(text, Source(path, ConfigError)).section(("cases",))
    items = root.need("cases").items(most=MAX_CASES)
    if not items:
        raise root.need("cases").fail("needs at least one case")
    cases = [_case(item) for item in items]
    lines: dict[str, int] = {}
    for case, item in zip(cases, items, strict=True):
        if case.name in lines:
            raise item.fail(f"case {case.name!r} is there twice, first in line {lines[case.name]}")
        lines[case.name] = case.line
    return cases


def _case(value: Value) -> Case:
    section = value.section(("name", "wait", "request", "response", "attributes", "expect"))
    attributes, wait = section.get("attributes"), section.get("wait")
    return Case(
        name=section.need("name").string(),
        line=value.line,
        request=_request(section.get("request")),
        response=_response(section.get("response")),
        attributes={name: _scalar(v) for name, v in attributes.mapping().items()} if attributes else {},
        expect=_expectations(section.need("expect")),
        wait_s=wait.duration_ns(0, MAX_WAIT_NS) / limits.S_NS if wait else 0.0,
    )


# --- messages --------------------------------------------------------------------------------------


def _request(value: Value | None) -> Message:
    pseudo = {"method": "GET", "path": "/", "authority": "example.com", "scheme": "http"}
    if value is None:
        return Message(_pseudo_headers(pseudo))
    section = value.section((*pseudo, "headers", "body", "chunks", "trailers"))
    for name in pseudo:
        given = section.get(name)
        if given is not None:
            pseudo[name] = given.string()
    return _message(section, _pseudo_headers(pseudo))


def _response(value: Value | None) -> Message:
    if value is None:
        return Message([(b":status", b"200")])
    section = value.section(("status", "headers", "body", "chunks", "trailers"))
    status = section.get("status")
    code = status.integer(100, 599) if status else 200
    return _message(section, [(b":status", str(code).encode())])


def _pseudo_headers(values: dict[str, str]) -> Headers:
    return [(f":{name}".encode(), text.encode()) for name, text in values.items()]


def _message(section: Section, pseudo: Headers) -> Message:
    headers, trailers, body = section.get("headers"), section.get("trailers"), section.get("body")
    content = _body(body) if body else b""
    return Message(
        headers=pseudo + (_headers(headers) if headers else []),
        body=content,
        chunks=_chunks(section.get("chunks"), len(content), given=body is not None),
        trailers=_headers(trailers) if trailers else None,
    )


def _headers(value: Value) -> Headers:
    """Read headers: a mapping of name to value or list of values, or a list of [name, value]."""
    found: Headers = []
    if value.is_sequence():
        for item in value.items(most=MAX_HEADERS):
            entry = item.items(most=2)
            if len(entry) != 2:
                raise item.fail("must be a name and a value")
            found.append((_name(entry[0]), entry[1].string(empty=True).encode()))
        return found
    for name, given in value.mapping().items():
        values = given.items(most=MAX_HEADERS) if given.is_sequence() else [given]
        found += [(name.lower().encode(), one.string(empty=True).encode()) for one in values]
    return found


def _name(value: Value) -> bytes:
    return value.string().lower().encode()


def _body(value: Value) -> bytes:
    """Read a body: a text, or a mapping with exactly one of text, base64, json, size."""
    if not value.is_mapping():
        return value.string(empty=True).encode()
    section = value.section(("text", "base64", "json", "size"))
    given = [section.need(name) for name in section]
    if len(given) != 1:
        raise value.fail("must have exactly one key", ("text", "base64", "json", "size"))
    if (text := section.get("text")) is not None:
        return text.string(empty=True).encode()
    if (encoded := section.get("base64")) is not None:
        return _base64(encoded)
    if (data := section.get("json")) is not None:
        return data.json_bytes()
    size = section.need("size").size(0, MAX_BODY_BYTES)
    return (_FILL * (size // len(_FILL) + 1))[:size]


def _base64(value: Value) -> bytes:
    try:
        return base64.b64decode(value.string(empty=True), validate=True)
    except ValueError:  # binascii.Error is one, and so is what text outside ASCII gives
        raise value.fail("is not base64") from None


def _chunks(value: Value | None, size: int, *, given: bool) -> tuple[int, ...]:
    """Read how the body is cut: one size for all pieces, or a list of sizes that the rest follows."""
    if value is None:
        return (size,) if given else ()
    if not value.is_sequence():
        piece = value.integer(1, MAX_BODY_BYTES)
        sizes = [piece] * (size // piece)
    else:
        sizes = [item.integer(0, MAX_BODY_BYTES) for item in value.items(most=100_000)]
    if sum(sizes) > size:
        raise value.fail(f"adds up to {sum(sizes)} bytes, but the body has {size}")
    rest = size - sum(sizes)
    return (*sizes, rest) if rest or not sizes else tuple(sizes)


def _scalar(value: Value) -> str | int | bool:
    plain = json.loads(value.json_bytes() or b"null") if not _is_text(value) else value.string(empty=True)
    if not isinstance(plain, str | int):
        raise value.fail("must be a string, an integer or a boolean")
    return plain


def _is_text(value: Value) -> bool:
    try:
        value.string(empty=True)
    except ConfigError:
        return False
    return True


# --- expectations ----------------------------------------------------------------------------------


def _expectations(value: Value) -> Expectations:
    section = value.section(
        ("action", "upstream", "client", "local_response", "logs", "no_logs", "properties", "denied")
    )
    local, action = section.get("local_response"), section.get("action")
    logs, silent = section.get("logs"), section.get("no_logs")
    properties, denied = section.get("properties"), section.get("denied")
    otherwise = Action.RESPOND if local else Action.CONTINUE
    return Expectations(
        action=action.choice(Action) if action else otherwise,
        upstream=_side(section.get("upstream"), ("headers", "body", "trailers")),
        client=_side(section.get("client"), ("status", "headers", "body", "trailers")),
        local_response=_side(local, ("status", "headers", "body", "details", "grpc_status")),
        logs=tuple(_log(item) for item in logs.items(most=1000)) if logs else (),
        no_logs=tuple(item.string() for item in silent.items(most=1000)) if silent else (),
        properties={n: v.string(empty=True) for n, v in properties.mapping().items()} if properties else {},
        denied=tuple(item.string() for item in denied.items(most=1000)) if denied else None,
    )


def _side(value: Value | None, keys: tuple[str, ...]) -> MessageExpectation | None:
    if value is None:
        return None
    section = value.section(keys)
    status, headers, body = section.get("status"), section.get("headers"), section.get("body")
    trailers, details, grpc = section.get("trailers"), section.get("details"), section.get("grpc_status")
    return MessageExpectation(
        status=status.integer(100, 599) if status else None,
        headers=_header_expectations(headers) if headers else {},
        body=_body_expectation(body) if body else None,
        trailers=_header_expectations(trailers) if trailers else {},
        details=details.string(empty=True) if details else None,
        grpc_status=grpc.integer(0, 16) if grpc else None,
    )


def _header_expectations(value: Value) -> dict[str, HeaderExpectation]:
    return {name.lower(): _header_expectation(given) for name, given in value.mapping().items()}


def _header_expectation(value: Value) -> HeaderExpectation:
    if value.is_null():
        return HeaderExpectation(values=())
    if value.is_sequence():
        return HeaderExpectation(values=tuple(item.string(empty=True) for item in value.items(most=MAX_HEADERS)))
    if value.is_mapping():
        return HeaderExpectation(pattern=_pattern(value.section(("matches",)).need("matches")))
    return HeaderExpectation(values=(value.string(empty=True),))


def _pattern(value: Value) -> str:
    pattern = value.string()
    try:
        re.compile(pattern)
    except re.error as error:
        raise value.fail(f"is not a regular expression: {error}") from None
    return pattern


def _body_expectation(value: Value) -> BodyExpectation:
    if not value.is_mapping():
        return BodyExpectation(exact=value.string(empty=True).encode())
    section = value.section(("text", "base64", "contains", "json", "size"))
    if not list(section):
        raise value.fail("must have at least one key", ("text", "base64", "contains", "json", "size"))
    text, encoded, part = section.get("text"), section.get("base64"), section.get("contains")
    data, size = section.get("json"), section.get("size")
    exact = text.string(empty=True).encode() if text else _base64(encoded) if encoded else None
    return BodyExpectation(
        exact=exact,
        contains=part.string() if part else None,
        json=canonical_json(json.loads(data.json_bytes())) if data else None,
        size=size.size(0, MAX_BODY_BYTES) if size else None,
    )


def _log(value: Value) -> LogExpectation:
    if not value.is_mapping():
        return LogExpectation(value.string())
    section = value.section(("level", "contains"))
    level = section.get("level")
    return LogExpectation(section.need("contains").string(), level.choice(GUEST_LEVELS) if level else "")
