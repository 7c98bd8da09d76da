"""
Seccomp filters from commented data to BPF. Pure but for `load_filter`, which reads one file.

A filter file is JSON, so that whatever reads it needs nothing beyond the standard library; comments are
fields::

    {"comment": "...",
     "default": "kill",
     "rules": [
       {"syscall": ["read", "write"], "comment": "which code needs it"},
       {"syscall": "mmap", "comment": "...",
        "when": [{"arg": 2, "mask": "PROT_EXEC", "equals": 0, "comment": "..."}],
        "else": "EPERM"}]}

``syscall`` names one or several calls; ``when`` is a list of conditions that must all hold (``equals`` one
of a list, after ``mask``; ``bits`` 32 for int arguments, else 64); ``then`` is what happens if they do
(default: allow) and ``else`` if not (default: the filter's ``default``). Several rules of one call are tried
in order. ``unproven`` names calls of the rule for which no test can show that they are needed, each with the reason.
Actions are ``allow``, ``kill`` and the name of an errno. Values are integers, names of `CONSTANTS`
joined by ``|``, or a parameter ``$name`` that is filled in when the program is built.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sandboxd.errors import ConfigError
from sandboxd.jail import bpf, syscall_numbers
from sandboxd.jail.filter_constants import CONSTANTS

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT: Final = 0x4000_0000
"""Set in the number of x32 calls, which report themselves as x86-64."""

RET_KILL_PROCESS: Final = 0x8000_0000
RET_ERRNO: Final = 0x0005_0000
RET_ALLOW: Final = 0x7FFF_0000

MAX_FILTER_FILE_BYTES: Final = 256 * 1024
_WORD: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Condition:
    """One argument, after masking, equals one of some values."""

    argument: int
    mask: int
    values: tuple[int | str, ...]
    """Integers, or ``$parameter``."""
    bits: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to one call if all conditions hold."""

    syscall: str
    conditions: tuple[Condition, ...]
    then: int
    otherwise: int | None
    """None: the filter's default."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One parsed filter file."""

    name: str
    default: int
    rules: tuple[Rule, ...]

    def calls(self) -> tuple[str, ...]:
        """Return the calls that have rules, in the order of the file."""
        return tuple(dict.fromkeys(rule.syscall for rule in self.rules))


def load_filter(path: Path) -> Filter:
    """Read one filter file. Raises ConfigError that names file, rule and allowed values."""
    try:
        text = path.read_bytes()[: MAX_FILTER_FILE_BYTES + 1]
        if len(text) > MAX_FILTER_FILE_BYTES:
            raise ConfigError(f"larger than {MAX_FILTER_FILE_BYTES} bytes", path=str(path))
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read as JSON: {error}", path=str(path)) from error
    return parse_filter(path.stem, document, str(path))


def parse_filter(name: str, document: Any, path: str = "") -> Filter:
    """Check a filter document. Raises ConfigError."""
    _keys(document, {"comment", "default", "rules"}, {"default", "rules"}, path, "")
    if not isinstance(document["rules"], list):
        raise ConfigError("must be a list", path=path, key="rules")
    rules: list[Rule] = []
    for index, entry in enumerate(document["rules"]):
        rules += _parse_rule(entry, path, f"rules[{index}]")
    default = _parse_action(document["default"], path, "default")
    return Filter(name, default, tuple(rules))


def _parse_rule(entry: Any, path: str, key: str) -> list[Rule]:
    _keys(entry, {"syscall", "comment", "when", "then", "else", "unproven"}, {"syscall", "comment"}, path, key)
    names = entry["syscall"] if isinstance(entry["syscall"], list) else [entry["syscall"]]
    for name in names:
        if name not in syscall_numbers.NUMBERS:
            raise ConfigError(f"unknown system call {name!r}", path=path, key=f"{key}.syscall")
    if not isinstance(entry["comment"], str) or not entry["comment"].strip():
        raise ConfigError("must say which code needs the rule", path=path, key=f"{key}.comment")
    _check_unproven(entry.get("unproven", {}), names, path, f"{key}.unproven")
    conditions = tuple(_parse_condition(item, path, f"{key}.when[{n}]") for n, item in enumerate(entry.get("when", [])))
    then = _parse_action(entry.get("then", "allow"), path, f"{key}.then")
    otherwise = _parse_action(entry["else"], path, f"{key}.else") if "else" in entry else None
    if otherwise is not None and not conditions:
        raise ConfigError("a rule without `when` has no else", path=path, key=f"{key}.else")
    return [Rule(name, conditions, then, otherwise) for name in names]


def _check_unproven(entry: Any, names: list[str], path: str, key: str) -> None:
    _keys(entry, set(names), set(), path, key)
    for name, reason in entry.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ConfigError(f"must say why no test can show that {name} is needed", path=path, key=key)


def _parse_condition(entry: Any, path: str, key: str) -> Condition:
    _keys(entry, {"arg", "mask", "equals", "bits", "comment"}, {"arg", "equals"}, path, key)
    argument, bits = entry["arg"], entry.get("bits", 64)
    if argument not in range(6):
        raise ConfigError(f"{argument!r} is no argument", path=path, key=f"{key}.arg", allowed=("0 to 5",))
    if bits not in (32, 64):
        raise ConfigError(f"{bits!r} is no width", path=path, key=f"{key}.bits", allowed=("32", "64"))
    values = entry["equals"] if isinstance(entry["equals"], list) else [entry["equals"]]
    if not values:
        raise ConfigError("names no value", path=path, key=f"{key}.equals")
    mask = (1 << bits) - 1
    if "mask" in entry:
        mask = _parse_number(entry["mask"], path, f"{key}.mask")
    parsed: list[int | str] = []
    for value in values:
        if isinstance(value, str) and value.startswith("$"):
            parsed.append(value)
            continue
        found = _parse_number(value, path, f"{key}.equals")
        if found & ~mask:
            raise ConfigError(f"{value!r} can never be equal under the mask", path=path, key=f"{key}.equals")
        parsed.append(found)
    return Condition(argument, mask, tuple(parsed), bits)


def _parse_number(value: Any, path: str, key: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64:
        return value
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} is not an unsigned number or a name", path=path, key=key)
    total = 0
    for word in value.split("|"):
        name = word.strip()
        if name not in CONSTANTS:
            raise ConfigError(f"unknown constant {name!r}", path=path, key=key, allowed=tuple(sorted(CONSTANTS)))
        total |= CONSTANTS[name]
    return total


def _parse_action(value: Any, path: str, key: str) -> int:
    if value == "allow":
        return RET_ALLOW
    if value == "kill":
        return RET_KILL_PROCESS
    code = getattr(errno, value, None) if isinstance(value, str) and value.startswith("E") else None
    if not isinstance(code, int):
        raise ConfigError(f"{value!r} is no action", path=path, key=key, allowed=("allow", "kill", "an errno"))
    return RET_ERRNO | code


def _keys(entry: Any, known: set[str], needed: set[str], path: str, key: str) -> None:
    if not isinstance(entry, dict):
        raise ConfigError("must be an object", path=path, key=key)
    for name in entry:
        if name not in known:
            raise ConfigError(f"unknown key {name!r}", path=path, key=key, allowed=tuple(sorted(known)))
    for name in sorted(needed - entry.keys()):
        raise ConfigError(f"key {name!r} is missing", path=path, key=key)


def build(parsed: Filter, architecture: str, parameters: Mapping[str, int] | None = None) -> bytes:
    """
    Turn a filter into an encoded BPF program for one architecture.

    The program first refuses every other architecture (32-bit calls on a 64-bit kernel have other numbers)
    and, on x86-64, the x32 numbers. Calls that the architecture does not have are left out.

    Raises:
        ConfigError: if a parameter is not given.
    """
    program = [bpf.load(bpf.OFFSET_ARCH)]
    program += [_jump_equal(AUDIT_ARCH[architecture], 1, 0), bpf.ret(RET_KILL_PROCESS)]
    program.append(bpf.load(bpf.OFFSET_NUMBER))
    if architecture == "x86_64":
        program += [bpf.Instruction(bpf.JGE, 0, 1, X32_BIT), bpf.ret(RET_KILL_PROCESS)]
    for name in parsed.calls():
        number = syscall_numbers.number(name, architecture)
        if number is None:
            continue
        block = _call_block(parsed, name, parameters or {})
        program += [_jump_equal(number, 0, len(block)), *block]
    program.append(bpf.ret(parsed.default))
    bpf.verify(tuple(program))
    return bpf.encode(tuple(program))


def _call_block(parsed: Filter, name: str, parameters: Mapping[str, int]) -> list[bpf.Instruction]:
    """Return the code of one call; it always ends in a return."""
    block: list[bpf.Instruction] = []
    last = parsed.default
    for rule in parsed.rules:
        if rule.syscall != name:
            continue
        block += _rule_code(rule, parsed.name, parameters)
        if not rule.conditions:
            return block
        last = rule.otherwise if rule.otherwise is not None else parsed.default
    block.append(bpf.ret(last))
    return block


def _rule_code(rule: Rule, filter_name: str, parameters: Mapping[str, int]) -> list[bpf.Instruction]:
    """All conditions, then the action; a condition that fails jumps behind the action."""
    code = [bpf.ret(rule.then)]
    for condition in reversed(rule.conditions):
        code = _condition_code(condition, len(code), filter_name, parameters) + code
    return code


def _condition_code(
    condition: Condition, rest: int, filter_name: str, parameters: Mapping[str, int]
) -> list[bpf.Instruction]:
    """Falls through if the condition holds, else skips ``rest`` further instructions."""
    values = [_value(value, filter_name, parameters) for value in condition.values]
    low_mask, high_mask = condition.mask & _WORD, condition.mask >> 32
    low = [bpf.load(bpf.argument_low(condition.argument))]
    if low_mask != _WORD:
        low.append(bpf.Instruction(bpf.AND, 0, 0, low_mask))
    for index, value in enumerate(values):
        ahead = len(values) - index - 1
        # The last comparison decides; the earlier ones jump over the rest of them as soon as one is equal.
        low.append(_jump_equal(value & _WORD, ahead, 0 if ahead else rest))
    if condition.bits == 32 or not high_mask:
        return low
    highs = {value >> 32 for value in values}
    if len(highs) != 1:
        raise ConfigError("values that differ in their high halves are not supported", key=filter_name)
    high = [bpf.load(bpf.argument_high(condition.argument))]
    if high_mask != _WORD:
        high.append(bpf.Instruction(bpf.AND, 0, 0, high_mask))
    high.append(_jump_equal(highs.pop(), 0, len(low) + rest))
    return high + low


def _value(value: int | str, filter_name: str, parameters: Mapping[str, int]) -> int:
    if isinstance(value, int):
        return value
    if value[1:] not in parameters:
        raise ConfigError(f"parameter {value} is not given", key=filter_name, allowed=tuple(parameters))
    return parameters[value[1:]]


def _jump_equal(value: int, jump_true: int, jump_false: int) -> bpf.Instruction:
    if max(jump_true, jump_false) > bpf.MAX_JUMP:
        raise ConfigError(f"one call's rules are longer than {bpf.MAX_JUMP} instructions")
    return bpf.Instruction(bpf.JEQ, jump_true, jump_false, value)
