"""
The configuration blob that hostcore reads before a VM starts; layout in ``docs/hostcore.md``.

Pure. The trusted side encodes it once per VM; the worker replaces three entries (`refresh`) at each start.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sandboxd.channel import pairs
from sandboxd.errors import InternalError
from sandboxd.vm.abi import AbiVersion

ENTROPY_BYTES: Final = 32
MAX_BLOB_BYTES: Final = 24 << 20
"""The folders' files may be 16 MiB of it (`sandboxd.limits`)."""

_ENTRY: Final = struct.Struct("<II")


class Tag(enum.IntEnum):
    """Entries of the blob."""

    PLUGIN_NAME = 1
    ROOT_ID = 2
    VM_ID = 3
    VM_CONFIGURATION = 4
    PLUGIN_CONFIGURATION = 5
    ENVIRONMENT = 6
    LIMITS = 7
    FLAGS = 8
    ENTROPY = 9
    START_TIME_NS = 10
    DENIED_PROPERTIES = 11
    CALLBACKS = 12
    ABI = 13
    GENERATION = 14
    RING_BYTES = 15
    SHARED = 16
    UPSTREAMS = 17
    FOLDERS = 18
    OPEN_FILES = 19


class Flag(enum.IntFlag):
    """Bits of the ``flags`` entry; the lowest log level stands in bits 8-10."""

    ALLOW_ON_HEADERS_STOP_ITERATION = 1
    LENIENT_MAPS = 2
    LIVE_CLOCK = 4
    REMOTE_SHARED = 8
    """Shared data is asked for outside (`sandboxd.worker.remote_shared`)."""


NO_FLAGS: Final = Flag(0)


@dataclass(frozen=True, slots=True)
class VmLimits:
    """Limits that hostcore keeps, in the order of the blob."""

    heap_bytes: int
    body_buffer_bytes: int
    open_streams: int
    log_message_bytes: int
    log_bytes_per_event: int
    log_lines_per_event: int
    metrics: int
    host_calls_per_event: int
    """0: no limit."""
    local_response_bytes: int
    """Body of a local response."""
    property_bytes: int
    """All properties set by one stream."""
    min_tick_ms: int = 1
    """Shortest tick period; a guest that asks for less gets this."""
    callouts: int = 64
    """HTTP calls, gRPC calls and gRPC streams in flight."""
    callout_bytes: int = 1 << 20
    """Everything that one call or message sends."""
    shared_value_bytes: int = 65_520
    """One value of the shared data, one item of a queue."""
    queue_items: int = 1024
    """Items that wait in one shared queue."""


@dataclass(frozen=True, slots=True)
class VmConfig:
    """
    Everything that one VM is told. Configuration and environment may hold secrets and stay out of ``repr``.
    """

    plugin_name: str
    root_id: str
    vm_id: str
    abi: AbiVersion
    callbacks: frozenset[str]
    """Callbacks that exist in the module and are granted."""
    limits: VmLimits
    ring_bytes: int
    flags: Flag = NO_FLAGS
    log_level: int = 0
    vm_configuration: bytes = field(default=b"", repr=False)
    plugin_configuration: bytes = field(default=b"", repr=False)
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    denied_properties: tuple[tuple[str, ...], ...] = ()
    upstreams: tuple[str, ...] = ()
    """Names that callouts may use."""
    folders: bytes = field(default=b"", repr=False)
    """Preopened folders, as `sandboxd.vm.folder_blob` encodes them."""
    open_files: int = 0
    """Most files and folders open at once, beside the preopened ones."""


CALLBACK_NAMES: Final = {
    1: "_initialize",
    2: "proxy_on_memory_allocate",
    3: "proxy_on_context_create",
    4: "proxy_on_vm_start",
    5: "proxy_on_configure",
    6: "proxy_on_request_headers",
    7: "proxy_on_request_body",
    8: "proxy_on_request_trailers",
    9: "proxy_on_response_headers",
    10: "proxy_on_response_body",
    11: "proxy_on_response_trailers",
    12: "proxy_on_done",
    13: "proxy_on_log",
    14: "proxy_on_delete",
    15: "proxy_on_tick",
    16: "proxy_on_queue_ready",
    17: "proxy_on_http_call_response",
    18: "proxy_on_grpc_receive_initial_metadata",
    19: "proxy_on_grpc_receive",
    20: "proxy_on_grpc_receive_trailing_metadata",
    21: "proxy_on_grpc_close",
    22: "proxy_on_new_connection",
    23: "proxy_on_downstream_data",
    24: "proxy_on_upstream_data",
    25: "proxy_on_downstream_connection_close",
    26: "proxy_on_upstream_connection_close",
}
"""
hostcore's numbers (``enum callback``): bits of the ``callbacks`` entry, and ``in_callback`` of the status.
"""

CALLBACK_NUMBERS: Final = {name: number for number, name in CALLBACK_NAMES.items() if number > 2}
"""The callbacks that can be withheld."""


def encode(config: VmConfig, *, entropy: bytes, start_time_ns: int, generation: int = 1) -> bytes:
    """
    Return the blob.

    Args:
        config: what the VM is told.
        entropy: 32 random bytes.
        start_time_ns: wall clock.
        generation: 1 for the first VM of a channel.
    """
    limits = config.limits
    numbers = (getattr(limits, name) for name in VmLimits.__slots__)
    mask = sum(1 << CALLBACK_NUMBERS[name] for name in config.callbacks if name in CALLBACK_NUMBERS)
    entries = [
        (Tag.PLUGIN_NAME, config.plugin_name.encode()),
        (Tag.ROOT_ID, config.root_id.encode()),
        (Tag.VM_ID, config.vm_id.encode()),
        (Tag.VM_CONFIGURATION, config.vm_configuration),
        (Tag.PLUGIN_CONFIGURATION, config.plugin_configuration),
        (
            Tag.ENVIRONMENT,
            pairs.encode([(key.encode(), value.encode()) for key, value in config.environment]),
        ),
        (Tag.LIMITS, struct.pack(f"<{len(VmLimits.__slots__)}Q", *numbers)),
        (Tag.FLAGS, struct.pack("<Q", config.flags | config.log_level << 8)),
        (Tag.ENTROPY, _entropy(entropy)),
        (Tag.START_TIME_NS, struct.pack("<Q", start_time_ns)),
        (
            Tag.DENIED_PROPERTIES,
            pairs.encode([("\0".join(path).encode(), b"") for path in config.denied_properties]),
        ),
        (Tag.CALLBACKS, struct.pack("<Q", mask)),
        (Tag.ABI, struct.pack("<I", config.abi)),
        (Tag.GENERATION, struct.pack("<I", generation)),
        (Tag.RING_BYTES, struct.pack("<I", config.ring_bytes)),
        (Tag.UPSTREAMS, pairs.encode([(name.encode(), b"") for name in config.upstreams])),
        (Tag.FOLDERS, config.folders),
        (Tag.OPEN_FILES, struct.pack("<I", config.open_files)),
    ]
    return b"".join(_entry(tag, content) for tag, content in entries)


def refresh(
    blob: bytes, *, entropy: bytes, start_time_ns: int, generation: int, shared: tuple[int, int] | None = None
) -> bytes:
    """
    Return the blob with the entries that differ at each start of a VM.

    ``shared``: size of the shared region, and the VM's number in it; None: there is none.
    """
    fresh = {
        int(Tag.ENTROPY): _entropy(entropy),
        int(Tag.START_TIME_NS): struct.pack("<Q", start_time_ns),
        int(Tag.GENERATION): struct.pack("<I", generation),
    }
    whole = b"".join(_entry(tag, fresh.get(tag, content)) for tag, content in entries(blob) if tag != Tag.SHARED)
    return whole if shared is None else whole + _entry(Tag.SHARED, struct.pack("<II", *shared))


def entries(blob: bytes) -> Iterator[tuple[int, bytes]]:
    """
    Yield tag and content of each entry.

    Raises:
        InternalError: the blob is malformed; we made it ourselves.
    """
    position = 0
    while position < len(blob):
        if len(blob) - position < _ENTRY.size:
            raise InternalError(f"configuration blob ends inside an entry at byte {position}")
        tag, length = _ENTRY.unpack_from(blob, position)
        start = position + _ENTRY.size
        if length > len(blob) - start:
            raise InternalError(f"configuration blob: entry {tag} at byte {position} reaches past the end")
        yield tag, blob[start : start + length]
        position = start + (length + 7 & ~7)


def _entropy(entropy: bytes) -> bytes:
    if len(entropy) != ENTROPY_BYTES:
        raise InternalError(f"entropy is {ENTROPY_BYTES} bytes, not {len(entropy)}")
    return entropy


def _entry(tag: int, content: bytes) -> bytes:
    return _ENTRY.pack(tag, len(content)) + content + bytes(-len(content) % 8)
