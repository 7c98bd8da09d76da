"""Who is told why a plugin has no channel: those that it is for, with the policy's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from sandboxd.policy.model import Isolation, PluginKind, TenantPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import front_frames
from sandboxd.supervisor.frames import MAX_FRAME_BYTES, encode
from sandboxd.supervisor.front_news import Herald
from sandboxd.supervisor.prepare import Blob
from sandboxd.supervisor.users import SERVICES_INDEX
from tests.support.front_rig import policy

FILTER = policy(name="filter")
SERVICE = replace(policy(name="service"), kind=PluginKind.SERVICE)
TENANT = TenantPolicy("acme", (FILTER, SERVICE), Isolation())


@dataclass
class User:
    """A user of channels that keeps what it is told: frame and number of descriptors."""

    index: int
    told: list[tuple[control.PluginDown, int]] = field(default_factory=list)

    def wants(self, tenant: str, plugin: str) -> bool:
        """Everything."""
        return bool(tenant and plugin)

    def send(self, frame: control.ToFront, fds: Sequence[int] = ()) -> None:
        """Keep it."""
        self.told.append((frame.plugin_down, len(fds)))

    def superseded(self, channel_id: int) -> None:
        """No channel was handed out."""
        raise AssertionError(channel_id)


def test_each_is_told_of_the_plugins_that_are_for_it() -> None:
    """Services are for one user alone, and it has nothing else."""
    front, services = User(0), User(SERVICES_INDEX)
    Herald(TENANT, Blob("policy", b"")).all_down([front, services], "it is starting", starting=True)

    assert [(down.plugin, down.reason, down.starting, fds) for down, fds in front.told] == [
        ("filter", "it is starting", True, 1)
    ]
    assert [down.plugin for down, _ in services.told] == ["service"]


def test_without_a_text_no_descriptor_goes_along() -> None:
    """A plugin that is taken back needs none."""
    front = User(0)
    Herald(TENANT, None).down(front, "filter", "removed", removed=True)

    assert [(down.tenant, down.removed, fds) for down, fds in front.told] == [("acme", True, 0)]


def test_a_plugin_that_the_version_does_not_have_is_no_news() -> None:
    """Its quarantine may outlive it."""
    front = User(0)
    Herald(TENANT, None).down(front, "other", "in quarantine")

    assert front.told == []


@pytest.mark.parametrize("character", ["x", "\N{SNOWMAN}"])
def test_a_long_reason_fits_a_frame(character: str) -> None:
    """Whatever a tenant's module or worker made of it: a front that cannot be told is of no use to anybody."""
    reason = character * 2 * MAX_FRAME_BYTES
    down = front_frames.plugin_down(TENANT, "filter", reason)
    detach = front_frames.detach(7, reason)

    assert max(len(encode(down)), len(encode(detach))) < 5000
    for shown in (down.plugin_down.reason, detach.detach.reason):
        assert shown.startswith(character * 1000)
        assert shown.endswith(" ...")
        assert len(shown.encode()) <= 4096


def test_a_reason_that_is_no_text_is_told_all_the_same() -> None:
    """File names may hold anything."""
    assert front_frames.plugin_down(TENANT, "filter", "no \udcff.pem").plugin_down.reason == "no ?.pem"
