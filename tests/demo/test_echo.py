"""The echo upstream: it tells what reached it, and answers as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from sandboxd.demo import echo, http1
from sandboxd.demo.client import Connection, Request, fetch


@pytest.fixture
def recorder() -> echo.Recorder:
    """What the upstream saw."""
    return echo.Recorder()


@pytest.fixture
def upstream(recorder: echo.Recorder) -> Iterator[echo.Echo]:
    """A running upstream."""
    with echo.running(recorder.record) as running:
        yield running


def get(upstream: echo.Echo, *headers: tuple[str, str], **more: object) -> http1.Message:
    """Do one exchange."""
    return asyncio.run(fetch(upstream.port, Request(headers=headers, **more)))  # type: ignore[arg-type]


def test_it_describes_the_request(upstream: echo.Echo, recorder: echo.Recorder) -> None:
    """In its answer, and to the recorder."""
    answer = get(upstream, ("x-a", "1"), method="POST", path="/p", body=b"hi", chunks=(1,), trailers=(("t", "v"),))

    told = json.loads(answer.body)
    assert (told["method"], told["path"], told["body"], told["body_size"]) == ("POST", "/p", "hi", 2)
    assert ["x-a", "1"] in told["headers"]
    assert told["trailers"] == [["t", "v"]]
    (seen,) = recorder.take()
    assert (seen.body, seen.trailers) == (b"hi", (("t", "v"),))
    assert recorder.take() == ()


def test_it_answers_as_it_is_told(upstream: echo.Echo) -> None:
    """Status, size, chunks, further headers and trailers."""
    answer = get(
        upstream,
        ("x-echo-status", "404"),
        ("x-echo-body-size", "100000"),
        ("x-echo-chunks", "1,4093"),
        ("x-echo-headers", "x-r=1;x-r=2"),
        ("x-echo-trailers", "x-t=1;x-t=2"),
    )

    assert answer.status == 404
    assert answer.body == echo.pattern(100_000)
    assert answer.values("x-r") == ("1", "2")
    assert answer.trailers == (("x-t", "1"), ("x-t", "2"))


def test_it_reflects_a_body(upstream: echo.Echo) -> None:
    """Byte for byte."""
    assert get(upstream, ("x-echo-body", "reflect"), method="POST", body=b"\0\xff").body == b"\0\xff"


def test_a_connection_serves_many_requests(upstream: echo.Echo) -> None:
    """Keep-alive, and HEAD has no body that would spoil the next answer."""

    async def two() -> list[int]:
        connection = await Connection.open(upstream.port)
        try:
            answers = [await connection.exchange(Request(method)) for method in ("HEAD", "GET")]
        finally:
            await connection.close()
        return [len(answer.body) > 0 for answer in answers]

    assert asyncio.run(two()) == [False, True]
