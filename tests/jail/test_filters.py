"""The filter compiler against a plain reading of its rules, and its refusals."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import ConfigError
from sandboxd.jail import bpf, filters
from sandboxd.jail.syscall_numbers import number
from tests.jail import bpf_machine

WORDS = st.one_of(st.sampled_from([0, 1, 2, 4, 7, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1]), st.integers(0, (1 << 64) - 1))
CALLS = ("read", "mmap", "clone", "prctl", "fcntl")
ACTIONS = st.sampled_from(["allow", "kill", "EPERM", "ENOSYS"])


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    bits = draw(st.sampled_from([32, 64]))
    mask = draw(st.one_of(st.none(), WORDS)) if bits == 64 else draw(st.one_of(st.none(), st.integers(0, 0xFFFFFFFF)))
    effective = (1 << bits) - 1 if mask is None else mask
    base = draw(WORDS)
    # All values of one condition share their high half; the compiler refuses others.
    lows = draw(st.lists(st.integers(0, 0xFFFF_FFFF), min_size=1, max_size=4))
    values = [((base >> 32 << 32) | low) & effective for low in lows]
    found: dict[str, Any] = {"arg": draw(st.integers(0, 5)), "equals": values, "bits": bits}
    return found if mask is None else {**found, "mask": mask}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    rules = []
    for _ in range(draw(st.integers(0, 8))):
        rule = {"syscall": draw(st.sampled_from(CALLS)), "comment": "c", "then": draw(ACTIONS)}
        when = draw(st.lists(conditions(), max_size=3))
        if when:
            rule["when"] = when
            if draw(st.booleans()):
                rule["else"] = draw(ACTIONS)
        rules.append(rule)
    return {"default": draw(ACTIONS), "rules": rules}


def plain_action(name: str) -> int:
    return {"allow": bpf_machine.ALLOW, "kill": bpf_machine.KILL}.get(name) or bpf_machine.ERRNO | getattr(errno, name)


def plain_reading(document: dict[str, Any], call: str, arguments: tuple[int, ...]) -> int:
    """What the documentation of the format says, without thinking of BPF."""
    answer = document["default"]
    for rule in document["rules"]:
        if rule["syscall"] != call:
            continue
        if all(holds(condition, arguments) for condition in rule.get("when", [])):
            return plain_action(rule["then"])
        answer = rule.get("else", document["default"])
    return plain_action(answer)


def holds(condition: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    value = arguments[condition["arg"]] & ((1 << condition["bits"]) - 1)
    return (value & condition.get("mask", (1 << 64) - 1)) in condition["equals"]


@settings(max_examples=400, deadline=None)
@given(documents(), st.sampled_from(CALLS), st.tuples(*[WORDS] * 6), st.sampled_from(["x86_64", "aarch64"]))
def test_the_program_does_what_the_rules_say(
    document: dict[str, Any], call: str, arguments: tuple[int, ...], architecture: str
) -> None:
    program = filters.build(filters.parse_filter("t", document), architecture)
    call_number = number(call, architecture)
    assert call_number is not None
    seccomp_data = bpf_machine.data(call_number, arguments, architecture)
    assert bpf_machine.run(program, seccomp_data) == plain_reading(document, call, arguments)


@settings(max_examples=200, deadline=None)
@given(documents(), st.tuples(*[WORDS] * 6), st.data())
def test_values_near_a_rule(document: dict[str, Any], arguments: tuple[int, ...], data: st.DataObject) -> None:
    """Arguments that a rule names, changed by at most one bit."""
    rules = [rule for rule in document["rules"] if rule.get("when")]
    if not rules:
        return
    rule = data.draw(st.sampled_from(rules))
    chosen = list(arguments)
    for condition in rule["when"]:
        chosen[condition["arg"]] = data.draw(st.sampled_from(condition["equals"]))
    flip = data.draw(st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 63))))
    if flip:
        chosen[flip[0]] ^= 1 << flip[1]
    program = filters.build(filters.parse_filter("t", document), "x86_64")
    call_number = number(rule["syscall"], "x86_64")
    assert call_number is not None
    seccomp_data = bpf_machine.data(call_number, tuple(chosen))
    assert bpf_machine.run(program, seccomp_data) == plain_reading(document, rule["syscall"], tuple(chosen))


ALLOW_ALL = {"default": "allow", "rules": []}


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_other_architectures_die(architecture: str) -> None:
    program = filters.build(filters.parse_filter("t", ALLOW_ALL), architecture)
    for arch in (0x40000003, 0x40000028, bpf_machine.ARCH["x86_64"], bpf_machine.ARCH["aarch64"], 0):
        wanted = bpf_machine.ALLOW if arch == bpf_machine.ARCH[architecture] else bpf_machine.KILL
        assert bpf_machine.run(program, bpf_machine.data(20, (), arch)) == wanted


def test_x32_dies() -> None:
    program = filters.build(filters.parse_filter("t", ALLOW_ALL), "x86_64")
    assert bpf_machine.run(program, bpf_machine.data(39)) == bpf_machine.ALLOW
    assert bpf_machine.run(program, bpf_machine.data(0x40000000 | 39)) == bpf_machine.KILL
    assert bpf_machine.run(program, bpf_machine.data(-1)) == bpf_machine.KILL


def test_parameters_are_filled_in() -> None:
    rule = {"syscall": "read", "comment": "c", "when": [{"arg": 0, "bits": 32, "equals": "$control"}]}
    parsed = filters.parse_filter("t", {"default": "kill", "rules": [rule]})
    program = filters.build(parsed, "x86_64", {"control": 9})
    assert bpf_machine.run(program, bpf_machine.data(0, (9,))) == bpf_machine.ALLOW
    assert bpf_machine.run(program, bpf_machine.data(0, (8,))) == bpf_machine.KILL
    with pytest.raises(ConfigError, match=r"parameter \$control is not given"):
        filters.build(parsed, "x86_64")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must be an object"),
        ({"default": "kill"}, "'rules' is missing"),
        ({"default": "die", "rules": []}, "default: 'die' is no action"),
        ({"default": "EWHAT", "rules": []}, "'EWHAT' is no action"),
        ({"default": "kill", "rules": {}}, "rules: must be a list"),
        ({"default": "kill", "rules": [{"syscall": "read"}]}, r"rules\[0\]: key 'comment' is missing"),
        ({"default": "kill", "rules": [{"syscall": "read", "comment": " "}]}, "say which code needs"),
        ({"default": "kill", "rules": [{"syscall": "raed", "comment": "c"}]}, "unknown system call 'raed'"),
        ({"default": "kill", "rules": [{"syscall": "read", "comment": "c", "if": 1}]}, "unknown key 'if'"),
        ({"default": "kill", "rules": [{"syscall": "read", "comment": "c", "else": "EPERM"}]}, "has no else"),
    ],
)
def test_bad_documents(document: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        filters.parse_filter("t", document, "f.json")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"arg": 6, "equals": 0}, r"6 is no argument \(allowed: 0 to 5\)"),
        ({"arg": 0, "equals": 0, "bits": 16}, "16 is no width"),
        ({"arg": 0, "equals": []}, "names no value"),
        ({"arg": 0, "equals": "PROT_EXCE"}, "unknown constant 'PROT_EXCE'"),
        ({"arg": 0, "equals": -1}, "not an unsigned number"),
        ({"arg": 0, "equals": True}, "not an unsigned number"),
        ({"arg": 0, "equals": 8, "mask": 7}, "can never be equal under the mask"),
        ({"arg": 0, "equals": 1 << 33, "bits": 32}, "can never be equal under the mask"),
    ],
)
def test_bad_conditions(condition: Any, message: str) -> None:
    rule = {"syscall": "read", "comment": "c", "when": [condition]}
    with pytest.raises(ConfigError, match=message):
        filters.parse_filter("t", {"default": "kill", "rules": [rule]})


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "worker.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"worker\.json: cannot be read as JSON"):
        filters.load_filter(path)
    path.write_text(json.dumps({"default": "kill", "rules": [], "comment": "x" * filters.MAX_FILTER_FILE_BYTES}))
    with pytest.raises(ConfigError, match="larger than"):
        filters.load_filter(path)


def test_high_halves_that_differ_are_refused() -> None:
    rule = {"syscall": "read", "comment": "c", "when": [{"arg": 0, "equals": [1, 1 << 40]}]}
    with pytest.raises(ConfigError, match="differ in their high halves"):
        filters.build(filters.parse_filter("t", {"default": "kill", "rules": [rule]}), "x86_64")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ((), "has 1 to"),
        ((bpf.load(0),), "does not return"),
        ((bpf.Instruction(bpf.JEQ, 0, 1, 0), bpf.ret(0)), "behind the end"),
        ((bpf.load(2), bpf.ret(0)), "not a word of the data"),
        ((bpf.load(64), bpf.ret(0)), "not a word of the data"),
        ((bpf.Instruction(0x05, 0, 0, 0), bpf.ret(0)), "is not used here"),
        ((bpf.ret(0),) * 5000, "has 1 to"),
    ],
)
def test_bad_programs(program: tuple[bpf.Instruction, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bpf.verify(program)


def test_decode_is_the_inverse() -> None:
    program = (bpf.load(4), bpf.Instruction(bpf.JSET, 0, 0, 7), bpf.ret(1))
    assert bpf.decode(bpf.encode(program)) == program
    with pytest.raises(ValueError, match="multiple of 8"):
        bpf.decode(b"123")
