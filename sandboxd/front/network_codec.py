"""
Network ext_proc on one side, channel events on the other: one TCP connection, without any I/O.

The counterpart of `ext_proc_codec.Exchange` for ``envoy.service.network_ext_proc.v3``; `stream.ProcessStream` serves
both. What the protocol cannot carry is reported by name and ends the connection, since bytes that are left out damage
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.channel.errors import ChannelBroken
from sandboxd.errors import PeerError
from sandboxd.exchange.side import Ask
from sandboxd.front import network_attributes, wire
from sandboxd.front.failure import action_on
from sandboxd.front.metadata import Metadata
from sandboxd.front.network_side import DOWNSTREAM, UPSTREAM, NetworkSide
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import CannotCarryError, Report
from sandboxd.policy.capability_names import TCP_CALLBACKS
from sandboxd.policy.failure import ActionKind, Cause, Phase
from sandboxd.protos import network_ext_proc_pb2 as pb

_CLOSE = wire.number_field(4, 1)
_CLOSE_RST = wire.number_field(4, 2)
_METADATA_FIELD = 5
_PEER_UNKNOWN = (0).to_bytes(4, "little")
_PHASES = {
    layout.NEW_CONNECTION: Phase.REQUEST_HEADERS,
    layout.DOWNSTREAM_DATA: Phase.REQUEST_BODY,
    layout.UPSTREAM_DATA: Phase.RESPONSE_BODY,
    layout.UPSTREAM_CLOSE: Phase.RESPONSE_BODY,
}
_DOWNSTREAM_CLOSE = "proxy_on_downstream_connection_close"
_UPSTREAM_CLOSE = "proxy_on_upstream_connection_close"
_PARK_EARLY_S = 0.002


class NetworkExchange:
    """
    One gRPC stream of network ext_proc, which is one TCP connection.

    Args:
        plugin: whose filter it runs.
        report: told of what deserves a counter and a log line.
        clock: monotonic seconds.
    """

    observing = False
    bodiless = False

    def __init__(
        self,
        plugin: Plugin,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plugin = plugin
        self.replies: list[bytes] = []
        """``ProcessingResponse`` messages to be sent, in order."""
        self.finished = False
        """The connection is to be closed; nothing more is sent after `replies`."""
        self.bypassed = False
        """The plugin failed and the policy lets the connection go on without it."""
        self.attributes: bytes = b""
        needs = plugin.needs
        self.downstream = NetworkSide(DOWNSTREAM, plugin, needs.downstream_data, self.replies, report)
        self.upstream = NetworkSide(UPSTREAM, plugin, needs.upstream_data, self.replies, report)
        self._sides = (self.downstream, self.upstream)
        self._report = report
        self._clock = clock
        self._metadata: Metadata | None = None
        self._metadata_seen = b""
        self._first = True
        self._phase = Phase.REQUEST_HEADERS

    # --- messages from the proxy ---

    def receive(self, message: pb.ProcessingRequest) -> list[Ask]:
        """
        Take one message and return the events it makes; none if it is answered already.

        Raises:
            PeerError: the message is not one that may come now.
        """
        if message.HasField("read_data") == message.HasField("write_data"):
            raise PeerError("ProcessingRequest needs exactly one of read_data and write_data")
        if self.finished:
            return []  # it was sent before the proxy has met the last reply
        asks = self._begin() if self._first else []
        self._note_properties(message)
        side, data = (
            (self.downstream, message.read_data)
            if message.HasField("read_data")
            else (self.upstream, message.write_data)
        )
        if side.input_over:
            raise PeerError(f"{side.names.word} data after their end")
        try:
            shown = side.came(data.data, data.end_of_stream, self._clock())
        except CannotCarryError as error:
            self._cannot_carry(str(error))
            return []
        if self.bypassed or (not asks and side.unconcerned):
            side.pass_by()
            self._settle(side)
            return []
        asks.append(Ask(side.names.data, shown, data.end_of_stream))
        if side is self.upstream and data.end_of_stream and _UPSTREAM_CLOSE in self.plugin.needs.callbacks:
            asks.append(Ask(layout.UPSTREAM_CLOSE, _PEER_UNKNOWN, False))
        return asks

    def _begin(self) -> list[Ask]:
        callbacks = self.plugin.needs.callbacks
        if callbacks and callbacks.isdisjoint(TCP_CALLBACKS):
            raise PeerError(f"plugin {self.plugin.name} has no callback for TCP that its policy grants")
        self._first = False
        return [Ask(layout.NEW_CONNECTION, b"", False)]

    def _note_properties(self, message: pb.ProcessingRequest) -> None:
        """Take what Envoy tells of the connection, its metadata whenever they have changed."""
        self.attributes = b""
        if not self.plugin.needs.properties:
            return
        metadata = message.metadata.SerializeToString(deterministic=True)
        if message.attributes or metadata != self._metadata_seen:
            self.attributes = network_attributes.properties(message, self.plugin.redactor, self._report)
            self._metadata_seen = metadata

    # --- what the plugin did ---

    def answer(self, ask: Ask, effects: Iterable[Effect], state: int) -> None:
        """
        Take what came of an event of this connection.

        Raises:
            ChannelBroken: a payload is malformed, or breaks the rules; call `fail` with PROTOCOL.
        """
        self._phase = _PHASES[ask.kind]
        for side in self._sides:
            side.held = bool(state & (side.names.paused | side.names.all_stopped))
            if ask.kind == side.names.data:
                side.seen()
        self._apply(effects)
        # The bytes that came with the connection's first message have not been shown yet.
        if ask.kind != layout.NEW_CONNECTION:
            self._settle_all()

    def late(self, effects: Iterable[Effect]) -> None:
        """Take effects on this connection that arose in an event of another one; raises as `answer`."""
        if self.finished or self.bypassed:
            return
        effects = list(effects)
        for side in self._sides:
            if any(effect.kind == side.names.data for effect in effects):
                side.held = False
        self._apply(effects)
        self._settle_all()

    def _apply(self, effects: Iterable[Effect]) -> None:
        try:
            for effect in effects:
                if self.finished:
                    return
                if effect.kind == layout.DOWNSTREAM_DATA:
                    self.downstream.go(effect)
                elif effect.kind == layout.UPSTREAM_DATA:
                    self.upstream.go(effect)
                elif effect.kind == layout.PROPERTY_SET:
                    self._set_property(effect.payload)
                elif effect.kind == layout.CLOSE_STREAM:
                    # As in Envoy, the bytes that the callback was shown go nowhere.
                    self._end(_CLOSE)
                else:
                    raise ChannelBroken(f"{layout.COMPLETION_NAMES[effect.kind]} on a connection")
        except CannotCarryError as error:
            self._cannot_carry(str(error))

    def _settle_all(self) -> None:
        for side in self._sides:
            if not self.finished:
                self._settle(side)

    def _settle(self, side: NetworkSide) -> None:
        before = len(self.replies)
        try:
            side.settle()
        except CannotCarryError as error:
            self._cannot_carry(str(error))
        if self._metadata and len(self.replies) > before:
            self.replies[before] += self._metadata.take(_METADATA_FIELD)

    def _set_property(self, payload: bytes) -> None:
        if self._metadata is None:
            self._metadata = Metadata(self.plugin, self._report)
        self._metadata.add(payload)

    def _end(self, status: bytes) -> None:
        """Have the proxy close the connection. It looks at the status before any data, so no data go with it."""
        if self.finished:
            return
        self.replies.append(status + (self._metadata.take(_METADATA_FIELD) if self._metadata else b""))
        self.finished = True
        for side in self._sides:
            side.drop()

    def _cannot_carry(self, what: str) -> None:
        self._report(f"network_ext_proc.cannot_carry.{what}", "")
        self._end(_CLOSE_RST)

    # --- pauses ---

    @property
    def waiting(self) -> bool:
        """Whether the proxy waits for a reply that only a resume, or more data, brings."""
        return self.downstream.waiting or self.upstream.waiting

    @property
    def held(self) -> bool:
        """Whether the plugin holds bytes, which are lost with its VM."""
        return self.downstream.held or self.upstream.held

    @property
    def pause_s(self) -> float:
        """How long the proxy may wait still; it counts from its last message in a direction."""
        limit_s = self.plugin.policy.time_per_pause_ns / 1e9
        since = min((side.owed_since for side in self._sides if side.waiting), default=self._clock())
        return max(since + limit_s - self._clock(), 0.0)

    def pause_over(self) -> bool:
        """
        Do not let the proxy wait any longer: it is told that nothing goes on for now.

        The plugin keeps what it holds, for the data that may complete it can take any time. Nothing has failed.
        """
        limit_s = self.plugin.policy.time_per_pause_ns / 1e9 - _PARK_EARLY_S
        for side in self._sides:
            if side.waiting and self._clock() - side.owed_since >= limit_s:
                self._report("network_ext_proc.long_pause", side.names.word)
                side.park()
        return True

    # --- the end ---

    @property
    def at_last(self) -> bool:
        """The protocol has no last message."""
        return False

    def end(self) -> list[Ask]:
        """The connection is over: what the VM has to be told. The protocol does not say who closed it."""
        if self._metadata:
            self._report("network_ext_proc.cannot_carry.property_after_last_reply", "")
        if self._first or _DOWNSTREAM_CLOSE not in self.plugin.needs.callbacks:
            return []
        return [Ask(layout.DOWNSTREAM_CLOSE, _PEER_UNKNOWN, False)]

    # --- failure ---

    def fail(self, cause: Cause) -> None:
        """The plugin failed: do what the policy says. Afterwards the exchange is `finished` or `bypassed`."""
        if self.finished or self.bypassed:
            return
        self._report(f"failed.{cause.value}", "")
        can_pass_on = all(side.can_pass_by for side in self._sides)
        action = action_on(
            self.plugin, self._phase, cause, self._report, can_pass_on=can_pass_on, response_started=True
        )
        if action.kind is ActionKind.CONTINUE:
            self.bypassed = True
            for side in self._sides:
                side.held = False
                if side.owed:
                    side.pass_by()
                    self._settle(side)
            return
        # Not an orderly end: the peer must not take what it has for the whole.
        self._end(_CLOSE_RST)
