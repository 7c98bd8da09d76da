"""
Run one attack in a jailed child of its own and report what the kernel said.

Every attack gets a fresh process, because the production filter kills: the self-test weakens nothing to be
able to look. Layers can be left out, which is how each is proven alone, and how an attack is shown to work
without them. Call it in a process with one thread (``python -m sandboxd.doctor`` is one).
"""

from __future__ import annotations

import enum
import errno
import json
import os
import select
import signal
import socket
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from sandboxd.jail.attack_calls import EXIT_EXECUTED, Bait
from sandboxd.jail.attacks import Attack
from sandboxd.jail.enter import enter
from sandboxd.jail.facts import MachineFacts
from sandboxd.jail.filter_files import FilterSet
from sandboxd.jail.full_plan import JailPlan, JailRequest, plan
from sandboxd.jail.jailer import SPARE_UID
from sandboxd.jail.layers import Layer

TIMEOUT_S: Final = 10.0
_MAX_REPORT_BYTES: Final = 4096
PROBE_UID: Final = SPARE_UID
_EXIT_NOT_LOADED: Final = 127
"""The dynamic loader's own."""


class Answer(enum.StrEnum):
    """What became of an attack."""

    REFUSED = "refused"
    """An errno."""
    KILLED = "killed"
    """The process was ended by a signal."""
    SUCCEEDED = "succeeded"
    BROKEN = "broken"
    """The probe itself failed; says nothing of the jail, and counts as no proof."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the kernel said."""

    answer: Answer
    detail: str = ""
    """The errno's or signal's name, or what broke."""

    @property
    def stopped(self) -> bool:
        """Whether the attack was stopped, for certain."""
        return self.answer in (Answer.REFUSED, Answer.KILLED)


@dataclass(frozen=True, slots=True)
class Prison:
    """The jail that is tried: as the workers of this machine get it."""

    facts: MachineFacts
    filters: FilterSet
    uid: int = PROBE_UID
    """The uid of a probe where the jail changes it."""
    tolerate: frozenset[Layer] = frozenset()
    """Layers that the operator does without where the machine lacks them."""

    @property
    def fixed(self) -> frozenset[Layer]:
        """
        Layers that cannot be left out: without root, the user namespace is what gives the right to the rest.
        """
        return frozenset() if self.facts.own_uids else frozenset({Layer.UID})

    def request(self, control_fd: int, pid: int, extra: frozenset[Layer]) -> JailRequest:
        """Return what a worker of this machine asks for; ``extra`` are layers that must be asked for."""
        uid = self.uid if self.facts.own_uids else 0
        return JailRequest(
            self.filters.build(self.facts.architecture, control_fd, pid),
            control_fd,
            uid,
            uid,
            max_open_files=256,
            max_threads=32,
            tolerate=self.tolerate,
            disable_tsc=Layer.TSC in extra,
        )

    def plan(self, control_fd: int, pid: int, omit: frozenset[Layer], extra: frozenset[Layer]) -> JailPlan:
        """Return a worker's plan without some layers. Raises JailError."""
        whole = plan(self.request(control_fd, pid, extra), self.facts)
        return replace(whole, steps=tuple(step for step in whole.steps if step.layer not in omit))


def run_attack(attack: Attack, bait: Bait, prison: Prison | None, omit: frozenset[Layer] = frozenset()) -> Outcome:
    """
    Fork, jail the child, let it attack, and tell how it went; bounded in time.

    Args:
        attack: what to try.
        bait: what to try it on.
        prison: the jail; None for none at all.
        omit: layers to leave out.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.set_inheritable(bait.leaked_fd, True)
    os.set_inheritable(bait.namespace_fd, True)
    pid = os.fork()
    if pid == 0:
        _child(attack, bait, prison, omit, theirs)
    theirs.close()
    with ours:
        ready, _, _ = select.select([ours], [], [], TIMEOUT_S)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Outcome(Answer.BROKEN, "no answer in time")
        report = ours.recv(_MAX_REPORT_BYTES)
    _pid, status = os.waitpid(pid, 0)
    return _outcome(report, os.waitstatus_to_exitcode(status))


def _outcome(report: bytes, exit_code: int) -> Outcome:
    """Judge a report and an exit status. Only a report written after the jail was closed is a refusal."""
    if report:
        answer, detail = json.loads(report)
        return Outcome(Answer(answer), str(detail))
    if exit_code == EXIT_EXECUTED:
        return Outcome(Answer.SUCCEEDED, "another program ran")
    if exit_code == _EXIT_NOT_LOADED:
        return Outcome(Answer.REFUSED, "its code could not be mapped")
    if exit_code in (-signal.SIGSYS, -signal.SIGSEGV):
        return Outcome(Answer.KILLED, signal.Signals(-exit_code).name)
    return Outcome(Answer.BROKEN, f"the probe ended with {exit_code}")


def _child(
    attack: Attack, bait: Bait, prison: Prison | None, omit: frozenset[Layer], control: socket.socket
) -> NoReturn:
    fd = control.fileno()
    try:
        _jail_and_attack(attack, bait, prison, omit, fd)
        report = [Answer.SUCCEEDED, ""]
    except _RefusedError as error:
        report = [Answer.REFUSED, error.name]
    except BaseException as error:
        report = [Answer.BROKEN, f"{type(error).__name__}: {error}"]
    os.write(fd, json.dumps(report).encode())
    os._exit(0)


class _RefusedError(Exception):
    """The kernel refused the attack, as opposed to a step of the jail."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)


def _jail_and_attack(
    attack: Attack, bait: Bait, prison: Prison | None, omit: frozenset[Layer], control_fd: int
) -> None:
    prepared = attack.prepare()
    if prison:
        enter(prison.plan(control_fd, os.getpid(), omit, attack.stopped_by)).lock()
    try:
        attack.run(bait, prepared)
    except OSError as error:
        raise _RefusedError(_errno_name(error.errno or 0)) from None


def _errno_name(number: int) -> str:
    return errno.errorcode.get(number, str(number))
