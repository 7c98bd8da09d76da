"""
What the doctor found, layer by layer, as data and as text. Pure.

A layer is ``live`` if it was put on and everything that tried it found it holding; ``applied`` if it was
put on and nothing here could try it; ``broken`` if something got through; ``missing`` if this machine cannot
give it; ``off`` if nobody asked for it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sandboxd.doctor.examine import Finding
from sandboxd.doctor.observe import Seen
from sandboxd.jail.full_plan import NOT_ASKED_FOR
from sandboxd.jail.layers import ALWAYS_REQUIRED, Layer


class State(enum.StrEnum):
    """Of one layer."""

    LIVE = "live"
    APPLIED = "applied"
    OFF = "off"
    MISSING = "missing"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One line."""

    layer: Layer
    state: State
    detail: str
    """The proofs, the reason, or what got through."""


@dataclass(frozen=True, slots=True)
class Report:
    """All the doctor knows."""

    machine: dict[str, Any]
    identity: str
    """How a worker's identity is taken away: ``own uid`` or ``user namespace``."""
    layers: tuple[LayerReport, ...]
    attacks: tuple[Finding, ...]
    tolerate: frozenset[Layer] = frozenset()
    """Layers that the operator does without where they are missing."""

    @property
    def sound(self) -> bool:
        """
        Whether nothing got through and no layer that is always required is missing, but for tolerated ones.
        """
        required = ALWAYS_REQUIRED - self.tolerate
        return (
            not any(line.state is State.BROKEN for line in self.layers)
            and not any(line.state is State.MISSING and line.layer in required for line in self.layers)
            and all(finding.held for finding in self.attacks)
        )

    @property
    def done_without(self) -> tuple[Layer, ...]:
        """Return the tolerated layers that are in fact missing."""
        missing = [line.layer for line in self.layers if line.state is State.MISSING]
        return tuple(layer for layer in missing if layer in ALWAYS_REQUIRED & self.tolerate)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {
            "sound": self.sound,
            "machine": self.machine,
            "identity": self.identity,
            "tolerated": list(self.done_without),
            "layers": [{"layer": line.layer, "state": line.state, "detail": line.detail} for line in self.layers],
            "attacks": [_attack_json(finding) for finding in self.attacks],
        }

    def to_text(self) -> str:
        """Return it for a person at a terminal."""
        machine = f"Linux {self.machine['kernel']} on {self.machine['architecture']}"
        lines = [f"{machine}; a worker gets {self.identity}."]
        lines += ["", "Layers:"]
        lines += [f"  {line.state:8} {line.layer:20} {line.detail}" for line in self.layers]
        lines += ["", "Attacks from inside the jail:"]
        lines += [f"  {_verdict(finding):8} {finding.attack.wants}: {_answer(finding)}" for finding in self.attacks]
        return "\n".join([*lines, "", self._last_line()])

    def _last_line(self) -> str:
        if not self.sound:
            return "NOT SOUND: see the lines marked broken, missing or ESCAPED."
        if self.done_without:
            return f"WEAKENED by jail.tolerate; missing: {', '.join(self.done_without)}."
        return "Sound."


def layer_reports(
    applied: Sequence[Layer],
    missing: Sequence[tuple[Layer, str]],
    findings: Sequence[Finding],
    seen: Sequence[Seen],
) -> tuple[LayerReport, ...]:
    """Put the evidence together, in the order of `Layer`."""
    reasons = dict(missing)
    lines: list[LayerReport] = []
    for layer in Layer:
        if layer in reasons:
            state = State.OFF if reasons[layer] == NOT_ASKED_FOR else State.MISSING
            lines.append(LayerReport(layer, state, reasons[layer]))
        elif layer in applied:
            lines.append(_judge(layer, findings, seen))
    return tuple(lines)


def _judge(layer: Layer, findings: Sequence[Finding], seen: Sequence[Seen]) -> LayerReport:
    looks = [item for item in seen if item.layer is layer]
    tried = [(f, outcome) for f in findings for own, outcome in f.alone if own is layer]
    through = [f.attack.name for f, outcome in tried if not outcome.stopped]
    through += [item.evidence for item in looks if not item.live]
    if through:
        return LayerReport(layer, State.BROKEN, "; ".join(through))
    proofs = [f"{f.attack.name} {o.detail or o.answer}" for f, o in tried if f.meaningful]
    proofs += [item.evidence for item in looks]
    if proofs:
        return LayerReport(layer, State.LIVE, "; ".join(_first(proofs)))
    return LayerReport(layer, State.APPLIED, "put on; nothing here can try it")


def _first(proofs: list[str]) -> list[str]:
    """Keep a line readable; the attacks are listed in full below it."""
    more = len(proofs) - _PROOFS_SHOWN
    return proofs if more <= 0 else [*proofs[:_PROOFS_SHOWN], f"and {more} more"]


_PROOFS_SHOWN: Final = 4


def _verdict(finding: Finding) -> str:
    return "stopped" if finding.held else "ESCAPED"


def _answer(finding: Finding) -> str:
    text = f"{finding.whole.answer} {finding.whole.detail}".strip()
    if finding.machine_refuses:
        return f"{text} (this machine refuses it to anybody: {finding.bare.detail})"
    return text


def _attack_json(finding: Finding) -> dict[str, Any]:
    return {
        "attack": finding.attack.name,
        "wants": finding.attack.wants,
        "held": finding.held,
        "proven": finding.proven,
        "answer": finding.whole.answer,
        "detail": finding.whole.detail,
        "alone": {layer: f"{o.answer} {o.detail}".strip() for layer, o in finding.alone},
        "without": f"{finding.without.answer} {finding.without.detail}".strip(),
        "machine_refuses": finding.machine_refuses,
    }
