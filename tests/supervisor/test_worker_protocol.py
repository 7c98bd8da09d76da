"""A worker's frames are hostile: whatever they hold, the answer is an event or `WorkerError`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import WorkerError
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import worker_events
from sandboxd.supervisor import worker_protocol as protocol
from sandboxd.supervisor.worker_protocol import VmState, VmView, WorkerView


def frame(**fields: Any) -> bytes:
    """Return a frame with one field."""
    return control.FromWorker(**fields).SerializeToString()


def view() -> WorkerView:
    """Return the view of a ready worker with plugins 1 (loaded) and 2 (asked for), and VMs 7 and 8."""
    made = WorkerView(ready=True, plugins={1: True, 2: False}, vms={7: VmView(1), 8: VmView(1)})
    made.last_ping = 5
    return made


def test_a_normal_life() -> None:
    """Each frame becomes its event, and the view follows."""
    worker = WorkerView()
    assert worker.feed(frame(ready=control.WorkerReady(layers=["uid"]))) == worker_events.Ready(("uid",))
    worker.plugins[1] = False
    assert worker.feed(frame(plugin_loaded=control.PluginLoaded(plugin_id=1, load_ns=5))) == (
        worker_events.PluginLoaded(1, "", 5)
    )
    worker.vms[3] = VmView(1)
    assert worker.feed(frame(vm_started=control.VmStarted(vm_id=3, generation=1, start_ns=9))) == (
        worker_events.VmStarted(3, 1, 9)
    )
    assert worker.vms[3].state is VmState.RUNNING
    failed = control.VmFailed(vm_id=3, generation=1, cause=control.FAILURE_CAUSE_TRAP, message="boom")
    event = worker.feed(frame(vm_failed=failed))
    assert isinstance(event, worker_events.VmFailed)
    assert event.cause == "trap"
    assert (worker.vms[3].state, worker.vms[3].crashes) == (VmState.FAILED, 1)
    worker.vms[3].state = VmState.CLOSING
    assert worker.feed(frame(vm_closed=control.VmClosed(vm_id=3))) == worker_events.VmClosed(3)
    assert worker.vms == {}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"ready": control.WorkerReady()}, "twice"),
        ({"vm_started": control.VmStarted(vm_id=9, generation=1)}, "was not given"),
        ({"vm_started": control.VmStarted(vm_id=7, generation=0)}, "generation 0"),
        ({"vm_failed": control.VmFailed(vm_id=9)}, "was not given"),
        ({"vm_closed": control.VmClosed(vm_id=7)}, "unasked"),
        ({"plugin_loaded": control.PluginLoaded(plugin_id=1)}, "not asked"),
        ({"plugin_loaded": control.PluginLoaded(plugin_id=3)}, "not asked"),
        ({"pong": control.Pong(number=6)}, "answered ping 6"),
        ({"pong": control.Pong(number=0)}, "answered ping 0"),
        ({"pong": control.Pong(number=1, vms=[control.VmUsage(vm_id=9)])}, "was not given"),
        ({"pong": control.Pong(number=1, vms=[control.VmUsage(vm_id=7)] * 3)}, "more VMs"),
    ],
)
def test_what_no_honest_worker_says(fields: dict[str, Any], problem: str) -> None:
    """Ids that are not its own, answers that nobody asked for, and numbers out of order."""
    with pytest.raises(WorkerError, match=problem):
        view().feed(frame(**fields))


def test_nothing_before_ready() -> None:
    """The first frame is WorkerReady."""
    with pytest.raises(WorkerError, match="before it was ready"):
        WorkerView().feed(frame(pong=control.Pong(number=1)))


def test_generations_only_grow() -> None:
    """A second VM_STARTED of one generation would make fronts fail streams for nothing."""
    worker = view()
    worker.vms[7].starts = 3
    worker.feed(frame(vm_started=control.VmStarted(vm_id=7, generation=2)))
    with pytest.raises(WorkerError, match="generation 2 after 2"):
        worker.feed(frame(vm_started=control.VmStarted(vm_id=7, generation=2)))
    with pytest.raises(WorkerError, match="generation 1 after 2"):
        worker.feed(frame(vm_failed=control.VmFailed(vm_id=7, generation=1)))


def test_no_start_without_leave() -> None:
    """A worker must not hide crashes by starting VMs again by itself, whatever frame tells of it."""
    for said in (
        {"vm_started": control.VmStarted(vm_id=7, generation=2)},
        {"vm_failed": control.VmFailed(vm_id=7, generation=2)},
        {"pong": control.Pong(number=1, vms=[control.VmUsage(vm_id=7, generation=2)])},
    ):
        with pytest.raises(WorkerError, match="generation 2 of VM 7; it had leave for 1"):
            view().feed(frame(**said))
        allowed = view()
        allowed.vms[7].starts = 2
        allowed.feed(frame(**said))


def test_one_failure_for_each_start() -> None:
    """Else a worker could drive its plugin into quarantine, or fill the ledger, with a VM that never ran."""
    worker = view()
    failed = frame(vm_failed=control.VmFailed(vm_id=7, generation=1))
    worker.feed(failed)
    assert worker.vms[7].waits
    with pytest.raises(WorkerError, match="failed VM 7 of generation 1"):
        worker.feed(failed)
    with pytest.raises(WorkerError, match="started VM 7 with generation 1"):
        worker.feed(frame(vm_started=control.VmStarted(vm_id=7, generation=1)))


def test_a_broken_ring_is_final() -> None:
    """There is no starting again on a channel whose ring is broken."""
    worker = view()
    worker.feed(frame(vm_failed=control.VmFailed(vm_id=7, generation=1, cause=control.FAILURE_CAUSE_PROTOCOL)))
    assert worker.vms[7].state is VmState.DOWN


def test_a_closing_vm_stays_closing() -> None:
    """A start that crosses with CloseVm does not bring the VM back."""
    worker = view()
    worker.vms[7].state = VmState.CLOSING
    worker.feed(frame(vm_started=control.VmStarted(vm_id=7, generation=1)))
    assert worker.vms[7].state is VmState.CLOSING


def test_text_is_made_harmless() -> None:
    """No line breaks, no terminal escapes, bounded."""
    text = "a\nb\x1b[31m\u202e" + "x" * 10_000
    event = view().feed(frame(vm_failed=control.VmFailed(vm_id=7, generation=1, message=text, callback=text)))

    assert isinstance(event, worker_events.VmFailed)
    assert event.message.startswith("a\\nb\\x1b[31m\\u202e")
    assert event.message.isprintable()
    assert len(event.message) <= protocol.MAX_MESSAGE_BYTES
    assert len(event.callback) <= protocol.MAX_NAME_BYTES


def test_backtraces_are_made_harmless() -> None:
    """Few frames, short and printable."""
    failed = control.VmFailed(vm_id=7, generation=1, backtrace=["f\n\x1b[2J" + "x" * 10_000] * 1000)
    event = view().feed(frame(vm_failed=failed))

    assert isinstance(event, worker_events.VmFailed)
    assert len(event.backtrace) == protocol.MAX_FRAMES
    assert all(one.isprintable() and len(one) <= protocol.MAX_NAME_BYTES for one in event.backtrace)


def test_unknown_causes_have_a_name() -> None:
    """An open enum: any number may come."""
    assert protocol.cause_name(2) == "cpu_limit"
    assert protocol.cause_name(99) == "unknown"


usages = st.builds(control.VmUsage, vm_id=st.integers(5, 9), generation=st.integers(0, 9))
small = st.integers(0, 9)
frames = st.one_of(
    st.builds(control.FromWorker, ready=st.builds(control.WorkerReady, layers=st.lists(st.text(), max_size=70))),
    st.builds(control.FromWorker, plugin_loaded=st.builds(control.PluginLoaded, plugin_id=small, error=st.text())),
    st.builds(control.FromWorker, vm_started=st.builds(control.VmStarted, vm_id=small, generation=small)),
    st.builds(
        control.FromWorker,
        vm_failed=st.builds(control.VmFailed, vm_id=small, generation=small, message=st.text(), callback=st.text()),
    ),
    st.builds(control.FromWorker, vm_closed=st.builds(control.VmClosed, vm_id=small)),
    st.builds(control.FromWorker, pong=st.builds(control.Pong, number=small, vms=st.lists(usages, max_size=4))),
    st.builds(control.FromWorker, error=st.builds(control.WorkerError, message=st.text())),
).map(lambda message: message.SerializeToString())


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.one_of(frames, st.binary(max_size=60)), max_size=12))
def test_any_conversation(said: list[bytes]) -> None:
    """Every frame gives an event or `WorkerError`; ids never appear that the supervisor did not give."""
    worker = view()
    worker.ready = False
    for data in said:
        try:
            event = worker.feed(data)
        except WorkerError:
            continue
        assert isinstance(event, worker_events.Event)
        for value in (getattr(event, name) for name in event.__dataclass_fields__):
            assert not isinstance(value, str) or value == "" or value.isprintable()
    assert set(worker.plugins) == {1, 2}
    assert set(worker.vms) <= {7, 8}
    assert worker.last_pong <= worker.last_ping
