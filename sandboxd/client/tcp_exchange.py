"""One TCP connection through a plugin, without any I/O: events in, outcomes out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from sandboxd import limits
from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, decode_map
from sandboxd.channel.errors import ChannelBroken
from sandboxd.client.compiled import Compiled
from sandboxd.errors import PeerError
from sandboxd.exchange.side import Ask
from sandboxd.policy.capability_names import TCP_CALLBACKS
from sandboxd.policy.failure import ActionKind, Cause, Phase, decide
from sandboxd.policy.model import OnFailure
from sandboxd.policy.write_rules import Reason, Refusal

_PHASES = {layout.DOWNSTREAM_DATA: Phase.REQUEST_BODY, layout.UPSTREAM_DATA: Phase.RESPONSE_BODY}


@dataclass(frozen=True, slots=True)
class TcpOutcome:
    """What came of one event of a connection."""

    downstream: bytes
    """Bytes from downstream that go on now, to upstream."""
    upstream: bytes
    """Bytes from upstream that go on now, to downstream."""
    downstream_ended: bool
    """Nothing more comes from downstream."""
    upstream_ended: bool
    paused: bool
    """Something is held."""
    closed: bool
    """The plugin closes the connection; nothing else goes on."""
    reset: bool
    """The plugin failed, and the connection is to be reset, so that nobody takes what came for the whole."""
    failure: Cause | None = None
    bypassed: bool = False
    """It failed open: the connection goes on without it."""
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


class Flow:
    """
    One direction.

    Args:
        kind: of its events.
        readable: whether the plugin can read the bytes.
        policy: the plugin's.
    """

    def __init__(self, kind: int, readable: bool, policy: Compiled) -> None:
        self.kind = kind
        self.held = False
        self.input_over = False
        self.ended = False
        self._readable = readable
        self._policy = policy
        self._out: list[bytes] = []
        self._foreign_bytes = 0
        """Of `_out`: those that came from the VM. The program is told of them, but need not fetch them."""
        self._last = b""
        self._with_vm = self._older_with_vm = False
        self._unanswered = False
        # Who may not read or not write says when bytes go on, not which: the true ones stay here.
        self._kept: bytearray | None = None if readable and policy.write.body else bytearray()

    def came(self, data: bytes, end_of_stream: bool) -> bytes | None:
        """Take bytes; returns what the VM may see of them, None if more is held than may be."""
        self._older_with_vm, self._with_vm = self._with_vm, True
        self._last = data
        self._unanswered = True
        self.input_over = end_of_stream
        if self._kept is not None:
            if (self.held or self._kept) and len(self._kept) + len(data) > self._policy.limits.body_buffer_bytes:
                return None
            self._kept += data
        return data if self._readable else bytes(len(data))

    @property
    def can_pass_by(self) -> bool:
        """Whether all bytes that have not gone on are here."""
        return self._kept is not None or not self._older_with_vm

    def pass_by(self) -> None:
        """Let go what has not gone on."""
        if self._kept is not None:
            self._let_go(bytes(self._kept))
            self._kept.clear()
        elif self._with_vm:
            self._let_go(self._last)
        self.ended = self.input_over
        self.held = self._with_vm = self._older_with_vm = False

    def go(self, effect: Effect, refusals: list[Refusal], late: bool) -> bool:
        """
        Let the bytes of an effect go on; False if the policy does not let it, or too many were not fetched.

        Args:
            effect: data of this direction.
            refusals: takes why it is not let.
            late: it arose outside the connection's own events.

        Raises:
            ChannelBroken: no honest worker says this.
        """
        end = bool(effect.flags & layout.FLAG_END_OF_STREAM)
        if self.ended or (end and not self.input_over):
            raise ChannelBroken("data of a connection after their end, or an end that never came")
        self.ended = end
        # What comes late, before a verdict, is of older bytes alone: the plugin has yet to see the last.
        self._with_vm, self._older_with_vm = late and self._unanswered, False
        if self._kept is not None:
            gone = len(self._kept) - (len(self._last) if self._with_vm else 0)
            self._let_go(bytes(self._kept[:gone]))
            del self._kept[:gone]
            return True
        if not effect.flags & layout.FLAG_AS_SUBMITTED:
            refusal = self._policy.rules.body(len(effect.payload))
            if refusal is not None:
                refusals.append(refusal)
                return False
            self._foreign_bytes += len(effect.payload)
        self._let_go(effect.payload)
        return self._foreign_bytes <= self._policy.event_limits.max_bytes

    def _let_go(self, data: bytes) -> None:
        if data:
            self._out.append(data)

    def take(self) -> bytes:
        """Return what goes on, once."""
        out = b"".join(self._out)
        self._out.clear()
        self._foreign_bytes = 0
        return out

    def set_state(self, state: int, bits: int) -> None:
        """Take the state of a verdict."""
        self.held = bool(state & bits)
        self._unanswered = False
        if not self.held:
            self._with_vm = self._older_with_vm = False


class TcpExchange:
    """
    Args:
        policy: the plugin's.
    """

    def __init__(self, policy: Compiled) -> None:
        self.policy = policy
        self.bypassed = not policy.needs.callbacks & TCP_CALLBACKS
        """The plugin has no callback for TCP, or has failed open."""
        self.failure: Cause | None = None
        self.downstream = Flow(layout.DOWNSTREAM_DATA, policy.needs.downstream_data, policy)
        self.upstream = Flow(layout.UPSTREAM_DATA, policy.needs.upstream_data, policy)
        self._closed = self._reset = False
        self._properties: list[tuple[bytes, bytes]] = []
        self._refusals: list[Refusal] = []
        self._phase = Phase.REQUEST_HEADERS

    @property
    def finished(self) -> bool:
        """Whether the connection is to be closed."""
        return self._closed or self._reset

    @property
    def waiting(self) -> bool:
        """Whether a failure of the VM has to be told at once: bytes are held."""
        return self.downstream.held or self.upstream.held

    def data(self, flow: Flow, data: bytes, end_of_stream: bool) -> Ask | None:
        """
        Take bytes; None: the VM need not be told of them.

        Raises:
            PeerError: they may not come now.
        """
        if self.finished or flow.input_over:
            raise PeerError("data of a connection after their end, or after it was closed")
        self._phase = _PHASES[flow.kind]
        shown = flow.came(data, end_of_stream)
        if shown is None:
            self._end(reset=True)
            return None
        if self.bypassed:
            flow.pass_by()
            return None
        return Ask(flow.kind, shown, end_of_stream)

    def answer(self, effects: Iterable[Effect], state: int) -> None:
        """Take what came of an event; raises ChannelBroken, and then `fail` has to be called with PROTOCOL."""
        self.downstream.set_state(state, layout.STATE_REQUEST_PAUSED | layout.STATE_REQUEST_ALL_STOPPED)
        self.upstream.set_state(state, layout.STATE_RESPONSE_PAUSED | layout.STATE_RESPONSE_ALL_STOPPED)
        self._apply(effects)

    def late(self, effects: Iterable[Effect]) -> None:
        """Take effects that arose outside the events of this connection; raises as `answer`."""
        if not (self.finished or self.bypassed):
            self._apply(effects, late=True)

    def _apply(self, effects: Iterable[Effect], *, late: bool = False) -> None:
        for effect in effects:
            if self.finished:
                return
            if effect.kind in layout.TCP_DATA_KINDS:
                flow = self.downstream if effect.kind == layout.DOWNSTREAM_DATA else self.upstream
                flow.held = flow.held and not late
                if not flow.go(effect, self._refusals, late):
                    self._end(reset=True)
            elif effect.kind == layout.PROPERTY_SET:
                self._set_property(effect.payload)
            elif effect.kind == layout.CLOSE_STREAM:
                self._end(reset=False)
            else:
                raise ChannelBroken(f"{layout.COMPLETION_NAMES[effect.kind]} on a connection")

    def _set_property(self, payload: bytes) -> None:
        for path, value in decode_map(payload):
            refusal = self.policy.rules.property(path, value)
            if refusal is None and len(self._properties) >= limits.MAX_WRITTEN_PROPERTIES:
                refusal = Refusal(Reason.TOO_MANY, "property")
            if refusal is None:
                self._properties.append((path, value))
            elif len(self._refusals) < limits.MAX_WRITTEN_PROPERTIES:
                self._refusals.append(refusal)

    def _end(self, *, reset: bool) -> None:
        self._closed, self._reset = not reset, reset
        for flow in (self.downstream, self.upstream):
            flow.take()
            flow.held = False

    def fail(self, cause: Cause) -> None:
        """The plugin failed: do what the policy says. Afterwards the connection is `finished` or `bypassed`."""
        if self.finished or self.bypassed:
            return
        self.failure = cause
        policy = self.policy.failure
        flows = (self.downstream, self.upstream)
        if not all(flow.can_pass_by for flow in flows):
            policy = replace(policy, policy=OnFailure.CLOSED)
        if decide(policy, self._phase, cause, response_started=True).kind is ActionKind.CONTINUE:
            self.bypassed = True
            for flow in flows:
                flow.pass_by()
        else:
            self._end(reset=True)

    def outcome(self) -> TcpOutcome:
        """Return what the program has to do now; what is said once is not said again."""
        properties, self._properties = self._properties, []
        refusals, self._refusals = self._refusals, []
        return TcpOutcome(
            downstream=self.downstream.take(),
            upstream=self.upstream.take(),
            downstream_ended=self.downstream.ended,
            upstream_ended=self.upstream.ended,
            paused=self.waiting,
            closed=self._closed,
            reset=self._reset,
            failure=self.failure,
            bypassed=self.bypassed,
            properties=properties,
            refusals=refusals,
        )
