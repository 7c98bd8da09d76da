"""A client that waits by blocking its thread: for the CLI, the benchmarks and tests."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from sandboxd.channel import layout
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Effect, Verdict, VmRestarted
from sandboxd.errors import SandboxdError


class VmLost(SandboxdError):  # noqa: N818  (states a fact, as the other errors do)
    """The VM failed, or was started anew, while an event waited for its verdict."""


class SyncVm:
    """
    Drives one `VmClient`, one event at a time.

    Args:
        client: whose channel this is; `close` closes it.
        spin_ns: busy waiting before the thread sleeps.
    """

    def __init__(self, client: VmClient, spin_ns: int = 20_000) -> None:
        self.client = client
        self.loose: list[Effect] = []
        """What arose outside any event since the caller last cleared the list."""
        self._spin_ns = spin_ns if (os.cpu_count() or 1) > 1 else 0
        self._poller = select.poll()
        self._poller.register(client.fds.client_event_fd, select.POLLIN)

    def wait_ready(self, timeout_s: float) -> int:
        """
        Wait until the VM serves; returns its generation.

        Raises:
            VmLost: it failed to start.
            TimeoutError: it did not come in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._take()
            state = self.client.vm_state
            if state == layout.VM_READY and self.client.generation:
                return self.client.generation
            if state in (layout.VM_FAILED, layout.VM_GONE):
                raise VmLost("the VM failed to start")
            self._sleep(deadline)

    def call(
        self,
        stream_id: int,
        kind: int,
        payload: bytes = b"",
        *,
        end_of_stream: bool = False,
        time_ns: int | None = None,
        timeout_s: float = 5.0,
    ) -> Verdict:
        """
        Submit an event and wait for its verdict.

        Raises:
            VmLost: the VM failed meanwhile.
            TimeoutError: no verdict in time; the event is abandoned.
            ChannelBroken: the VM broke the channel's rules.
        """
        when = time.time_ns() if time_ns is None else time_ns
        return self.wait(self.client.submit(stream_id, kind, payload, end_of_stream, when), timeout_s)

    def close_stream(self, stream_id: int, *, reset: bool = False, timeout_s: float = 5.0) -> Verdict:
        """End a stream and wait for what the end brings."""
        return self.wait(self.client.close_stream(stream_id, reset, time.time_ns()), timeout_s)

    def wait(self, event_seq: int, timeout_s: float) -> Verdict:
        """Wait for the verdict of an event that was submitted; raises as `call`."""
        self.client.flush()
        deadline = time.monotonic() + timeout_s
        self._spin()
        while True:
            for completion in self._take():
                if completion.event_seq == event_seq:
                    return completion
            if not self.client.is_outstanding(event_seq):
                raise VmLost("the VM was started anew")
            if self.client.vm_state in (layout.VM_FAILED, layout.VM_GONE) and not self.client.has_completions():
                self.client.abandon(event_seq)
                raise VmLost("the VM failed")
            try:
                self._sleep(deadline)
            except TimeoutError:
                self.client.abandon(event_seq)
                raise

    def wait_loose(self, wanted: Callable[[Effect], bool], timeout_s: float) -> Effect:
        """
        Wait until something that is wanted arises outside events; it stays in `loose`. Verdicts meanwhile are dropped.

        Raises:
            TimeoutError: nothing came in time.
            ChannelBroken: the VM broke the channel's rules.
        """
        self.client.flush()
        deadline = time.monotonic() + timeout_s
        while True:
            self._take()
            for effect in self.loose:
                if wanted(effect):
                    return effect
            self._sleep(deadline)

    def _take(self) -> list[Verdict]:
        verdicts = []
        for completion in self.client.drain():
            if isinstance(completion, Verdict):
                verdicts.append(completion)
            elif not isinstance(completion, VmRestarted):
                self.loose.append(completion)
        return verdicts

    def _spin(self) -> None:
        if not self._spin_ns:
            return
        end = time.monotonic_ns() + self._spin_ns
        while not self.client.has_completions() and time.monotonic_ns() < end:
            pass

    def _sleep(self, deadline: float) -> None:
        if not self.client.prepare_sleep():
            return
        left = deadline - time.monotonic()
        if left <= 0:
            self.client.cancel_sleep()
            raise TimeoutError("no verdict in time")
        self._poller.poll(left * 1000 + 1)
        self.client.cancel_sleep()
        self.client.clear_event()

    def close(self) -> None:
        """Close the channel."""
        self.client.close()
