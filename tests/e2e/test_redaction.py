"""What a filter must not see never reaches its process, and yet arrives where it was going."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import guests, stage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

TOKEN = ("x-token", "sesame")
SECRET = "Bearer a-secret-that-nobody-else-uses-71c1f2"
GATE = guests.TOKEN_GATE.name
PROBE = guests.PROBE.name


@pytest.fixture(scope="module", params=stage.TRANSPORTS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[stage.Stage]:
    """Default redaction, the same module with the header shown, and each other mode."""
    gate = guests.TOKEN_GATE.plugin()
    shown = {**gate, "redact": {"request_headers": {"authorization": "show"}}}
    modes = {"x-in": "mask", "x-in-empty": "presence", ":path": "hash"}
    tenants = [
        stage.Tenant("hidden", [gate]),
        stage.Tenant("shown", [shown]),
        stage.Tenant("probing", [guests.PROBE.plugin(redact={"request_headers": modes})], body="FULL_DUPLEX_STREAMED"),
    ]
    with stage.running(tmp_path_factory.mktemp("redaction"), tenants, transport=request.param) as found:
        yield found


def test_a_hidden_header_is_not_seen_and_still_arrives(running: stage.Stage) -> None:
    """By default."""
    answer = running.get(f"/hidden/{GATE}/", TOKEN, ("authorization", SECRET), ("cookie", "a=b"))

    (seen,) = running.recorder.take()
    assert answer.status == 200
    assert seen.values("x-saw-authorization") == ("no",)
    assert seen.values("authorization") == (SECRET,)
    assert seen.values("cookie") == ("a=b",)


def test_a_shown_header_is_seen(running: stage.Stage) -> None:
    """The harmless twin: the same module, a policy that shows the header."""
    running.get(f"/shown/{GATE}/", TOKEN, ("authorization", SECRET))

    (seen,) = running.recorder.take()
    assert seen.values("x-saw-authorization") == ("yes",)
    assert seen.values("authorization") == (SECRET,)


def test_a_hidden_header_survives_a_rewrite_of_the_whole_map(running: stage.Stage) -> None:
    """The plugin writes back only what it saw; the proxy's copy keeps the rest, original values included."""
    answer = running.get(
        f"/probing/{PROBE}/", ("x-probe", "request-whole"), ("authorization", SECRET), ("x-other", "kept")
    )

    (seen,) = running.recorder.take()
    assert answer.status == 200
    assert seen.values("authorization") == (SECRET,)
    assert seen.values("x-other") == ("kept",)
    assert seen.values("x-whole") == ("1", "2")


def test_masks_are_what_the_plugin_sees(running: stage.Stage) -> None:
    """Mask, presence and hash; the upstream gets the originals."""
    probe = ("x-probe", "request-get,request-pairs")
    answer = running.get(f"/probing/{PROBE}/", probe, ("x-in", "private"), ("x-in-empty", "secret"))

    (seen,) = running.recorder.take()
    assert answer.value("x-probe-result-request-get").split("|") == ["***", "***", "none", "present"]
    assert seen.values("x-in") == ("private",)
    assert seen.values("x-in-empty") == ("secret",)
    path = re.search(r":path=([^|]*)", answer.value("x-probe-result-request-pairs"))
    assert path is not None
    assert path[1] not in ("", "***")
    assert PROBE not in path[1]


def readable_memory(pid: int) -> Iterator[bytes]:
    """Return the private, readable memory of a process, one mapping after the other."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb") as memory:
        for line in maps:
            area, permissions, *_ = line.split()
            start, end = (int(part, 16) for part in area.split("-"))
            if not permissions.startswith("rw") or end - start > 1 << 30:
                continue
            try:
                memory.seek(start)
                yield memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue


def test_a_hidden_header_is_nowhere_in_the_workers_memory(running: stage.Stage) -> None:
    """Not even a full escape from the sandbox would find it. A header that the filter may see is there."""
    secret = f"{SECRET}-never-echoed"
    visible = hashlib.sha256(b"visible").hexdigest()
    for _ in range(20):
        # The upstream's own answer would tell the headers again.
        silent = ("x-echo-body", "nothing")
        running.get(f"/hidden/{GATE}/", TOKEN, ("authorization", secret), ("x-visible", visible), silent)
    pid = running.worker_pid("hidden")
    try:
        areas = list(readable_memory(pid))
    except PermissionError:
        pytest.skip("this user may not read the memory of the worker's user")

    assert any(visible.encode() in area for area in areas), "the search finds nothing at all"
    assert not any(secret.encode() in area for area in areas)
