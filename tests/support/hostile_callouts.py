"""Deeds of a worker that was taken over: frames of callouts that no honest worker sends."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterable

from sandboxd.channel import pairs
from sandboxd.channel.ring import Record
from sandboxd.protos import control_pb2 as control
from sandboxd.worker.control import ControlSocket
from tests.support.fake_vm import Event

ANSWER_S = 3
FLOOD_FRAMES = 30_000
RESULT = b"x-allowd"


def http_request(upstream: bytes, path: bytes = b"/ok") -> bytes:
    """Return a serialised request, as an honest worker makes it."""
    headers = pairs.encode([(b":method", b"GET"), (b":path", path), (b":authority", b"a")])
    call = control.HttpCall(upstream=upstream, headers=headers)
    return control.CalloutRequest(http_call=call).SerializeToString()


class CalloutDeeds:
    """Mixed into the evil worker."""

    _socket: ControlSocket
    _vm_ids: list[int]

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._answers: queue.Queue[control.CalloutAnswer] = queue.Queue()

    def callout_answer(self, answer: control.CalloutAnswer) -> None:
        """The main thread has heard an answer."""
        self._answers.put(answer)

    def _changed(self, event: Event, *added: tuple[bytes, bytes]) -> list[Record]:
        raise NotImplementedError

    def _say(self, call_id: int, data: bytes, *, more: bool = False, vm_id: int = 0) -> None:
        vm_id = vm_id or self._vm_ids[0]
        self._socket.send(callout=control.Callout(vm_id=vm_id, call_id=call_id, data=data, more=more))

    def _heard(self, call_id: int, timeout_s: float = ANSWER_S) -> bytes:
        """Return in a word what came of a call."""
        data = b""
        while True:
            try:
                answer = self._answers.get(timeout=timeout_s)
            except queue.Empty:
                return b"nothing"
            if answer.call_id != call_id:
                continue
            data += answer.data
            if not answer.more:
                return _word(data)

    def _call(self, event: Event, upstream: bytes, path: bytes = b"/ok") -> Iterable[Record]:
        number = next(self._numbers)
        self._say(number, http_request(upstream, path))
        return self._changed(event, (RESULT, self._heard(number)))

    # --- deeds ---

    def callout_twin(self, event: Event) -> Iterable[Record]:
        """No misdeed: a call that the policy allows."""
        return self._call(event, b"web")

    def callout_forbidden_path(self, event: Event) -> Iterable[Record]:
        """A path that the policy does not allow; the worker's own checks are gone."""
        return self._call(event, b"web", b"/secret")

    def callout_foreign_upstream(self, event: Event) -> Iterable[Record]:
        """An upstream that another tenant has."""
        return self._call(event, b"vault")

    def callout_address(self, event: Event) -> Iterable[Record]:
        """An address in place of a name."""
        return self._call(event, b"http://169.254.169.254")

    def callout_foreign_vm(self, event: Event) -> Iterable[Record]:
        """In the name of a VM that the worker was not given."""
        for vm_id in {*range(1, 40)} - set(self._vm_ids):
            self._say(1, http_request(b"web"), vm_id=vm_id)
        return self._changed(event)

    def callout_wild_ids(self, event: Event) -> Iterable[Record]:
        """Numbers that were never used, are used already, or are as large as can be."""
        for number in (0, 5, 5, 4, 3, 2**63, 2**64 - 1, 7):
            self._say(number, http_request(b"web"))
        return self._changed(event, (RESULT, self._heard(2**64 - 1)))

    def callout_garbage(self, event: Event) -> Iterable[Record]:
        """What is no request."""
        for data in (b"\xff" * 1000, b"", b"\x0a" * 48_000, http_request(b"web")[:-3]):
            self._say(next(self._numbers), data)
        number = next(self._numbers)
        self._say(number, b"\xff" * 1000)
        return self._changed(event, (RESULT, self._heard(number)))

    def callout_long_piece(self, event: Event) -> Iterable[Record]:
        """A piece larger than any may be."""
        self._say(next(self._numbers), b"x" * 60_000)
        return self._changed(event)

    def callout_no_end(self, event: Event) -> Iterable[Record]:
        """A request without end."""
        number = next(self._numbers)
        for _ in range(100):
            self._say(number, b"\x0a" * 48_000, more=True)
        return self._changed(event, (RESULT, self._heard(number)))

    def callout_many_open(self, event: Event) -> Iterable[Record]:
        """As many calls without end as there can be."""
        for _ in range(5000):
            self._say(next(self._numbers), b"x" * 1000, more=True)
        number = next(self._numbers)
        self._say(number, b"x", more=True)
        return self._changed(event, (RESULT, self._heard(number)))

    def callout_flood(self, event: Event) -> Iterable[Record]:
        """Calls as fast as they can be said."""
        data = http_request(b"web")
        for _ in range(FLOOD_FRAMES):
            self._say(next(self._numbers), data)
        return self._changed(event)

    def callout_unasked(self, event: Event) -> Iterable[Record]:
        """A call of a tenant whose policy names no upstream."""
        return self._call(event, b"web")


def _word(data: bytes) -> bytes:
    reply = control.CalloutReply.FromString(data)
    match reply.WhichOneof("reply"):
        case "http" if reply.http.failure:
            return reply.http.failure.encode()
        case "http":
            return b"status " + pairs.decode(reply.http.headers)[0][1]
        case "lost":
            return reply.lost.reason.encode()
    return b"unknown"
