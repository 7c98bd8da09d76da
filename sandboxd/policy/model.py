"""
What a tenant may see, do and consume: frozen data with secure defaults.

No parsing, no files, no decisions; `sandboxd.policy.load` fills it from YAML. Anybody may import this module.
Whatever may hold a secret is left out of ``repr``, so that a policy in a log line or traceback shows none.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from sandboxd import limits
from sandboxd.policy.callouts import CalloutPolicy
from sandboxd.policy.folders import WasiPolicy

ResolvedCapabilities: TypeAlias = frozenset[str]
"""Names granted: host functions, WASI functions, callbacks. See `sandboxd.policy.capability_names`."""


class Clock(enum.StrEnum):
    """What a guest's clock shows."""

    EVENT = "event"
    """One instant per event: too coarse to measure a cache with."""
    LIVE = "live"
    """The real clock at each call."""


class HeaderLeniency(enum.StrEnum):
    """What a read or write of a header map answers when the map is not available in the current callback."""

    LENIENT = "lenient"
    """Reads NOT_FOUND, writes OK without effect: a Rust guest lives on."""
    ENVOY = "envoy"
    """BAD_ARGUMENT as Envoy answers: a Rust guest traps."""


class RedactMode(enum.StrEnum):
    """How a header's value is shown to the plugin."""

    SHOW = "show"
    """As it is; lifts a default or a wider pattern."""
    DROP = "drop"
    """Not at all."""
    MASK = "mask"
    """As ``***``."""
    HASH = "hash"
    """As a keyed hash, stable for one tenant on one installation."""
    PRESENCE = "presence"
    """As one entry ``present``."""


class Section(enum.StrEnum):
    """A header map of a stream, by its key under ``redact``."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_TRAILERS = "response_trailers"


class OnFailure(enum.StrEnum):
    """What a stream gets when its plugin fails."""

    CLOSED = "closed"
    """An error response."""
    OPEN = "open"
    """It goes on as if the plugin were not there."""
    RELOAD = "reload"
    """As closed; the next stream on a failed VM waits for a fresh one (Envoy's FAIL_RELOAD)."""


class PluginKind(enum.StrEnum):
    """What a plugin is for."""

    FILTER = "filter"
    """It serves streams: a VM for each channel."""
    SERVICE = "service"
    """It serves none: one VM for the tenant, which starts, ticks, takes queue items and calls out (Envoy's bootstrap
    Wasm service with ``singleton``)."""


@dataclass(frozen=True, slots=True)
class ModuleRef:
    """A module file, pinned by its digest."""

    path: Path
    sha256: str
    """64 lower-case hex digits."""


@dataclass(frozen=True, slots=True)
class VmPolicy:
    """Proxy-Wasm's VM configuration."""

    vm_id: str = ""
    configuration: bytes = field(default=b"", repr=False)
    """Buffer 6, VM_CONFIGURATION."""
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """What WASI ``environ_get`` shows; never the host's own."""
    memory_bytes: int = limits.DEFAULT_VM_MEMORY_BYTES
    clock: Clock = Clock.EVENT


@dataclass(frozen=True, slots=True)
class PluginLimits:
    """What one plugin may consume. See `sandboxd.limits` for the reasons of the defaults."""

    cpu_per_call_ns: int = limits.DEFAULT_CPU_PER_CALL_NS
    """CPU time of one callback; past it the VM traps."""
    time_per_event_ns: int = limits.DEFAULT_TIME_PER_EVENT_NS
    """Wall clock from sending an event to its verdict; kept by the front."""
    start_time_ns: int = limits.DEFAULT_START_TIME_NS
    """Wall clock, and CPU, of the plugin's start."""
    body_buffer_bytes: int = limits.DEFAULT_BODY_BUFFER_BYTES
    """Body held back per stream and direction."""
    open_streams: int = limits.DEFAULT_OPEN_STREAMS
    log_bytes_per_event: int = limits.DEFAULT_LOG_BYTES_PER_EVENT
    log_lines_per_event: int = limits.DEFAULT_LOG_LINES_PER_EVENT
    metrics: int = limits.DEFAULT_METRICS
    host_calls_per_event: int = limits.DEFAULT_HOST_CALLS_PER_EVENT
    log_lines_per_second: int = limits.DEFAULT_LOG_LINES_PER_SECOND
    """In one front; kept by it."""
    log_bytes_per_second: int = limits.DEFAULT_LOG_BYTES_PER_SECOND
    time_per_pause_ns: int = 0
    """Wall clock that a stream may be held without anything of it to come; 0: see `PluginPolicy.time_per_pause_ns`."""
    tick_period_ns: int = limits.DEFAULT_TICK_PERIOD_NS
    """Shortest time from one tick to the next, in whole milliseconds; a guest that asks for less gets this."""
    table_elements: int = limits.DEFAULT_TABLE_ELEMENTS
    """Elements of each of a VM's tables; growth past it fails, and a table that begins larger is no start."""
    module_bytes: int = limits.DEFAULT_MODULE_BYTES
    """Size of the module's file; a larger one is rejected."""


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """One header, or with a ``*`` at its end every header that begins so."""

    pattern: str
    """Lower case."""
    mode: RedactMode


@dataclass(frozen=True, slots=True)
class PropertyRule:
    """A property and all that lies under it. The longest matching path wins."""

    path: tuple[str, ...]
    shown: bool = False


HIDDEN_HEADERS = ("authorization", "proxy-authorization", "cookie", "set-cookie")
"""Credentials, hidden by default in every header map."""

CLIENT_ADDRESS_HEADERS = (
    "forwarded",
    "true-client-ip",
    "x-envoy-external-address",
    "x-forwarded-for",
    "x-real-ip",
)
"""The client's address in its header forms, hidden by default in every header map."""

DEFAULT_HEADER_RULES = tuple(HeaderRule(name, RedactMode.DROP) for name in HIDDEN_HEADERS + CLIENT_ADDRESS_HEADERS)
DEFAULT_PROPERTY_RULES = (PropertyRule(("source", "address")), PropertyRule(("source", "port")))


@dataclass(frozen=True, slots=True)
class RedactionPolicy:
    """
    What the plugin never sees. An exact name beats a pattern, a longer pattern beats a shorter one.

    The defaults are part of the rules: a default is lifted only by an explicit rule for that very name.
    """

    request_headers: tuple[HeaderRule, ...] = DEFAULT_HEADER_RULES
    request_trailers: tuple[HeaderRule, ...] = DEFAULT_HEADER_RULES
    response_headers: tuple[HeaderRule, ...] = DEFAULT_HEADER_RULES
    response_trailers: tuple[HeaderRule, ...] = DEFAULT_HEADER_RULES
    properties: tuple[PropertyRule, ...] = DEFAULT_PROPERTY_RULES

    def rules(self, section: Section) -> tuple[HeaderRule, ...]:
        """Return the rules of one header map."""
        return {
            Section.REQUEST_HEADERS: self.request_headers,
            Section.REQUEST_TRAILERS: self.request_trailers,
            Section.RESPONSE_HEADERS: self.response_headers,
            Section.RESPONSE_TRAILERS: self.response_trailers,
        }[section]


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """What the plugin may change on the way out. Deny beats allow."""

    deny_headers: tuple[str, ...] = ()
    """Lower-case names; a ``*`` at the end matches every header that begins so."""
    allow_headers: tuple[str, ...] | None = None
    """None: all that is not denied. Empty: none."""
    local_response: bool = True
    body: bool = True
    properties: bool = True
    max_headers: int = limits.DEFAULT_WRITTEN_HEADERS
    """Header changes of one event."""
    max_header_bytes: int = limits.DEFAULT_HEADER_BYTES
    """Name plus value of one header."""
    max_headers_bytes: int = limits.DEFAULT_WRITTEN_HEADERS_BYTES
    """Names plus values of all header changes of one event."""
    header_maps: bool = True
    """
    Whether it may change header maps at all; what it gives a local response is another matter. Not in the file: it
    follows from the functions that it can use (`sandboxd.policy.effective`).
    """


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How a failed VM or worker comes back."""

    backoff_ms: int = limits.DEFAULT_RESTART_BACKOFF_MS
    """Least time from one start to the next after a crash."""
    max_crashes: int = limits.DEFAULT_RESTART_MAX_CRASHES
    """More than this many within the window and it stays down."""
    window_ms: int = limits.DEFAULT_RESTART_WINDOW_MS


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What happens when the plugin fails. Decided by `sandboxd.policy.failure.decide`."""

    policy: OnFailure = OnFailure.CLOSED
    status: int = 503
    """HTTP status when the plugin is not there to answer (trap, VM down, worker gone)."""
    restart: RestartPolicy = RestartPolicy()


@dataclass(frozen=True, slots=True)
class PluginPolicy:
    """One plugin of a tenant."""

    name: str
    module: ModuleRef
    root_id: str = ""
    configuration: bytes = field(default=b"", repr=False)
    """Buffer 7, PLUGIN_CONFIGURATION: a string as it was written, anything else as compact JSON."""
    vm: VmPolicy = VmPolicy()
    limits: PluginLimits = PluginLimits()
    capabilities: ResolvedCapabilities = frozenset()
    redact: RedactionPolicy = RedactionPolicy()
    write: WritePolicy = WritePolicy()
    failure: FailurePolicy = FailurePolicy()
    allow_on_headers_stop_iteration: bool = False
    """Pause from a headers callback lets body callbacks run (Envoy's option of the same name)."""
    header_leniency: HeaderLeniency = HeaderLeniency.LENIENT
    callouts: CalloutPolicy = field(default_factory=CalloutPolicy)
    wasi: WasiPolicy = field(default_factory=WasiPolicy)

    @property
    def time_per_pause_ns(self) -> int:
        """How long a stream may be held: unless the policy says, an event's time and that of the slowest callout."""
        slowest_ms = max((upstream.timeout_ms for upstream in self.callouts.upstreams), default=0)
        return self.limits.time_per_pause_ns or self.limits.time_per_event_ns + slowest_ms * limits.MS_NS

    kind: PluginKind = PluginKind.FILTER


@dataclass(frozen=True, slots=True)
class Isolation:
    """The jail of the tenant's worker process."""

    memory_bytes: int = limits.DEFAULT_TENANT_MEMORY_BYTES
    cpu: float | None = None
    """CPUs; None: no limit beside the machine."""
    pids: int = limits.DEFAULT_PIDS
    require: tuple[str, ...] = ()
    """Isolation layers without which the worker must not start."""


@dataclass(frozen=True, slots=True)
class SharedBackend:
    """Valkey or Redis, for shared data of several machines."""

    url: str
    """``redis://HOST:PORT/DB``, ``rediss://`` with TLS, or ``unix:///PATH``."""
    timeout_ms: int = limits.DEFAULT_SHARED_TIMEOUT_MS
    """Of one question; past it the store is away."""
    password_file: Path | None = None


@dataclass(frozen=True, slots=True)
class SharedPolicy:
    """The shared data and queues of a tenant's VMs."""

    memory_bytes: int = limits.DEFAULT_SHARED_BYTES
    """Of the one region that holds them all."""
    value_bytes: int = limits.MAX_SHARED_VALUE_BYTES
    """One value, or one item of a queue."""
    queue_items: int = limits.DEFAULT_QUEUE_ITEMS
    """Items that wait in one queue."""
    backend: SharedBackend | None = None
    """Where shared data is; None: in the region. Queues are always there."""


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """One policy file."""

    tenant: str
    plugins: tuple[PluginPolicy, ...]
    isolation: Isolation = Isolation()
    shared: SharedPolicy = SharedPolicy()
    source_path: str = ""
    """The file as it was named when loaded."""
    digest: str = ""
    """SHA-256 of the file's text in hex: changes when, and only when, the file does."""

    def plugin(self, name: str) -> PluginPolicy | None:
        """Return the plugin of that name, None if there is none."""
        return next((plugin for plugin in self.plugins if plugin.name == name), None)
