"""hostcore's record reader and writer on the golden vectors of ``docs/channel.md``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fuzz import build_native

GOLDEN: Final = sorted((Path(__file__).resolve().parents[1] / "channel" / "golden").glob("*.json"))


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native reader and writer."""
    return build_native.build(tmp_path_factory.mktemp("golden"), build_native.GOLDEN_SOURCES, "golden")[0]


def _run(tool: Path, text: str) -> str:
    done = subprocess.run([str(tool)], input=text, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(
        f"{record['kind']} {record['flags']} {record['stream_id']} {record['event_seq']} {record['arg']} "
        f"{record['payload_hex'] or '-'}\n"
        for record in records
    )


def test_there_are_vectors() -> None:
    """Without vectors the tests below would prove nothing."""
    directions = {json.loads(path.read_text())["direction"] for path in GOLDEN}

    assert directions == {"submission", "completion"}
    assert len(GOLDEN) >= 20


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_writes_the_vector(tool: Path, path: Path) -> None:
    """The records of the vector become its bytes."""
    vector = json.loads(path.read_text())

    written = _run(tool, f"write {vector['ring_bytes']} {vector['start']}\n{_lines(vector['records'])}")

    assert written.strip() == vector["ring_hex"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_reads_the_vector(tool: Path, path: Path) -> None:
    """The bytes of the vector become its records."""
    vector = json.loads(path.read_text())

    read = _run(tool, f"read {vector['ring_bytes']} {vector['start']} {vector['ring_hex'] or '-'}\n")

    assert read == _lines(vector["records"])


def test_a_damaged_vector_is_broken(tool: Path) -> None:
    """A record whose size is no multiple of 8 is not read."""
    vector = json.loads(next(path for path in GOLDEN if path.stem == "submission_request_body").read_text())
    damaged = "21" + vector["ring_hex"][2:]

    assert _run(tool, f"read {vector['ring_bytes']} {vector['start']} {damaged}\n") == "broken\n"
