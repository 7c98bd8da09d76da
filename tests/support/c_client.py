"""libsandboxd from Python, for tests: its public functions through ctypes, and its insides through the shim."""

from __future__ import annotations

import ctypes as c
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sandboxd.channel.memfd import ChannelFds

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "clients" / "c"
FLAGS = (
    "-std=c11", "-D_GNU_SOURCE", "-DSBX_BUILD", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow", "-Werror",
)  # fmt: skip
NAMES = (
    "OK", "AGAIN", "TIMEOUT", "DOWN", "BROKEN", "DETACHED", "DRAIN", "FULL", "LIMIT", "REFUSED", "INVALID",
    "NO_MEMORY", "SYSTEM", "PROTOCOL",
)  # fmt: skip


def client_sources() -> list[str]:
    return sorted(str(path) for path in SOURCES.glob("*.c") if path.name != "bench_rtt.c")


def compiler() -> tuple[str, tuple[str, ...]]:
    """The compiler's name and command; the machine's own if there is one, else ziglang's."""
    for name in ("gcc", "clang", "cc"):
        if (path := shutil.which(name)) is not None:
            return name, (path,)
    return "ziglang", (sys.executable, "-m", "ziglang", "cc")


def sanitizers(directory: Path) -> tuple[str, ...]:
    """Flags of the best sanitizers that this machine's compiler can link."""
    name, command = compiler()
    probe = directory / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    full = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    made = subprocess.run(
        [*command, *full, "-o", str(directory / "probe"), str(probe)], capture_output=True, check=False
    )
    if made.returncode == 0 and name != "ziglang":
        return full
    return ("-fsanitize=undefined", "-fsanitize-trap=all")


def compile_to(target: Path, sources: Sequence[str], flags: Sequence[str]) -> Path:
    _, command = compiler()
    made = subprocess.run(
        [*command, *FLAGS, *flags, "-I", str(SOURCES), "-o", str(target), *sources, *client_sources()],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return target


class Bytes(c.Structure):
    _fields_ = [("data", c.c_void_p), ("len", c.c_size_t)]

    def get(self) -> bytes:
        return c.string_at(self.data, self.len) if self.len and self.data else b""


class Pair(c.Structure):
    _fields_ = [("name", Bytes), ("value", Bytes)]


class Refusal(c.Structure):
    _fields_ = [("reason", c.c_uint32), ("name", Bytes)]


class Set(c.Structure):
    _fields_ = [("name", Bytes), ("values", c.POINTER(Bytes)), ("count", c.c_size_t)]


class Changes(c.Structure):
    _fields_ = [
        ("removed", c.POINTER(Bytes)), ("removed_count", c.c_size_t),
        ("set", c.POINTER(Set)), ("set_count", c.c_size_t),
        ("added", c.POINTER(Pair)), ("added_count", c.c_size_t),
    ]  # fmt: skip


class Local(c.Structure):
    _fields_ = [
        ("status", c.c_uint32), ("grpc_status", c.c_int32), ("already_begun", c.c_bool), ("details", Bytes),
        ("headers", c.POINTER(Pair)), ("header_count", c.c_size_t), ("body", Bytes),
    ]  # fmt: skip


class Effect(c.Structure):
    _fields_ = [
        ("kind", c.c_uint32), ("flags", c.c_uint32), ("refused", c.c_uint32), ("stream_id", c.c_uint64),
        ("arg", c.c_uint64), ("data", Bytes), ("changes", c.POINTER(Changes)), ("local", c.POINTER(Local)),
        ("property", Pair),
    ]  # fmt: skip


class Notice(c.Structure):
    _fields_ = [
        ("kind", c.c_uint32), ("flags", c.c_uint32), ("stream_id", c.c_uint64), ("arg", c.c_uint64), ("data", Bytes)
    ]  # fmt: skip


class Verdict(c.Structure):
    _fields_ = [
        ("code", c.c_uint32), ("state", c.c_uint32),
        ("effects", c.POINTER(Effect)), ("effect_count", c.c_size_t),
        ("notices", c.POINTER(Notice)), ("notice_count", c.c_size_t),
        ("refusals", c.POINTER(Refusal)), ("refusal_count", c.c_size_t),
    ]  # fmt: skip


class Error(c.Structure):
    _fields_ = [("status", c.c_int), ("code", c.c_int), ("sys_errno", c.c_int), ("text", c.c_char * 256)]


class Descriptors(c.Structure):
    _fields_ = [
        ("memfd", c.c_int), ("vm_event_fd", c.c_int), ("client_event_fd", c.c_int), ("socket", c.c_int),
        ("ring_bytes", c.c_uint32), ("max_backlog_bytes", c.c_uint64), ("spin_ns", c.c_uint64),
    ]  # fmt: skip


class AttachOptions(c.Structure):
    _fields_ = [
        ("socket_path", c.c_char_p), ("tenant", c.c_char_p), ("plugin", c.c_char_p), ("daemon_uid", c.c_uint32),
        ("max_backlog_bytes", c.c_uint64),
    ]  # fmt: skip


class Failure(c.Structure):
    _fields_ = [("action", c.c_uint32), ("status", c.c_uint32), ("details", c.c_char_p)]


ChangeLists = tuple[list[bytes], list[tuple[bytes, list[bytes]]], list[tuple[bytes, bytes]]]

NOTICE_HOOK = c.CFUNCTYPE(None, c.c_void_p, c.POINTER(Notice))
LATE_HOOK = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.POINTER(Effect))


class Hooks(c.Structure):
    _fields_ = [("user", c.c_void_p), ("notice", NOTICE_HOOK), ("late", LATE_HOOK)]


def bytes_of(data: bytes) -> Bytes:
    return Bytes(c.cast(c.c_char_p(data), c.c_void_p), len(data))


def pairs_of(pairs: Sequence[tuple[bytes, bytes]]) -> Any:
    made = (Pair * len(pairs))(*(Pair(bytes_of(name), bytes_of(value)) for name, value in pairs))
    made.keep = pairs  # type: ignore[attr-defined]  # the strings live as long as the array
    return made


def load(path: Path) -> c.CDLL:
    """The library with the types of what the tests call."""
    lib = c.CDLL(str(path))
    pointer, size, number, flag = c.c_void_p, c.c_size_t, c.c_uint64, c.c_bool
    types: dict[str, tuple[Any, list[Any]]] = {
        "sbx_policy_load": (c.c_int, [c.c_char_p, size, c.POINTER(pointer), c.POINTER(Error)]),
        "sbx_policy_release": (None, [pointer]),
        "sbx_policy_needs": (c.c_uint32, [pointer]),
        "sbx_policy_import": (Bytes, [pointer, number]),
        "sbx_policy_tenant": (Bytes, [pointer]),
        "sbx_policy_property_visible": (flag, [pointer, c.c_char_p, size]),
        "sbx_failure_decide": (Failure, [pointer, c.c_int, c.c_int, flag]),
        "sbx_channel_open": (c.c_int, [c.POINTER(Descriptors), pointer, c.POINTER(pointer), c.POINTER(Error)]),
        "sbx_channel_close": (None, [pointer]),
        "sbx_channel_hooks": (None, [pointer, c.POINTER(Hooks)]),
        "sbx_channel_reason": (c.c_char_p, [pointer]),
        "sbx_channel_generation": (c.c_uint32, [pointer]),
        "sbx_channel_down_cause": (c.c_uint32, [pointer]),
        "sbx_channel_policy": (pointer, [pointer]),
        "sbx_channel_fd": (c.c_int, [pointer]),
        "sbx_channel_socket": (c.c_int, [pointer]),
        "sbx_channel_check": (c.c_int, [pointer, c.POINTER(Error)]),
        "sbx_ready": (flag, [pointer]),
        "sbx_stream_open": (c.c_int, [pointer, pointer, size, number, pointer, c.POINTER(pointer)]),
        "sbx_stream_attributes": (c.c_int, [pointer, pointer, size, number]),
        "sbx_stream_close": (None, [pointer, flag, number]),
        "sbx_stream_id": (number, [pointer]),
        "sbx_stream_lost": (flag, [pointer]),
        "sbx_stream_count": (size, [pointer]),
        "sbx_submit_headers": (
            c.c_int, [pointer, c.c_int, pointer, size, flag, number, pointer, c.POINTER(pointer)]
        ),
        "sbx_submit_body": (
            c.c_int, [pointer, c.c_int, pointer, size, flag, number, pointer, c.POINTER(pointer)]
        ),
        "sbx_submit_nothing": (c.c_int, [pointer, c.c_int, flag, number, pointer, c.POINTER(pointer)]),
        "sbx_spin": (c.c_int, [pointer]),
        "sbx_wait": (c.c_int, [pointer, number]),
        "sbx_next": (c.c_int, [pointer, c.POINTER(pointer)]),
        "sbx_arm": (c.c_int, [pointer]),
        "sbx_arm_edge": (c.c_int, [pointer]),
        "sbx_channel_set_batch": (None, [pointer, c.c_uint32]),
        "sbx_call": (None, [pointer]),
        "sbx_next_deadline_ns": (number, [pointer]),
        "sbx_event_status": (c.c_int, [pointer]),
        "sbx_event_verdict": (c.POINTER(Verdict), [pointer]),
        "sbx_event_free": (None, [pointer]),
        "sbx_attach": (c.c_int, [c.POINTER(AttachOptions), number, c.POINTER(pointer), c.POINTER(Error)]),
        "sbx_attach_begin": (c.c_int, [c.POINTER(AttachOptions), c.POINTER(pointer), c.POINTER(Error)]),
        "sbx_attach_step": (c.c_int, [pointer, c.POINTER(pointer), c.POINTER(Error)]),
        "sbx_attachment_fd": (c.c_int, [pointer]),
        "sbx_attachment_policy": (pointer, [pointer]),
        "sbx_attachment_reason": (c.c_char_p, [pointer]),
        "sbx_attach_cancel": (None, [pointer]),
        "sbx_reason_name": (c.c_char_p, [c.c_uint32]),
        "sbx_status_name": (c.c_char_p, [c.c_int]),
    }  # fmt: skip
    for name, (result, arguments) in types.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def policy(lib: c.CDLL, blob: bytes) -> c.c_void_p:
    """A loaded policy; the caller releases it."""
    made, error = c.c_void_p(), Error()
    status = lib.sbx_policy_load(blob, len(blob), c.byref(made), c.byref(error))
    assert status == 0, error.text
    return made


class CChannel:
    """A channel of the library over descriptors that stay the caller's."""

    def __init__(self, lib: c.CDLL, fds: ChannelFds, blob: bytes, spin_ns: int = 50_000) -> None:
        self.lib = lib
        self.notices: list[tuple[int, int, int, bytes]] = []
        self.late: list[tuple[int, int, int, bytes]] = []
        self.late_refused: list[int] = []
        self.late_changes: list[ChangeLists] = []
        loaded = policy(lib, blob)
        given = Descriptors(
            os.dup(fds.memfd), os.dup(fds.vm_event_fd), os.dup(fds.client_event_fd), -1, fds.ring_bytes, 0, spin_ns
        )  # fmt: skip
        self.handle, error = c.c_void_p(), Error()
        status = lib.sbx_channel_open(c.byref(given), loaded, c.byref(self.handle), c.byref(error))
        lib.sbx_policy_release(loaded)
        assert status == 0, error.text
        self._hooks = Hooks(None, NOTICE_HOOK(self._notice), LATE_HOOK(self._late))
        lib.sbx_channel_hooks(self.handle, c.byref(self._hooks))

    def _notice(self, _user: Any, notice: Any) -> None:
        told = notice.contents
        self.notices.append((told.kind, told.stream_id, told.arg, told.data.get()))

    def _late(self, _user: Any, _stream: Any, effect: Any) -> None:
        told = effect.contents
        self.late.append((told.kind, told.flags, told.stream_id, told.data.get()))
        self.late_refused.append(told.refused)
        if told.changes:
            self.late_changes.append(changes_of(told.changes.contents))

    @property
    def reason(self) -> str:
        return str(self.lib.sbx_channel_reason(self.handle).decode())

    def open(self, attributes: Sequence[tuple[bytes, bytes]] = ()) -> c.c_void_p:
        stream = c.c_void_p()
        given = pairs_of(list(attributes))
        status = self.lib.sbx_stream_open(self.handle, given, len(attributes), 1, None, c.byref(stream))
        assert status == 0, NAMES[status]
        return stream

    def headers(
        self, stream: c.c_void_p, kind: int, headers: Sequence[tuple[bytes, bytes]], end: bool = False
    ) -> c.c_void_p:
        event = c.c_void_p()
        given = pairs_of(list(headers))
        status = self.lib.sbx_submit_headers(stream, kind, given, len(headers), end, 2, None, c.byref(event))
        assert status == 0, NAMES[status]
        return event

    def body(self, stream: c.c_void_p, kind: int, pieces: Sequence[bytes], end: bool = False) -> c.c_void_p:
        event = c.c_void_p()
        given = (Bytes * len(pieces))(*map(bytes_of, pieces))
        status = self.lib.sbx_submit_body(stream, kind, given, len(pieces), end, 3, None, c.byref(event))
        assert status == 0, NAMES[status]
        return event

    def wait(self, event: c.c_void_p, timeout_ns: int = 5_000_000_000) -> Verdict:
        """The verdict; it dies with the event."""
        status = self.lib.sbx_wait(event, timeout_ns)
        assert status == 0, f"{NAMES[status]}: {self.reason}"
        found: Verdict = self.lib.sbx_event_verdict(event).contents
        return found

    def close(self) -> None:
        self.lib.sbx_channel_close(self.handle)


def changes_of(changes: Changes) -> ChangeLists:
    """Removed names, set names with their values, added entries."""
    sets = [changes.set[i] for i in range(changes.set_count)]
    return (
        [changes.removed[i].get() for i in range(changes.removed_count)],
        [(one.name.get(), [one.values[n].get() for n in range(one.count)]) for one in sets],
        [(changes.added[i].name.get(), changes.added[i].value.get()) for i in range(changes.added_count)],
    )


def effects_of(verdict: Verdict) -> list[Effect]:
    return [verdict.effects[i] for i in range(verdict.effect_count)]


def refusals_of(verdict: Verdict) -> list[tuple[int, bytes]]:
    return [(verdict.refusals[i].reason, verdict.refusals[i].name.get()) for i in range(verdict.refusal_count)]


class Reader:
    """Reads what the shim wrote."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self) -> int:
        self.at += 4
        return int(struct.unpack_from("<I", self.data, self.at - 4)[0])

    def text(self) -> bytes:
        length = self.number()
        self.at += length
        return self.data[self.at - length : self.at]

    def texts(self) -> list[bytes]:
        return [self.text() for _ in range(self.number())]

    def numbers(self) -> Iterator[int]:
        yield from range(self.number())
