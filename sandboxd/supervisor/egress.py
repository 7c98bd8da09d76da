"""
The egress broker as the supervisor sees it: one process, forked through the zygote when the first policy needs it,
watched, and replaced when it dies. Callouts that were under way then get no answer but that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from sandboxd.limits import MIB
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import exits
from sandboxd.supervisor.backoff import SHARED_DELAY_S, Backoff
from sandboxd.supervisor.callouts import CalloutRoute, Rules
from sandboxd.supervisor.child_link import ChildLink, UnreadableError
from sandboxd.supervisor.egress_counters import EgressCounters, read_counters
from sandboxd.supervisor.throttle import Throttle
from sandboxd.supervisor.zygote import Zygote

_log = logging.getLogger(__name__)

EGRESS_INDEX = 0xFFFF_FFFF
"""What the zygote knows it by: no front has this number."""
CONGESTED_FRAMES = 512
MAX_STATUS_BYTES = 16 * MIB
"""Of its counters."""
SOCKET_BYTES = 4 * MIB
"""What the kernel may hold of either direction, as far as it lets us."""


class Egress:
    """
    Args:
        zygote: forks the broker.
    """

    def __init__(self, zygote: Zygote) -> None:
        self._loop = asyncio.get_running_loop()
        self._zygote = zygote
        self._routes: dict[int, CalloutRoute] = {}
        self._link: _Link | None = None
        self._backoff = Backoff(max_delay_s=SHARED_DELAY_S)
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self.restarts = 0
        self._denied: Counter[str] = Counter()
        """Callouts of plugins without any upstream, which the broker never hears of."""
        self._throttle = Throttle(per_second=1, burst=5)
        self.counters: EgressCounters = {}
        """Those of brokers that died are lost."""
        self._asked: deque[_Link] = deque()
        """Brokers that the zygote has been asked for and has not told the process of; it answers in order."""

    @property
    def pid(self) -> int:
        """The broker's; 0: there is none."""
        return self._link.pid if self._link is not None else 0

    @property
    def ready(self) -> bool:
        """Whether callouts can be made."""
        return self._link is not None

    @property
    def congested(self) -> bool:
        """Whether so much waits for the broker that workers must wait before they say more."""
        return self._link is not None and self._link.child.waiting > CONGESTED_FRAMES

    def open(
        self, rules: Rules, to_worker: Callable[[control.ToWorker], None], queued_bytes: Callable[[], int]
    ) -> CalloutRoute:
        """Return the way for the callouts of a new worker; see `CalloutRoute`."""
        route = CalloutRoute(self, rules, to_worker, queued_bytes)
        self._routes[route.worker_id] = route
        if self._link is not None:
            route.announce()
        elif self._timer is None:
            self._start()
        return route

    def promote(self, rules: Rules) -> None:
        """A version of a tenant serves from now on: its rules count for what still runs of older ones."""
        for route in self._routes.values():
            if route.rules.tenant == rules.tenant and route.rules is not rules:
                route.rules = rules
                route.announce()

    def denied(self, tenant: str, plugin: str) -> None:
        """Take note of a piece of a callout of a plugin that has no upstream at all."""
        self._denied[f"{tenant}/{plugin}"] += 1
        if self._throttle.admits(self._loop.time()):
            _log.warning("tenant %s: plugin %s: a callout is denied: its policy names no upstreams", tenant, plugin)

    def status(self) -> dict[str, Any]:
        """Return what ``sandboxd status`` shows."""
        callouts = {name: {"(unknown)": {"denied.upstreams": count}} for name, count in self._denied.items()}
        return {"pid": self.pid, "restarts": self.restarts, "callouts": {**callouts, **self.counters}}

    def close(self) -> None:
        """End the broker."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._link is not None:
            self._link.child.close()
            self._link = None

    # --- Broker of the routes ---

    def send(self, frame: control.ToEgress, fds: tuple[int, ...] = ()) -> None:
        """Send a frame; a broker that does not read is replaced."""
        if self._link is not None:
            self._link.child.send(frame, fds)

    def forget(self, route: CalloutRoute) -> None:
        """A worker is gone."""
        if self._routes.pop(route.worker_id, None) is not None:
            self.send(control.ToEgress(worker_gone=control.EgressWorkerGone(worker_id=route.worker_id)))

    # --- the process ---

    def _start(self) -> None:
        self._timer = None
        if self._stopping:
            return
        try:
            self._link = link = _Link(self)
            with link.child.theirs:
                self._zygote.ask(EGRESS_INDEX, link.child.theirs)
            self._asked.append(link)
        except OSError as error:
            _log.critical("the egress broker cannot be forked: %s", error)
            self.ended("was not forked")
            return
        for route in self._routes.values():
            route.announce()

    def forked(self, pid: int) -> None:
        """The zygote has forked one; the socket of which may have ended meanwhile."""
        if self._asked:
            self._asked.popleft().forked(pid)

    def not_forked(self, reason: str) -> None:
        """The zygote could not fork the one that was asked for first."""
        if self._asked:
            self._asked.popleft()
        _log.error("the egress broker cannot be forked: %s", reason)  # the end of its socket has another one started

    def exited(self, pid: int, status: int) -> None:
        """The zygote has seen the end of one, which may have been replaced already."""
        if self._link is not None and self._link.pid == pid:
            self._link.exited()
        if not self._stopping:
            _log.error("the egress broker (pid %d) %s", pid, exits.sentence(status))

    def answer(self, answer: control.EgressAnswer) -> None:
        """Pass an answer on to whom it is for."""
        route = self._routes.get(answer.worker_id)
        if route is not None:
            route.answer(answer)

    def ended(self, why: str) -> None:
        """Its control socket ended, or shall: start another one."""
        link, self._link = self._link, None
        if link is not None:
            link.end()
        for route in list(self._routes.values()):
            route.broker_lost()
        if self._stopping or self._timer is not None:
            return
        self.restarts += 1
        delay_s = max(0.05, self._backoff.failed(self._loop.time()))
        _log.error("the egress broker %s; another one starts in %.1f s", why, delay_s)
        self._timer = self._loop.call_later(delay_s, self._start)


class _Link:
    """The control socket of one broker process, and what it has said."""

    def __init__(self, owner: Egress) -> None:
        self._owner = owner
        self.pid = 0
        self._text = ""
        self.child = ChildLink(
            question=lambda number: control.ToEgress(status=control.EgressStatusRequest(number=number)),
            heard=self._heard,
            ended=owner.ended,
            buffer_bytes=SOCKET_BYTES,
        )

    def forked(self, pid: int) -> None:
        """It is this process."""
        self.pid = pid
        self.child.forked(pid)
        if not self.child.connected:
            self.child.kill()
            self.child.close()

    def exited(self) -> None:
        """There is no process any more."""
        self.pid = 0
        self.child.exited()

    def end(self) -> None:
        """End the process, which may have closed its socket without dying."""
        self.child.kill()
        self.child.close()

    def _heard(self, data: bytes) -> None:
        try:
            self._handle(control.FromEgress.FromString(data))
        except (DecodeError, ValueError, RecursionError) as error:  # it reads what strangers send
            raise UnreadableError(type(error).__name__) from error

    def _handle(self, frame: control.FromEgress) -> None:
        match frame.WhichOneof("frame"):
            case "answer":
                self._owner.answer(frame.answer)
            case "status":
                self._text += frame.status.counters_json
                if len(self._text) > MAX_STATUS_BYTES:
                    raise ValueError("counters without end")
                if not frame.status.more:
                    self._owner.counters, self._text = read_counters(self._text), ""
            case "ready":
                _log.info("the egress broker (pid %d) is ready", self.pid)
