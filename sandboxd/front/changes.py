"""What a plugin made of a header map, as far as it may and ext_proc can say it. Pure."""

from __future__ import annotations

from sandboxd.channel import layout
from sandboxd.channel.completions import Effect, decode_map
from sandboxd.exchange.side import HeldMap
from sandboxd.front import replies
from sandboxd.front.plugin import Plugin
from sandboxd.front.side import Report
from sandboxd.policy.redact import NO_CHANGE, HeaderDiff

_CONTENT_LENGTH = b"content-length"


def allowed(plugin: Plugin, report: Report, held: HeldMap, effect: Effect) -> HeaderDiff:
    """
    Return the changes of a map that may go on; the others are reported.

    Raises:
        ChannelBroken: the effect's map is malformed.
    """
    if not effect.flags & layout.FLAG_MODIFIED:
        return NO_CHANGE
    wanted = plugin.redactor.changes(held.original, held.view, decode_map(effect.payload), held.section)
    changes, refusals = plugin.checked(wanted, held.section)
    for refusal in refusals:
        report(f"refused.{refusal.reason}", refusal.name)
    for name in replies.ignored_writes(changes):
        report("ext_proc.ignored_write", name.decode("ascii", "replace"))
    return changes


def has_content_length(before: bool, changes: HeaderDiff) -> bool:
    """Whether there is a ``content-length`` after these changes."""
    named = {name for name, _ in changes.set} | {name for name, _ in changes.added}
    return _CONTENT_LENGTH in named or (before and _CONTENT_LENGTH not in changes.removed)


def with_content_length(changes: HeaderDiff, length: int) -> HeaderDiff:
    """Return the changes with this ``content-length`` instead of any that they bring."""
    name = _CONTENT_LENGTH
    kept = tuple(entry for entry in changes.set if entry[0] != name)
    added = tuple(entry for entry in changes.added if entry[0] != name)
    removed = tuple(other for other in changes.removed if other != name)
    return HeaderDiff(removed, (*kept, (name, (b"%d" % length,))), added)


def first_name(changes: HeaderDiff) -> str:
    """Return the name of one changed header, for the log."""
    names = [*changes.removed, *(name for name, _ in changes.set), *(name for name, _ in changes.added)]
    return names[0].decode("ascii", "replace")
