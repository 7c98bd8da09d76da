"""What a plugin wrote with ``proxy_set_property``, on its way out as dynamic metadata. Pure."""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf import struct_pb2

from sandboxd import limits
from sandboxd.channel.completions import decode_map
from sandboxd.front import wire
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import Report

EXT_PROC_FIELD = 8
"""``dynamic_metadata`` of the HTTP protocol's ``ProcessingResponse``."""


class Metadata:
    """
    Properties that no reply has carried yet; true if there are any.

    Args:
        plugin: who writes.
        report: told of what the policy refuses.
    """

    __slots__ = ("_plugin", "_report", "_times", "_values")

    def __init__(self, plugin: Plugin, report: Report) -> None:
        self._plugin = plugin
        self._report = report
        self._values: dict[str, Any] = {}
        self._times = 0

    def __bool__(self) -> bool:
        return bool(self._values)

    def add(self, payload: bytes) -> None:
        """
        Take the payload of a PROPERTY_SET.

        Raises:
            ChannelBroken: it is malformed.
        """
        self._times += 1
        if self._times > limits.MAX_WRITTEN_PROPERTIES:
            self._report("refused.too_many", "property")  # what is in it costs more than it is worth
            return
        for path, value in decode_map(payload):
            refusal = self._plugin.rules.property(path, value)
            if refusal is not None:
                self._report(f"refused.{refusal.reason}", refusal.name)
                continue
            if len(self._values) >= limits.MAX_WRITTEN_PROPERTIES:
                self._report("refused.too_many", "property")
                continue
            key = path.removesuffix(b"\0").replace(b"\0", b".").decode()
            try:
                self._values[key] = value.decode()
            except UnicodeDecodeError:
                self._values[key] = {"base64": base64.b64encode(value).decode()}

    def take(self, number: int = EXT_PROC_FIELD) -> bytes:
        """Return the part of a ``ProcessingResponse`` that carries all of them, once; ``number`` is its field's."""
        values = struct_pb2.Struct()
        values.update({self._plugin.metadata_namespace: self._values})
        self._values = {}
        self._times = 0
        return wire.field(number, values.SerializeToString())
