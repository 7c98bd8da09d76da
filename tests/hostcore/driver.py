"""
Drives hostcore, linked to a guest in this process, through its channel: events in, effects and verdicts out.

The client here is small and knows only the record layout, so that these tests judge hostcore and not the real
client.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

from wasmtime import Module, wat2wasm

from sandboxd.channel import memfd, pairs
from sandboxd.hostcore import build as hostcore_build
from sandboxd.vm import abi
from sandboxd.vm.artefacts import write_bundle
from sandboxd.vm.config_blob import CALLBACK_NUMBERS, Flag, VmConfig, VmLimits, encode, refresh
from sandboxd.vm.engine import new_engine
from sandboxd.vm.hostcore_answers import POLL_INBOX, POLL_OUTBOX, Delivered, VmStatus
from sandboxd.vm.hostcore_answers import POLL_SLEEP as SLEEP
from sandboxd.vm.instance import SharedRegion, Vm
from sandboxd.vm.link import plan
from sandboxd.vm.link_modules import adapter_wat, fixup_wat, trampolines_wat
from sandboxd.vm.messages import Delivery, Request, decode_request
from sandboxd.vm.plugin import load_plugin
from sandboxd.vm.wasm_binary import parse
from sandboxd.vm.wasm_rewrite import rewrite

RING_BYTES: Final = 65536
GUEST_BYTES: Final = 64 << 20
HEADER: Final = struct.Struct("<IHHQIIQ")
START_NS: Final = 1_700_000_000_000_000_000

MORE, END, MODIFIED, AS_SUBMITTED, TRUNCATED, RESET = 1, 2, 4, 8, 16, 32
OPEN, REQUEST_HEADERS, REQUEST_BODY, REQUEST_TRAILERS = 1, 2, 3, 4
RESPONSE_HEADERS, RESPONSE_BODY, RESPONSE_TRAILERS = 5, 6, 7
ATTRIBUTES, CLOSE, SHUTDOWN = 8, 9, 10
VERDICT, LOCAL_RESPONSE, PROPERTY_SET, CLEAR_ROUTE_CACHE, CLOSE_STREAM = 1, 8, 9, 10, 11
LOG, DENIED, VM_STARTED, LOGS_DROPPED, NOTE = 12, 13, 14, 15, 16
PROPERTY_MISSING = 8
OK, UNKNOWN_STREAM, OUT_OF_ORDER, LIMIT, STREAM_OVER = range(5)

LIMITS: Final = VmLimits(
    heap_bytes=32 << 20,
    body_buffer_bytes=1 << 20,
    open_streams=100,
    log_message_bytes=8192,
    log_bytes_per_event=1 << 20,
    log_lines_per_event=10_000,
    metrics=100,
    host_calls_per_event=0,
    local_response_bytes=1 << 20,
    property_bytes=65536,
)


@dataclass(frozen=True)
class Record:
    """One completion, its fragments joined."""

    kind: int
    flags: int
    stream_id: int
    seq: int
    arg: int
    payload: bytes

    @property
    def pairs(self) -> list[tuple[bytes, bytes]]:
        """The payload as a map."""
        return list(pairs.decode(self.payload))


@dataclass
class Outcome:
    """What one event brought."""

    code: int
    state: int
    effects: list[Record]
    logs: list[Record] = field(default_factory=list)
    notes: list[int] = field(default_factory=list)
    missed: list[bytes] = field(default_factory=list)
    """Paths of the notes of missing properties."""

    @property
    def kinds(self) -> list[int]:
        """Kinds of the effects, in order."""
        return [effect.kind for effect in self.effects]

    @property
    def reports(self) -> list[bytes]:
        """What the guest reported of its calls: status byte and data."""
        return [log.payload for log in self.logs if log.arg == 0]

    def one(self, kind: int) -> Record:
        """The only effect of a kind."""
        (found,) = [effect for effect in self.effects if effect.kind == kind]
        return found


@cache
def hostcore_code() -> bytes:
    """hostcore as the package builds it."""
    return hostcore_build.build().read_bytes()


@cache
def _engine() -> Any:
    return new_engine()


@cache
def _compiled(name: str, code: bytes) -> bytes:
    """One module as machine code. hostcore is the large one, and always the same."""
    return bytes(Module(_engine(), code).serialize())


@cache
def _bundle(code: bytes, granted: frozenset[str]) -> bytes:
    module = parse(code)
    link = plan(module, granted, GUEST_BYTES, parse(hostcore_code()).functions())
    texts = {
        "trampolines": trampolines_wat(link),
        "adapter": adapter_wat(link),
        "fixup": fixup_wat(link),
        "membrane": (hostcore_build.SOURCE_DIR / "membrane.wat").read_text(),
    }
    codes = {"hostcore": hostcore_code(), "guest": rewrite(module, link.memory_pages[1])}
    codes |= {name: bytes(wat2wasm(text)) for name, text in texts.items()}
    return write_bundle(
        link,
        module_sha256=hashlib.sha256(code).hexdigest(),
        engine="tests",
        settings=hashlib.sha256(b"").hexdigest(),
        blobs={name: _compiled(name, code) for name, code in codes.items()},
    )


ALL_NAMES: Final = frozenset(CALLBACK_NUMBERS) | frozenset(
    name for names in abi.IMPORT_MODULES.values() for name in names
)


class Driver:
    """
    One VM and its channel.

    Args:
        module: the guest, as WebAssembly or as text.
        denied: capability names that are not granted.
        limits: fields of `VmLimits` that differ from `LIMITS`.
        shared: the tenant's shared region.
        ask: answers for shared data that is kept elsewhere.
        config: fields of `VmConfig` that differ.
    """

    def __init__(
        self,
        module: bytes | str,
        *,
        denied: Iterable[str] = (),
        limits: dict[str, int] | None = None,
        generation: int = 1,
        channel: memfd.ChannelFds | None = None,
        start: bool = True,
        ring_bytes: int = RING_BYTES,
        entropy: bytes = b"entropy of the tests, 32 bytes..",
        shared: SharedRegion | None = None,
        ask: Callable[[bytes], bytes] = lambda _question: b"",
        **config: Any,
    ) -> None:
        code = bytes(wat2wasm(module)) if isinstance(module, str) else module
        granted = ALL_NAMES - frozenset(denied)
        plugin = load_plugin(_engine(), _bundle(code, granted))
        self.fds = channel or memfd.create_channel(ring_bytes)
        self._owns_channel = channel is None
        self.shared = mmap.mmap(self.fds.memfd, 4096 + 2 * ring_bytes)
        self.ring_bytes = ring_bytes
        self.stop = False
        self.partial = b""
        """Fragments of a completion that is not whole yet."""
        self.vm = Vm(plugin, self.fds.memfd, ring_bytes, lambda: self.stop, shared, ask=ask)
        manifest = plugin.manifest
        settings: dict[str, Any] = {
            "plugin_name": "a plugin",
            "root_id": "a root",
            "vm_id": "a vm",
            "abi": manifest.abi,
            "callbacks": frozenset(manifest.granted_callbacks),
            "limits": replace(LIMITS, **(limits or {})),
            "ring_bytes": ring_bytes,
            "flags": Flag(0),
        }
        self.config = VmConfig(**{**settings, **config})
        blob = encode(self.config, entropy=entropy, start_time_ns=START_NS, generation=generation)
        if shared is not None:
            place = (shared.size, shared.number)
            blob = refresh(blob, entropy=entropy, start_time_ns=START_NS, generation=generation, shared=place)
        self.vm.configure(blob)
        self.seq = 0
        self.last_stream = 0
        self.now = START_NS
        self.start_records: list[Record] = []
        if start:
            self.vm.start()
            self.start_records = self.take()

    # ---- the channel -------------------------------------------------------------------------------------

    def word(self, offset: int) -> int:
        """A word of the header page."""
        return int(struct.unpack_from("<I", self.shared, offset)[0])

    def set_word(self, offset: int, value: int) -> None:
        """Write a word of the header page."""
        struct.pack_into("<I", self.shared, offset, value & 0xFFFFFFFF)

    def put(  # noqa: PLR0917 (the record's fields, in its order)
        self, kind: int, flags: int, stream_id: int, seq: int, arg: int, payload: bytes
    ) -> None:
        """Append one record to the submission ring."""
        size = HEADER.size + len(payload) + -len(payload) % 8
        assert size <= self.ring_bytes // 4
        tail = self.word(64)
        place = tail % self.ring_bytes
        if place + size > self.ring_bytes:
            struct.pack_into("<IHH", self.shared, 4096 + place, self.ring_bytes - place, 0, 0)
            tail += self.ring_bytes - place
            place = 0
        assert tail + size - self.word(128) & 0xFFFFFFFF <= self.ring_bytes, "the submission ring is full"
        HEADER.pack_into(self.shared, 4096 + place, size, kind, flags, stream_id, seq, len(payload), arg)
        self.shared[4096 + place + HEADER.size : 4096 + place + HEADER.size + len(payload)] = payload
        self.set_word(64, tail + size)

    def take(self, limit: int = 1 << 30) -> list[Record]:
        """Take completions off the ring, at most ``limit`` records, joining fragments."""
        records: list[Record] = []
        head, tail = self.word(256), self.word(192)
        base = 4096 + self.ring_bytes
        while head != tail and limit:
            place = head % self.ring_bytes
            size, kind = struct.unpack_from("<IH", self.shared, base + place)
            assert size % 8 == 0
            assert 8 <= size <= self.ring_bytes - place
            if kind:
                limit -= 1
                size, kind, flags, stream_id, seq, length, arg = HEADER.unpack_from(self.shared, base + place)
                assert size == HEADER.size + length + -length % 8
                start = base + place + HEADER.size
                assert not any(self.shared[start + length : base + place + size]), "padding is not zero"
                self.partial += self.shared[start : start + length]
                if not flags & MORE:
                    records.append(Record(kind, flags, stream_id, seq, arg, self.partial))
                    self.partial = b""
            head = (head + size) & 0xFFFFFFFF
        self.set_word(256, head)
        return records

    # ---- events ------------------------------------------------------------------------------------------

    def submit(self, kind: int, stream_id: int, payload: bytes = b"", flags: int = 0) -> int:
        """Submit an event, in as many records as it takes, and return its number."""
        self.seq += 1
        self.now += 1_000_000
        step = self.ring_bytes // 4 - HEADER.size
        while len(payload) > step:
            self.put(kind, flags | MORE, stream_id, self.seq, self.now, payload[:step])
            payload = payload[step:]
            assert self.vm.poll(0) & 1  # makes room
        self.put(kind, flags, stream_id, self.seq, self.now, payload)
        return self.seq

    def event(self, kind: int, stream_id: int, payload: bytes = b"", flags: int = 0) -> Outcome:
        """Submit an event, run it, and return what it brought."""
        seq = self.submit(kind, stream_id, payload, flags)
        records: list[Record] = []
        for _ in range(10_000):
            bits = self.vm.poll(0)
            records += self.take()
            if bits & (SLEEP | POLL_OUTBOX | POLL_INBOX):
                break
        return outcome(records, seq)

    def turn(self, delivery: Delivery, *, after_ns: int = 0) -> tuple[Delivered, list[Record]]:
        """Deliver something outside any event; returns what came of it."""
        self.now += after_ns
        result = self.vm.deliver(delivery.encode(self.now))
        records: list[Record] = []
        while not self.vm.poll(0) & (SLEEP | POLL_OUTBOX | POLL_INBOX):
            records += self.take()
        records += self.take()
        return result, records

    def requests(self) -> list[Request]:
        """Take what the guest has asked the worker for."""
        found: list[Request] = []
        while (message := self.vm.take_request()) is not None:
            found.append(decode_request(message))
        return found

    def open(self, attributes: dict[bytes, bytes] | None = None) -> int:
        """Open a stream and return its id."""
        self.last_stream += 1
        self.submit(OPEN, self.last_stream, encode_pairs((attributes or {}).items()))
        return self.last_stream

    def headers(
        self, stream: int, *more: tuple[bytes, bytes], end: bool = True, kind: int = REQUEST_HEADERS
    ) -> Outcome:
        """Send request or response headers."""
        base = REQUEST if kind == REQUEST_HEADERS else RESPONSE
        return self.event(kind, stream, encode_pairs([*base, *more]), END if end else 0)

    def request(self, *more: tuple[bytes, bytes], end: bool = True) -> tuple[int, Outcome]:
        """Open a stream and send its request headers."""
        stream = self.open()
        return stream, self.headers(stream, *more, end=end)

    def status(self) -> VmStatus:
        """hostcore's status."""
        return self.vm.status()

    def close(self) -> None:
        """End everything."""
        self.vm.close()
        self.shared.close()
        if self._owns_channel:
            self.fds.close()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


REQUEST: Final = [
    (b":method", b"GET"),
    (b":path", b"/a?b=c"),
    (b":authority", b"example.com"),
    (b":scheme", b"https"),
    (b"user-agent", b"test"),
]
RESPONSE: Final = [(b":status", b"200"), (b"content-type", b"text/plain")]


def encode_pairs(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode a map."""
    listed = list(items)
    head = struct.pack("<I", len(listed)) + b"".join(struct.pack("<II", len(k), len(v)) for k, v in listed)
    return head + b"".join(k + b"\0" + v + b"\0" for k, v in listed)


def outcome(records: list[Record], seq: int) -> Outcome:
    """Sort one event's records; its verdict must be there, once, and last."""
    own = [record for record in records if record.seq == seq]
    verdicts = [record for record in own if record.kind == VERDICT]
    assert len(verdicts) == 1, own
    assert own[-1] is verdicts[0]
    return Outcome(
        code=verdicts[0].arg & 0xFFFFFFFF,
        state=verdicts[0].arg >> 32,
        effects=[record for record in own if (record.kind < LOG or record.kind > NOTE) and record.kind != VERDICT]
        + [record for record in own if record.kind in (DENIED, LOGS_DROPPED)],
        logs=[record for record in own if record.kind == LOG],
        notes=[record.arg for record in own if record.kind == NOTE and record.arg != PROPERTY_MISSING],
        missed=[record.payload for record in own if record.kind == NOTE and record.arg == PROPERTY_MISSING],
    )
