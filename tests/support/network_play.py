"""What a VM answers to the events of a network ext_proc stream, by a script, and the words for what goes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sandboxd.channel import layout
from sandboxd.channel.ring import Record
from tests.support.fake_vm import Event, pass_through

DOWN, UP = layout.DOWNSTREAM_DATA, layout.UPSTREAM_DATA
HELD = layout.STATE_REQUEST_PAUSED
FAST = "limits: {time_per_event: 60ms, time_per_pause: 60ms}"
OPEN = "failure: {policy: open}"
READ, WRITE = "read_data", "write_data"
EMPTY = (READ, b"", False)
"""The reply that lets nothing go on."""

Script = Callable[[Event], Iterable[Record] | None]


def scripted(script: Script) -> Callable[[Event], Iterable[Record]]:
    """Answers as the script says, or lets all pass where it says nothing."""

    def answer(event: Event) -> Iterable[Record]:
        said = script(event)
        return pass_through(event) if said is None else said

    return answer
