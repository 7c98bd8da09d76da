"""``wasi`` of a plugin: nothing by default, and clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd import limits
from sandboxd.errors import PolicyError
from sandboxd.policy import capabilities as caps
from sandboxd.policy import capability_names
from sandboxd.policy.folders import Access, FolderPolicy
from sandboxd.policy.load import parse_policy
from sandboxd.policy.model import PluginPolicy

HEAD = "tenant: a\nplugins:\n  - name: p\n    module: {file: m, sha256: " + "0" * 64 + "}\n"


def plugin(more: str) -> PluginPolicy:
    """Read a policy with one plugin."""
    return parse_policy(HEAD + f"    {more}\n", "/etc/policies/a.yaml", module_root=None).plugins[0]


def test_nothing_by_default() -> None:
    """No folder, and no function to use one with."""
    found = plugin("root_id: x")

    assert found.wasi.folders == ()
    assert found.capabilities == caps.PRESETS["minimal"]
    assert not found.capabilities & (capability_names.FILE_FUNCTIONS - capability_names.WASI_BASICS)
    assert not caps.PRESETS["standard"] & (capability_names.FILE_FUNCTIONS - capability_names.WASI_BASICS)


def test_folders() -> None:
    """To read unless it says otherwise; paths are relative to the policy's folder; they grant what they need."""
    found = plugin(
        "wasi: {open_files: 7, folders: {/rules: {path: rules}, "
        "/data/out: {path: /srv/out, access: write, bytes: 2MiB, files: 3}}}"
    )

    assert found.wasi.open_files == 7
    assert found.wasi.folders == (
        FolderPolicy("/rules", Path("/etc/policies/rules"), Access.READ, limits.DEFAULT_FOLDER_BYTES, 100),
        FolderPolicy("/data/out", Path("/srv/out"), Access.WRITE, 2 << 20, 3),
    )
    assert found.capabilities == caps.PRESETS["minimal"] | capability_names.FILE_FUNCTIONS
    assert "path_symlink" not in found.capabilities


def test_a_denial_stays_one() -> None:
    """By name; and names alone that are allowed come beside what the folders need."""
    folders = "    wasi: {folders: {/r: {path: r}}}"
    denied = plugin(f"capabilities: {{preset: standard, deny: [path_unlink_file]}}\n{folders}")
    assert "path_unlink_file" not in denied.capabilities
    assert "path_open" in denied.capabilities
    none = plugin(f"capabilities: {{preset: none}}\n{folders}")
    assert none.capabilities == capability_names.FILE_FUNCTIONS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{folder: {}}", "wasi.folder"),
        ("{open_files: 0}", "open_files"),
        ("{open_files: 241}", "open_files"),
        ("{folders: {rules: {path: x}}}", "not a name of a folder"),
        ("{folders: {/../x: {path: x}}}", "not a name of a folder"),
        ("{folders: {/a//b: {path: x}}}", "not a name of a folder"),
        ("{folders: {/" + "n" * 128 + ": {path: x}}}", "not a name of a folder"),
        ("{folders: {/r: {}}}", "path"),
        ("{folders: {/r: {path: x, access: execute}}}", "read, write"),
        ("{folders: {/r: {path: x, bytes: 17MiB}}}", "bytes"),
        ("{folders: {/r: {path: x, files: 10001}}}", "files"),
        ("{folders: {/a: {path: x, bytes: 9MiB}, /b: {path: y, bytes: 9MiB}}}", "in all"),
        ("{folders: {/a: {path: x, access: write}, /b: {path: x}}}", "twice"),
        ("{folders: {" + ", ".join(f"/{n}: {{path: x{n}}}" for n in range(17)) + "}}", "at most 16"),
    ],
)
def test_errors_name_the_place(text: str, says: str) -> None:
    """File, line and key, and what is allowed."""
    with pytest.raises(PolicyError) as caught:
        plugin(f"wasi: {text}")
    assert says in str(caught.value)
    assert "/etc/policies/a.yaml:5" in str(caught.value)
