"""What the supervisor does for a worker's guests, where nothing else stands between: callouts that lead nowhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.callouts import CalloutPiece
from sandboxd.supervisor.worker_protocol import VmState, VmView
from sandboxd.supervisor.worker_requests import WorkerRequests


class Rig:
    """The requests of a worker whose policy has no upstreams."""

    def __init__(self, *, has_egress: bool = True) -> None:
        self.sent: list[control.ToWorker] = []
        self.denials: list[tuple[str, str]] = []
        vms = {1: VmView(plugin_id=1, state=VmState.RUNNING), 2: VmView(plugin_id=1, state=VmState.FAILED)}
        worker = SimpleNamespace(view=SimpleNamespace(vms=vms), send=self.sent.append)
        policy = SimpleNamespace(tenant="acme", source_path="p.yaml")
        egress = SimpleNamespace(denied=lambda *who: self.denials.append(who)) if has_egress else None
        self.requests = WorkerRequests(
            SimpleNamespace(policy=policy, material=None, text=None, plugins={}),  # type: ignore[arg-type]
            worker,  # type: ignore[arg-type]
            plugin_ids={"p": 1},
            redaction_key=bytes(32),
            egress=egress,  # type: ignore[arg-type]
            store=None,
        )

    def answers(self) -> list[tuple[int, str]]:
        """Number and reason of what was answered."""
        return [
            (frame.callout_answer.call_id, control.CalloutReply.FromString(frame.callout_answer.data).lost.reason)
            for frame in self.sent
        ]


@pytest.mark.parametrize("has_egress", [True, False])
def test_a_callout_of_a_plugin_without_upstreams_is_answered(has_egress: bool) -> None:
    """Once, when the worker has said all of it; otherwise it would keep the call for ever."""
    rig = Rig(has_egress=has_egress)
    rig.requests.callout(CalloutPiece(1, 5, b"data", more=True), "p")
    assert rig.sent == []
    rig.requests.callout(CalloutPiece(1, 5, b"data", more=False), "p")
    assert rig.answers() == [(5, "denied by the policy: upstreams")]
    assert rig.denials == [("acme", "p")] * (2 if has_egress else 0)


def test_one_of_a_vm_that_is_gone_is_not() -> None:
    """Its worker has given up its calls with it."""
    rig = Rig()
    for vm_id in (2, 3):
        rig.requests.callout(CalloutPiece(vm_id, 5, b"data", more=False), "p")
    assert (rig.sent, rig.denials) == ([], [])
