"""
What runs on a VM's thread, and with what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sandboxd.vm.instance import SharedRegion
from sandboxd.vm.plugin import LoadedPlugin


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What `OpenVm` and `LoadPlugin` say of a VM. The VM's thread owns the descriptors."""

    vm_id: int
    plugin_id: int
    plugin: LoadedPlugin
    channel_fd: int
    vm_event_fd: int
    client_event_fd: int
    configuration: bytes
    ring_bytes: int
    spin: int
    cpu_per_call_ns: int
    start_cpu_ns: int
    table_elements: int
    restarts: int
    shared: SharedRegion | None = None
    ask: Callable[[bytes], bytes] = lambda _question: b""
    """See `sandboxd.vm.instance.Vm`."""
