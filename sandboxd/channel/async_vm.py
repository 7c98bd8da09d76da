"""
A client that waits in an asyncio loop, and looks for a while before it does.

Two ways to the same verdict. With cores to spare, `poll` shows the VM the event at once and watches the ring for a
short, adaptive time: a round trip to a VM that is awake takes a few microseconds, a turn of the loop takes tens. With
few cores, events gather as long as each turn of the loop brings more, for a few turns; then one wake-up shows the VM
all of them, and one brings all their verdicts back: system calls and switches between threads cost more than everything
else here. An idle loop makes one turn in vain, which takes some microseconds. One sweep serves all deadlines.
"""

from __future__ import annotations

import asyncio
import os
import time

from sandboxd import limits
from sandboxd.channel import layout
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Effect, Verdict, split
from sandboxd.channel.errors import ChannelBroken, ChannelFull
from sandboxd.channel.hooks import Hooks, Lost

_LOOKS = 8
"""Looks at the ring between two looks at the clock."""
_SWEEPS_PER_TIMEOUT = 8
OVERDUE_TEXT = "no verdict on an event"
"""How the reason begins that `Hooks.broken` gets when the VM is far past its time."""
_GATHERING_TURNS = 4
"""Turns of a busy loop whose events share one wake-up."""
_LAZY_S = 0.01
"""How long the end of a stream may wait for a VM that sleeps."""
_MAX_RESTARTS = 64
_RESTART_WINDOW_NS = 10_000_000_000
_ROUNDS = 16
"""Looks at a VM that always has something new, in one turn of the loop; the rest of the program is next."""


class AsyncVm:
    """
    Drives one `VmClient` in a loop.

    Args:
        client: whose channel this is; `close` closes it.
        loop: the loop of the only thread that uses this object.
        hooks: see `Hooks`.
        timeout_ns: wall clock from submission to verdict.
        overdue_ns: past timeout plus this the VM counts as hung for good, which breaks the channel.
        spin_ns: longest busy wait of `poll`; not on a machine with few cores.
    """

    def __init__(
        self,
        client: VmClient,
        loop: asyncio.AbstractEventLoop,
        hooks: Hooks,
        *,
        timeout_ns: int,
        overdue_ns: int = 1_000_000_000,
        spin_ns: int = 40_000,
    ) -> None:
        self.client = client
        self._loop = loop
        self._hooks = hooks
        self._timeout_ns = timeout_ns
        self._overdue_ns = overdue_ns
        self._max_spin_ns = spin_ns if len(os.sched_getaffinity(0)) >= limits.MIN_CPUS_TO_SPIN else 0
        self._spin_ns = self._max_spin_ns
        self._waiting: dict[int, asyncio.Future[Verdict | Lost] | None] = {}
        """Events whose outcome somebody wants; None until `wait` is called."""
        self._early: dict[int, Verdict | Lost] = {}
        """Outcomes that came between `submit` and `wait`."""
        self._sent_ns: dict[int, int] = {}
        """Monotonic time of submission of each outstanding event; oldest first."""
        self._restarts: list[int] = []
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._lazy_timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        """Of `_arm`, when it had to stop."""
        self._gathered = 0
        """Events since the VM was last shown some; 0 if `poll` shows each."""
        self._dead = False
        loop.add_reader(client.fds.client_event_fd, self._on_event)
        self._arm()

    @property
    def ready(self) -> bool:
        """Whether events may be submitted now; the failure policy answers otherwise."""
        if self._dead:
            return False
        if self.client.restart_unseen and self.client.has_completions():
            # Meet VM_STARTED first: it would take an event submitted now for one of the old VM.
            self._drain()
        return not self._dead and self.client.vm_state == layout.VM_READY

    # --- submitting ---

    def submit(self, stream_id: int, kind: int, payload: bytes, end_of_stream: bool, time_ns: int) -> int:
        """
        Submit an event; returns the ``event_seq``, for which `poll` or `wait` has to be called.

        Raises:
            ChannelFull: too much is waiting already.
            ChannelBroken: the channel is dead.
        """
        try:
            seq = self.client.submit(stream_id, kind, payload, end_of_stream, time_ns)
        except ChannelFull:
            self.flush()
            raise
        except ChannelBroken as error:
            self._break(str(error))
            raise
        if not self._max_spin_ns:
            if not self._gathered:
                self._loop.call_soon(self._gather, _GATHERING_TURNS, 1)
            self._gathered += 1
        self._sent_ns[seq] = time.monotonic_ns()
        self._waiting[seq] = None
        return seq

    def _gather(self, turns: int, before: int) -> None:
        """A turn of the loop is over: take the events of the next one too, or show the VM what there is."""
        if turns and self._gathered >= before:
            self._loop.call_soon(self._gather, turns - 1, self._gathered + 1)
            return
        self._gathered = 0
        if self._dead:
            return
        # Not `flush`: between turns this side has asked to be woken already, but for room in the ring.
        self.client.flush()
        if self.client.has_backlog:
            self._arm()

    def flush(self) -> None:
        """Show the VM what was submitted, and ask to be woken for what comes of it."""
        self.client.flush()
        self._arm()

    def open_stream(self, attributes: bytes, time_ns: int) -> int:
        """Open a stream; the VM sees it with the first event. Raises as `submit`."""
        try:
            return self.client.open_stream(attributes, time_ns)
        except ChannelBroken as error:
            self._break(str(error))
            raise

    def add_attributes(self, stream_id: int, attributes: bytes, time_ns: int) -> None:
        """Add to what is known of a stream; the VM sees it with the next event. Raises as `submit`."""
        try:
            self.client.add_attributes(stream_id, attributes, time_ns)
        except ChannelBroken as error:
            self._break(str(error))
            raise

    def tell(self, stream_id: int, kind: int, payload: bytes, time_ns: int) -> None:
        """Submit an event whose outcome nobody waits for; what it brings goes to ``hooks.unclaimed``."""
        if self._dead:
            return
        try:
            seq = self.client.submit(stream_id, kind, payload, False, time_ns)
        except ChannelFull:
            return  # the end of the stream, which is never refused, is what has to come through
        except ChannelBroken as error:
            self._break(str(error))
            return
        self._sent_ns[seq] = time.monotonic_ns()

    def close_stream(self, stream_id: int, reset: bool, time_ns: int) -> None:
        """End a stream; what that brings goes to ``hooks.unclaimed``."""
        if self._dead:
            return
        try:
            seq = self.client.close_stream(stream_id, reset, time_ns)
        except ChannelBroken as error:
            self._break(str(error))
            return
        # Nobody waits for the end of a stream, so a sleeping VM is not woken for each: the next event does it, or a
        # timer. A wake-up costs more than the rest of the event.
        self.client.publish()
        self._sent_ns[seq] = time.monotonic_ns()
        if self._lazy_timer is None:
            self._lazy_timer = self._loop.call_later(_LAZY_S, self._wake_for_the_rest)

    def _wake_for_the_rest(self) -> None:
        self._lazy_timer = None
        self.client.wake_if_asleep()
        self._start_sweep()
        self._arm()

    def poll(self, event_seq: int) -> Verdict | Lost | None:
        """Look for the verdict for a while. None: it is not there yet, `wait` for it."""
        client = self.client
        if not self._max_spin_ns:
            return self._drain(event_seq) if client.has_completions() else None
        client.cancel_sleep()  # we look ourselves
        client.flush()
        end_ns = time.monotonic_ns() + self._spin_ns
        while True:
            for _ in range(_LOOKS):
                if client.has_completions():
                    found = self._drain(event_seq)
                    if found is not None:
                        self._spin_ns = self._max_spin_ns
                        self._arm()
                        return found
            if time.monotonic_ns() >= end_ns:
                break
        # What was spent here was in vain: spend less next time, so that a slow VM does not cost a core.
        self._spin_ns >>= 1
        return None

    async def wait(self, event_seq: int) -> Verdict | Lost:
        """Wait for a verdict in the loop."""
        if self._early:
            early = self._early.pop(event_seq, None)
            if early is not None:
                return early
        if self._dead:
            return Lost.BROKEN
        future: asyncio.Future[Verdict | Lost] = self._loop.create_future()
        self._waiting[event_seq] = future
        if self._sweep_timer is None:
            self._start_sweep()
        if self._max_spin_ns:
            self.flush()  # `poll` has cancelled the sleep, or was not called
        try:
            return await future
        finally:
            if self._waiting.pop(event_seq, None) is not None:
                self.client.abandon(event_seq)

    # --- completions ---

    def _on_event(self) -> None:
        self.client.clear_event()
        if not self._dead and self.client.has_completions():
            self._drain()
        self._arm()

    def _arm(self) -> None:
        """Deal with all that is there and ask to be woken for the next, or come back in the loop's next turn."""
        for _ in range(_ROUNDS):
            if self._dead:
                return
            try:
                if self.client.prepare_sleep():
                    break
            except ChannelBroken as error:
                self._break(str(error))
                return
            self._drain()
        else:
            if self._again is None:
                self._again = self._loop.call_soon(self._arm_again)
        if not self._dead and self.client.vm_state in (layout.VM_FAILED, layout.VM_GONE):
            self._lose_all(Lost.DOWN)

    def _arm_again(self) -> None:
        self._again = None
        self._arm()

    def _drain(self, wanted: int = 0) -> Verdict | Lost | None:
        """Hand out all that is complete; returns the outcome of the event ``wanted``."""
        found: Verdict | Lost | None = None
        try:
            completions = self.client.drain()
        except ChannelBroken as error:
            self._break(str(error))
            return Lost.BROKEN if wanted else None
        for completion in completions:
            if type(completion) is Verdict:
                seq = completion.event_seq
                self._sent_ns.pop(seq, None)
                verdict, others = split(completion)
                for effect in others:
                    self._hooks.loose(effect)
                if seq == wanted:
                    self._waiting.pop(seq, None)
                    self._hooks.verdict(verdict.stream_id, True)
                    found = verdict
                else:
                    self._hand_out(seq, verdict)
            elif type(completion) is Effect:
                self._hooks.loose(completion)
            else:
                assert not isinstance(completion, (Verdict, Effect))
                if any(seq == wanted for seq, _ in completion.lost):
                    self._waiting.pop(wanted, None)
                    found = Lost.DOWN
                self._on_restart(completion.generation)
        return Lost.BROKEN if wanted and self._dead else found

    def _hand_out(self, seq: int, verdict: Verdict) -> None:
        if seq not in self._waiting:
            self._hooks.unclaimed(verdict)
            return
        future = self._waiting.pop(seq)
        self._hooks.verdict(verdict.stream_id, future is None)
        if future is None:
            self._early[seq] = verdict
        elif future.done():
            self._hooks.unclaimed(verdict)
        else:
            future.set_result(verdict)

    def _on_restart(self, generation: int) -> None:
        now = time.monotonic_ns()
        self._restarts = [at for at in self._restarts if now - at < _RESTART_WINDOW_NS]
        self._restarts.append(now)
        if len(self._restarts) > _MAX_RESTARTS:
            self._break("VM claims to restart without end")
            return
        if generation > 1:
            self._lose_all(Lost.DOWN)
        self._hooks.restarted(generation)

    def _lose_all(self, why: Lost) -> None:
        """No outstanding event gets its verdict any more."""
        for seq in self._sent_ns:
            self.client.abandon(seq)
        self._sent_ns.clear()
        waiting, self._waiting = self._waiting, {}
        for seq, future in waiting.items():
            if future is None:
                self._early[seq] = why
            elif not future.done():
                future.set_result(why)

    # --- deadlines ---

    def _start_sweep(self) -> None:
        if self._sweep_timer is None and not self._dead:
            period_s = max(self._timeout_ns // _SWEEPS_PER_TIMEOUT, 1_000_000) / 1e9
            self._sweep_timer = self._loop.call_later(period_s, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        now = time.monotonic_ns()
        for seq, sent_ns in self._sent_ns.items():
            age_ns = now - sent_ns
            if age_ns < self._timeout_ns:
                break
            if age_ns > self._timeout_ns + self._overdue_ns:
                self._break(f"{OVERDUE_TEXT} after {age_ns // 1_000_000} ms (limits.time_per_event)")
                return
            future = self._waiting.get(seq)
            if future is not None:
                del self._waiting[seq]
                self.client.abandon(seq)
                if not future.done():
                    future.set_result(Lost.TIMEOUT)
        if self._sent_ns:
            self._start_sweep()

    # --- end ---

    def _break(self, reason: str) -> None:
        if not self._dead:
            self.stop()
            self._hooks.broken(reason)

    def stop(self) -> None:
        """Use the channel no more: all that waits is lost. The channel stays mapped until `close`."""
        self._dead = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        self._loop.remove_reader(self.client.fds.client_event_fd)
        self._lose_all(Lost.BROKEN)

    def close(self) -> None:
        """Stop, unmap and close the channel."""
        if not self._dead:
            self.stop()
        self.client.close()
