"""A channel with the C client on one end and a scripted VM on the other."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandboxd.channel import layout
from sandboxd.channel.memfd import ChannelFds, create_channel
from sandboxd.policy import capabilities, capability_names
from sandboxd.policy.compile import compile_policy
from sandboxd.policy.model import HeaderRule, ModuleRef, PluginLimits, PluginPolicy, RedactionPolicy, RedactMode
from tests.support.c_client import CChannel
from tests.support.fake_vm import Answer, Event, FakeVm, pass_through

RING = 65536
STANDARD = capabilities.needs(capabilities.PRESETS["standard"], capability_names.HTTP_CALLBACKS)
POLICY = PluginPolicy(
    "filter",
    ModuleRef(Path("a.wasm"), "0" * 64),
    redact=RedactionPolicy(request_headers=(HeaderRule("cookie", RedactMode.DROP), HeaderRule("x-h", RedactMode.HASH))),
    limits=PluginLimits(body_buffer_bytes=200_000, time_per_event_ns=2_000_000_000),
)


class Setup:
    """A channel with the C client on one end and a fake VM on the other."""

    def __init__(self, lib: c.CDLL) -> None:
        self.lib = lib
        self.fds: ChannelFds = create_channel(RING)
        self.vm = FakeVm(self.fds)
        self.client: CChannel | None = None

    def open(
        self, answer: Answer = pass_through, policy: PluginPolicy = POLICY, *,
        needs: capabilities.DataNeeds = STANDARD, serve: bool = True, spin_ns: int = 20_000,
    ) -> CChannel:  # fmt: skip
        self.vm.answer = answer
        self.vm.begin()
        self.client = CChannel(self.lib, self.fds, compile_policy("t", policy, needs, bytes(32)), spin_ns)
        if serve:
            self.vm.start()
        assert self.lib.sbx_ready(self.client.handle)
        return self.client

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        self.vm.stop()
        self.fds.close()


def answering(records: Callable[[Event], list[Any]]) -> Answer:
    """The given effects before the verdict of every event that gets one."""
    return lambda event: [] if event.kind in layout.WITHOUT_VERDICT else [*records(event), event.verdict()]


FIRST_EVENT = 2
"""Its number: the opening of the first stream has the one before."""
