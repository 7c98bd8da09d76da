"""Callouts as metrics. Pure. Labels are names of policies and of rules; none is a guest's text."""

from __future__ import annotations

from typing import Any, Final

from sandboxd.supervisor.metrics_text import Family, Kind

_SUMS: Final = {
    "calls": ("sandboxd_callouts_total", "Callouts that were made."),
    "answered": ("sandboxd_callouts_answered_total", "Callouts whose response came whole."),
    "request_bytes": ("sandboxd_callout_request_bytes_total", "Bodies and messages that were sent."),
    "response_bytes": ("sandboxd_callout_response_bytes_total", "Bodies and messages that came."),
}
_PREFIXES: Final = {
    "denied.": ("sandboxd_callouts_denied_total", "rule", "Callouts that the policy does not allow, by rule."),
    "failed.": ("sandboxd_callouts_failed_total", "reason", "Callouts without a whole response, by reason."),
}


def egress_families(status: dict[str, Any]) -> list[Family]:
    """Return the families, in a fixed order; ``status`` is the broker's part of what the status command answers."""
    up = Family("sandboxd_egress_up", Kind.GAUGE, "1 if the egress broker is there; it is not before it is needed.")
    up.add(int(bool(status["pid"])))
    restarts = Family("sandboxd_egress_restarts_total", Kind.COUNTER, "Brokers that died and were replaced.")
    restarts.add(status["restarts"])
    sums = {key: Family(name, Kind.COUNTER, text) for key, (name, text) in _SUMS.items()}
    parts = {prefix: Family(name, Kind.COUNTER, text) for prefix, (name, _, text) in _PREFIXES.items()}
    for key, upstreams in sorted(status["callouts"].items()):
        tenant, plugin = key.split("/")
        for upstream, counters in sorted(upstreams.items()):
            labels = {"tenant": tenant, "plugin": plugin, "upstream": upstream}
            for counter, value in sorted(counters.items()):
                if counter in sums:
                    sums[counter].add(value, **labels)
                    continue
                for prefix, (_, label, _) in _PREFIXES.items():
                    if counter.startswith(prefix):
                        parts[prefix].add(value, **labels, **{label: counter.removeprefix(prefix)})
    return [up, restarts, *sums.values(), *parts.values()]
