"""
All attacks on one jail: the whole jail, each layer by itself, and no layer at all.

Three questions per attack. Does the jail stop it? Does each layer that claims to stop it do so while the
others that would are left out? And does it succeed without them, so that the first two answers mean anything?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sandboxd.doctor.probe import Answer, Outcome, Prison, run_attack
from sandboxd.jail.attack_calls import Bait
from sandboxd.jail.attacks import ATTACKS, Attack
from sandboxd.jail.full_plan import unavailable
from sandboxd.jail.layers import Layer


@dataclass(frozen=True, slots=True)
class Finding:
    """What one attack showed."""

    attack: Attack
    whole: Outcome
    """Against the jail as workers get it."""
    alone: tuple[tuple[Layer, Outcome], ...]
    """Against each layer with the attack's other obstacles left out."""
    without: Outcome
    """Without all of its obstacles; where one of them cannot be left out, without any jail."""
    bare: Outcome
    """Without any jail; only asked if ``without`` was stopped."""

    @property
    def held(self) -> bool:
        """Whether the jail stopped it, for certain."""
        return self.whole.stopped

    @property
    def proven(self) -> bool:
        """Whether every layer stopped it alone, and it works without them."""
        return self.held and all(outcome.stopped for _, outcome in self.alone) and self.meaningful

    @property
    def meaningful(self) -> bool:
        """Whether the attack can succeed at all here; if not, the machine itself refuses it to anybody."""
        return self.without.answer is Answer.SUCCEEDED or self.machine_refuses

    @property
    def machine_refuses(self) -> bool:
        """Whether a process without any jail is refused too."""
        return self.bare.stopped


def attacks_for(prison: Prison) -> tuple[Attack, ...]:
    """Return the attacks of this architecture that at least one available layer is there to stop."""
    missing = missing_layers(prison)
    attacks = ATTACKS[prison.facts.architecture]
    facts = prison.facts
    return tuple(a for a in attacks if a.stoppers(facts.own_uids, facts.landlock_abi) - missing)


def missing_layers(prison: Prison) -> frozenset[Layer]:
    """Return the layers that this machine cannot give; those that must be asked for are asked for."""
    request = prison.request(0, 0, frozenset({Layer.TSC}))
    return frozenset(layer for layer, _ in unavailable(request, prison.facts))


def attack_all(bait: Bait, prison: Prison) -> Iterator[tuple[Attack, Outcome]]:
    """Try every attack on the whole jail: the daemon's self-test at start."""
    for attack in attacks_for(prison):
        yield attack, run_attack(attack, bait, prison)


def examine(attack: Attack, bait: Bait, prison: Prison) -> Finding:
    """Ask all three questions of one attack."""
    facts = prison.facts
    obstacles = attack.stoppers(facts.own_uids, facts.landlock_abi) - missing_layers(prison)
    whole = run_attack(attack, bait, prison)
    alone = tuple(
        (layer, run_attack(attack, bait, prison, obstacles - {layer} - prison.fixed)) for layer in sorted(obstacles)
    )
    without = run_attack(attack, bait, None if obstacles & prison.fixed else prison, obstacles)
    bare = without if not without.stopped else run_attack(attack, bait, None)
    return Finding(attack, whole, alone, without, bare)
