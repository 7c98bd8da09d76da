"""A worker process with real guests: it serves, reports, says what is wrong, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wasmtime import Engine, Module

from sandboxd.channel import layout
from sandboxd.limits import MIB
from sandboxd.protos import control_pb2 as control
from sandboxd.vm.artefacts import BLOB_NAMES, write_bundle
from sandboxd.vm.link import plan
from sandboxd.vm.wasm_binary import parse
from tests.support.modules import guest
from tests.support.vm_traffic import guest_bundle, request
from tests.support.worker_process import LIMITS, OneVm, WorkerProcess


def test_serves_a_request() -> None:
    """A Rust filter sees a request; the verdict comes back over the channel."""
    with OneVm(guest_bundle("rust/http_headers")) as one:
        started = one.worker.receive("vm_started")
        assert (started.vm_id, started.generation) == (1, 1)
        assert one.vm.wait_ready(5) == 1

        verdict = request(one)

        assert verdict.code == layout.CODE_OK
        assert one.worker.silent(0.05)


def test_usage_is_reported() -> None:
    """Streams, memory, CPU and crashes of each VM."""
    with OneVm(guest_bundle("rust/http_headers")) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        request(one)
        time.sleep(0.05)
        one.worker.send(control.ToWorker(ping=control.Ping(number=5)))
        pong = one.worker.receive("pong")

    assert pong.number == 5
    (usage,) = pong.vms
    assert (usage.vm_id, usage.generation, usage.streams_open, usage.crashes) == (1, 1, 1, 0)
    assert usage.guest_memory_bytes >= 17 * 65536
    assert 0 < usage.heap_used_bytes < LIMITS.heap_bytes
    assert usage.cpu_ns > 0


def test_idle_worker_uses_no_cpu() -> None:
    """Neither VM nor watchdog run when nothing comes."""
    with OneVm(guest_bundle("rust/http_headers")) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        request(one)
        time.sleep(0.3)
        before = one.worker.cpu_ticks()
        time.sleep(1)

        assert one.worker.cpu_ticks() - before <= 1


def test_bundle_of_another_engine_is_refused() -> None:
    """With an error that names the artefact; the worker lives on."""
    foreign = bytes(Module(Engine(), "(module)").serialize())
    link = plan(parse(guest()), frozenset(), MIB, {})
    other = write_bundle(
        link,
        module_sha256="0" * 64,
        engine="other",
        settings="0" * 64,
        blobs=dict.fromkeys(BLOB_NAMES, foreign),
    )
    with WorkerProcess() as worker:
        assert "artefact bundle" in worker.load(b"not a bundle")
        assert "artefact trampolines: " in worker.load(other, 2)
        assert worker.load(guest_bundle("c/c_add_header").data, 3) == ""


def test_plugin_is_not_loaded_once_a_vm_was_opened() -> None:
    """No memory becomes executable any more, so the supervisor must not ask; one that does has a bug."""
    with OneVm(guest_bundle("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        fd = os.memfd_create("late")
        one.worker.send(control.ToWorker(load_plugin=control.LoadPlugin(plugin_id=2)), (fd,))
        os.close(fd)

        assert "cannot be loaded once a VM was opened" in one.worker.receive("error").message
        assert one.worker.process.wait(5) == 70


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (control.ToWorker(close_vm=control.CloseVm(vm_id=9)), "cannot close VM 9"),
        (control.ToWorker(open_vm=control.OpenVm(vm_id=1)), "control frame open_vm came with 0 descriptors"),
        (control.ToWorker(setup=control.WorkerSetup()), "control frame setup is not expected now"),
    ],
)
def test_nonsense_from_the_supervisor_ends_the_worker(frame: control.ToWorker, text: str) -> None:
    """With an error that says what; a worker does not guess."""
    with WorkerProcess() as worker:
        worker.send(frame)

        assert text in worker.receive("error").message
        assert worker.process.wait(5) == 70


def test_worker_ends_with_its_socket() -> None:
    """A supervisor that is gone needs no worker."""
    with OneVm(guest_bundle("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        one.worker.socket.close()

        assert one.worker.process.wait(5) == 0


def test_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """Even one that hangs: the kernel does it."""
    script = (
        "import os, time\n"
        "from sandboxd.supervisor import frames, launch\n"
        "from sandboxd.jail.waiter import worker_pid\n"
        "p = frames.Pair(); w = launch.start(p.theirs); spec = launch.WorkerSpec('t')\n"
        "setup = spec.setup(spec.plan(p.theirs.fileno(), w.pid))\n"
        "frames.send(p.ours, setup.SerializeToString())\n"
        "frames.receive_plain(p.ours)\n"
        "pid = worker_pid(w.pid); os.kill(pid, 19); print(pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_killed_worker_leaves_no_half_state() -> None:
    """SIGKILL needs no cooperation: the socket ends."""
    with OneVm(guest_bundle("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        os.kill(one.worker.pid, signal.SIGKILL)

        assert one.worker.process.wait(5) == -signal.SIGKILL
        assert one.worker.socket.recv(1) == b""
