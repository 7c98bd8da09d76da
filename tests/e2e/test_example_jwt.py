"""The example that checks JSON Web Tokens, through Envoy and a whole daemon, under the policy that people copy."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import examples, stage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(180)]

JWT = "/jwt-check/jwt/"
SECRET = "a secret that is shared with the issuer"


@pytest.fixture(scope="module", params=stage.TRANSPORTS)
def staged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Stage]:
    tenants = [examples.tenant("jwt-check", {"secret": SECRET})]
    with stage.running(tmp_path_factory.mktemp("jwt"), tenants, transport=request.param) as running:
        yield running


def seen(staged: stage.Stage) -> dict[str, str]:
    """Return the headers of the last request that reached the upstream; empty if none did."""
    taken = staged.recorder.take()
    return {name.lower(): value for name, value in taken[-1].headers} if taken else {}


def encoded(part: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def token(claims: Any, *, head: Any = None, secret: str = SECRET, tail: str = "") -> tuple[str, str]:
    """Return the header with a signed token."""
    first = {"alg": "HS256", "typ": "JWT"} if head is None else head
    parts = [part if isinstance(part, str) else json.dumps(part) for part in (first, claims)]
    text = ".".join(encoded(part.encode()) for part in parts)
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()
    return "authorization", f"Bearer {text}.{encoded(signature)}{tail}"


def claims(**more: Any) -> dict[str, Any]:
    """Return what an acceptable token says."""
    good = {"iss": "https://issuer.example", "aud": "api", "sub": "alice", "exp": 4102444800}
    return {name: value for name, value in {**good, **more}.items() if value is not None}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"aud": ["web", "api"], "scope": "read write"},
        {"nbf": 1, "extra": {"nested": [1, {"deep": '\\"'}], "aud": "x"}},
        {"exp": 4102444800.5, "padding": "x" * 100},
        *({"padding": "x" * size} for size in (1, 2, 3, 60, 61, 62, 63, 64, 5000)),
    ],
)
def test_a_good_token_passes_and_its_claims_go_on(staged: stage.Stage, more: dict[str, Any]) -> None:
    answer = staged.get(JWT, token(claims(**more)), ("x-jwt-sub", "forged"), ("x-jwt-admin", "forged"))

    assert (answer.status, answer.value("www-authenticate")) == (200, "")
    arrived = seen(staged)
    assert arrived["x-jwt-sub"] == "alice"
    assert arrived.get("x-jwt-scope") == more.get("scope")
    assert not {"authorization", "x-jwt-admin"} & arrived.keys()


SIGNATURE, HEADER, CLAIM = "the signature is wrong", "the header is not one of HS256", "a claim is not acceptable"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (token(claims(), secret="another secret, as long as the first"), SIGNATURE),
        (token(claims(), tail="A"), SIGNATURE),
        (token(claims(), tail="=" * 1), SIGNATURE),
        (("authorization", "Bearer a.b.c"), SIGNATURE),
        (("authorization", "Bearer ."), SIGNATURE),
        (("authorization", f"{token(claims())[1].rpartition('.')[0]}."), SIGNATURE),
        (token(claims(), head={"alg": "none"}), HEADER),
        (token(claims(), head={"alg": "HS512"}), HEADER),
        (token(claims(), head={"typ": "JWT"}), HEADER),
        (token(claims(), head={"alg": "HS256", "crit": ["x"]}), HEADER),
        (token(claims(), head='{"alg": "HS256", "alg": "none"}'), HEADER),
        (token(claims(exp=None)), "it has no exp"),
        (token(claims(exp=1)), "it has expired"),
        (token(claims(nbf=4102444800)), "it is not valid yet"),
        (token(claims(exp="soon")), CLAIM),
        (token(claims(exp=-1)), CLAIM),
        (token(claims(iss="https://elsewhere.example")), CLAIM),
        (token(claims(aud=["web", "apis"])), CLAIM),
        (token(claims(aud={"api": "api"})), CLAIM),
        (token(claims(sub="a\nb: c")), CLAIM),
        (token(claims(sub="caf\u00e9")), CLAIM),
        (token(claims(sub={"a": 1})), CLAIM),
        (token(claims(iss=None)), "a claim is missing"),
        (token("[1]"), CLAIM),
        (token('{"a": 1'), CLAIM),
        (token('{"exp": 4102444800} {}'), CLAIM),
        (token(json.dumps(claims())[:-1] + ', "exp": 4102444800}'), CLAIM),
        (token("[" * 1000), CLAIM),
        (token('{"a":' + "[" * 1000), CLAIM),
    ],
)
def test_another_token_is_refused(staged: stage.Stage, header: tuple[str, str], why: str) -> None:
    answer = staged.get(JWT, header)

    assert answer.status == 401
    assert answer.value("www-authenticate") == f'Bearer error="invalid_token", error_description="{why}"'
    assert seen(staged) == {}


@pytest.mark.parametrize("headers", [(), (("authorization", "Basic YTpi"),), (("authorization", "Bearer "),)])
def test_no_token_is_asked_for(staged: stage.Stage, headers: tuple[tuple[str, str], ...]) -> None:
    answer = staged.get(JWT, *headers)

    assert (answer.status, answer.value("www-authenticate")) == (401, "Bearer")


def test_two_tokens_are_refused(staged: stage.Stage) -> None:
    """Also if the first one is good: the upstream might look at the last. Envoy makes them one, which is none."""
    answer = staged.get(JWT, token(claims()), token(claims(sub="mallory"), secret="not the issuer's"))

    assert answer.status == 401
    assert seen(staged) == {}
