"""The configuration blob, and that its numbers are hostcore's."""

from __future__ import annotations

import re
import struct

import pytest

from sandboxd.errors import InternalError
from sandboxd.hostcore import build
from sandboxd.vm import config_blob, traps
from sandboxd.vm.abi import AbiVersion
from sandboxd.vm.config_blob import CALLBACK_NAMES, Flag, Tag, VmConfig, VmLimits, encode, entries, refresh

LIMITS = VmLimits(*range(101, 111))
CONFIG = VmConfig(
    plugin_name="p",
    root_id="root",
    vm_id="vm",
    abi=AbiVersion.V0_2_0,
    callbacks=frozenset({"proxy_on_log", "proxy_on_delete", "proxy_on_tick"}),
    limits=LIMITS,
    ring_bytes=65536,
    flags=Flag.LENIENT_MAPS,
    log_level=3,
    plugin_configuration=b"secret",
    environment=(("K", "V"),),
    denied_properties=(("source", "address"),),
    upstreams=("auth",),
)


def test_encode() -> None:
    """Every entry, as the document has it."""
    found = dict(entries(encode(CONFIG, entropy=bytes(32), start_time_ns=7)))

    assert found[Tag.PLUGIN_NAME] == b"p"
    assert found[Tag.ROOT_ID] == b"root"
    assert found[Tag.VM_ID] == b"vm"
    assert found[Tag.VM_CONFIGURATION] == b""
    assert found[Tag.PLUGIN_CONFIGURATION] == b"secret"
    assert found[Tag.ENVIRONMENT] == struct.pack("<III", 1, 1, 1) + b"K\0V\0"
    defaults = (1, 64, 1 << 20, 65_520, 1024)
    assert struct.unpack("<15Q", found[Tag.LIMITS]) == (*range(101, 111), *defaults)
    assert struct.unpack("<Q", found[Tag.FLAGS]) == (2 | 3 << 8,)
    assert found[Tag.DENIED_PROPERTIES] == struct.pack("<III", 1, 14, 0) + b"source\0address\0\0"
    assert struct.unpack("<Q", found[Tag.CALLBACKS]) == (1 << 13 | 1 << 14 | 1 << 15,)
    assert struct.unpack("<I", found[Tag.ABI]) == (2,)
    assert struct.unpack("<I", found[Tag.GENERATION]) == (1,)
    assert struct.unpack("<I", found[Tag.RING_BYTES]) == (65536,)
    assert found[Tag.UPSTREAMS] == struct.pack("<III", 1, 4, 0) + b"auth\0\0"
    assert sorted(found) == sorted(set(Tag) - {Tag.SHARED})


def test_refresh_changes_three_entries() -> None:
    """What a restart needs new, and nothing else."""
    before = encode(CONFIG, entropy=bytes(32), start_time_ns=7)

    after = refresh(before, entropy=b"e" * 32, start_time_ns=9, generation=4)

    old, new = dict(entries(before)), dict(entries(after))
    assert {tag for tag in old if old[tag] != new[tag]} == {Tag.ENTROPY, Tag.START_TIME_NS, Tag.GENERATION}
    assert struct.unpack("<I", new[Tag.GENERATION]) == (4,)


def test_secrets_stay_out_of_repr() -> None:
    """A configuration in a log line or traceback shows neither configuration nor environment."""
    assert "secret" not in repr(CONFIG)
    assert "'K'" not in repr(CONFIG)


@pytest.mark.parametrize("blob", [b"\1", bytes(7), struct.pack("<II", 1, 9) + bytes(8)])
def test_malformed_blobs_are_bugs_of_ours(blob: bytes) -> None:
    """The text says where."""
    with pytest.raises(InternalError, match="byte 0"):
        list(entries(blob))


def enum_of(name: str) -> dict[str, int]:
    """Return an enumeration of contract.h."""
    text = (build.SOURCE_DIR / "contract.h").read_text()
    found = re.search(rf"enum {name} {{(.*?)}};", text, re.DOTALL)
    assert found is not None
    return {key: int(value) for key, value in re.findall(r"(\w+) = (\d+)", found[1])}


def test_callback_numbers_are_hostcores() -> None:
    """By name and number."""
    theirs = enum_of("callback")
    special = {"_initialize": "INITIALIZE", "proxy_on_memory_allocate": "ALLOC"}

    assert theirs == {"CALLBACK_NONE": 0} | {
        f"CALLBACK_{special.get(name, name.removeprefix('proxy_on_').upper())}": number
        for number, name in CALLBACK_NAMES.items()
    }


def test_flags_and_violations_are_hostcores() -> None:
    """A violation that hostcore can raise has a cause and a text here."""
    flags = enum_of("config_flag")
    violations = enum_of("violation")

    assert flags["FLAG_HEADERS_STOP_ITERATION"] == config_blob.Flag.ALLOW_ON_HEADERS_STOP_ITERATION
    assert flags["FLAG_LENIENT_MAPS"] == config_blob.Flag.LENIENT_MAPS
    assert flags["FLAG_LIVE_CLOCK"] == config_blob.Flag.LIVE_CLOCK
    assert set(violations.values()) == {0, *traps.VIOLATIONS}


def test_refresh_places_the_vm_in_the_shared_region() -> None:
    """Added, replaced, and taken away again."""
    blob = encode(CONFIG, entropy=bytes(32), start_time_ns=7)
    fresh = {"entropy": bytes(32), "start_time_ns": 7, "generation": 1}

    first = refresh(blob, **fresh, shared=(65536, 3))
    second = refresh(first, **fresh, shared=(65536, 4))

    assert dict(entries(first))[Tag.SHARED] == struct.pack("<II", 65536, 3)
    assert dict(entries(second))[Tag.SHARED] == struct.pack("<II", 65536, 4)
    assert refresh(second, **fresh) == blob
