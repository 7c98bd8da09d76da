"""
What a front counts and logs about its plugins.

Everything that a plugin's worker or a proxy can cause again and again is bounded here: counters are numbers under a
bounded set of names, a finding is logged at its 1st, 2nd, 4th, 8th ... time, guests' lines through a token bucket.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from sandboxd import limits
from sandboxd.channel import layout
from sandboxd.channel.completions import Effect
from sandboxd.log import one_line
from sandboxd.policy.model import PluginPolicy

_log = logging.getLogger(__name__)
guest_logger = logging.getLogger("sandboxd.guest")

_LEVELS = (logging.DEBUG, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
"""Python's level for each of Proxy-Wasm's (trace to critical)."""

GUEST_LINES_PER_SECOND = limits.DEFAULT_LOG_LINES_PER_SECOND
GUEST_LINES_BURST = limits.DEFAULT_LOG_LINES_PER_EVENT
"""Lines of one plugin at once, by default what one event may log: 10 ms of the front."""
GUEST_BYTES_PER_SECOND = limits.DEFAULT_LOG_BYTES_PER_SECOND
GUEST_BYTES_BURST = limits.DEFAULT_LOG_BYTES_PER_SECOND
_MAX_NAMES = 512
"""Different counters of one plugin; imports' names are the largest set and the module chooses them."""
_MAX_DETAIL = 100


class PluginCounters:
    """
    Counters and log lines of one plugin in this process.

    Args:
        key: ``tenant/plugin``.
        clock: monotonic seconds.
    """

    def __init__(self, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = key
        self.values: dict[str, int] = {}
        self._clock = clock
        self._refilled = clock()
        self._lines_per_second = self._bytes_per_second = 0
        self._lines_left = self._bytes_left = 0.0
        self.budgets: dict[int, str] = {}
        """By the note that tells of it: the limit's key and value."""
        self._failures: dict[str, str] = {}
        """By the counter of the streams that failed of it: the same."""
        self.limit_log(GUEST_LINES_PER_SECOND, GUEST_BYTES_PER_SECOND)

    def name_budgets(self, policy: PluginPolicy) -> None:
        """Name these limits when one is reached."""
        asked = policy.limits
        body = f"limits.body_buffer ({asked.body_buffer_bytes} bytes)"
        self.budgets = {
            layout.NOTE_BODY_LIMIT: body,
            layout.NOTE_METRICS_LIMIT: f"limits.metrics ({asked.metrics})",
        }
        event, pause = asked.time_per_event_ns / limits.MS_NS, policy.time_per_pause_ns / limits.MS_NS
        self._failures = {
            "failed.cpu_limit": f"limits.cpu_per_call ({asked.cpu_per_call_ns / limits.MS_NS:g}ms)",
            "failed.host_call_limit": f"limits.host_calls_per_event ({asked.host_calls_per_event})",
            "failed.memory_limit": f"vm.memory ({policy.vm.memory_bytes} bytes)",
            "failed.limit": f"limits.open_streams ({asked.open_streams}) or {body}",
            "failed.timeout": f"limits.time_per_event ({event:g}ms) or limits.time_per_pause ({pause:g}ms)",
        }

    def limit_log(self, lines_per_second: int, bytes_per_second: int) -> None:
        """Use the policy's limits from now on; the same again changes nothing."""
        if (lines_per_second, bytes_per_second) != (self._lines_per_second, self._bytes_per_second):
            self._lines_per_second, self._bytes_per_second = lines_per_second, bytes_per_second
            self._lines_left, self._bytes_left = self._line_burst, float(bytes_per_second)

    @property
    def _line_burst(self) -> float:
        """Lines at once: what one event may log, or half a second's if that is more; never more than a second's."""
        return float(max(min(self._lines_per_second, GUEST_LINES_BURST), self._lines_per_second // 2))

    def count(self, name: str, by: int = 1) -> int:
        """Add to a counter and return its value."""
        if name not in self.values and len(self.values) >= _MAX_NAMES:
            name = "other"
        value = self.values.get(name, 0) + by
        self.values[name] = value
        return value

    def report(self, name: str, detail: str) -> None:
        """Count a finding, and log it when its number is a power of two."""
        value = self.count(name)
        if value & (value - 1) == 0:
            said = one_line(detail, _MAX_DETAIL) if detail else self._failures.get(name, "")
            shown = f" ({said})" if said else ""
            _log.warning("%s: %s%s, %d so far", self.key, name, shown, value)

    def notices(self, notices: list[Effect], imports: tuple[str, ...], max_lines: int, max_bytes: int) -> None:
        """
        Deal with the log lines, denials and notes of one event.

        Args:
            notices: of one event.
            imports: names by index, for DENIED.
            max_lines: of the policy. An honest VM keeps it by itself.
            max_bytes: as max_lines, of their text.
        """
        for notice in notices:
            if notice.kind == layout.LOG:
                max_lines -= 1
                max_bytes -= len(notice.payload)
                self._guest_line(notice, within_policy=max_lines >= 0 and max_bytes >= 0)
            elif notice.kind == layout.DENIED:
                known = notice.arg < len(imports)
                name = one_line(imports[notice.arg], _MAX_DETAIL) if known else "unknown"
                self.report(f"denied.{name}", "the policy does not grant it")
            elif notice.kind == layout.LOGS_DROPPED:
                self._dropped(min(notice.arg, limits.MAX_LOG_LINES_PER_EVENT * 100), "event")
            elif notice.kind == layout.NOTE:
                self._note(notice)

    def _note(self, note: Effect) -> None:
        value = self.count(f"note.{layout.NOTE_NAMES.get(note.arg, 'unknown')}")
        if note.arg in self.budgets and value & (value - 1) == 0:
            _log.warning("%s: %s was reached: %d times so far", self.key, self.budgets[note.arg], value)
        if note.arg == layout.NOTE_PROPERTY_MISSING and value & (value - 1) == 0:
            name = one_line(note.payload.replace(b"\0", b".").decode("utf-8", "replace"), _MAX_DETAIL)
            hint = "if it is an attribute of Envoy's, request_attributes or response_attributes can bring it"
            _log.info("%s: the plugin asked for %s, which nobody sent; %s", self.key, name, hint)

    def _guest_line(self, line: Effect, *, within_policy: bool) -> None:
        self.count("guest_log.lines")
        level = _LEVELS[line.arg]
        if within_policy and not guest_logger.isEnabledFor(level):
            return
        if not within_policy or not self._has_room(len(line.payload)):
            self._dropped(1, "second" if within_policy else "event")
            return
        # `one_line` again on the text as a whole: an attacker must not forge a line of another tenant.
        text = one_line(line.payload.decode("utf-8", "replace"), limits.MAX_LOG_MESSAGE_BYTES)
        cut = " [cut]" if line.flags & layout.FLAG_TRUNCATED else ""
        guest_logger.log(level, "%s stream=%d: %s%s", self.key, line.stream_id, text, cut)

    def _dropped(self, lines: int, span: str) -> None:
        """Count dropped lines, and say so whenever their number has doubled."""
        before = self.values.get("guest_log.dropped", 0)
        after = self.count("guest_log.dropped", lines)
        if before.bit_length() != after.bit_length():
            keys = f"limits.log_lines_per_{span} or limits.log_bytes_per_{span}"
            _log.warning("%s: log lines are dropped, %s was reached: %d so far", self.key, keys, after)

    def _has_room(self, size: int) -> bool:
        """Take a line of so many bytes out of the two buckets, if both have it."""
        now = self._clock()
        passed_s, self._refilled = now - self._refilled, now
        self._lines_left = min(self._line_burst, self._lines_left + passed_s * self._lines_per_second)
        self._bytes_left = min(self._bytes_per_second, self._bytes_left + passed_s * self._bytes_per_second)
        if self._lines_left < 1 or self._bytes_left < size:
            return False
        self._lines_left -= 1
        self._bytes_left -= size
        return True


class Counters:
    """All counters of a front process."""

    def __init__(self) -> None:
        self._plugins: dict[str, PluginCounters] = {}

    def plugin(self, key: str) -> PluginCounters:
        """Return the counters of ``tenant/plugin``; they outlive its channels."""
        found = self._plugins.get(key)
        if found is None:
            found = self._plugins[key] = PluginCounters(key)
        return found

    def forget(self, key: str) -> None:
        """The plugin is not configured any more."""
        self._plugins.pop(key, None)

    def to_json(self, max_bytes: int) -> str:
        """Return ``{"tenant/plugin": {"counter": n}}`` with as many plugins as fit."""
        parts: list[str] = []
        room = max_bytes - 2
        for key, counters in self._plugins.items():
            part = f"{json.dumps(key)}:{json.dumps(counters.values, separators=(',', ':'))}"
            room -= len(part) + 1
            if room < 0:
                break
            parts.append(part)
        return "{" + ",".join(parts) + "}"
