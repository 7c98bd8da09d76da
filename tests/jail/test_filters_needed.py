"""
Every rule of the filters is needed: without it something real breaks, or the file says why that cannot be shown.

Lives of real processes in the real jail, with one call taken out of a filter: a worker's as the tests of the jail
know it, a worker's start and stream by the daemon's own road, an abort, and ends of workers as their waiter tells
them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.channel import layout
from sandboxd.channel.errors import ChannelBroken
from sandboxd.channel.sync_vm import VmLost
from sandboxd.doctor.probe import Prison
from sandboxd.errors import ConfigError, WorkerError
from sandboxd.jail.enter import enter
from sandboxd.jail.facts import read_facts
from sandboxd.jail.filter_files import FilterSet, filter_directory, load_filters
from sandboxd.jail.filters import Filter, parse_filter
from sandboxd.jail.jailer import Jailer
from sandboxd.jail.syscall_numbers import number
from sandboxd.policy.load import parse_policy
from sandboxd.supervisor.local import LocalSandbox
from sandboxd.supervisor.prepare import PreparedPlugin, prepare_plugin
from tests.jail import honest_worker
from tests.jail.bpf_machine import data, run
from tests.support import guests
from tests.support.jailed import Child

pytestmark = pytest.mark.long

FILTERS = load_filters()
FACTS = read_facts()
HEADERS = b"\0\0\0\0"
LOOKS = 4096
"""In vain, before a VM sleeps: enough to give the CPU away between them."""


def unproven(name: str) -> dict[str, str]:
    """Return the calls of a filter file that say why they cannot be shown."""
    rules = json.loads((filter_directory() / f"{name}.json").read_text())["rules"]
    return {call: reason for rule in rules for call, reason in rule.get("unproven", {}).items()}


def shown(kind: str) -> list[str]:
    """Return the calls that must be shown to be needed; an architecture without one cannot."""
    calls: tuple[str, ...] = getattr(FILTERS, kind).calls()
    return [name for name in calls if name not in unproven(kind) and number(name) is not None]


def without(kind: str, call: str) -> FilterSet:
    """Return the filters with every rule of one call taken out of one."""
    whole: Filter = getattr(FILTERS, kind)
    rest = tuple(rule for rule in whole.rules if rule.syscall != call)
    assert len(rest) < len(whole.rules)
    return replace(FILTERS, **{kind: replace(whole, rules=rest)})


def forked(filters: FilterSet, life: Callable[[Any, Any], Any], *, plainly: bool = False) -> Child:
    """Begin ``life(jail, control)`` in a jail with these filters; ``plainly`` without pytest's handler of faults."""

    def child(control: Any) -> Any:
        if plainly:
            faulthandler.disable()
        plan = Prison(FACTS, filters).plan(control.fileno(), os.getpid(), frozenset(), frozenset())
        return life(enter(plan), control)

    return Child(child)


def code(child: Child) -> int:
    """Return how a child ended, as its waiter told."""
    child.socket.close()
    return os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])


def lives(filters: FilterSet, artefact: bytes) -> bool:
    """Return whether an honest worker does all it has to."""
    child = forked(filters, lambda jail, control: honest_worker.live(control, artefact, jail.lock))
    try:
        honest_worker.send_channel(child.socket)
        if child.receive() != b"half way":
            raise ConnectionError
        ended = child.end()
    except ConnectionError:
        return code(child) == 0
    return ended.report == "well" and ended.exit_code == 0


def serves(filters: FilterSet, prepared: PreparedPlugin) -> bool:
    """Return whether a worker of the daemon's starts, and answers an event after it has slept."""
    try:
        with LocalSandbox(prepared.policy, prepared=prepared, jailer=Jailer(FACTS, filters), spin=LOOKS) as sandbox:
            vm = sandbox.open_vm()
            time.sleep(0.05)
            stream = vm.client.open_stream(b"", 1)
            vm.call(stream, layout.REQUEST_HEADERS, HEADERS, end_of_stream=True, timeout_s=3)
            vm.close_stream(stream, timeout_s=3)
    except (WorkerError, ChannelBroken, VmLost, TimeoutError, OSError):
        return False
    return True


ENDS: dict[str, Callable[[Any, Any], Any]] = {
    "exit": lambda _jail, _control: os._exit(7),
    "abort": lambda _jail, _control: os.abort(),
    "fault": lambda _jail, _control: ctypes.string_at(0),
}


def ends(filters: FilterSet) -> dict[str, int]:
    """Return how each end of a worker is told."""
    return {name: code(forked(filters, life, plainly=True)) for name, life in ENDS.items()}


@pytest.fixture(scope="module")
def artefact() -> bytes:
    return honest_worker.artefact()


@pytest.fixture(scope="module")
def prepared() -> PreparedPlugin:
    text = json.dumps({"tenant": "t", "plugins": [guests.C_ADD_HEADER.plugin()]})
    return prepare_plugin(parse_policy(text, "t.yaml", module_root=Path()).plugins[0], None)


@pytest.fixture(scope="module")
def told() -> dict[str, int]:
    return ends(FILTERS)


def test_with_all_rules_all_is_well(artefact: bytes, prepared: PreparedPlugin, told: dict[str, int]) -> None:
    """The harmless twin of what follows."""
    assert lives(FILTERS, artefact)
    assert serves(FILTERS, prepared)
    assert told["exit"] == 7
    assert told["fault"] == -signal.SIGSEGV
    assert told["abort"] not in (7, -signal.SIGSYS)
    assert ends(FILTERS) == told


@pytest.mark.parametrize("call", shown("worker"))
def test_a_worker_needs_each_call(call: str, artefact: bytes, prepared: PreparedPlugin, told: dict[str, int]) -> None:
    filters = without("worker", call)
    assert not lives(filters, artefact) or ends(filters) != told or not serves(filters, prepared)


@pytest.mark.parametrize("call", shown("waiter"))
def test_a_waiter_needs_each_call(call: str, told: dict[str, int]) -> None:
    assert ends(without("waiter", call)) != told


@pytest.mark.parametrize("call", FILTERS.no_new_exec.calls())
def test_the_second_filter_takes_something_away_with_each_rule(call: str) -> None:
    """It stands alone: by itself each of its rules ends something that nothing else of it does."""
    programs, fewer = (f.build("x86_64", 3, 1) for f in (FILTERS, without("no_new_exec", call)))
    attempt = data(number(call, "x86_64") or 0, (1, 4096, 7, 0x22, 0, 0), "x86_64")
    assert run(programs.no_new_exec, attempt) != run(fewer.no_new_exec, attempt)


def test_reasons_are_given_for_known_calls_only() -> None:
    for kind in ("worker", "waiter"):
        assert unproven(kind)
    rule = {"syscall": "read", "comment": "x", "unproven": {"write": "y"}}
    with pytest.raises(ConfigError, match="unknown key 'write'"):
        parse_filter("t", {"default": "kill", "rules": [rule]})
    rule["unproven"] = {"read": " "}
    with pytest.raises(ConfigError, match="must say why"):
        parse_filter("t", {"default": "kill", "rules": [rule]})
