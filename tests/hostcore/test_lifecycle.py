"""Start, contexts, the end of streams and of the plugin, and what trips the VM."""

from __future__ import annotations

import pytest

from sandboxd.vm.traps import GuestFailure
from tests.hostcore.driver import (
    CLOSE,
    DENIED,
    LOG,
    OK,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    SHUTDOWN,
    VM_STARTED,
    Driver,
)
from tests.hostcore.guest_wat import OUT, OUT_WORD, guest

CONFIGURATION = ("proxy_get_buffer_bytes", 7, 0, 0x7FFF_FFFF, OUT)
VM_CONFIGURATION = ("proxy_get_buffer_bytes", 6, 0, 0x7FFF_FFFF, OUT)


def said(vm: Driver) -> list[bytes]:
    """What the guest logged while it started."""
    return [record.payload for record in vm.start_records if record.kind == LOG]


def line(text: str) -> tuple[object, ...]:
    """A log call; its own report follows it."""
    return ("proxy_log", 2, text)


def test_the_order_of_a_start() -> None:
    """initialise, context create, vm start, configure; configurations are readable where they should be."""
    with Driver(
        guest(
            {
                "_initialize": [line("init")],
                "context_create": [line("create"), CONFIGURATION],
                "vm_start": [line("start"), VM_CONFIGURATION],
                "configure": [line("configure"), CONFIGURATION, VM_CONFIGURATION],
                "request_headers": [VM_CONFIGURATION, CONFIGURATION],
            }
        ),
        vm_configuration=b"of the vm",
        plugin_configuration=b"of the plugin",
    ) as vm:
        started = said(vm)
        assert vm.start_records[0].kind == VM_STARTED
        _, outcome = vm.request()

    assert [text for text in started if text != b"\0"] == [
        b"init", b"create", b"\0of the plugin", b"start", b"\0of the vm", b"configure", b"\0of the plugin",
        b"\0of the vm",
    ]  # fmt: skip
    assert outcome.logs[-2].payload == b"\0of the vm"
    assert outcome.logs[-1].payload == b"\1"


@pytest.mark.parametrize("name", ["vm_start", "configure"])
def test_a_plugin_that_refuses(name: str) -> None:
    """False from either callback."""
    with pytest.raises(GuestFailure, match=f"proxy_on_{name} returned false"):
        Driver(guest({name: (0, [])}))


def test_contexts_are_created_once_and_late() -> None:
    """With the first event, with ids that count up; done, log and delete at the end, in this order."""
    calls = {name: [line(name)] for name in ("context_create", "request_headers", "done", "log", "delete")}
    with Driver(guest(calls)) as vm:
        silent = vm.open()
        unseen = vm.event(CLOSE, silent)
        stream, outcome = vm.request()
        assert vm.status().context_id == 2
        end = vm.event(CLOSE, stream)
        assert vm.status().streams_open == 0

    assert unseen.logs == []
    assert [log.payload for log in outcome.logs if log.arg == 2] == [b"context_create", b"request_headers"]
    assert [log.payload for log in end.logs if log.arg == 2] == [b"done", b"log", b"delete"]
    assert {log.stream_id for log in end.logs} == {stream}


def test_done_that_waits_is_not_waited_for() -> None:
    """A note, unless proxy_done was called at once."""
    with Driver(guest({"done": (0, []), "log": [line("log")]})) as vm:
        stream, _ = vm.request()
        late = vm.event(CLOSE, stream)
        shutdown = vm.event(SHUTDOWN, 0)
    with Driver(guest({"done": (0, [("proxy_done",)]), "log": [("proxy_done",)]})) as vm:
        stream, _ = vm.request()
        early = vm.event(CLOSE, stream)

    assert (late.notes, [log.payload for log in late.logs if log.arg == 2]) == ([6], [b"log"])
    assert shutdown.notes == [6]
    assert (early.notes, early.reports) == ([], [b"\0", b"\1"])


def test_shutdown_closes_every_stream_and_the_root() -> None:
    """All contexts end, then the plugin; nothing is processed afterwards."""
    with Driver(guest({"delete": [line("delete")], "done": [line("done")], "log": [line("log")]})) as vm:
        for _ in range(3):
            vm.request()
        vm.submit(SHUTDOWN, 0)
        assert vm.vm.poll(0) & 8
        logs = [record.payload for record in vm.take() if record.kind == LOG and record.arg == 2]
        assert vm.vm.poll(0) == 8
        assert vm.status().streams_open == 0

    assert logs == [b"done", b"log", b"delete"] * 3 + [b"done", b"delete"]


def test_withheld_callbacks_are_not_called() -> None:
    """A callback that the policy does not grant is as if it were absent."""
    calls = {"request_headers": [line("headers")], "log": [line("log")]}
    with Driver(guest(calls), denied=["proxy_on_request_headers"]) as vm:
        stream, outcome = vm.request()
        end = vm.event(CLOSE, stream)

    assert (outcome.logs, outcome.kinds) == ([], [REQUEST_HEADERS])
    assert len(end.logs) == 2


def test_denied_functions_answer_and_are_reported() -> None:
    """INTERNAL_FAILURE for the guest; a report the first, second, fourth, ... time."""
    call = ("proxy_get_property", "plugin_name", OUT)
    with Driver(guest({"request_headers": [("loop", 9, call), call]}), denied=["proxy_get_property"]) as vm:
        _, outcome = vm.request()

    assert outcome.reports == [b"\x0a"]
    assert len([effect for effect in outcome.effects if effect.kind == DENIED]) == 4


@pytest.mark.parametrize(
    ("callbacks", "violation", "allowed"),
    [
        ({"_initialize": [("proxy_set_property", "a", "b")]}, 1, False),
        ({"_initialize": [line("hello"), ("environ_sizes_get", 8, 12), ("random_get", 64, 8)]}, 0, True),
        ({"_initialize": [("proxy_get_header_map_value", 0, "a", OUT)]}, 1, False),
    ],
)
def test_host_calls_during_initialisation(callbacks: dict[str, object], violation: int, allowed: bool) -> None:
    """Only the log and WASI."""
    with Driver(guest(callbacks), start=False) as vm:  # type: ignore[arg-type]
        if allowed:
            vm.vm.start()
        else:
            with pytest.raises(GuestFailure):
                vm.vm.start()
        assert vm.status().violation == violation


def test_host_calls_inside_the_allocator() -> None:
    """The log and the clock are fine, anything else ends the VM."""
    for calls, violation in (([line("in"), ("sched_yield",)], 0), ([("proxy_continue_stream", 0)], 1)):
        with Driver(
            guest({"request_headers": [VM_CONFIGURATION], "memory_allocate": calls}), vm_configuration=b"x"
        ) as vm:
            if violation:
                with pytest.raises(GuestFailure):
                    vm.request()
                assert vm.status().in_callback == 2
            else:
                assert vm.request()[1].code == OK
            assert vm.status().violation == violation


def test_the_limit_of_host_calls() -> None:
    """Counted per event."""
    for calls, fine in ((90, True), (101, False)):
        with Driver(
            guest({"request_headers": [("loop", calls, ("sched_yield",))]}),
            limits={"host_calls_per_event": 100},
        ) as vm:
            if fine:
                vm.request()
                assert vm.request()[1].code == OK
            else:
                with pytest.raises(GuestFailure):
                    vm.request()
                assert vm.status().violation == 2


def test_status_names_the_callback_that_trapped() -> None:
    """The worker reads it after a trap."""
    with Driver(guest({"response_headers": [line("last words"), ("trap",)]})) as vm:
        stream, _ = vm.request()
        vm.submit(RESPONSE_HEADERS, stream, b"")
        with pytest.raises(GuestFailure):
            vm.vm.poll(0)
        status = vm.status()
        words = [record.payload for record in vm.take() if record.kind == LOG]

    assert (status.in_callback, status.context_id, status.event_seq) == (9, 2, 3)
    assert (status.stream_id_low, status.stream_id_high) == (stream, 0)
    assert words == [b"last words", b"\0"]


def test_proc_exit_traps() -> None:
    """Whatever the code; what was written before is not lost."""
    with Driver(guest({"request_headers": [line("bye"), ("proc_exit", 0)]})) as vm:
        vm.submit(1, 1)
        vm.submit(REQUEST_HEADERS, 1, b"")
        with pytest.raises(GuestFailure):
            vm.vm.poll(0)
        status = vm.status()

    assert (status.exited, status.exit_code, status.violation) == (1, 0, 0)


def test_the_call_stamp_is_even_between_callbacks() -> None:
    """It counts entries and exits; after a trap the next VM makes it even again."""
    with Driver(guest({"request_headers": [], "response_headers": [("trap",)]})) as vm:
        assert vm.word(456) % 2 == 0
        stream, _ = vm.request()
        before = vm.word(456)
        assert before % 2 == 0
        vm.submit(RESPONSE_HEADERS, stream, b"")
        with pytest.raises(GuestFailure):
            vm.vm.poll(0)
        assert vm.word(456) == before + 1
        with Driver(guest({"request_headers": []}), channel=vm.fds, generation=2) as again:
            assert again.word(456) % 2 == 0
            assert again.word(456) > before


def test_metrics() -> None:
    """Define, increment, record and get, with Envoy's meaning; the same name is the same metric."""
    counter, gauge, histogram = 4, 5, 6
    calls = [
        ("proxy_define_metric", 0, "c", OUT_WORD),
        ("proxy_define_metric", 1, "g", OUT_WORD),
        ("proxy_define_metric", 2, "h", OUT_WORD),
        ("proxy_define_metric", 0, "c", OUT_WORD),
        ("proxy_define_metric", 3, "x", OUT_WORD),
        ("proxy_increment_metric", counter, 5),
        ("proxy_increment_metric", counter, -1),
        ("proxy_increment_metric", counter, 0),
        ("proxy_record_metric", counter, 10),
        ("proxy_get_metric", counter, OUT_WORD),
        ("proxy_record_metric", gauge, 10),
        ("proxy_increment_metric", gauge, -3),
        ("proxy_get_metric", gauge, OUT_WORD),
        ("proxy_increment_metric", gauge, -0x8000_0000_0000_0000),
        ("proxy_get_metric", gauge, OUT_WORD),
        ("proxy_record_metric", histogram, 1),
        ("proxy_increment_metric", histogram, 1),
        ("proxy_get_metric", histogram, OUT_WORD),
        ("proxy_get_metric", 400, OUT_WORD),
        ("proxy_increment_metric", 7, 1),
        ("proxy_record_metric", 0, 1),
    ]
    with Driver(guest({"vm_start": calls})) as vm:
        reports = said(vm)
        assert vm.status().metrics == 3

    def word(value: int) -> bytes:
        return b"\0" + value.to_bytes(8, "little")

    assert reports == [
        word(counter), word(gauge), word(histogram), word(counter), b"\2" + bytes(8),
        b"\0", b"\2", b"\2", b"\0", word(15),
        b"\0", b"\0", word(7), b"\0", word(0),
        b"\0", b"\2", b"\2" + bytes(8),
        b"\1" + bytes(8), b"\2", b"\1",
    ]  # fmt: skip


def test_metrics_are_bounded() -> None:
    """One more than the limit is an internal failure."""
    calls = [("proxy_define_metric", kind, name, OUT_WORD) for kind in range(3) for name in "ab"]
    with Driver(guest({"vm_start": calls}), limits={"metrics": 5}) as vm:
        statuses = [report[0] for report in said(vm)]

    assert statuses == [0] * 5 + [10]


def test_what_is_not_offered_answers_honestly() -> None:
    """Envoy's DNS look-up, foreign functions that make no sense here; and the one helper that old runtimes import."""
    calls = [
        ("envoy_resolve_dns", "name", OUT_WORD),
        ("proxy_call_foreign_function", "expr_create", "x", OUT),
        ("pthread_equal", 3, 3),
    ]
    with Driver(guest({"request_headers": calls})) as vm:
        _, outcome = vm.request()

    assert [report[0] for report in outcome.reports] == [10, 1, 1]


def test_the_route_cache() -> None:
    """By the foreign function and by ABI 0.1.0's own, once per event."""
    calls = [("proxy_call_foreign_function", "clear_route_cache", "", OUT), ("proxy_clear_route_cache",)]
    with Driver(guest({"request_headers": calls})) as vm:
        _, outcome = vm.request()

    assert outcome.kinds == [10, REQUEST_HEADERS]
    assert outcome.reports == [b"\0", b"\0"]
