"""What the commands to a running daemon ask it for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandboxd.cli import main
from sandboxd.protos import admin_pb2 as admin
from sandboxd.supervisor import admin as admin_socket

C = admin.AdminCommand


ANSWERS: dict[str, dict[str, Any]] = {
    "METRICS": {"families": []},
    "CRASHES": {"entries": []},
    "RELOAD": {"results": {}},
    "RESTART": {"results": {}},
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["metrics", "--json"], ("METRICS", "", "")),
        (["metrics", "--json", "acme"], ("METRICS", "acme", "")),
        (["crashes", "--json"], ("CRASHES", "", "")),
        (["crashes", "--json", "acme/main"], ("CRASHES", "acme", "main")),
        (["reload", "--json"], ("RELOAD", "", "")),
        (["restart", "--json", "acme/main"], ("RESTART", "acme", "main")),
    ],
)
def test_what_is_asked(
    arguments: list[str],
    expected: tuple[str, str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the daemon with this runtime directory; its answer is printed."""
    asked = []

    def call(path: Path, request: admin.AdminRequest, timeout_s: float) -> dict[str, Any]:
        asked.append((path, C.Name(request.command), request.tenant, request.plugin))
        assert timeout_s >= 10
        return ANSWERS[expected[0]]

    monkeypatch.setattr(admin_socket, "call", call)

    assert main([*arguments, "--runtime-directory", str(tmp_path)]) == 0
    name, tenant, plugin = expected
    assert asked == [(tmp_path / "admin.sock", f"ADMIN_COMMAND_{name}", tenant, plugin)]
    assert json.loads(capsys.readouterr().out) == ANSWERS[name]


@pytest.mark.parametrize("name", ["", "acme/", "/main", "a/b/c"])
@pytest.mark.parametrize("command", ["restart", "metrics", "crashes"])
def test_what_names_no_plugin_is_asked_for_nowhere(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above all, an empty name does not restart everybody."""
    monkeypatch.setattr(admin_socket, "call", lambda *_: pytest.fail("the daemon was asked"))

    assert main([command, name, "--runtime-directory", str(tmp_path)]) == 2
    assert "is not TENANT or TENANT/PLUGIN" in capsys.readouterr().err
