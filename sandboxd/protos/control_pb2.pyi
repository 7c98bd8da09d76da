from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FailureCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_CAUSE_UNSPECIFIED: _ClassVar[FailureCause]
    FAILURE_CAUSE_TRAP: _ClassVar[FailureCause]
    FAILURE_CAUSE_CPU_LIMIT: _ClassVar[FailureCause]
    FAILURE_CAUSE_MEMORY_LIMIT: _ClassVar[FailureCause]
    FAILURE_CAUSE_START_REFUSED: _ClassVar[FailureCause]
    FAILURE_CAUSE_EXIT: _ClassVar[FailureCause]
    FAILURE_CAUSE_ABI_VIOLATION: _ClassVar[FailureCause]
    FAILURE_CAUSE_PROTOCOL: _ClassVar[FailureCause]
    FAILURE_CAUSE_INTERNAL: _ClassVar[FailureCause]
    FAILURE_CAUSE_HOST_CALL_LIMIT: _ClassVar[FailureCause]
FAILURE_CAUSE_UNSPECIFIED: FailureCause
FAILURE_CAUSE_TRAP: FailureCause
FAILURE_CAUSE_CPU_LIMIT: FailureCause
FAILURE_CAUSE_MEMORY_LIMIT: FailureCause
FAILURE_CAUSE_START_REFUSED: FailureCause
FAILURE_CAUSE_EXIT: FailureCause
FAILURE_CAUSE_ABI_VIOLATION: FailureCause
FAILURE_CAUSE_PROTOCOL: FailureCause
FAILURE_CAUSE_INTERNAL: FailureCause
FAILURE_CAUSE_HOST_CALL_LIMIT: FailureCause

class ToWorker(_message.Message):
    __slots__ = ("setup", "load_plugin", "open_vm", "close_vm", "ping", "restart_vm", "callout_answer", "read_metrics", "shared_answer")
    SETUP_FIELD_NUMBER: _ClassVar[int]
    LOAD_PLUGIN_FIELD_NUMBER: _ClassVar[int]
    OPEN_VM_FIELD_NUMBER: _ClassVar[int]
    CLOSE_VM_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    RESTART_VM_FIELD_NUMBER: _ClassVar[int]
    CALLOUT_ANSWER_FIELD_NUMBER: _ClassVar[int]
    READ_METRICS_FIELD_NUMBER: _ClassVar[int]
    SHARED_ANSWER_FIELD_NUMBER: _ClassVar[int]
    setup: WorkerSetup
    load_plugin: LoadPlugin
    open_vm: OpenVm
    close_vm: CloseVm
    ping: Ping
    restart_vm: RestartVm
    callout_answer: CalloutAnswer
    read_metrics: ReadMetrics
    shared_answer: SharedAnswer
    def __init__(self, setup: _Optional[_Union[WorkerSetup, _Mapping]] = ..., load_plugin: _Optional[_Union[LoadPlugin, _Mapping]] = ..., open_vm: _Optional[_Union[OpenVm, _Mapping]] = ..., close_vm: _Optional[_Union[CloseVm, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., restart_vm: _Optional[_Union[RestartVm, _Mapping]] = ..., callout_answer: _Optional[_Union[CalloutAnswer, _Mapping]] = ..., read_metrics: _Optional[_Union[ReadMetrics, _Mapping]] = ..., shared_answer: _Optional[_Union[SharedAnswer, _Mapping]] = ...) -> None: ...

class WorkerSetup(_message.Message):
    __slots__ = ("tenant", "jail_plan")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    JAIL_PLAN_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    jail_plan: bytes
    def __init__(self, tenant: _Optional[str] = ..., jail_plan: _Optional[bytes] = ...) -> None: ...

class LoadPlugin(_message.Message):
    __slots__ = ("plugin_id", "name", "memory_bytes", "cpu_per_call_ns", "start_cpu_ns", "table_elements")
    PLUGIN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_PER_CALL_NS_FIELD_NUMBER: _ClassVar[int]
    START_CPU_NS_FIELD_NUMBER: _ClassVar[int]
    TABLE_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    plugin_id: int
    name: str
    memory_bytes: int
    cpu_per_call_ns: int
    start_cpu_ns: int
    table_elements: int
    def __init__(self, plugin_id: _Optional[int] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., cpu_per_call_ns: _Optional[int] = ..., start_cpu_ns: _Optional[int] = ..., table_elements: _Optional[int] = ...) -> None: ...

class OpenVm(_message.Message):
    __slots__ = ("vm_id", "plugin_id", "ring_bytes", "spin", "restarts")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_ID_FIELD_NUMBER: _ClassVar[int]
    RING_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPIN_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    plugin_id: int
    ring_bytes: int
    spin: int
    restarts: int
    def __init__(self, vm_id: _Optional[int] = ..., plugin_id: _Optional[int] = ..., ring_bytes: _Optional[int] = ..., spin: _Optional[int] = ..., restarts: _Optional[int] = ...) -> None: ...

class RestartVm(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    def __init__(self, vm_id: _Optional[int] = ...) -> None: ...

class CloseVm(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    def __init__(self, vm_id: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class FromWorker(_message.Message):
    __slots__ = ("ready", "plugin_loaded", "vm_started", "vm_failed", "vm_closed", "pong", "error", "callout", "vm_metrics", "file_changes", "shared_ask")
    READY_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_LOADED_FIELD_NUMBER: _ClassVar[int]
    VM_STARTED_FIELD_NUMBER: _ClassVar[int]
    VM_FAILED_FIELD_NUMBER: _ClassVar[int]
    VM_CLOSED_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CALLOUT_FIELD_NUMBER: _ClassVar[int]
    VM_METRICS_FIELD_NUMBER: _ClassVar[int]
    FILE_CHANGES_FIELD_NUMBER: _ClassVar[int]
    SHARED_ASK_FIELD_NUMBER: _ClassVar[int]
    ready: WorkerReady
    plugin_loaded: PluginLoaded
    vm_started: VmStarted
    vm_failed: VmFailed
    vm_closed: VmClosed
    pong: Pong
    error: WorkerError
    callout: Callout
    vm_metrics: VmMetrics
    file_changes: FileChanges
    shared_ask: SharedAsk
    def __init__(self, ready: _Optional[_Union[WorkerReady, _Mapping]] = ..., plugin_loaded: _Optional[_Union[PluginLoaded, _Mapping]] = ..., vm_started: _Optional[_Union[VmStarted, _Mapping]] = ..., vm_failed: _Optional[_Union[VmFailed, _Mapping]] = ..., vm_closed: _Optional[_Union[VmClosed, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., error: _Optional[_Union[WorkerError, _Mapping]] = ..., callout: _Optional[_Union[Callout, _Mapping]] = ..., vm_metrics: _Optional[_Union[VmMetrics, _Mapping]] = ..., file_changes: _Optional[_Union[FileChanges, _Mapping]] = ..., shared_ask: _Optional[_Union[SharedAsk, _Mapping]] = ...) -> None: ...

class WorkerReady(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, layers: _Optional[_Iterable[str]] = ...) -> None: ...

class PluginLoaded(_message.Message):
    __slots__ = ("plugin_id", "error", "load_ns")
    PLUGIN_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LOAD_NS_FIELD_NUMBER: _ClassVar[int]
    plugin_id: int
    error: str
    load_ns: int
    def __init__(self, plugin_id: _Optional[int] = ..., error: _Optional[str] = ..., load_ns: _Optional[int] = ...) -> None: ...

class VmStarted(_message.Message):
    __slots__ = ("vm_id", "generation", "start_ns")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    generation: int
    start_ns: int
    def __init__(self, vm_id: _Optional[int] = ..., generation: _Optional[int] = ..., start_ns: _Optional[int] = ...) -> None: ...

class VmFailed(_message.Message):
    __slots__ = ("vm_id", "generation", "cause", "while_starting", "message", "callback", "backtrace")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    WHILE_STARTING_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CALLBACK_FIELD_NUMBER: _ClassVar[int]
    BACKTRACE_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    generation: int
    cause: FailureCause
    while_starting: bool
    message: str
    callback: str
    backtrace: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, vm_id: _Optional[int] = ..., generation: _Optional[int] = ..., cause: _Optional[_Union[FailureCause, str]] = ..., while_starting: _Optional[bool] = ..., message: _Optional[str] = ..., callback: _Optional[str] = ..., backtrace: _Optional[_Iterable[str]] = ...) -> None: ...

class VmClosed(_message.Message):
    __slots__ = ("vm_id",)
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    def __init__(self, vm_id: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("number", "vms")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    VMS_FIELD_NUMBER: _ClassVar[int]
    number: int
    vms: _containers.RepeatedCompositeFieldContainer[VmUsage]
    def __init__(self, number: _Optional[int] = ..., vms: _Optional[_Iterable[_Union[VmUsage, _Mapping]]] = ...) -> None: ...

class VmUsage(_message.Message):
    __slots__ = ("vm_id", "generation", "streams_open", "heap_used_bytes", "guest_memory_bytes", "cpu_ns", "crashes")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STREAMS_OPEN_FIELD_NUMBER: _ClassVar[int]
    HEAP_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GUEST_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_NS_FIELD_NUMBER: _ClassVar[int]
    CRASHES_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    generation: int
    streams_open: int
    heap_used_bytes: int
    guest_memory_bytes: int
    cpu_ns: int
    crashes: int
    def __init__(self, vm_id: _Optional[int] = ..., generation: _Optional[int] = ..., streams_open: _Optional[int] = ..., heap_used_bytes: _Optional[int] = ..., guest_memory_bytes: _Optional[int] = ..., cpu_ns: _Optional[int] = ..., crashes: _Optional[int] = ...) -> None: ...

class WorkerError(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class Callout(_message.Message):
    __slots__ = ("vm_id", "call_id", "data", "more")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    call_id: int
    data: bytes
    more: bool
    def __init__(self, vm_id: _Optional[int] = ..., call_id: _Optional[int] = ..., data: _Optional[bytes] = ..., more: _Optional[bool] = ...) -> None: ...

class CalloutRequest(_message.Message):
    __slots__ = ("http_call", "grpc_call", "grpc_stream", "grpc_send", "grpc_half_close", "cancel")
    HTTP_CALL_FIELD_NUMBER: _ClassVar[int]
    GRPC_CALL_FIELD_NUMBER: _ClassVar[int]
    GRPC_STREAM_FIELD_NUMBER: _ClassVar[int]
    GRPC_SEND_FIELD_NUMBER: _ClassVar[int]
    GRPC_HALF_CLOSE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    http_call: HttpCall
    grpc_call: GrpcCall
    grpc_stream: GrpcCall
    grpc_send: GrpcSend
    grpc_half_close: GrpcHalfClose
    cancel: CancelCallout
    def __init__(self, http_call: _Optional[_Union[HttpCall, _Mapping]] = ..., grpc_call: _Optional[_Union[GrpcCall, _Mapping]] = ..., grpc_stream: _Optional[_Union[GrpcCall, _Mapping]] = ..., grpc_send: _Optional[_Union[GrpcSend, _Mapping]] = ..., grpc_half_close: _Optional[_Union[GrpcHalfClose, _Mapping]] = ..., cancel: _Optional[_Union[CancelCallout, _Mapping]] = ...) -> None: ...

class HttpCall(_message.Message):
    __slots__ = ("upstream", "headers", "body", "trailers", "timeout_ms")
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    TRAILERS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    upstream: bytes
    headers: bytes
    body: bytes
    trailers: bytes
    timeout_ms: int
    def __init__(self, upstream: _Optional[bytes] = ..., headers: _Optional[bytes] = ..., body: _Optional[bytes] = ..., trailers: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class GrpcCall(_message.Message):
    __slots__ = ("upstream", "service", "method", "metadata", "message", "timeout_ms")
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    upstream: bytes
    service: bytes
    method: bytes
    metadata: bytes
    message: bytes
    timeout_ms: int
    def __init__(self, upstream: _Optional[bytes] = ..., service: _Optional[bytes] = ..., method: _Optional[bytes] = ..., metadata: _Optional[bytes] = ..., message: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class GrpcSend(_message.Message):
    __slots__ = ("message", "end_of_stream")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    END_OF_STREAM_FIELD_NUMBER: _ClassVar[int]
    message: bytes
    end_of_stream: bool
    def __init__(self, message: _Optional[bytes] = ..., end_of_stream: _Optional[bool] = ...) -> None: ...

class GrpcHalfClose(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelCallout(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SharedAsk(_message.Message):
    __slots__ = ("vm_id", "number", "data")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    number: int
    data: bytes
    def __init__(self, vm_id: _Optional[int] = ..., number: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SharedAnswer(_message.Message):
    __slots__ = ("number", "data")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    number: int
    data: bytes
    def __init__(self, number: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class FileChanges(_message.Message):
    __slots__ = ("vm_id", "changes")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    changes: _containers.RepeatedCompositeFieldContainer[FileChange]
    def __init__(self, vm_id: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[FileChange, _Mapping]]] = ...) -> None: ...

class FileChange(_message.Message):
    __slots__ = ("folder", "kind", "path", "other", "size")
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    folder: int
    kind: int
    path: bytes
    other: bytes
    size: int
    def __init__(self, folder: _Optional[int] = ..., kind: _Optional[int] = ..., path: _Optional[bytes] = ..., other: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class CalloutAnswer(_message.Message):
    __slots__ = ("call_id", "data", "more")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    data: bytes
    more: bool
    def __init__(self, call_id: _Optional[int] = ..., data: _Optional[bytes] = ..., more: _Optional[bool] = ...) -> None: ...

class CalloutReply(_message.Message):
    __slots__ = ("http", "initial_metadata", "message", "trailing_metadata", "closed", "lost")
    HTTP_FIELD_NUMBER: _ClassVar[int]
    INITIAL_METADATA_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRAILING_METADATA_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    http: HttpReply
    initial_metadata: GrpcMetadata
    message: GrpcMessage
    trailing_metadata: GrpcMetadata
    closed: GrpcClosed
    lost: CalloutLost
    def __init__(self, http: _Optional[_Union[HttpReply, _Mapping]] = ..., initial_metadata: _Optional[_Union[GrpcMetadata, _Mapping]] = ..., message: _Optional[_Union[GrpcMessage, _Mapping]] = ..., trailing_metadata: _Optional[_Union[GrpcMetadata, _Mapping]] = ..., closed: _Optional[_Union[GrpcClosed, _Mapping]] = ..., lost: _Optional[_Union[CalloutLost, _Mapping]] = ...) -> None: ...

class CalloutLost(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class HttpReply(_message.Message):
    __slots__ = ("failure", "headers", "body", "trailers")
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    TRAILERS_FIELD_NUMBER: _ClassVar[int]
    failure: str
    headers: bytes
    body: bytes
    trailers: bytes
    def __init__(self, failure: _Optional[str] = ..., headers: _Optional[bytes] = ..., body: _Optional[bytes] = ..., trailers: _Optional[bytes] = ...) -> None: ...

class GrpcMetadata(_message.Message):
    __slots__ = ("metadata",)
    METADATA_FIELD_NUMBER: _ClassVar[int]
    metadata: bytes
    def __init__(self, metadata: _Optional[bytes] = ...) -> None: ...

class GrpcMessage(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: bytes
    def __init__(self, message: _Optional[bytes] = ...) -> None: ...

class GrpcClosed(_message.Message):
    __slots__ = ("status", "message")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    status: int
    message: str
    def __init__(self, status: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class ReadMetrics(_message.Message):
    __slots__ = ("plugin_id",)
    PLUGIN_ID_FIELD_NUMBER: _ClassVar[int]
    plugin_id: int
    def __init__(self, plugin_id: _Optional[int] = ...) -> None: ...

class VmMetrics(_message.Message):
    __slots__ = ("vm_id", "generation", "metrics", "more")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    vm_id: int
    generation: int
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    more: bool
    def __init__(self, vm_id: _Optional[int] = ..., generation: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("type", "name", "value", "buckets")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    type: int
    name: bytes
    value: int
    buckets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, type: _Optional[int] = ..., name: _Optional[bytes] = ..., value: _Optional[int] = ..., buckets: _Optional[_Iterable[int]] = ...) -> None: ...

class ToFront(_message.Message):
    __slots__ = ("attach", "detach", "drain", "status", "plugin_down", "serve")
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    DETACH_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_DOWN_FIELD_NUMBER: _ClassVar[int]
    SERVE_FIELD_NUMBER: _ClassVar[int]
    attach: Attach
    detach: Detach
    drain: Drain
    status: FrontStatusRequest
    plugin_down: PluginDown
    serve: Serve
    def __init__(self, attach: _Optional[_Union[Attach, _Mapping]] = ..., detach: _Optional[_Union[Detach, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., status: _Optional[_Union[FrontStatusRequest, _Mapping]] = ..., plugin_down: _Optional[_Union[PluginDown, _Mapping]] = ..., serve: _Optional[_Union[Serve, _Mapping]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("channel_id", "tenant", "plugin", "ring_bytes", "callbacks", "imports", "policy_path", "redaction_key", "drain_timeout_ns", "imported_functions")
    CHANNEL_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    RING_BYTES_FIELD_NUMBER: _ClassVar[int]
    CALLBACKS_FIELD_NUMBER: _ClassVar[int]
    IMPORTS_FIELD_NUMBER: _ClassVar[int]
    POLICY_PATH_FIELD_NUMBER: _ClassVar[int]
    REDACTION_KEY_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_NS_FIELD_NUMBER: _ClassVar[int]
    IMPORTED_FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    channel_id: int
    tenant: str
    plugin: str
    ring_bytes: int
    callbacks: _containers.RepeatedScalarFieldContainer[str]
    imports: _containers.RepeatedScalarFieldContainer[str]
    policy_path: str
    redaction_key: bytes
    drain_timeout_ns: int
    imported_functions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, channel_id: _Optional[int] = ..., tenant: _Optional[str] = ..., plugin: _Optional[str] = ..., ring_bytes: _Optional[int] = ..., callbacks: _Optional[_Iterable[str]] = ..., imports: _Optional[_Iterable[str]] = ..., policy_path: _Optional[str] = ..., redaction_key: _Optional[bytes] = ..., drain_timeout_ns: _Optional[int] = ..., imported_functions: _Optional[_Iterable[str]] = ...) -> None: ...

class Detach(_message.Message):
    __slots__ = ("channel_id", "reason")
    CHANNEL_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    channel_id: int
    reason: str
    def __init__(self, channel_id: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PluginDown(_message.Message):
    __slots__ = ("tenant", "plugin", "policy_path", "reason", "removed", "starting")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    POLICY_PATH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    STARTING_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    plugin: str
    policy_path: str
    reason: str
    removed: bool
    starting: bool
    def __init__(self, tenant: _Optional[str] = ..., plugin: _Optional[str] = ..., policy_path: _Optional[str] = ..., reason: _Optional[str] = ..., removed: _Optional[bool] = ..., starting: _Optional[bool] = ...) -> None: ...

class Serve(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FrontStatusRequest(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class FromFront(_message.Message):
    __slots__ = ("ready", "status", "channel_broken", "channel_drained")
    READY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_BROKEN_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_DRAINED_FIELD_NUMBER: _ClassVar[int]
    ready: FrontReady
    status: FrontStatus
    channel_broken: ChannelBroken
    channel_drained: ChannelDrained
    def __init__(self, ready: _Optional[_Union[FrontReady, _Mapping]] = ..., status: _Optional[_Union[FrontStatus, _Mapping]] = ..., channel_broken: _Optional[_Union[ChannelBroken, _Mapping]] = ..., channel_drained: _Optional[_Union[ChannelDrained, _Mapping]] = ...) -> None: ...

class FrontReady(_message.Message):
    __slots__ = ("index", "addresses")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    index: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, index: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class FrontStatus(_message.Message):
    __slots__ = ("number", "counters_json")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_JSON_FIELD_NUMBER: _ClassVar[int]
    number: int
    counters_json: str
    def __init__(self, number: _Optional[int] = ..., counters_json: _Optional[str] = ...) -> None: ...

class ChannelBroken(_message.Message):
    __slots__ = ("channel_id", "reason")
    CHANNEL_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    channel_id: int
    reason: str
    def __init__(self, channel_id: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ChannelDrained(_message.Message):
    __slots__ = ("channel_id",)
    CHANNEL_ID_FIELD_NUMBER: _ClassVar[int]
    channel_id: int
    def __init__(self, channel_id: _Optional[int] = ...) -> None: ...

class ToEgress(_message.Message):
    __slots__ = ("rules", "worker_gone", "callout", "vm_gone", "taken", "status")
    RULES_FIELD_NUMBER: _ClassVar[int]
    WORKER_GONE_FIELD_NUMBER: _ClassVar[int]
    CALLOUT_FIELD_NUMBER: _ClassVar[int]
    VM_GONE_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    rules: EgressRules
    worker_gone: EgressWorkerGone
    callout: EgressCallout
    vm_gone: EgressVmGone
    taken: EgressTaken
    status: EgressStatusRequest
    def __init__(self, rules: _Optional[_Union[EgressRules, _Mapping]] = ..., worker_gone: _Optional[_Union[EgressWorkerGone, _Mapping]] = ..., callout: _Optional[_Union[EgressCallout, _Mapping]] = ..., vm_gone: _Optional[_Union[EgressVmGone, _Mapping]] = ..., taken: _Optional[_Union[EgressTaken, _Mapping]] = ..., status: _Optional[_Union[EgressStatusRequest, _Mapping]] = ...) -> None: ...

class EgressRules(_message.Message):
    __slots__ = ("worker_id", "tenant", "policy_path", "redaction_key")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    POLICY_PATH_FIELD_NUMBER: _ClassVar[int]
    REDACTION_KEY_FIELD_NUMBER: _ClassVar[int]
    worker_id: int
    tenant: str
    policy_path: str
    redaction_key: bytes
    def __init__(self, worker_id: _Optional[int] = ..., tenant: _Optional[str] = ..., policy_path: _Optional[str] = ..., redaction_key: _Optional[bytes] = ...) -> None: ...

class EgressMaterial(_message.Message):
    __slots__ = ("files",)
    class File(_message.Message):
        __slots__ = ("path", "content")
        PATH_FIELD_NUMBER: _ClassVar[int]
        CONTENT_FIELD_NUMBER: _ClassVar[int]
        path: str
        content: bytes
        def __init__(self, path: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[EgressMaterial.File]
    def __init__(self, files: _Optional[_Iterable[_Union[EgressMaterial.File, _Mapping]]] = ...) -> None: ...

class EgressWorkerGone(_message.Message):
    __slots__ = ("worker_id",)
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: int
    def __init__(self, worker_id: _Optional[int] = ...) -> None: ...

class EgressCallout(_message.Message):
    __slots__ = ("worker_id", "vm_id", "plugin", "call_id", "data", "more", "first")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    worker_id: int
    vm_id: int
    plugin: str
    call_id: int
    data: bytes
    more: bool
    first: bool
    def __init__(self, worker_id: _Optional[int] = ..., vm_id: _Optional[int] = ..., plugin: _Optional[str] = ..., call_id: _Optional[int] = ..., data: _Optional[bytes] = ..., more: _Optional[bool] = ..., first: _Optional[bool] = ...) -> None: ...

class EgressVmGone(_message.Message):
    __slots__ = ("worker_id", "vm_id")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: int
    vm_id: int
    def __init__(self, worker_id: _Optional[int] = ..., vm_id: _Optional[int] = ...) -> None: ...

class EgressTaken(_message.Message):
    __slots__ = ("worker_id", "bytes")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    worker_id: int
    bytes: int
    def __init__(self, worker_id: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class EgressStatusRequest(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class FromEgress(_message.Message):
    __slots__ = ("ready", "answer", "status")
    READY_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ready: EgressReady
    answer: EgressAnswer
    status: EgressStatus
    def __init__(self, ready: _Optional[_Union[EgressReady, _Mapping]] = ..., answer: _Optional[_Union[EgressAnswer, _Mapping]] = ..., status: _Optional[_Union[EgressStatus, _Mapping]] = ...) -> None: ...

class EgressReady(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EgressAnswer(_message.Message):
    __slots__ = ("worker_id", "vm_id", "call_id", "data", "more", "last")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    worker_id: int
    vm_id: int
    call_id: int
    data: bytes
    more: bool
    last: bool
    def __init__(self, worker_id: _Optional[int] = ..., vm_id: _Optional[int] = ..., call_id: _Optional[int] = ..., data: _Optional[bytes] = ..., more: _Optional[bool] = ..., last: _Optional[bool] = ...) -> None: ...

class EgressStatus(_message.Message):
    __slots__ = ("number", "counters_json", "more")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_JSON_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    number: int
    counters_json: str
    more: bool
    def __init__(self, number: _Optional[int] = ..., counters_json: _Optional[str] = ..., more: _Optional[bool] = ...) -> None: ...
