"""What the proof tells, line by line, and the verdict. Pure but for the printing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """
    Collects a machine's lines.

    Args:
        expected: names of all proofs; one that never reports is a failure.
    """

    expected: tuple[str, ...]
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    boots: int = 0
    done: bool = False

    def feed(self, line: str) -> str:
        """Take a line; return what to show for it, empty for nothing."""
        if not line.strip():
            return ""
        try:
            event = json.loads(line)
            return self._event(event)
        except (ValueError, KeyError, TypeError):
            self.failed.append("report")
            return f"FAIL  a line that is no report: {line[:200]}"

    def _event(self, event: dict[str, Any]) -> str:
        match event["event"]:
            case "boot":
                self.boots += 1
                up_s = f"{event['uptime_s']:.0f} s after the kernel"
                return f"      boot {event['number']}: Linux {event['kernel']}, {up_s}"
            case "proof":
                return self._proof(event)
            case "done":
                self.done = True
                return ""
        raise KeyError(event["event"])

    def _proof(self, event: dict[str, Any]) -> str:
        name, ok = str(event["name"]), event["ok"] is True
        (self.passed if ok else self.failed).append(name)
        head = f"{'ok  ' if ok else 'FAIL'}  {name} ({event['seconds']:.1f} s)"
        facts = event.get("facts") or {}
        detail = "".join(f"\n        {key}: {value}" for key, value in facts.items())
        if not ok:
            detail += "".join(f"\n        {line}" for line in str(event["error"]).splitlines())
        return head + detail

    def problems(self) -> list[str]:
        """Return why the run is not a success; empty if it is."""
        found = [f"failed: {name}" for name in self.failed]
        found += [f"never reported: {name}" for name in self.expected if name not in self.passed + self.failed]
        if not self.done:
            found.append("the proof did not come to its end")
        return found
