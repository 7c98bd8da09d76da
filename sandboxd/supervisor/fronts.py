"""
The supervisor's side of the front processes: forked through the zygote, watched, replaced when they die.

Fronts are trusted, so their frames are taken at their word; one whose frames cannot be read is replaced all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import exits
from sandboxd.supervisor.backoff import SHARED_DELAY_S, Backoff
from sandboxd.supervisor.child_link import ChildLink, UnreadableError
from sandboxd.supervisor.zygote import Report, Zygote

_log = logging.getLogger(__name__)

END_GRACE_S = 1.0
"""How long a front may take from closing its control socket to its end."""
FRONT_REFUSED = 2
"""Exit status of a front that the operator's configuration keeps from serving."""


class FrontListener(Protocol):
    """Who wants to know about fronts."""

    def front_asked(self, front: Front) -> None:
        """A front is on its way: tell it what is configured; it serves no stream before."""

    def front_ready(self, front: Front) -> None:
        """A front serves."""

    def front_gone(self, front: Front) -> None:
        """A front died; its channels have no client any more."""

    def channel_broken(self, channel_id: int, reason: str) -> None:
        """A VM broke its channel's rules."""

    def channel_drained(self, channel_id: int) -> None:
        """No stream uses the channel any more."""

    def front_refused(self, index: int) -> None:
        """A front cannot serve with this configuration; it has logged why."""

    def zygote_gone(self) -> None:
        """No front can be forked any more."""


class Sibling(Protocol):
    """Another child of the zygote."""

    def forked(self, pid: int) -> None:
        """It has been forked."""

    def exited(self, pid: int, status: int) -> None:
        """It has ended."""

    def not_forked(self, reason: str) -> None:
        """It could not be forked this time; its socket has ended."""


class Front:
    """One front process, from the request to fork it to the end of its control socket."""

    def __init__(self, owner: Fronts, index: int) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.index = index
        self.pid = 0
        self.addresses: tuple[str, ...] = ()
        self.counters_json = "{}"
        self.is_ready = False
        self.started_s = self._loop.time()
        self._status_waiters: list[asyncio.Future[None]] = []
        self.link = ChildLink(
            question=lambda number: control.ToFront(status=control.FrontStatusRequest(number=number)),
            heard=self._heard,
            ended=lambda why: owner.ended(self, why),
        )
        try:
            with self.link.theirs:
                owner.zygote.ask(index, self.link.theirs)
        except OSError:
            self.link.close()
            raise

    def send(self, frame: control.ToFront, fds: Sequence[int] = ()) -> None:
        """Send a frame; a front that does not read is replaced."""
        self.link.send(frame, fds)

    def wants(self, tenant: str, plugin: str) -> bool:  # noqa: ARG002  (as every user of channels)
        """Return True: a front serves every plugin."""
        return True

    def superseded(self, channel_id: int) -> None:
        """Do nothing: the new version's channel tells a front by itself."""

    async def refresh(self, timeout_s: float) -> None:
        """Ask for fresh counters; returns when they are here or the time is over."""
        waiter = self._loop.create_future()
        self._status_waiters.append(waiter)
        self.link.ask()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(waiter, timeout_s)

    def forked(self, pid: int) -> None:
        """Take note of the process; its own first word may have come before the zygote's."""
        self.pid = pid
        self.link.forked(pid)
        if self.addresses and self.link.connected:
            self._now_ready()

    def _now_ready(self) -> None:
        if self.pid and not self.is_ready:
            self.is_ready = True
            self._owner.listener.front_ready(self)

    def _heard(self, data: bytes) -> None:
        try:
            frame = control.FromFront.FromString(data)
        except DecodeError as error:
            raise UnreadableError(type(error).__name__) from error
        self._handle(frame)

    def _handle(self, frame: control.FromFront) -> None:
        listener = self._owner.listener
        match frame.WhichOneof("frame"):
            case "ready":
                self.addresses = tuple(frame.ready.addresses)
                self._now_ready()
            case "status":
                self.counters_json = frame.status.counters_json
                for waiter in self._status_waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                self._status_waiters.clear()
            case "channel_broken":
                listener.channel_broken(frame.channel_broken.channel_id, frame.channel_broken.reason)
            case "channel_drained":
                listener.channel_drained(frame.channel_drained.channel_id)


class Fronts:
    """All fronts. `ready` holds those that serve, by index."""

    def __init__(self, zygote: Zygote, count: int, listener: FrontListener) -> None:
        self._loop = asyncio.get_running_loop()
        self.zygote = zygote
        self.listener = listener
        self.siblings: dict[int, Sibling] = {}
        """Who else is told what the zygote says, by index."""
        self.count = count
        self.restarts = 0
        self._fronts: dict[int, Front] = {}
        self._backoffs = [Backoff(max_delay_s=SHARED_DELAY_S) for _ in range(count)]
        self._all_ready = asyncio.Event()
        self._stopping = False
        self._gone: asyncio.Event = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()
        self._asked: dict[int, deque[Front]] = {index: deque() for index in range(count)}
        """Those that the zygote has been asked for and has not told the process of; it answers in order."""
        self._dying: dict[int, tuple[Front, asyncio.TimerHandle]] = {}
        """Fronts without a control socket, by pid, and what kills them if they do not end by themselves."""

    @property
    def reachable(self) -> dict[int, Front]:
        """Fronts that take frames, whether they serve already or are on their way."""
        return dict(self._fronts)

    @property
    def ready(self) -> dict[int, Front]:
        """Fronts that serve."""
        return {index: front for index, front in self._fronts.items() if front.is_ready}

    @property
    def all(self) -> list[Front]:
        """Fronts that serve or are on their way, by index."""
        return [self._fronts[index] for index in sorted(self._fronts)]

    def start(self) -> None:
        """Have all fronts forked."""
        self.zygote.socket.setblocking(False)
        self._loop.add_reader(self.zygote.socket, self._zygote_readable)
        for index in range(self.count):
            self._start_one(index)

    async def wait_ready(self, timeout_s: float) -> bool:
        """Wait until every front serves; False: some did not in time."""
        deadline_s = self._loop.time() + timeout_s
        while len(self.ready) < self.count and self._loop.time() < deadline_s:
            await asyncio.sleep(0.02)
        return len(self.ready) == self.count

    async def drain(self, timeout_s: float) -> None:
        """Ask all fronts to end when their streams have, wait, then close them."""
        self._stopping = True
        for timer in self._timers:
            timer.cancel()
        for front in self.all:
            front.send(control.ToFront(drain=control.Drain()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._fronts:
                    self._gone.clear()
                    await self._gone.wait()
        for front in self.all:
            front.link.close()
        self._loop.remove_reader(self.zygote.socket)

    def ended(self, front: Front, why: str) -> None:
        """A front's control socket ended, or it was killed: replace it."""
        front.link.disconnect()
        del self._fronts[front.index]
        self._gone.set()
        self.listener.front_gone(front)
        if self._stopping:
            front.link.close()
            return
        self._let_die(front)
        self.restarts += 1
        # Not at once: the zygote's word on how it ended may be that a new one is no use.
        delay_s = max(0.05, self._backoffs[front.index].failed(self._loop.time()))
        _log.error("front %d (pid %d) %s; a new one starts in %.1f s", front.index, front.pid, why, delay_s)
        self._timers.add(self._loop.call_later(delay_s, self._start_one, front.index))

    def _let_die(self, front: Front) -> None:
        """It may have closed its socket without dying, and gets the time to say why it ends."""
        if front.link.has_process:
            self._dying[front.pid] = front, self._loop.call_later(END_GRACE_S, front.link.kill)

    def _start_one(self, index: int) -> None:
        if self._stopping:
            return
        try:
            front = Front(self, index)
        except OSError as error:
            _log.critical("no front can be forked: %s", error)
            self.listener.zygote_gone()
            return
        self._fronts[index] = front
        self._asked[index].append(front)
        self.listener.front_asked(front)
        front.send(control.ToFront(serve=control.Serve()))

    def _zygote_readable(self) -> None:
        try:
            report = self.zygote.report()
        except BlockingIOError:
            return
        except ConnectionError:
            report = None
        if report is None:
            self._loop.remove_reader(self.zygote.socket)
            if not self._stopping:
                _log.critical("the zygote is gone: fronts cannot be replaced any more")
                self.listener.zygote_gone()
            return
        kind, index, pid, status = report
        if (sibling := self.siblings.get(index)) is not None:
            _pass_on(sibling, kind, pid, status)
        elif kind is Report.EXITED:
            self._exited(index, pid, status)
        elif kind is Report.NOT_FORKED:
            self._asked[index].popleft()
            _log.error("front %d cannot be forked: %s", index, os.strerror(status))  # the end of its socket follows
        else:
            self._forked(self._asked[index].popleft(), pid)

    def _forked(self, front: Front, pid: int) -> None:
        front.forked(pid)
        if not front.link.connected:  # it has ended meanwhile, or nobody waits for it any more
            self._let_die(front)

    def _exited(self, index: int, pid: int, status: int) -> None:
        if pid in self._dying:
            front, timer = self._dying.pop(pid)
            timer.cancel()
            front.link.exited()
        elif (serving := self._fronts.get(index)) is not None and serving.pid == pid:
            serving.link.exited()
        if not self._stopping:
            _log.error("front %d (pid %d) %s", index, pid, exits.sentence(status))
            if status == FRONT_REFUSED:
                self.listener.front_refused(index)


def _pass_on(sibling: Sibling, kind: Report, pid: int, status: int) -> None:
    match kind:
        case Report.FORKED:
            sibling.forked(pid)
        case Report.EXITED:
            sibling.exited(pid, status)
        case Report.NOT_FORKED:
            sibling.not_forked(os.strerror(status))
