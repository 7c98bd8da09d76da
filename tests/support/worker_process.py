"""A worker process with one VM, driven by its control socket and its channel."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any, Self

from sandboxd.channel.client import VmClient
from sandboxd.channel.memfd import ChannelFds, create_blob, create_channel
from sandboxd.channel.sync_vm import SyncVm
from sandboxd.jail.jailer import Jailer, WorkerWishes
from sandboxd.jail.waiter import worker_pid
from sandboxd.limits import MIB, MS_NS
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames, launch
from sandboxd.vm import config_blob
from sandboxd.vm.artefacts import Bundle, Manifest
from sandboxd.vm.config_blob import VmConfig, VmLimits

LIMITS = VmLimits(
    heap_bytes=32 * MIB,
    body_buffer_bytes=1 * MIB,
    open_streams=1000,
    log_message_bytes=8192,
    log_bytes_per_event=65536,
    log_lines_per_event=256,
    metrics=1000,
    host_calls_per_event=100_000,
    local_response_bytes=1 * MIB,
    property_bytes=65536,
)


def configuration(manifest: Manifest, ring_bytes: int, **changes: Any) -> bytes:
    """Return a configuration blob that fits the bundle; ``changes`` are fields of `VmConfig`."""
    fields: dict[str, Any] = {
        "plugin_name": "plugin",
        "root_id": "",
        "vm_id": "",
        "abi": manifest.abi,
        "callbacks": frozenset(manifest.granted_callbacks),
        "limits": LIMITS,
        "ring_bytes": ring_bytes,
        "flags": config_blob.Flag.LENIENT_MAPS,
    }
    return config_blob.encode(VmConfig(**(fields | changes)), entropy=bytes(32), start_time_ns=time.time_ns())


class WorkerProcess:
    """A jailed worker; a context manager that ends it. ``process`` is its waiter."""

    def __init__(self, jailer: Jailer | None = None, **wishes: Any) -> None:
        with frames.Pair() as pair:
            self.socket = pair.ours
            self.process = launch.start(pair.theirs)
            control_fd = pair.theirs.fileno()
        self.socket.settimeout(20)
        spec = launch.WorkerSpec("test", WorkerWishes(max_open_files=64, **wishes), jailer)
        self.send(spec.setup(spec.plan(control_fd, self.process.pid)))
        self.layers = tuple(self.receive("ready").layers)
        self.pid = worker_pid(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def send(self, frame: control.ToWorker, fds: tuple[int, ...] = ()) -> None:
        """Send a frame."""
        frames.send(self.socket, frame.SerializeToString(), fds)

    def receive(self, kind: str) -> Any:
        """Return the next frame's body, which must be of that kind."""
        frame = control.FromWorker()
        frame.ParseFromString(frames.receive_plain(self.socket))
        assert frame.WhichOneof("frame") == kind, f"expected {kind}: {frame}"
        return getattr(frame, kind)

    def silent(self, seconds: float) -> bool:
        """Return whether no frame comes for so long."""
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(20)
        return False

    def load(
        self, data: bytes, plugin_id: int = 1, *, cpu_ms: int = 20, start_ms: int = 500, table_elements: int = 0
    ) -> str:
        """Load a bundle; returns the error, empty if none."""
        fd = create_blob("bundle", data)
        request = control.LoadPlugin(
            plugin_id=plugin_id,
            name="plugin",
            memory_bytes=16 * MIB,
            cpu_per_call_ns=cpu_ms * MS_NS,
            start_cpu_ns=start_ms * MS_NS,
            table_elements=table_elements,
        )
        self.send(control.ToWorker(load_plugin=request), (fd,))
        os.close(fd)
        loaded = self.receive("plugin_loaded")
        assert loaded.plugin_id == plugin_id
        return str(loaded.error)

    def open(
        self,
        fds: ChannelFds,
        blob: bytes,
        vm_id: int = 1,
        plugin_id: int = 1,
        *,
        restarts: int = 1000,
        spin: int = 100,
        shared_fd: int | None = None,
    ) -> None:
        """Open a VM."""
        blob_fd = create_blob("configuration", blob)
        request = control.OpenVm(
            vm_id=vm_id,
            plugin_id=plugin_id,
            ring_bytes=fds.ring_bytes,
            spin=spin,
            restarts=restarts,
        )
        self.send(
            control.ToWorker(open_vm=request),
            (fds.memfd, fds.vm_event_fd, fds.client_event_fd, blob_fd, *([] if shared_fd is None else [shared_fd])),
        )
        os.close(blob_fd)

    def cpu_ticks(self) -> int:
        """Return the CPU time of the process in clock ticks."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


class OneVm:
    """
    A worker that runs one VM of one bundle, and the client on its channel; a context manager.

    ``more`` are further bundles by plugin id (from 2), loaded before the VM is opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        cpu_ms: int = 20,
        start_ms: int = 500,
        table_elements: int = 0,
        more: Mapping[int, Bundle] | None = None,
        jailer: Jailer | None = None,
        **config: Any,
    ) -> None:
        opening = {key: config.pop(key) for key in ("restarts", "spin", "shared_fd") if key in config}
        vm_id = config.pop("vm_number", 1)
        self.worker = WorkerProcess(jailer)
        self.fds = create_channel(65536)
        self.vm = SyncVm(VmClient(self.fds))
        try:
            assert self.worker.load(bundle.data, cpu_ms=cpu_ms, start_ms=start_ms, table_elements=table_elements) == ""
            for plugin_id, other in (more or {}).items():
                assert self.worker.load(other.data, plugin_id, cpu_ms=cpu_ms, start_ms=start_ms) == ""
            self.worker.open(self.fds, configuration(bundle.manifest, 65536, **config), vm_id, **opening)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.__exit__()
        self.vm.close()
