"""
Who uses channels: fronts, clients of the attach socket, and what has the services. Deployments know them by what is
written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sandboxd.policy.model import PluginKind, PluginPolicy
from sandboxd.protos import control_pb2 as control

SERVICES_INDEX: Final = -1
"""Number of the one user that has the services; fronts and clients count from 0."""


class ChannelUser(Protocol):
    """One process, or one thread of one, that gets a VM of its own for each plugin that it wants."""

    @property
    def index(self) -> int:
        """Its number, unique among all users at one time."""

    def wants(self, tenant: str, plugin: str) -> bool:
        """Return whether a channel of this plugin is of use to it now."""

    def send(self, frame: control.ToFront, fds: Sequence[int] = ()) -> None:
        """Send it a frame; never raises and never calls back."""

    def superseded(self, channel_id: int) -> None:
        """Its channel's version is replaced: new streams must go elsewhere."""


def is_for(user: ChannelUser, plugin: PluginPolicy) -> bool:
    """Return whether a user may have channels of a plugin, and is told of it: services are for one alone."""
    return (user.index == SERVICES_INDEX) == (plugin.kind is PluginKind.SERVICE)


class UserSet(Protocol):
    """The users that are there."""

    @property
    def ready(self) -> Mapping[int, ChannelUser]:
        """By index."""


@dataclass(frozen=True, slots=True)
class AllUsers:
    """Several kinds of users as one."""

    sources: Sequence[Callable[[], Mapping[int, ChannelUser]]]

    @property
    def ready(self) -> Mapping[int, ChannelUser]:
        """All of them, by index."""
        return {index: user for source in self.sources for index, user in source().items()}
