"""
Each rule of each shipped filter, by the file's own words, on both architectures: allowed with every value that it
names, and decided as the file says with every value that is one bit away.
"""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxd.jail.filter_constants import CONSTANTS
from sandboxd.jail.filter_files import filter_directory
from sandboxd.jail.filters import build, load_filter
from sandboxd.jail.syscall_numbers import number
from tests.jail.bpf_machine import ALLOW, ERRNO, KILL, data, run

BOTH = ("x86_64", "aarch64")
FILES = ("worker", "no_new_exec", "waiter", "front")
PARAMETERS = {"control": 7, "pid": 4321}
ONLY_X86_64 = {"poll", "open", "stat", "lstat", "readlink", "access", "fork", "vfork"}
"""Listed calls that aarch64 does not have."""
LEAST = {"worker": 40, "no_new_exec": 8, "waiter": 9, "front": 35}
"""Calls of a file that aarch64 has, at least: a lookup that finds none would make every test here pass."""

DOCUMENTS = {name: json.loads((filter_directory() / f"{name}.json").read_text()) for name in FILES}


def names(rule: dict[str, Any]) -> list[str]:
    """Return the calls of a rule."""
    return rule["syscall"] if isinstance(rule["syscall"], list) else [rule["syscall"]]


def value(word: int | str) -> int:
    """Return the number that a word of a filter file stands for."""
    if isinstance(word, int):
        return word
    if word.startswith("$"):
        return PARAMETERS[word[1:]]
    return sum(CONSTANTS[part.strip()] for part in word.split("|"))


def width(condition: dict[str, Any]) -> int:
    """Return which bits of the argument count."""
    every = (1 << condition.get("bits", 64)) - 1
    return value(condition["mask"]) & every if "mask" in condition else every


def wanted(condition: dict[str, Any]) -> list[int]:
    """Return the values with which a condition holds."""
    words = condition["equals"] if isinstance(condition["equals"], list) else [condition["equals"]]
    return [value(word) for word in words]


def action(word: str) -> int:
    """Return an action's number."""
    return {"allow": ALLOW, "kill": KILL}.get(word) or ERRNO | getattr(errno, word)


def decision(document: dict[str, Any], call: str, arguments: tuple[int, ...]) -> int:
    """Return what the file says of a call: the first rule that holds, else the `else` of the last, else the default."""
    last = document["default"]
    for rule in document["rules"]:
        if call not in names(rule):
            continue
        if all(arguments[c["arg"]] & width(c) in wanted(c) for c in rule.get("when", [])):
            return action(rule.get("then", "allow"))
        last = rule.get("else", document["default"])
    return action(last)


def matching(rule: dict[str, Any]) -> Iterator[tuple[int, ...]]:
    """Return arguments with which a rule holds, each value of each condition among them; elsewhere noise."""
    conditions = rule.get("when", [])
    for noise in (0, (1 << 64) - 1):
        for chosen in itertools.product(*(wanted(c) for c in conditions)):
            arguments = [noise] * 6
            for condition, word in zip(conditions, chosen, strict=True):
                arguments[condition["arg"]] = noise & ~width(condition) | word
            yield tuple(arguments)


def nearly(rule: dict[str, Any], arguments: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Return the same with one bit changed that some condition looks at."""
    for condition in rule.get("when", []):
        for bit in range(64):
            if width(condition) >> bit & 1:
                changed = list(arguments)
                changed[condition["arg"]] ^= 1 << bit
                yield tuple(changed)


def rules(kind: str, architecture: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Return each call of a file that an architecture has, with its number and its rule."""
    for rule in DOCUMENTS[kind]["rules"]:
        for call in names(rule):
            found = number(call, architecture)
            if found is not None:
                yield call, found, rule


@pytest.mark.parametrize("kind", FILES)
def test_no_listed_call_is_lost(kind: str) -> None:
    """What an architecture lacks is known by name."""
    listed = {call for rule in DOCUMENTS[kind]["rules"] for call in names(rule)}
    there = {call for call, _, _ in rules(kind, "aarch64")}
    assert {call for call, _, _ in rules(kind, "x86_64")} == listed
    assert listed - there == listed & ONLY_X86_64
    assert len(there) >= LEAST[kind]


@pytest.mark.parametrize("architecture", BOTH)
@pytest.mark.parametrize("kind", FILES)
def test_each_rule_holds_with_its_values(kind: str, architecture: str) -> None:
    """The rule's own action, with every combination of the values that it names."""
    program = build(load_filter(filter_directory() / f"{kind}.json"), architecture, PARAMETERS)
    for call, call_number, rule in rules(kind, architecture):
        for arguments in matching(rule):
            said = action(rule.get("then", "allow"))
            assert run(program, data(call_number, arguments, architecture)) == said, (call, arguments)


@pytest.mark.parametrize("architecture", BOTH)
@pytest.mark.parametrize("kind", FILES)
def test_each_rule_fails_with_other_values(kind: str, architecture: str) -> None:
    """One bit away from each of them: what the file says, and not once the same for all bits of a narrowed call."""
    program = build(load_filter(filter_directory() / f"{kind}.json"), architecture, PARAMETERS)
    for call, call_number, rule in rules(kind, architecture):
        answers = set()
        for arguments in matching(rule):
            for other in nearly(rule, arguments):
                answers.add(found := run(program, data(call_number, other, architecture)))
                assert found == decision(DOCUMENTS[kind], call, other), (call, other)
        assert not rule.get("when") or answers - {action(rule.get("then", "allow"))}, call
