"""Bundles on disk: found again, told apart, and never taken from somebody else."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.compiler import client
from sandboxd.compiler.cache import KEY_NAME, ArtefactCache, read_or_make_key
from sandboxd.compiler.client import CompileSettings, compile_module
from sandboxd.errors import ConfigError
from sandboxd.limits import MIB
from tests.support.compilers import MODULE, SETTINGS, no_compiler
from tests.support.modules import guest, host


def test_cache_answers_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same bundle; files are ours alone."""
    directory = tmp_path / "cache"
    first = compile_module(MODULE, SETTINGS, cache_directory=directory, host=host())
    monkeypatch.setattr(client, "run_compiler", no_compiler)

    assert compile_module(MODULE, SETTINGS, cache_directory=directory, host=host()).data == first.data
    (entry,) = directory.glob("*.sbxb")
    assert entry.stat().st_mode & 0o777 == 0o600
    assert (directory / KEY_NAME).stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "settings",
    [replace(SETTINGS, memory_bytes=2 * MIB), replace(SETTINGS, granted=frozenset({"proxy_log"}))],
)
def test_cache_knows_settings_apart(settings: CompileSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another limit or grant is another bundle."""
    compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host())
    monkeypatch.setattr(client, "run_compiler", no_compiler)

    with pytest.raises(AssertionError, match="the compiler was asked"):
        compile_module(MODULE, settings, cache_directory=tmp_path, host=host())


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "forged", "renamed"])
def test_altered_entries_are_refused_logged_and_made_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They never reach a worker."""
    bundle = compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host())
    (entry,) = tmp_path.glob("*.sbxb")
    content = bytearray(entry.read_bytes())
    if damage == "cut":
        del content[-10:]
    elif damage == "flip":
        content[5000] ^= 1
    elif damage == "empty":
        content.clear()
    elif damage == "forged":  # by somebody who may write there and does not have the key
        content = bytearray(_forged(entry.stem, bytes(content[32:])))
    elif damage == "renamed":
        compile_module(guest(), SETTINGS, cache_directory=tmp_path, host=host())
        (other_entry,) = set(tmp_path.glob("*.sbxb")) - {entry}
        content = bytearray(other_entry.read_bytes())
    else:  # with a good MAC and the wrong module in it: a bug of ours
        other = compile_module(guest(), SETTINGS, host=host())
        ArtefactCache(tmp_path).put(entry.stem, other.data)
        content = bytearray(entry.read_bytes())
    entry.write_bytes(content)
    caplog.clear()

    again = compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host())

    assert again.manifest == bundle.manifest
    assert ("was altered" in caplog.text) == (damage != "other")
    assert ArtefactCache(tmp_path).get(entry.stem) == again.data


def _forged(key: str, data: bytes) -> bytes:
    mac = hashlib.blake2b(key=b"a guess", digest_size=32, person=b"sandboxd bundle")
    mac.update(len(key).to_bytes(8, "little") + key.encode() + data)
    return mac.digest() + data


def test_cache_of_another_installation_is_not_taken_over(tmp_path: Path) -> None:
    """Its key is another one; and with the right key it is."""
    ArtefactCache(tmp_path, bytes(32)).put("a" * 64, b"data")

    assert ArtefactCache(tmp_path, bytes(32)).get("a" * 64) == b"data"
    assert ArtefactCache(tmp_path, b"1" * 32).get("a" * 64) is None
    assert ArtefactCache(tmp_path, bytes(32)).get("a" * 64) is None, "it was dropped"


@pytest.mark.parametrize(("damage", "text"), [("mode", "alone may read"), ("short", "must hold 32 bytes")])
def test_bad_key_file_is_an_operators_error(tmp_path: Path, damage: str, text: str) -> None:
    """A key that others could read authenticates nothing."""
    path = tmp_path / KEY_NAME
    key = read_or_make_key(path)
    assert len(key) == 32
    assert read_or_make_key(path) == key
    if damage == "mode":
        path.chmod(0o640)
    else:
        path.write_bytes(key[:31])

    with pytest.raises(ConfigError, match=text):
        read_or_make_key(path)


def test_cache_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Machine code from there would be anybody's."""
    tmp_path.chmod(0o777)

    with pytest.raises(ConfigError, match="writable by nobody else"):
        ArtefactCache(tmp_path)


def test_cache_directory_that_cannot_be_made_is_an_operators_error(tmp_path: Path) -> None:
    """With its path."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=str(tmp_path)):
        ArtefactCache(tmp_path / "file" / "cache")


def test_full_disk_keeps_nobody_from_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The bundle is there; it is compiled again next time."""

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ArtefactCache, "put", no_room)
    assert compile_module(MODULE, SETTINGS, cache_directory=tmp_path, host=host()).manifest.callbacks
    assert "cannot be kept: [Errno 28] No space left on device" in caplog.text


def test_half_written_entries_are_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves nothing behind."""
    cache = ArtefactCache(tmp_path)
    monkeypatch.setattr(Path, "replace", no_compiler)

    with pytest.raises(AssertionError):
        cache.put("a" * 64, b"data")
    assert [entry.name for entry in tmp_path.iterdir()] == [KEY_NAME]
