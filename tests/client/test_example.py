"""The example of the documentation runs as it is written there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import guests

ROOT = Path(__file__).resolve().parents[2]


def test_the_web_app(attach_socket: Path) -> None:
    command = [
        sys.executable,
        "docs/client_example.py",
        str(attach_socket),
        "acme",
        guests.C_ADD_HEADER.name,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith("200 ")
    assert "b'x-wasm-processed': b'Yes'" in first
    assert "x-wasm-processed: Yes" in rest
    assert "authorization: secret" in rest


def test_the_other_program(attach_socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL)
    (program,) = (block for block in blocks if "client.connect(" in block)
    program = program.replace("/run/sandboxd/attach.sock", str(attach_socket)).replace(
        '"headers"', f'"{guests.C_ADD_HEADER.name}"'
    )
    exec(compile(program, "docs/client.md", "exec"), {})
    assert "(b'x-wasm-processed', b'Yes')" in capsys.readouterr().out
