"""Runs every host function and every callback in hostcore, and writes down what comes of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from sandboxd.channel.memfd import create_shared_region
from sandboxd.vm import abi
from sandboxd.vm.abi import AbiVersion
from sandboxd.vm.folder_blob import Entry, Snapshot, encode
from sandboxd.vm.instance import SharedRegion
from sandboxd.vm.messages import Delivery, DeliveryKind
from sandboxd.vm.traps import GuestFailure
from tests.conformance import calls
from tests.conformance.calls import Call, Scope
from tests.hostcore.driver import (
    CLOSE,
    DENIED,
    END,
    LOCAL_RESPONSE,
    LOG,
    REQUEST_BODY,
    REQUEST_HEADERS,
    REQUEST_TRAILERS,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    RESPONSE_TRAILERS,
    Driver,
    Record,
    encode_pairs,
)
from tests.hostcore.guest_wat import OUT, OUT_WORD, guest

Status: TypeAlias = int | str
"""A status, ``trap``, or ``nothing`` for a function without a result."""

FUNCTIONS: Final = tuple(calls.CALLS)
_ENDS: Final = frozenset(
    {
        "proxy_send_local_response",
        "proxy_continue_request",
        "proxy_continue_response",
        "proxy_continue_stream",
        "proxy_close_stream",
        "proxy_done",
        "proxy_set_effective_context",
        "proxy_set_header_map_pairs",
        "proxy_grpc_send",
        "proxy_grpc_cancel",
        "proxy_grpc_close",
        "proc_exit",
    }
)
"""What changes the answers of the calls after it: each in a guest of its own."""
_NO_RESULT: Final = frozenset({"proc_exit", "emscripten_notify_memory_growth"})
_BODIES: Final = frozenset({"proxy_get_buffer_status", "proxy_get_buffer_bytes", "proxy_set_buffer_bytes"})
_TICK: Final = Delivery(DeliveryKind.TICK)
_PERIOD: Final = ("proxy_set_tick_period_milliseconds", 1)
_NEW_CONNECTION, _DOWNSTREAM_DATA, _UPSTREAM_DATA, _DOWNSTREAM_CLOSE, _UPSTREAM_CLOSE = range(16, 21)
_PEER: Final = (1).to_bytes(4, "little")
_FOLDER: Final = Snapshot("/data", True, 1 << 20, 100, (Entry(b"file", b"text"), Entry(b"gone", b"")))
_PAIRS: Final = encode_pairs([(b"a", b"b")])


@contextmanager
def running(module: str, **more: Any) -> Iterator[Driver]:
    """A VM with everything that a policy can give."""
    fd = create_shared_region(1 << 20)
    try:
        shared = SharedRegion(fd, 1 << 20, 1)
        given = {"upstreams": (calls.UPSTREAM,), "shared": shared, "folders": encode([_FOLDER]), "open_files": 200}
        with Driver(module, **{**given, **more}) as vm:
            yield vm
    finally:
        os.close(fd)


# ---- functions ---------------------------------------------------------------------------------------------------


def statuses(scope: Scope, version: AbiVersion) -> dict[str, Status]:
    """Return what each function answers, called well in that scope."""
    harmless = [name for name in FUNCTIONS if name not in _ENDS]
    found: dict[str, Status] = {}
    bodies = [name for name in harmless if name in _BODIES]
    for group in ([n for n in harmless if n not in _BODIES], bodies, *([name] for name in FUNCTIONS if name in _ENDS)):
        found |= _group(group, scope, version)
    return {name: found[name] for name in FUNCTIONS}


def _group(names: list[str], scope: Scope, version: AbiVersion) -> dict[str, Status]:
    steps: list[Call] = []
    places: dict[str, int] = {}
    for name in names:
        steps += calls.before(name)
        if name not in _NO_RESULT:
            places[name] = len(steps)
        steps.append(calls.call(name, scope) if name != "emscripten_notify_memory_growth" else calls.CALLS[name])
    reports = _reports(steps, scope, version, body=bool(set(names) & _BODIES))
    found: dict[str, Status] = dict.fromkeys(names, "nothing")
    if reports is None:
        assert len(names) == 1, names
        return {names[0]: "trap"}
    no_reports = [index for index, step in enumerate(steps) if step[0] in _NO_RESULT]
    for name, place in places.items():
        found[name] = reports[place - sum(index < place for index in no_reports)][0]
    return found


def _reports(steps: list[Call], scope: Scope, version: AbiVersion, *, body: bool) -> list[bytes] | None:
    """Run the calls there and return a report for each; None: the guest trapped."""
    callback = {
        Scope.START: "configure",
        Scope.ROOT: "tick",
        Scope.HTTP: "request_body" if body else "request_headers",
        Scope.TCP: "downstream_data",
    }[scope]
    callbacks: dict[str, Any] = {callback: steps}
    if scope is Scope.ROOT:
        callbacks["vm_start"] = [_PERIOD]
    with running(guest(callbacks, marker=version.marker), start=False) as vm:
        try:
            vm.vm.start()
            records = vm.take()
            if scope is not Scope.START:
                records = _provoke(vm, scope, body=body)
        except GuestFailure:
            return None
    return [record.payload for record in records if record.kind == LOG and record.arg == 0]


def _provoke(vm: Driver, scope: Scope, *, body: bool) -> list[Record]:
    if scope is Scope.ROOT:
        return vm.turn(_TICK, after_ns=2_000_000)[1]
    if scope is Scope.TCP:
        stream = vm.open()
        vm.event(_NEW_CONNECTION, stream)
        return vm.event(_DOWNSTREAM_DATA, stream, b"data").logs
    stream, outcome = vm.request(end=False)
    return vm.event(REQUEST_BODY, stream, b"body", END).logs if body else outcome.logs


def wild(version: AbiVersion) -> dict[str, Status]:
    """Return what each function answers to addresses outside the guest's memory; those that take none are left out."""
    steps: list[Call] = [calls.OPEN_FILE]
    places: dict[str, int] = {}
    for name in FUNCTIONS:
        if (step := calls.wild(name)) is not None:
            places[name] = len(steps)
            steps.append(step)
    reports = _reports(steps, Scope.HTTP, version, body=False)
    assert reports is not None
    return {name: reports[place][0] for name, place in places.items()}


def denied(version: AbiVersion) -> dict[str, Status]:
    """Return what each function answers that is not granted; those that no capability withholds are left out."""
    names = [name for name in FUNCTIONS if name not in abi.EXTRA_FUNCTIONS]
    plain = [name for name in names if name not in {"proc_exit", "proxy_log"}]
    steps = [calls.call(name, Scope.HTTP) for name in plain]
    with running(guest({"request_headers": steps}, marker=version.marker), denied=plain) as vm:
        _, outcome = vm.request()
    assert sum(effect.kind == DENIED for effect in outcome.effects) == len(plain), "each denied call is reported once"
    found: dict[str, Status] = {name: report[0] for name, report in zip(plain, outcome.reports, strict=True)}
    found["proxy_log"] = _denied_log(version)
    exits = guest({"request_headers": [calls.CALLS["proc_exit"]]}, marker=version.marker)
    with running(exits, denied=["proc_exit"]) as vm:
        found["proc_exit"] = "trap" if _fails(vm.request) else "nothing"
        assert vm.status().exited == 0
    return {name: found[name] for name in names}


def _denied_log(version: AbiVersion) -> Status:
    """``proxy_log`` is how guests report everything else: its status comes back as that of a local response."""
    parameters = "i32 i32" if version is AbiVersion.V0_1_0 else "i32 i32 i32"
    module = f"""(module
      (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
      (import "env" "proxy_send_local_response"
        (func $send (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "{version.marker}"))
      (func (export "malloc") (param i32) (result i32) (i32.const 1024))
      (func (export "proxy_on_request_headers") (param {parameters}) (result i32)
        (drop (call $send (i32.add (i32.const 200) (call $log (i32.const 2) (i32.const 0) (i32.const 1)))
          (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
        (i32.const 1)))"""
    with running(module, denied=["proxy_log"]) as vm:
        _, outcome = vm.request()
    assert not outcome.logs
    return int.from_bytes(outcome.one(LOCAL_RESPONSE).payload[:4], "little") - 200


def _fails(action: Any) -> bool:
    try:
        action()
    except GuestFailure:
        return True
    return False


def initialising() -> frozenset[str]:
    """Return the functions that may be called during initialisation; the others trap."""
    return frozenset(name for name in FUNCTIONS if _survives(name, "_initialize"))


def allocating() -> frozenset[str]:
    """Return the functions that may be called inside the allocator; the others trap."""
    return frozenset(name for name in FUNCTIONS if _survives(name, "memory_allocate"))


def _survives(name: str, callback: str) -> bool:
    steps = [calls.call(name, Scope.START)]
    module = guest({callback: steps, "request_headers": [("proxy_get_property", "plugin_name", OUT)]})
    with running(module, start=False) as vm:
        if not _fails(vm.vm.start):
            vm.requests()
            if not _fails(vm.request):
                return True
        status = vm.status()
        return bool(status.exited) or status.violation != 1


def foreign() -> dict[str, Status]:
    """Return what each of Envoy's foreign functions answers in an HTTP stream."""
    steps = [("proxy_call_foreign_function", name, given, OUT) for name, given in calls.FOREIGN.items()]
    reports = _reports(steps, Scope.HTTP, AbiVersion.V0_2_1, body=False)
    assert reports is not None
    return {name: report[0] for name, report in zip(calls.FOREIGN, reports, strict=True)}


# ---- callbacks ---------------------------------------------------------------------------------------------------


def called(scope: Scope, version: AbiVersion, denied_names: Iterable[str] = ()) -> frozenset[str]:
    """Return the callbacks that run in that scope, of a guest that has all of them."""
    denied_names = frozenset(denied_names)
    callbacks: dict[str, list[Call]] = {name: [("proxy_log", 2, name)] for name in abi.CALLBACKS}
    made: list[Call] = [
        calls.CALLS["proxy_http_call"],
        ("proxy_grpc_stream", calls.UPSTREAM, "a.Service", "Method", _PAIRS, OUT_WORD),
    ]
    callbacks["proxy_on_vm_start"].append(("proxy_register_shared_queue", "queue", OUT_WORD))
    if scope is Scope.ROOT:
        callbacks["proxy_on_vm_start"].append(_PERIOD)
    callbacks["proxy_on_configure"] += [("proxy_enqueue_shared_queue", 1, "item"), *made]
    texts: list[bytes] = []
    with running(guest(callbacks, marker=version.marker), denied=denied_names) as vm:
        if scope is Scope.START:
            records = vm.start_records
        elif scope is Scope.ROOT:
            records = _root_turns(vm)
        else:
            records = _exchange(vm, scope)
        texts = [record.payload for record in records if record.kind == LOG]
    return frozenset(name for name in abi.CALLBACKS if name.encode() in texts)


def _root_turns(vm: Driver) -> list[Record]:
    http, grpc = 4, 6
    deliveries = (
        _TICK,
        Delivery(DeliveryKind.QUEUES),
        Delivery(DeliveryKind.HTTP_RESPONSE, http, headers=_PAIRS, body=b"body"),
        Delivery(DeliveryKind.GRPC_INITIAL_METADATA, grpc, headers=_PAIRS),
        Delivery(DeliveryKind.GRPC_MESSAGE, grpc, body=b"message"),
        Delivery(DeliveryKind.GRPC_TRAILING_METADATA, grpc, trailers=_PAIRS),
        Delivery(DeliveryKind.GRPC_CLOSE, grpc),
    )
    vm.requests()
    return [record for delivery in deliveries for record in vm.turn(delivery, after_ns=2_000_000)[1]]


def _exchange(vm: Driver, scope: Scope) -> list[Record]:
    stream = vm.open()
    vm.requests()
    if scope is Scope.TCP:
        events = (
            (_NEW_CONNECTION, b"", 0),
            (_DOWNSTREAM_DATA, b"data", 0),
            (_UPSTREAM_DATA, b"data", 0),
            (_DOWNSTREAM_CLOSE, _PEER, 0),
            (_UPSTREAM_CLOSE, _PEER, 0),
        )
    else:
        request = encode_pairs([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a")])
        events = (
            (REQUEST_HEADERS, request, 0),
            (REQUEST_BODY, b"body", 0),
            (REQUEST_TRAILERS, _PAIRS, 0),
            (RESPONSE_HEADERS, encode_pairs([(b":status", b"200")]), 0),
            (RESPONSE_BODY, b"body", 0),
            (RESPONSE_TRAILERS, _PAIRS, 0),
        )
    records: list[Record] = []
    for kind, payload, flags in (*events, (CLOSE, b"", 0)):
        records += vm.event(kind, stream, payload, flags).logs
    return records


def withheld(version: AbiVersion) -> frozenset[str]:
    """Return the callbacks that never run once the policy does not grant them, in whatever scope."""
    names = frozenset(abi.CALLBACKS)
    seen = frozenset[str]().union(*(called(scope, version, names) for scope in Scope))
    return names - seen


# ---- all of it ---------------------------------------------------------------------------------------------------


def observe() -> dict[str, Any]:
    """Return everything, as `sandboxd.policy.conformance` stores it."""
    by_scope = {scope: {version: statuses(scope, version) for version in AbiVersion} for scope in Scope}
    refused = {version: denied(version) for version in AbiVersion}
    hostile = {version: wild(version) for version in AbiVersion}
    early, inside = initialising(), allocating()
    runs = {scope: {version: called(scope, version) for version in AbiVersion} for scope in Scope}
    silent = {version: withheld(version) for version in AbiVersion}
    functions = {
        name: {
            "versions": [version.text for version in AbiVersion if abi.in_version(name, version)],
            **{str(scope): _merged({v: by_scope[scope][v][name] for v in AbiVersion}) for scope in Scope},
            "denied": _merged({v: refused[v].get(name) for v in AbiVersion}),
            "wild": _merged({v: hostile[v].get(name) for v in AbiVersion}),
            "initialising": name in early,
            "allocating": name in inside,
        }
        for name in FUNCTIONS
    }
    callbacks = {
        name: {
            "versions": [version.text for version in AbiVersion if abi.in_version(name, version)],
            "scopes": _merged({v: [str(scope) for scope in Scope if name in runs[scope][v]] for v in AbiVersion}),
            "withheld": _merged({v: name in silent[v] for v in AbiVersion}),
        }
        for name in abi.CALLBACKS
    }
    return {"functions": functions, "callbacks": callbacks, "foreign": foreign()}


def _merged(values: dict[AbiVersion, Any]) -> Any:
    """Return the value that all versions have; else each one's."""
    first, *others = values.values()
    if all(value == first for value in others):
        return first
    return {version.text: value for version, value in values.items()}


assert set(FUNCTIONS) == set(abi.PROXY_FUNCTIONS) | set(abi.EXTRA_FUNCTIONS) | set(abi.WASI_FUNCTIONS)
