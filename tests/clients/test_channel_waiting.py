"""The C client and a scripted VM: waiting for verdicts, deadlines, and a VM that fails while somebody waits."""

from __future__ import annotations

import ctypes as c
import os
import select
import threading
import time
from dataclasses import replace

import pytest

from sandboxd.channel import layout
from sandboxd.policy.model import PluginLimits
from tests.support import c_client
from tests.support.scripted_channel import POLICY, Setup


def test_without_blocking(setup: Setup) -> None:
    """arm, poll, next: as an event loop does it."""
    client = setup.open(spin_ns=0)
    events = {client.headers(client.open(), 2, [(b":path", b"/")]).value for _ in range(50)}
    told = c.c_void_p()
    deadline = time.monotonic() + 10
    while events:
        assert time.monotonic() < deadline
        while setup.lib.sbx_next(client.handle, c.byref(told)) == 0:
            assert setup.lib.sbx_event_status(told) == 0
            events.remove(told.value)
            setup.lib.sbx_event_free(told)
        if events and setup.lib.sbx_arm(client.handle) == 0:
            select.select([setup.lib.sbx_channel_fd(client.handle)], [], [], 5)


def test_for_edges_nobody_reads_the_descriptor(setup: Setup) -> None:
    """Each wake-up is told once, though the descriptor stays readable."""
    client = setup.open(serve=False, spin_ns=0)
    stream, told = client.open(), c.c_void_p()
    with select.epoll() as epoll:
        epoll.register(setup.lib.sbx_channel_fd(client.handle), select.EPOLLIN | select.EPOLLET)
        epoll.poll(0)
        for _ in range(3):
            event = client.headers(stream, 2, [(b":path", b"/")])
            assert setup.lib.sbx_arm_edge(client.handle) == 0
            assert epoll.poll(0) == []
            setup.vm.poll()
            assert len(epoll.poll(0)) == 1
            assert c_client.NAMES[setup.lib.sbx_arm_edge(client.handle)] == "AGAIN"
            assert setup.lib.sbx_next(client.handle, c.byref(told)) == 0
            assert told.value == event.value
            setup.lib.sbx_event_free(told)
            setup.lib.sbx_stream_close(stream, False, 0)
            stream = client.open()


def test_a_sleeping_vm_is_woken_for_every_submission(setup: Setup) -> None:
    client, wakes = setup.open(serve=False, spin_ns=0), Wakes(setup)
    stream = client.open()
    client.headers(stream, 2, [(b":path", b"/")])
    assert wakes.since_sleep()
    setup.lib.sbx_stream_close(stream, False, 0)
    assert wakes.since_sleep()


def test_a_batch_wakes_a_sleeping_vm_once(setup: Setup) -> None:
    """When one more has come than may wait, or when whoever submits is through."""
    client, wakes = setup.open(serve=False, spin_ns=0), Wakes(setup)
    setup.lib.sbx_channel_set_batch(client.handle, 2)
    events = []
    for woken in (False, False, True, False, False, True, False):
        events.append(client.headers(client.open(), 2, [(b":path", b"/")]))
        assert wakes.since_sleep() is woken
    setup.lib.sbx_call(client.handle)
    assert wakes.since_sleep()
    setup.lib.sbx_call(client.handle)
    assert not wakes.since_sleep(), "nothing waits"
    setup.vm.poll()
    for event in events:
        client.wait(event)


@pytest.mark.parametrize("leave", ["sbx_arm", "sbx_arm_edge", "sbx_next", "sbx_wait"])
def test_what_waits_is_not_left_behind(setup: Setup, leave: str) -> None:
    """Whoever looks for verdicts without blocking, or is about to sleep, has called before."""
    client, wakes = setup.open(serve=False, spin_ns=0), Wakes(setup)
    setup.lib.sbx_channel_set_batch(client.handle, 7)
    event, told = client.headers(client.open(), 2, [(b":path", b"/")]), c.c_void_p()
    assert not wakes.since_sleep()
    if leave == "sbx_wait":
        setup.lib.sbx_wait(event, 1_000_000)
    elif leave == "sbx_next":
        setup.lib.sbx_next(client.handle, c.byref(told))
    else:
        setup.lib[leave](client.handle)
    assert wakes.since_sleep()


def test_who_spins_has_called_before(setup: Setup) -> None:
    client = setup.open(spin_ns=50_000_000)
    setup.lib.sbx_channel_set_batch(client.handle, 7)
    event = client.headers(client.open(), 2, [(b":path", b"/")])
    assert setup.lib.sbx_spin(event) == 0


class Wakes:
    """A VM that sleeps, as far as the client can see."""

    def __init__(self, setup: Setup) -> None:
        self._words = setup.vm.words
        self._fd = setup.fds.vm_event_fd
        self._sleep()

    def _sleep(self) -> None:
        self._words[layout.OFFSET_VM_NEED_WAKE // 4] = 1

    def since_sleep(self) -> bool:
        """Return whether the VM was woken since it was last asked; then it sleeps again."""
        woken = bool(select.select([self._fd], [], [], 0)[0])
        assert woken is (self._words[layout.OFFSET_VM_NEED_WAKE // 4] == 0)
        if woken:
            os.eventfd_read(self._fd)
        self._sleep()
        return woken


def test_looking_in_vain_costs_less_and_less_but_is_tried_again(setup: Setup) -> None:
    budget_ns = 4_000_000
    client = setup.open(serve=False, spin_ns=budget_ns)
    event = client.headers(client.open(), 2, [(b":path", b"/")])
    taken = []
    for _ in range(32):
        begin = time.monotonic_ns()
        assert c_client.NAMES[setup.lib.sbx_spin(event)] == "AGAIN"
        taken.append(time.monotonic_ns() - begin)
    long = [index for index, took in enumerate(taken) if took >= budget_ns]
    assert {0, 16} <= set(long)
    assert sum(took < budget_ns / 2 for took in taken) > 16


def test_with_few_cpus_it_looks_only_while_alone(setup: Setup) -> None:
    """A second stream, and nobody waits for the first one's verdict while the second could go on."""
    budget_ns = 2_000_000
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        client = setup.open(serve=False, spin_ns=budget_ns)
    finally:
        os.sched_setaffinity(0, cpus)

    def look_ns() -> int:
        begin = time.monotonic_ns()
        assert c_client.NAMES[setup.lib.sbx_spin(event)] == "AGAIN"
        return time.monotonic_ns() - begin

    first = client.open()
    event = client.headers(first, 2, [(b":path", b"/")])
    assert look_ns() >= budget_ns
    second = client.open()
    assert min(look_ns() for _ in range(5)) < budget_ns / 10
    for stream in (first, second):
        setup.lib.sbx_stream_close(stream, False, 0)
    for number in range(64):  # one by one, and it counts as alone again
        stream = client.open()
        event = client.headers(stream, 2, [(b":path", b"/")])
        if number in (0, 62, 63):
            assert (max(look_ns() for _ in range(17)) >= budget_ns) is (number == 63)
        setup.lib.sbx_stream_close(stream, False, 0)


def test_time_runs_out_and_the_late_verdict_is_nobodys(setup: Setup) -> None:
    client = setup.open(serve=False, spin_ns=0)
    event = client.headers(client.open(), 2, [(b":path", b"/")])
    begin = time.monotonic()
    assert c_client.NAMES[setup.lib.sbx_wait(event, 50_000_000)] == "TIMEOUT"
    assert 0.05 <= time.monotonic() - begin < 1
    assert c_client.NAMES[setup.lib.sbx_event_status(event)] == "TIMEOUT"
    setup.lib.sbx_event_free(event)
    setup.vm.poll()
    assert setup.lib.sbx_ready(client.handle)
    again = client.headers(client.open(), 2, [(b":path", b"/")])
    setup.vm.poll()
    client.wait(again)


def test_a_vm_that_is_silent_for_good_is_given_up(setup: Setup) -> None:
    policy = replace(POLICY, limits=PluginLimits(time_per_event_ns=1_000_000))
    client = setup.open(policy=policy, serve=False)
    event, told = client.headers(client.open(), 2, [(b":path", b"/")]), c.c_void_p()
    assert 0 < setup.lib.sbx_next_deadline_ns(client.handle) <= time.monotonic_ns() + 1_000_000
    time.sleep(0.01)
    assert setup.lib.sbx_next(client.handle, c.byref(told)) == 0
    assert told.value == event.value
    assert c_client.NAMES[setup.lib.sbx_event_status(event)] == "TIMEOUT"
    time.sleep(1.01)
    assert setup.lib.sbx_next(client.handle, c.byref(told)) == 1
    assert not setup.lib.sbx_ready(client.handle)
    assert "no verdict" in client.reason


def test_cancelled_events_bring_nothing(setup: Setup) -> None:
    client = setup.open(serve=False)
    stream = client.open()
    setup.lib.sbx_event_free(client.headers(stream, 2, [(b":path", b"/")]))
    setup.vm.poll()
    told = c.c_void_p()
    assert setup.lib.sbx_next(client.handle, c.byref(told)) == 1
    assert setup.lib.sbx_ready(client.handle)


@pytest.mark.parametrize(("said", "cause"), [(2, 1), (3, 8), (9, 9), (0, 0), (8, 0), (2**32 - 1, 0)])
def test_the_limit_that_ended_the_vm_is_named(setup: Setup, said: int, cause: int) -> None:
    client = setup.open(serve=False, spin_ns=0)
    setup.vm.fail(said)
    assert setup.lib.sbx_channel_down_cause(client.handle) == cause


def test_a_failed_vm_loses_what_waits_and_a_new_one_serves(setup: Setup) -> None:
    client = setup.open(serve=False, spin_ns=0)
    stream = client.open()
    event = client.headers(stream, 2, [(b":path", b"/")])
    failing = threading.Timer(0.05, setup.vm.fail)
    failing.start()
    assert c_client.NAMES[setup.lib.sbx_wait(event, 5_000_000_000)] == "DOWN"
    failing.join()
    made = c.c_void_p()
    status = setup.lib.sbx_submit_headers(stream, 5, None, 0, True, 1, None, c.byref(made))
    assert c_client.NAMES[status] == "DOWN"

    setup.vm.inbox.take()
    setup.vm.begin()
    assert setup.lib.sbx_ready(client.handle)
    assert setup.lib.sbx_channel_generation(client.handle) == 2
    assert setup.lib.sbx_stream_lost(stream)
    setup.lib.sbx_stream_close(stream, True, 1)
    again = client.headers(client.open(), 2, [(b":path", b"/")])
    setup.vm.poll()
    client.wait(again)
