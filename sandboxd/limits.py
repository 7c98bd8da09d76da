"""
Every cap of the project, with its unit in its name and its reason beside it.

Two kinds: hard caps (``MAX_*``), which no policy can lift, and defaults (``DEFAULT_*``), which a policy may
change within the ``MIN_*``/``MAX_*`` of the same name. Anybody may import this module; it imports nothing.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

US_NS: Final = 1_000
MS_NS: Final = 1_000_000
S_NS: Final = 1_000_000_000

# --- header maps (Proxy-Wasm "pairs") -------------------------------------------------------------

MAX_PAIRS_COUNT: Final = 1024
"""Entries of one header map. The reference host's own cap; checked before anything is allocated."""

MAX_PAIRS_BYTES: Final = 1 * MIB
"""Serialised size of one header map. The reference host's own cap."""

MAX_HEADER_NAME_BYTES: Final = 1024
"""One header name that a plugin writes. No real name comes near; keeps log lines and error texts small."""

DEFAULT_HEADER_BYTES: Final = 16 * KIB
MAX_HEADER_BYTES: Final = 64 * KIB
"""Name plus value of one header that a plugin writes. Envoy's default for a whole request is 60 KiB."""

DEFAULT_WRITTEN_HEADERS: Final = 64
MAX_WRITTEN_HEADERS: Final = MAX_PAIRS_COUNT
"""Header changes (set, added, removed) in one event. Envoy answers 500 if a message then has more than 100 headers,
unless it is told otherwise; the default leaves room for those that were there."""

DEFAULT_WRITTEN_HEADERS_BYTES: Final = 48 * KIB
MAX_WRITTEN_HEADERS_BYTES: Final = MAX_PAIRS_BYTES
"""Names plus values of all header changes of one event. Envoy's default for a whole header map is 60 KiB."""

# --- bodies ---------------------------------------------------------------------------------------

DEFAULT_BODY_BUFFER_BYTES: Final = 1 * MIB
MIN_BODY_BUFFER_BYTES: Final = 1 * KIB
MAX_BODY_BUFFER_BYTES: Final = 64 * MIB
"""Body held back for one stream and direction. 1 MiB is Envoy's own default buffer limit."""

MAX_LOCAL_RESPONSE_BODY_BYTES: Final = 1 * MIB
"""Body of a local response: an error page, not a download."""

MAX_DETAILS_BYTES: Final = 256
"""Details of a local response; they end in one field of the proxy's access log."""

# --- properties and foreign functions -------------------------------------------------------------

MAX_PROPERTY_PATH_BYTES: Final = 4 * KIB
"""A property path with its separators; the longest attribute of Envoy is below 100 bytes."""

MAX_PROPERTY_SEGMENTS: Final = 32
"""Segments of a property path: bounds the work of matching it."""

MAX_PROPERTY_VALUE_BYTES: Final = 64 * KIB
"""A value written by ``proxy_set_property``; it travels as dynamic metadata with the stream."""

MAX_WRITTEN_PROPERTIES: Final = 64
"""Properties written in one event."""

MAX_FOREIGN_ARGUMENTS_BYTES: Final = 1 * MIB
"""Arguments of ``proxy_call_foreign_function``."""

# --- preopened folders ----------------------------------------------------------------------------

MAX_FOLDERS: Final = 16
MAX_FOLDER_NAME_BYTES: Final = 128

DEFAULT_FOLDER_BYTES: Final = 1 * MIB
MAX_FOLDERS_BYTES: Final = 16 * MIB
"""All files of a plugin's folders, and their paths: each VM holds them, and gets them with its configuration."""

DEFAULT_FOLDER_FILES: Final = 100
MAX_FOLDER_FILES: Final = 10_000
"""Files and folders below a preopened one."""

DEFAULT_OPEN_FILES: Final = 32
MAX_OPEN_FILES: Final = 240
"""In one VM, beside the preopened folders; hostcore's table has 256 places."""

# --- what a tenant's VMs share --------------------------------------------------------------------

DEFAULT_SHARED_BYTES: Final = 1 * MIB
MIN_SHARED_BYTES: Final = 64 * KIB
MAX_SHARED_BYTES: Final = 32 * MIB
"""Shared data and queues of one tenant. 1 MiB: some 1500 keys, and their values. The window in hostcore's memory is
32 MiB."""

MAX_SHARED_VALUE_BYTES: Final = 64 * KIB - 16
"""One value, or one item of a queue: hostcore's largest block without its head."""

DEFAULT_QUEUE_ITEMS: Final = 1024
MAX_QUEUE_ITEMS: Final = 1_000_000
"""Items that wait in one queue; the region's size is what really bounds them."""

DEFAULT_SHARED_TIMEOUT_MS: Final = 50
MAX_SHARED_TIMEOUT_MS: Final = 1000
"""One question to a store elsewhere; the event waits for it. The worker gives up after two seconds."""

# --- logging --------------------------------------------------------------------------------------

MAX_LOG_MESSAGE_BYTES: Final = 8 * KIB
"""One log line of a guest; longer ones are cut. Keeps one line inside one journald entry."""

DEFAULT_LOG_BYTES_PER_EVENT: Final = 64 * KIB
MAX_LOG_BYTES_PER_EVENT: Final = 1 * MIB
"""Log text of one event; the rest is counted and dropped. A guest must not fill the host's disk."""

DEFAULT_LOG_LINES_PER_EVENT: Final = 256
MAX_LOG_LINES_PER_EVENT: Final = 10_000
"""Log lines of one event; the rest is counted and dropped."""

DEFAULT_LOG_LINES_PER_SECOND: Final = 500
MAX_LOG_LINES_PER_SECOND: Final = 100_000
"""Log lines of one plugin in one front; the rest is counted and dropped. A line costs the front 40 us, in which it
serves nobody, and the supervisor as much."""

DEFAULT_LOG_BYTES_PER_SECOND: Final = 1 * MIB
MAX_LOG_BYTES_PER_SECOND: Final = 64 * MIB
"""Their text together."""

# --- metrics --------------------------------------------------------------------------------------

DEFAULT_METRICS: Final = 1000
MAX_METRICS: Final = 100_000
"""Metrics that one VM may define; each is memory on the trusted side for as long as the plugin lives."""

METRICS_PER_FRAME: Final = 2048
"""As many of a VM's metrics may stand in one control frame; reading them takes the supervisor a few milliseconds."""

MAX_METRIC_NAME_BYTES: Final = 512
"""A metric name; Istio's tag-extraction names are the longest seen."""

# --- modules --------------------------------------------------------------------------------------

DEFAULT_MODULE_BYTES: Final = 64 * MIB
MIN_MODULE_BYTES: Final = 1 * KIB
MAX_MODULE_BYTES: Final = 64 * MIB
"""A ``.wasm`` file. Go's modules, the largest common ones, are about 3 MiB."""

MAX_MODULE_IMPORTS: Final = 1000
"""Imports of a guest; each costs one trampoline. The ABI has fewer than 100, duplicates are legal."""

WASM_PAGE_BYTES: Final = 64 * KIB

DEFAULT_VM_MEMORY_BYTES: Final = 32 * MIB
MIN_VM_MEMORY_BYTES: Final = 1 * MIB
MAX_VM_MEMORY_BYTES: Final = 2 * GIB
"""Linear memory of one VM. 2 GiB keeps every guest address positive as a signed 32-bit number."""

MAX_RANDOM_BYTES: Final = 64 * KIB
"""One ``random_get``; the reference host's own cap."""

# --- channel --------------------------------------------------------------------------------------

DEFAULT_RING_BYTES: Final = 1 * MIB
MIN_RING_BYTES: Final = 64 * KIB
MAX_RING_BYTES: Final = 4 * MIB
"""One ring of a channel, a power of two. It is mapped into hostcore's memory, so it cannot be large."""

MAX_SPIN_US: Final = 10_000
"""Busy waiting before sleep. Longer than 10 ms only burns a core."""
DEFAULT_SPIN_US: Final = 50
"""
Of a client, for a verdict: an event of a small filter takes 5 to 20 us, a sleep and its wake-up as much or more on
either side.
"""
DEFAULT_WORKER_SPIN_US: Final = 300
"""
Of a VM, for its next event: an answer goes out and the next request comes in 100 to 200 us. It can be longer than a
client's because a VM that looks gives its CPU away all the time.
"""
MIN_CPUS_TO_SPIN: Final = 4
"""
On fewer, spinning takes the core that the VM, the front or the proxy would answer on (measured), unless there is one
stream only: fronts do not spin at all then, VMs and clients of the attach socket while they have one stream.
"""

# --- time and counts ------------------------------------------------------------------------------

DEFAULT_CPU_PER_CALL_NS: Final = 5 * MS_NS
MIN_CPU_PER_CALL_NS: Final = 100 * US_NS
MAX_CPU_PER_CALL_NS: Final = 10 * S_NS
"""CPU time of one callback. Past it the VM is trapped."""

DEFAULT_TIME_PER_EVENT_NS: Final = 200 * MS_NS
MIN_TIME_PER_EVENT_NS: Final = 1 * MS_NS
MAX_TIME_PER_EVENT_NS: Final = 60 * S_NS
"""Wall clock that the front waits for the verdict on one event. Envoy's own ext_proc default is 200 ms."""

MAX_TIME_PER_PAUSE_NS: Final = 600 * S_NS
"""Wall clock that a plugin may hold a stream of which nothing more comes: for callouts, one after the other."""

DEFAULT_START_TIME_NS: Final = 10 * S_NS
MIN_START_TIME_NS: Final = 10 * MS_NS
MAX_START_TIME_NS: Final = 120 * S_NS
"""Wall clock and CPU of a plugin's start (``_initialize`` to ``proxy_on_configure``)."""

DEFAULT_TICK_PERIOD_NS: Final = 1 * MS_NS
MAX_TICK_PERIOD_NS: Final = 60 * 60 * S_NS
"""Shortest time between two ticks that a policy may ask for. A VM never ticks more often than each millisecond."""

DEFAULT_OPEN_STREAMS: Final = 10_000
MAX_OPEN_STREAMS: Final = 1_000_000
"""Streams that one plugin may have open at once; each has a context in the guest and in hostcore."""

DEFAULT_HOST_CALLS_PER_EVENT: Final = 100_000
MAX_HOST_CALLS_PER_EVENT: Final = 100_000_000
"""Host calls of one event; at 13 ns each the default is a little over a millisecond."""

DEFAULT_TABLE_ELEMENTS: Final = 1_000_000
MIN_TABLE_ELEMENTS: Final = 1024
MAX_TABLE_ELEMENTS: Final = 10_000_000
"""Elements of one table, 8 bytes each. The largest Go module seen has some 10 000. Not less than `MAX_MODULE_IMPORTS`,
which are a table too."""

# --- tenants --------------------------------------------------------------------------------------

DEFAULT_TENANT_MEMORY_BYTES: Final = 256 * MIB
MIN_TENANT_MEMORY_BYTES: Final = 64 * MIB
MAX_TENANT_MEMORY_BYTES: Final = 64 * GIB
"""Memory of a tenant's worker process: its VMs plus the engine and the interpreter (about 60 MiB)."""

MAX_TENANT_CPU: Final = 1024.0
"""CPUs of a tenant's worker; a typing mistake guard."""

DEFAULT_PIDS: Final = 16
MIN_PIDS: Final = 4
MAX_PIDS: Final = 4096
"""Threads of a tenant's worker: one per channel plus the main thread and the watchdog."""

MAX_PLUGINS: Final = 64
"""Plugins of one tenant."""

MAX_TENANTS: Final = 1000
"""Policy files of one daemon; each is a process."""
OUR_UIDS: Final = range(65532, 65535)
"""Fronts without a user of their own, jailed processes of no tenant, and nobody: no tenant's worker may have one."""

DEFAULT_RESTART_BACKOFF_MS: Final = 1000
MAX_RESTART_BACKOFF_MS: Final = 60 * 60 * 1000
DEFAULT_RESTART_MAX_CRASHES: Final = 5
MAX_RESTART_MAX_CRASHES: Final = 1000
DEFAULT_RESTART_WINDOW_MS: Final = 60_000
MAX_RESTART_WINDOW_MS: Final = 24 * 60 * 60 * 1000
"""A crashed VM comes back after the back-off; more than this many crashes in the window and it stays down."""

# --- callouts -------------------------------------------------------------------------------------

MAX_UPSTREAMS: Final = 256
"""Upstreams of one plugin."""

DEFAULT_CALLOUTS: Final = 64
MAX_CALLOUTS: Final = 4096
"""Callouts of one plugin, or to one upstream of it, in flight; more are denied at once, never queued."""
DEFAULT_UPSTREAM_CALLOUTS: Final = 16

DEFAULT_CALLOUT_TIMEOUT_MS: Final = 1000
MAX_CALLOUT_TIMEOUT_MS: Final = 60_000
"""From a call's admission to the end of its response."""

DEFAULT_STREAM_TIMEOUT_MS: Final = 60 * 60 * 1000
MAX_STREAM_TIMEOUT_MS: Final = 24 * 60 * 60 * 1000
"""From a gRPC stream's admission to its end, whatever moves on it: modules open a stream that ended again."""

DEFAULT_CALLOUT_REQUEST_BYTES: Final = 256 * KIB
MAX_CALLOUT_REQUEST_BYTES: Final = 1 * MIB
"""Headers, body and trailers of one request; hostcore keeps the same limit."""

DEFAULT_CALLOUT_RESPONSE_BYTES: Final = 1 * MIB
MAX_CALLOUT_RESPONSE_BYTES: Final = 8 * MIB
"""Body of one response, or one gRPC message: half of what a worker lets wait for a VM."""

MAX_CALLOUT_RATE: Final = 100_000
"""Calls a second to one upstream: a typing mistake guard."""

MAX_CALLOUT_RETRIES: Final = 5
"""Within the call's one timeout."""

MAX_CALLOUT_TENANT_BYTES: Final = 64 * MIB
"""What the egress broker holds for all callouts of one tenant at a time: requests, and responses that wait."""

MAX_PEM_BYTES: Final = 256 * KIB
"""A certificate, key or authority."""

# --- operator's files -----------------------------------------------------------------------------

MAX_POLICY_FILE_BYTES: Final = 1 * MIB
"""A policy or configuration file."""

MAX_YAML_DEPTH: Final = 32
"""Nesting of a YAML file; the reader is recursive."""

MAX_CONFIGURATION_BYTES: Final = 256 * KIB
"""A plugin or VM configuration as the guest reads it."""

MAX_ENVIRONMENT_ENTRIES: Final = 256
MAX_ENVIRONMENT_BYTES: Final = 64 * KIB
"""Environment of one VM, names and values together; Istio's caps are 256 entries of 2 KiB."""

MAX_RULES: Final = 1024
"""Patterns in one list of a policy (redaction, write rules)."""

MAX_UNIX_PATH_BYTES: Final = 107
"""A Unix socket's path: ``sun_path`` holds 108 bytes with its NUL."""

MAX_ATTACHED: Final = 256
"""Channels of one plugin that clients of the attach socket may have at a time."""

MAX_FRONT_PROCESSES: Final = 256
"""Front processes: a typing mistake guard."""

MAX_SPARE_WORKERS: Final = 64
"""Processes that wait to become a worker: a typing mistake guard."""
