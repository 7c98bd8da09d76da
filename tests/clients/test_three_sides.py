"""
One channel, three programs: the C client, the Python client and hostcore.

They share no source: the two ends of a channel do not trust each other. What holds them together is here, beside the
golden vectors: any records are the same bytes for all three, bytes that are damaged are refused by all or by none, and
the numbers of docs/channel.md are the same everywhere.
"""

from __future__ import annotations

import ctypes as c
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd import limits
from sandboxd.channel import layout
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.ring import Consumer, Producer
from sandboxd.hostcore import build as hostcore_build
from tests.fuzz import build_native
from tests.support import c_client

pytestmark = pytest.mark.long

Record = tuple[int, int, int, int, int, bytes]
"""Kind, flags, stream, number of the event, argument, payload."""

RING = layout.MIN_RING_BYTES
BIG = 4 * RING
SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
KINDS = sorted({*layout.SUBMISSION_NAMES, *layout.COMPLETION_NAMES})


def some_record() -> st.SearchStrategy[Record]:
    return st.tuples(
        st.one_of(st.sampled_from(KINDS), st.integers(1, 0xFFFF)),
        st.one_of(st.integers(0, 63), st.integers(0, 0xFFFF)),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**64 - 1),
        st.one_of(st.binary(max_size=60), st.integers(0, RING // 4 - 32).map(lambda size: b"p" * size)),
    )


STARTS = st.one_of(
    st.integers(0, 40).map(lambda n: RING - 8 * n), st.integers(1, 40).map(lambda n: 2**32 - 8 * n),
    st.integers(0, 2**29 - 1).map(lambda n: 8 * n),
)  # fmt: skip
FEW = st.lists(some_record(), min_size=1, max_size=3)
DAMAGE = st.tuples(st.one_of(st.integers(0, 31), st.integers(0, 2**20)), st.integers(0, 255), st.integers(0, 4))
"""Where, the new byte, and how many times 8 bytes are missing at the end."""


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hostcore's reader and writer."""
    return build_native.build(tmp_path_factory.mktemp("sides"), build_native.GOLDEN_SOURCES, "golden")[0]


def by_python(start: int, records: Sequence[Record]) -> bytes:
    words = memoryview(bytearray(64)).cast("I")
    words[0] = words[1] = start
    ring = memoryview(bytearray(RING))
    producer = Producer(words, ring, 0, 1)
    for record in records:
        assert producer.put(*record)
    producer.publish()
    return unrolled(bytes(ring), start, (words[0] - start) & layout.COUNTER_MASK)


def by_client(shim: c.CDLL, start: int, records: Sequence[Record]) -> bytes:
    shared = c.create_string_buffer(layout.file_bytes(RING))
    c.c_uint32.from_buffer(shared, layout.OFFSET_SQ_HEAD).value = tail = start
    shim.shim_put.restype = c.c_long
    for kind, flags, stream, seq, arg, payload in records:
        tail = shim.shim_put(
            shared, RING, c.c_uint32(tail), kind, flags, c.c_uint64(stream), c.c_uint32(seq), c.c_uint64(arg), payload,
            len(payload),
        )  # fmt: skip
        assert tail >= 0
    return unrolled(shared.raw[layout.HEADER_BYTES :][:RING], start, (tail - start) & layout.COUNTER_MASK)


def by_hostcore(tool: Path, start: int, records: Sequence[Record]) -> bytes:
    lines = [f"{k} {f} {stream} {seq} {arg} {payload.hex() or '-'}\n" for k, f, stream, seq, arg, payload in records]
    return bytes.fromhex(run(tool, f"write {RING} {start}\n{''.join(lines)}").strip())


def run(tool: Path, text: str) -> str:
    done = subprocess.run([str(tool)], input=text, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def unrolled(ring: bytes, start: int, length: int) -> bytes:
    """The bytes from a position on, as if the ring had no end."""
    return (ring + ring)[start % RING :][:length]


def rolled(written: bytes, start: int) -> bytearray:
    ring = bytearray(RING)
    for index, byte in enumerate(written):
        ring[(start + index) % RING] = byte
    return ring


def read_by_python(start: int, written: bytes) -> list[Record] | None:
    """The records, None if the ring is broken."""
    words = memoryview(bytearray(64)).cast("I")
    words[0] = words[1] = start
    consumer = Consumer(words, memoryview(rolled(written, start)), 0, 1)
    words[0] = (start + len(written)) & layout.COUNTER_MASK
    try:
        return consumer.take()
    except ChannelBroken:
        return None


def read_by_client(shim: c.CDLL, start: int, written: bytes) -> list[Record] | None:
    shared = c.create_string_buffer(bytes(layout.HEADER_BYTES + RING) + bytes(rolled(written, start)))
    c.c_uint32.from_buffer(shared, layout.OFFSET_CQ_TAIL).value = (start + len(written)) & layout.COUNTER_MASK
    out = c.create_string_buffer(BIG)
    shim.shim_take.restype = c.c_long
    length = shim.shim_take(shared, RING, c.c_uint32(start), out, c.c_size_t(BIG))
    if length < 0:
        return None
    reader = c_client.Reader(out.raw[:length])
    records: list[Record] = []
    while reader.at < length:
        kind, flags, stream, seq, arg = (
            int.from_bytes(reader.data[reader.at + 8 * i :][:8], "little") for i in range(5)
        )
        reader.at += 40
        records.append((kind, flags, stream, seq, arg, reader.text()))
    return records


def read_by_hostcore(tool: Path, start: int, written: bytes) -> list[Record] | None:
    said = run(tool, f"read {RING} {start} {written.hex() or '-'}\n").splitlines()
    if said[-1:] == ["broken"]:
        return None
    records: list[Record] = []
    for line in said:
        *numbers, payload = line.split()
        kind, flags, stream, seq, arg = map(int, numbers)
        records.append((kind, flags, stream, seq, arg, b"" if payload == "-" else bytes.fromhex(payload)))
    return records


@SETTINGS
@given(STARTS, FEW)
def test_any_records_are_the_same_bytes(shim: c.CDLL, tool: Path, start: int, records: list[Record]) -> None:
    """Each one writes what the others write, and reads what the others wrote."""
    written = by_python(start, records)

    assert by_client(shim, start, records) == written
    assert by_hostcore(tool, start, records) == written
    assert read_by_python(start, written) == records
    assert read_by_client(shim, start, written) == records
    assert read_by_hostcore(tool, start, written) == records


@settings(SETTINGS, max_examples=100)
@given(STARTS, FEW, DAMAGE)
def test_damaged_bytes_are_refused_by_all_or_none(
    shim: c.CDLL, tool: Path, start: int, records: list[Record], damage: tuple[int, int, int]
) -> None:
    """A byte is another, and the end is missing: what one takes for records, all take for the same ones."""
    at, byte, cut = damage
    written = bytearray(by_python(start, records))
    written[at % len(written)] = byte
    damaged = bytes(written[: len(written) - 8 * cut])

    expected = read_by_python(start, damaged)
    assert read_by_client(shim, start, damaged) == expected
    assert read_by_hostcore(tool, start, damaged) == expected


# --- the numbers ----------------------------------------------------------------------------------

OFFSETS = (
    "MAGIC", "VERSION", "RING_BYTES", "SQ_TAIL", "SQ_HEAD", "CQ_TAIL", "CQ_HEAD", "VM_NEED_WAKE", "VM_WANTS_SPACE",
    "CLIENT_NEED_WAKE", "CLIENT_WANTS_SPACE", "VM_STATE", "VM_GENERATION",
)  # fmt: skip
LAST_OF_HTTP = layout.NOTE
"""Of completions: those behind it are of TCP connections, which the C client knows nothing of."""
CLIENT = {
    **{f"AT_{name}": getattr(layout, f"OFFSET_{name}") for name in OFFSETS},
    **{name: getattr(layout, name) for name in ("VM_STARTING", "VM_READY", "VM_FAILED", "VM_GONE", "STATES_ALL")},
    **{f"SBX_{name}": number for number, name in layout.COMPLETION_NAMES.items() if 1 < number <= LAST_OF_HTTP},
    **{f"SUBMIT_{name}": getattr(layout, name) for name in ("STREAM_OPEN", "ATTRIBUTES", "STREAM_CLOSE")},
    "CHANNEL_MAGIC": layout.MAGIC,
    "CHANNEL_VERSION": layout.VERSION,
    "PAGE_BYTES": layout.HEADER_BYTES,
    "MIN_RING_BYTES": layout.MIN_RING_BYTES,
    "MAX_RING_BYTES": layout.MAX_RING_BYTES,
    "COMPLETE_VERDICT": layout.VERDICT,
    "FLAG_MORE": layout.FLAG_MORE,
    "FLAG_RESET": layout.FLAG_RESET,
    "SBX_END_OF_STREAM": layout.FLAG_END_OF_STREAM,
    "SBX_MODIFIED": layout.FLAG_MODIFIED,
    "SBX_AS_SUBMITTED": layout.FLAG_AS_SUBMITTED,
    "SBX_PROPERTY_MISSING": layout.NOTE_PROPERTY_MISSING,
    "MAX_MISSED_BYTES": layout.MAX_MISSED_BYTES,
    "MAX_PAIRS_COUNT": limits.MAX_PAIRS_COUNT,
    "MAX_PAIRS_BYTES": limits.MAX_PAIRS_BYTES,
    "MAX_LOG_MESSAGE_BYTES": limits.MAX_LOG_MESSAGE_BYTES,
    "SBX_VERDICT_STREAM_OVER": layout.CODE_STREAM_OVER,
    "SBX_VERDICT_LIMIT": layout.CODE_LIMIT,
}
HOSTCORE = {
    **{f"SUBMIT_{name}": number for number, name in layout.SUBMISSION_NAMES.items()},
    **{
        f"COMPLETE_{name}": getattr(layout, name)
        for name in ("VERDICT", "LOCAL_RESPONSE", "PROPERTY_SET", "CLEAR_ROUTE_CACHE", "CLOSE_STREAM", "LOG", "DENIED")
    },
    **{f"COMPLETE_{name}": getattr(layout, name) for name in ("VM_STARTED", "LOGS_DROPPED", "NOTE", "DOWNSTREAM_DATA")},
    "COMPLETE_HEADERS": layout.REQUEST_HEADERS,
    "COMPLETE_BODY": layout.REQUEST_BODY,
    "COMPLETE_TRAILERS": layout.REQUEST_TRAILERS,
    "RESPONSE_KINDS": layout.RESPONSE_BODY - layout.REQUEST_BODY,
    "RECORD_MORE": layout.FLAG_MORE,
    "RECORD_END_OF_STREAM": layout.FLAG_END_OF_STREAM,
    "RECORD_MODIFIED": layout.FLAG_MODIFIED,
    "RECORD_AS_SUBMITTED": layout.FLAG_AS_SUBMITTED,
    "RECORD_TRUNCATED": layout.FLAG_TRUNCATED,
    "RECORD_RESET": layout.FLAG_RESET,
    "VERDICT_OK": layout.CODE_OK,
    "VERDICT_UNKNOWN_STREAM": layout.CODE_UNKNOWN_STREAM,
    "VERDICT_OUT_OF_ORDER": layout.CODE_OUT_OF_ORDER,
    "VERDICT_LIMIT": layout.CODE_LIMIT,
    "VERDICT_STREAM_OVER": layout.CODE_STREAM_OVER,
    "NOTE_PROPERTY_MISSING": layout.NOTE_PROPERTY_MISSING,
    "MAX_PAIRS_COUNT": limits.MAX_PAIRS_COUNT,
    "MAX_PAIRS_BYTES": limits.MAX_PAIRS_BYTES,
}


def values(directory: Path, flags: Sequence[str], header: str, names: Sequence[str]) -> dict[str, int]:
    """What a C compiler makes of names."""
    source = directory / "values.c"
    lines = "".join(f'    printf("{name} %llu\\n", (unsigned long long)({name}));\n' for name in names)
    source.write_text(f'#include <stdio.h>\n#include "{header}"\nint main(void)\n{{\n{lines}    return 0;\n}}\n')
    _, command = c_client.compiler()
    target = directory / "values"
    made = subprocess.run(
        [*command, "-std=c11", "-D_GNU_SOURCE", *flags, "-o", str(target), str(source)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    said = subprocess.run([str(target)], capture_output=True, text=True, timeout=10, check=True).stdout
    return {name: int(value) for name, value in (line.split() for line in said.splitlines())}


def test_the_c_client_has_the_documents_numbers(tmp_path: Path) -> None:
    assert values(tmp_path, ["-I", str(c_client.SOURCES)], "internal.h", list(CLIENT)) == CLIENT


def test_hostcore_has_the_documents_numbers(tmp_path: Path) -> None:
    flags = ["-DSANDBOXD_NATIVE", "-I", str(hostcore_build.SOURCE_DIR)]
    assert values(tmp_path, flags, "hostcore.h", list(HOSTCORE)) == HOSTCORE
