"""What came of a soak, and what is wrong with it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.bench.processes import Usage
from tests.bench.soak_scenes import Lane

MIB = 1 << 20
RSS_SLACK_BYTES = {"envoy": 16 * MIB, "daemon": 8 * MIB, "fronts": 24 * MIB, "egress": 24 * MIB}
"""What the memory may grow by: allocators keep what they once had."""
FD_SLACK = 8
"""A channel may be in the making when the descriptors are counted."""
MIN_FILTERED = 0.9
"""Of all exchanges: a soak of failure policies alone would show nothing."""

NEVER = {
    "broken": "connections that ended without the answer",
    "stuck": "exchanges without an answer for 30 s",
    "twice": "answers that came twice",
    "wrong": "answers to another request",
    "unseen": "answers of the upstream that it did not give",
    "seen_twice": "requests that reached the upstream twice",
    "strange": "requests at the upstream that nobody sent",
    "other": "answers that are neither 200, 503 nor 504",
}
ANSWERS = ("filtered", "unfiltered", "refused", "late", "other", "broken", "stuck")

Totals = Mapping[str, int]


@dataclass(frozen=True)
class Outcome:
    """What a soak found."""

    lanes: Sequence[Lane]
    totals: Mapping[str, Totals]
    """By path; see `exchanges.c`."""
    samples: Mapping[str, Sequence[Usage]]
    """By role, one a second."""
    settled: Mapping[str, Usage] = field(default_factory=dict)
    """By role, after the last exchange, when the workers of older versions are gone."""
    workers_killed: int = 0
    reloads: int = 0
    streams_left: int = 0
    said: Sequence[str] = field(default=())
    """What the parts' own checks found wrong."""
    brokers_killed: int = 0
    more: Mapping[str, int] = field(default_factory=dict)
    """Figures of the parts."""

    def sum(self, name: str) -> int:
        """Return a total over all lanes."""
        return sum(totals[name] for totals in self.totals.values())


def _by_policy(outcome: Outcome) -> int:
    return sum(outcome.sum(name) for name in ("unfiltered", "refused", "late"))


def growth(samples: Sequence[Usage]) -> tuple[Usage, Usage]:
    """
    Return what was held in the beginning and at the end: medians over a tenth of the samples each.

    The first tenth is left out: pools fill, and what is loaded lazily is loaded.
    """
    tenth = max(1, len(samples) // 10)
    return _middle(samples[tenth : 2 * tenth] or samples[:1]), _middle(samples[-tenth:])


def _middle(samples: Sequence[Usage]) -> Usage:
    return Usage(
        *(
            int(statistics.median(getattr(sample, name) for sample in samples))
            for name in ("rss_bytes", "fds", "threads")
        )
    )


def problems(outcome: Outcome) -> Iterator[str]:
    """Yield a line for each thing that must not be."""
    for lane in outcome.lanes:
        yield from _of_lane(lane, outcome.totals[lane.path])
    sent, filtered = outcome.sum("sent"), outcome.sum("filtered")
    if filtered < MIN_FILTERED * sent:
        yield f"only {filtered} of {sent} exchanges were filtered"
    if outcome.streams_left:
        yield f"{outcome.streams_left} streams are still open in the VMs"
    yield from outcome.said
    for role, samples in outcome.samples.items():
        first, last = growth(samples)
        # A worker that drains keeps descriptors for half a minute: what stays when it is gone is a leak.
        yield from _of_role(role, first, replace(last, fds=outcome.settled.get(role, last).fds))


def _of_lane(lane: Lane, totals: Totals) -> Iterator[str]:
    for name, what in NEVER.items():
        if totals[name]:
            yield f"{lane.name}: {totals[name]} {what}"
    answered = sum(totals[name] for name in ANSWERS)
    if answered != totals["sent"]:
        yield f"{lane.name}: {totals['sent']} requests, {answered} answers"
    if lane.fails_open and totals["refused"] + totals["late"]:
        yield f"{lane.name}: {totals['refused'] + totals['late']} answers of 503 or 504, though it fails open"
    if not lane.fails_open and (totals["unfiltered"] or totals["seen_unfiltered"]):
        yield (
            f"{lane.name}: {totals['seen_unfiltered']} requests and {totals['unfiltered']} responses passed unfiltered,"
            " though it fails closed"
        )


def _of_role(role: str, first: Usage, last: Usage) -> Iterator[str]:
    if last.rss_bytes > first.rss_bytes + RSS_SLACK_BYTES[role]:
        yield f"{role}: memory grew from {first.rss_bytes / MIB:.1f} to {last.rss_bytes / MIB:.1f} MiB"
    if last.fds > first.fds + FD_SLACK:
        yield f"{role}: descriptors grew from {first.fds} to {last.fds}"


def table(outcome: Outcome) -> Iterator[str]:
    """Yield the lines of a report."""
    columns = (
        "sent",
        "filtered",
        "unfiltered",
        "refused",
        "late",
        "twice",
        "seen",
        "seen_twice",
        "stuck",
        "slowest_us",
    )
    yield f"{'lane':<10}" + "".join(f"{name:>12}" for name in columns)
    for lane in outcome.lanes:
        totals = outcome.totals[lane.path]
        yield f"{lane.name:<10}" + "".join(f"{totals[name]:>12}" for name in columns)
    heads = ("RSS MiB", "at the end", "fds", "at the end", "threads", "at the end")
    yield f"{'process':<10}" + "".join(f"{name:>12}" for name in heads)
    for role, samples in outcome.samples.items():
        first, last = growth(samples)
        last = replace(last, fds=outcome.settled.get(role, last).fds)
        yield (
            f"{role:<10}{first.rss_bytes / MIB:>12.1f}{last.rss_bytes / MIB:>12.1f}{first.fds:>12}{last.fds:>12}"
            f"{first.threads:>12}{last.threads:>12}"
        )
    yield (
        f"requests {outcome.sum('sent')}, filtered {outcome.sum('filtered')}, by failure policy"
        f" {_by_policy(outcome)}, duplicates"
        f" {outcome.sum('twice') + outcome.sum('seen_twice')}, workers killed {outcome.workers_killed},"
        f" reloads {outcome.reloads}, brokers killed {outcome.brokers_killed}"
    )
    if outcome.more:
        yield ", ".join(f"{name} {value}" for name, value in outcome.more.items())


def figures(outcome: Outcome) -> dict[str, int]:
    """Return what is written into the file of figures."""
    found = {
        "requests": outcome.sum("sent"),
        "filtered": outcome.sum("filtered"),
        "failure_policy_answers": _by_policy(outcome),
        "duplicates": outcome.sum("twice") + outcome.sum("seen_twice"),
        "workers_killed": outcome.workers_killed,
        "reloads": outcome.reloads,
        "brokers_killed": outcome.brokers_killed,
        **outcome.more,
    }
    for role, samples in outcome.samples.items():
        for moment, held in zip(("start", "end"), growth(samples), strict=True):
            found |= {f"{role}_rss_bytes_{moment}": held.rss_bytes, f"{role}_fds_{moment}": held.fds}
    return found
