"""What came of the calls, by plugin and upstream; and one log line in a while for those that were denied."""

from __future__ import annotations

import json
import logging
from collections import Counter

from sandboxd.log import one_line
from sandboxd.supervisor.throttle import Throttle

_log = logging.getLogger(__name__)

_DETAIL_BYTES = 200
_UNKNOWN = "(unknown)"


class PluginCounters:
    """
    Of one plugin.

    Args:
        tenant: the tenant's name.
        plugin: the plugin's name.
    """

    def __init__(self, tenant: str, plugin: str) -> None:
        self.tenant = tenant
        self.plugin = plugin
        self.upstreams: dict[str, Counter[str]] = {}
        self._throttle = Throttle(per_second=1, burst=5)
        self._mistakes = Throttle(per_second=0.1, burst=3)
        self._unsaid = 0

    def count(self, upstream: str, what: str, amount: int = 1) -> None:
        """Add to a counter; ``upstream`` is a name of the policy."""
        self.upstreams.setdefault(upstream, Counter())[what] += amount

    def denied(self, upstream: str, rule: str, detail: str, now_s: float) -> None:
        """
        Count a call that the policy does not allow, and say so in the log as far as that is bearable.

        Args:
            upstream: a name of the policy; empty: the call named another one.
            rule: the key of the policy.
            detail: what was asked; hostile text.
            now_s: a clock that never goes back.
        """
        self.count(upstream or _UNKNOWN, f"denied.{rule}")
        self._warn(f"a callout to {upstream or _UNKNOWN} is denied by {rule}: {one_line(detail, _DETAIL_BYTES)}", now_s)

    def cut_off(self, upstream: str, rule: str, limit: str, now_s: float) -> None:
        """
        Count a stream that a rule has ended, and say so in the log as far as that is bearable.

        Args:
            upstream: a name of the policy.
            rule: the key of the policy.
            limit: its value.
            now_s: a clock that never goes back.
        """
        self.count(upstream, f"failed.{rule}")
        self._warn(f"a stream to {upstream} is ended by {rule}: {limit}", now_s)

    def _warn(self, text: str, now_s: float) -> None:
        if not self._throttle.admits(now_s):
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more were not logged)" if self._unsaid else ""
        self._unsaid = 0
        _log.warning("tenant %s: plugin %s: %s%s", self.tenant, self.plugin, text, more)

    def failed(self, error: BaseException, now_s: float) -> None:
        """
        Count a callout that failed by a mistake of ours, and say where, as far as that is bearable.

        Args:
            error: the mistake, which a plugin may be able to repeat as often as it likes.
            now_s: a clock that never goes back.
        """
        self.count(_UNKNOWN, "failed.internal")
        if self._mistakes.admits(now_s):
            _log.error("tenant %s: plugin %s: a callout failed", self.tenant, self.plugin, exc_info=error)


class Counters:
    """Of all plugins; they outlive their workers and policies."""

    def __init__(self) -> None:
        self._plugins: dict[tuple[str, str], PluginCounters] = {}

    def plugin(self, tenant: str, plugin: str) -> PluginCounters:
        """Return those of one plugin."""
        return self._plugins.setdefault((tenant, plugin), PluginCounters(tenant, plugin))

    def to_json(self) -> str:
        """Return ``{"tenant/plugin": {"upstream": {"counter": n}}}``."""
        return json.dumps(
            {f"{tenant}/{plugin}": found.upstreams for (tenant, plugin), found in sorted(self._plugins.items())},
            separators=(",", ":"),
        )
