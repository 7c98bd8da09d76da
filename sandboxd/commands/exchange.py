"""
One HTTP exchange through a plugin without a proxy: what `sandboxd run` drives and what comes of it.

The same redaction, write rules and failure decisions as a front's; the proxy's part (buffering, sending on)
is played by lists. The request is sent whole, then the response, as a proxy would that never has to wait.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, Verdict, decode_map, parse_local_response
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.pairs import encode
from sandboxd.channel.sync_vm import SyncVm, VmLost
from sandboxd.commands.cases import Action, Case, Message
from sandboxd.exchange.effects import take_true
from sandboxd.exchange.side import PHASES
from sandboxd.front.plugin import Plugin
from sandboxd.policy.failure import ActionKind, Cause, Phase, decide
from sandboxd.policy.model import Section
from sandboxd.policy.redact import Headers, apply
from sandboxd.policy.write_rules import LocalResponse, Refusal

_BODY_BEFORE = {layout.REQUEST_TRAILERS: layout.REQUEST_BODY, layout.RESPONSE_TRAILERS: layout.RESPONSE_BODY}
_SECTIONS = {
    layout.REQUEST_HEADERS: Section.REQUEST_HEADERS,
    layout.REQUEST_TRAILERS: Section.REQUEST_TRAILERS,
    layout.RESPONSE_HEADERS: Section.RESPONSE_HEADERS,
    layout.RESPONSE_TRAILERS: Section.RESPONSE_TRAILERS,
}
_PHASES = {**PHASES, layout.STREAM_CLOSE: Phase.END}


@dataclass(slots=True)
class Seen:
    """A message as it went on."""

    headers: Headers | None = None
    body: bytearray = field(default_factory=bytearray)
    trailers: Headers | None = None
    ended: bool = False

    @property
    def status(self) -> int:
        """The response's status; 0 if there is none."""
        for name, value in self.headers or []:
            if name == b":status" and value.isdigit():
                return int(value)
        return 0


@dataclass(slots=True)
class Outcome:
    """What came of an exchange."""

    action: Action = Action.CONTINUE
    upstream: Seen = field(default_factory=Seen)
    client: Seen = field(default_factory=Seen)
    local_response: LocalResponse | None = None
    logs: list[tuple[int, str]] = field(default_factory=list)
    properties: dict[str, bytes] = field(default_factory=dict)
    denied: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failure: str = ""


class _Stop(Exception):  # noqa: N818  (no error: a way out)
    """The exchange is over before its messages are."""


class Exchange:
    """
    Args:
        vm: a VM of the plugin that serves nobody else.
        plugin: the plugin, prepared as a front has it.
        case: the messages.
    """

    def __init__(self, vm: SyncVm, plugin: Plugin, case: Case) -> None:
        self._vm = vm
        self._plugin = plugin
        self._case = case
        self._outcome = Outcome()
        self._originals: dict[int, Headers] = {}
        self._kept = {kind: bytearray() for kind in layout.BODY_KINDS}
        """Bodies that the plugin may not write, as far as it has not let them go."""
        self._timeout_s = plugin.policy.limits.time_per_event_ns / 1e9

    def run(self) -> Outcome:
        """Play the exchange to its end."""
        attributes = self._attributes(self._case.attributes)
        self._stream_id = self._vm.client.open_stream(encode(attributes), time.time_ns())
        try:
            self._wait(self._case.wait_s)
            self._direction(self._case.request, self._outcome.upstream, layout.REQUEST_HEADERS)
            self._direction(self._case.response, self._outcome.client, layout.RESPONSE_HEADERS)
        except _Stop:
            pass
        if not self._outcome.failure:
            self._close()
        self._take_loose()
        return self._outcome

    # --- driving ---

    def _wait(self, wait_s: float) -> None:
        """Leave the VM alone for so long: it ticks, and takes what is in its queues."""
        if not wait_s:
            return
        generation = self._vm.client.generation
        try:
            with contextlib.suppress(TimeoutError):
                self._vm.wait_loose(lambda _: False, wait_s)
        except ChannelBroken as error:
            raise self._failed(layout.REQUEST_HEADERS, Cause.PROTOCOL, str(error)) from None
        if self._vm.client.generation != generation or self._vm.client.vm_state != layout.VM_READY:
            raise self._failed(layout.REQUEST_HEADERS, Cause.TRAP, "the VM failed while it waited")

    def _direction(self, message: Message, seen: Seen, first_kind: int) -> None:
        """Send one message; headers, body and trailers have numbers that follow each other."""
        pieces = message.pieces()
        has_trailers = message.trailers is not None
        ends_with_headers = not pieces and not has_trailers
        self._event(first_kind, self._shown(first_kind, message.headers), end_of_stream=ends_with_headers)
        for number, piece in enumerate(pieces, 1):
            is_last = number == len(pieces) and not has_trailers
            self._event(first_kind + 1, piece, end_of_stream=is_last)
        if message.trailers is not None:
            self._event(first_kind + 2, self._shown(first_kind + 2, message.trailers), end_of_stream=True)
        if not seen.ended:
            self._outcome.action = Action.PAUSE
            raise _Stop

    def _shown(self, kind: int, headers: Headers) -> bytes:
        self._originals[kind] = headers
        return encode(self._plugin.redactor.view(headers, _SECTIONS[kind]))

    def _event(self, kind: int, payload: bytes, *, end_of_stream: bool) -> None:
        vm = self._vm
        if kind in layout.BODY_KINDS and not self._plugin.policy.write.body:
            self._kept[kind] += payload
        try:
            verdict = vm.call(self._stream_id, kind, payload, end_of_stream=end_of_stream, timeout_s=self._timeout_s)
        except VmLost:
            raise self._failed(kind, Cause.TRAP, "the VM failed") from None
        except TimeoutError:
            raise self._failed(kind, Cause.TIMEOUT, f"no verdict in {self._timeout_s:g} s") from None
        except ChannelBroken as error:
            raise self._failed(kind, Cause.PROTOCOL, str(error)) from None
        self._take(verdict)
        if verdict.code == layout.CODE_LIMIT:
            raise self._failed(kind, Cause.LIMIT, "a limit of the policy was reached")

    def _failed(self, kind: int, cause: Cause, text: str) -> _Stop:
        started = self._outcome.client.headers is not None
        decision = decide(self._plugin.policy.failure, _PHASES[kind], cause, response_started=started)
        self._outcome.action = Action.FAIL
        self._outcome.failure = f"{text} ({_PHASES[kind].value}, {cause.value}); the policy says {decision.kind.value}"
        if decision.kind is ActionKind.RESPOND:
            self._outcome.client = Seen([(b":status", str(decision.status).encode())], ended=True)
        return _Stop()

    def _close(self) -> None:
        done = self._outcome.action in (Action.CONTINUE, Action.RESPOND)
        try:
            verdict = self._vm.close_stream(self._stream_id, reset=not done, timeout_s=self._timeout_s)
        except (VmLost, TimeoutError, ChannelBroken) as error:
            self._failed(layout.STREAM_CLOSE, Cause.TRAP, f"the end of the stream: {error}")
            return
        for notice in verdict.notices:
            self._notice(notice)
        for effect in verdict.effects:
            if effect.kind == layout.PROPERTY_SET:
                self._property(effect)

    # --- what comes back ---

    def _take(self, verdict: Verdict) -> None:
        for notice in verdict.notices:
            self._notice(notice)
        for effect in verdict.effects:
            if effect.stream_id == self._stream_id:
                self._effect(effect)

    def _effect(self, effect: Effect) -> None:
        seen = self._outcome.upstream if effect.kind <= layout.REQUEST_TRAILERS else self._outcome.client
        match effect.kind:
            case layout.REQUEST_HEADERS | layout.RESPONSE_HEADERS:
                seen.headers = self._written(effect)
                seen.ended = seen.ended or bool(effect.flags & layout.FLAG_END_OF_STREAM)
            case layout.REQUEST_BODY | layout.RESPONSE_BODY:
                self._body(effect, seen)
            case layout.REQUEST_TRAILERS | layout.RESPONSE_TRAILERS:
                seen.body += take_true(self._kept[_BODY_BEFORE[effect.kind]], None)
                seen.trailers = self._written(effect)
                seen.ended = True
            case layout.LOCAL_RESPONSE:
                self._local_response(effect)
            case layout.PROPERTY_SET:
                self._property(effect)
            case layout.CLOSE_STREAM:
                self._outcome.action = Action.RESET
                raise _Stop

    def _written(self, effect: Effect) -> Headers:
        """Return the map that goes on: the original with the plugin's allowed changes."""
        original = self._originals.get(effect.kind, [])
        if not effect.flags & layout.FLAG_MODIFIED:
            return original
        section = _SECTIONS[effect.kind]
        before = self._plugin.redactor.view(original, section)
        changes = self._plugin.redactor.changes(original, before, decode_map(effect.payload), section)
        allowed, refusals = self._plugin.rules.headers(changes, section)
        self._outcome.refusals += refusals
        return apply(original, allowed)

    def _body(self, effect: Effect, seen: Seen) -> None:
        payload, as_submitted = effect.payload, effect.flags & layout.FLAG_AS_SUBMITTED
        if not self._plugin.policy.write.body:
            # It says when a body goes on, not which.
            true = take_true(self._kept[effect.kind], None)
            payload, as_submitted = true, payload == true
        if not as_submitted and (refusal := self._plugin.rules.body(len(payload))) is not None:
            self._outcome.refusals.append(refusal)
        seen.body += payload
        seen.ended = seen.ended or bool(effect.flags & layout.FLAG_END_OF_STREAM)

    def _local_response(self, effect: Effect) -> None:
        given = parse_local_response(effect.payload)
        response, refusals = self._plugin.rules.local_response(
            given.status, given.details, given.headers, given.body, given.grpc_status
        )
        self._outcome.refusals += refusals
        if response is None:
            self._outcome.action = Action.RESET
            raise _Stop
        self._outcome.action = Action.RESPOND
        self._outcome.local_response = response
        headers = [(b":status", str(response.status).encode()), *response.headers]
        self._outcome.client = Seen(headers, bytearray(response.body), None, ended=True)
        raise _Stop

    def _property(self, effect: Effect) -> None:
        for path, value in decode_map(effect.payload):
            refusal = self._plugin.rules.property(path, value)
            if refusal is not None:
                self._outcome.refusals.append(refusal)
            else:
                name = path.removesuffix(b"\0").replace(b"\0", b".").decode("utf-8", "replace")
                self._outcome.properties[name] = value

    def _notice(self, effect: Effect) -> None:
        match effect.kind:
            case layout.LOG:
                self._outcome.logs.append((effect.arg, effect.payload.decode("utf-8", "replace")))
            case layout.DENIED:
                imports = self._plugin.imports
                known = effect.arg < len(imports)
                self._outcome.denied.append(imports[effect.arg] if known else f"import {effect.arg}")
            case layout.NOTE:
                self._outcome.notes.append(layout.NOTE_NAMES.get(effect.arg, f"note {effect.arg}"))
            case layout.LOGS_DROPPED:
                self._outcome.notes.append(f"{effect.arg} log lines dropped")

    def _take_loose(self) -> None:
        """What the VM said outside any event belongs to this case: it has the VM to itself."""
        for effect in self._vm.loose:
            self._notice(effect)
        self._vm.loose.clear()

    def _attributes(self, given: dict[str, str | int | bool]) -> Headers:
        visible: Iterable[tuple[tuple[str, ...], str | int | bool]] = (
            (tuple(name.split(".")), value) for name, value in given.items()
        )
        return [
            ("\0".join(path).encode(), encoded(value))
            for path, value in visible
            if self._plugin.redactor.property_visible(path)
        ]


def encoded(value: str | int | bool) -> bytes:
    """
    Return a property's value in the ABI's encoding: text as it is, integers as i64, booleans as one byte.
    """
    if isinstance(value, bool):
        return b"\1" if value else b"\0"
    return struct.pack("<q", value) if isinstance(value, int) else value.encode()
