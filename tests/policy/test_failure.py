"""What a failure means for the stream: the whole table."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from sandboxd.policy.failure import CONTINUE, ActionKind, Cause, FailureAction, Phase, decide
from sandboxd.policy.model import FailurePolicy, OnFailure

CLOSED = FailurePolicy()
OPEN = FailurePolicy(OnFailure.OPEN)
STREAM_PHASES = [phase for phase in Phase if phase is not Phase.END]


def _product(*sets: Any) -> list[tuple[Any, ...]]:
    return list(itertools.product(*sets))


@pytest.mark.parametrize(
    ("cause", "phase", "status"),
    [
        (Cause.TRAP, Phase.REQUEST_HEADERS, 503),
        (Cause.CPU_LIMIT, Phase.REQUEST_BODY, 503),
        (Cause.WORKER_GONE, Phase.RESPONSE_HEADERS, 503),
        (Cause.VM_DOWN, Phase.REQUEST_HEADERS, 503),
        (Cause.TIMEOUT, Phase.REQUEST_HEADERS, 504),
        (Cause.UNKNOWN_PLUGIN, Phase.REQUEST_HEADERS, 500),
        (Cause.PROTOCOL, Phase.REQUEST_HEADERS, 500),
        (Cause.LIMIT, Phase.REQUEST_HEADERS, 503),
        (Cause.LIMIT, Phase.REQUEST_BODY, 413),
        (Cause.LIMIT, Phase.RESPONSE_BODY, 500),
    ],
)
def test_statuses(cause: Cause, phase: Phase, status: int) -> None:
    action = decide(CLOSED, phase, cause, response_started=False)

    assert (action.kind, action.status) == (ActionKind.RESPOND, status)


@pytest.mark.parametrize("cause", [Cause.TRAP, Cause.CPU_LIMIT, Cause.VM_DOWN, Cause.WORKER_GONE])
def test_the_policy_chooses_the_status_of_an_absent_plugin(cause: Cause) -> None:
    policy = FailurePolicy(OnFailure.RELOAD, status=429)

    assert decide(policy, Phase.REQUEST_HEADERS, cause, response_started=False).status == 429


def test_the_policy_does_not_choose_the_other_statuses() -> None:
    policy = FailurePolicy(status=429)

    assert decide(policy, Phase.REQUEST_HEADERS, Cause.TIMEOUT, response_started=False).status == 504
    assert decide(policy, Phase.REQUEST_HEADERS, Cause.PROTOCOL, response_started=False).status == 500
    assert decide(policy, Phase.REQUEST_BODY, Cause.LIMIT, response_started=False).status == 413


def test_a_trap_is_named() -> None:
    assert decide(CLOSED, Phase.REQUEST_HEADERS, Cause.TRAP, response_started=False) == FailureAction(
        ActionKind.RESPOND, 503, "sandboxd_vm_trap"
    )


@pytest.mark.parametrize(("phase", "cause"), _product(STREAM_PHASES, Cause))
def test_a_response_that_has_begun_is_reset(phase: Phase, cause: Cause) -> None:
    action = decide(CLOSED, phase, cause, response_started=True)

    assert action.kind is ActionKind.RESET
    assert action.status == 0
    assert action.details.startswith("sandboxd_")


@pytest.mark.parametrize(("phase", "cause", "started"), _product(STREAM_PHASES, Cause, (False, True)))
def test_open_continues_but_never_past_a_body_limit_nor_for_an_unknown_plugin(
    phase: Phase, cause: Cause, started: bool
) -> None:
    body = phase in (Phase.REQUEST_BODY, Phase.RESPONSE_BODY)
    never = cause is Cause.UNKNOWN_PLUGIN or (cause is Cause.LIMIT and body)

    assert (decide(OPEN, phase, cause, response_started=started) == CONTINUE) is not never


@pytest.mark.parametrize(
    ("policy", "phase", "cause"),
    _product([CLOSED, FailurePolicy(OnFailure.RELOAD)], STREAM_PHASES, Cause),
)
def test_closed_never_continues(policy: FailurePolicy, phase: Phase, cause: Cause) -> None:
    action = decide(policy, phase, cause, response_started=False)

    assert action.kind is ActionKind.RESPOND
    assert 400 <= action.status <= 599
    assert not set(action.details) & set(" \t\n")


@pytest.mark.parametrize("cause", list(Cause))
def test_after_the_exchange_nothing_is_left_to_answer(cause: Cause) -> None:
    assert decide(CLOSED, Phase.END, cause, response_started=True) == CONTINUE
