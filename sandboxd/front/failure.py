"""What a failure of its plugin means for a stream: the policy's word, as far as the stream can follow it. Pure."""

from __future__ import annotations

from dataclasses import replace

from sandboxd.front.plugin import Plugin
from sandboxd.front.side import Report
from sandboxd.policy.failure import ActionKind, Cause, FailureAction, Phase, decide
from sandboxd.policy.model import OnFailure


def action_on(
    plugin: Plugin, phase: Phase, cause: Cause, report: Report, *, can_pass_on: bool, response_started: bool
) -> FailureAction:
    """
    Return what is to be done, and report it.

    Args:
        plugin: which failed.
        phase: the event that failed.
        cause: why.
        report: told of what deserves a counter and a log line.
        can_pass_on: everything that the plugin was given is still at hand, so the stream can go on without it.
        response_started: no response can be given any more.
    """
    policy = plugin.policy.failure
    if policy.policy is OnFailure.OPEN and not can_pass_on:
        report("failure.open_impossible", "the plugin keeps bytes that the proxy does not have")
        policy = replace(policy, policy=OnFailure.CLOSED)
    action = decide(policy, phase, cause, response_started=response_started)
    if action.kind is ActionKind.CONTINUE:
        report("failure.open", cause.value)
    elif action.kind is ActionKind.RESET:
        report("failure.reset", cause.value)
    return action
