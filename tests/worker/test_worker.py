"""A worker process with real guests: start, serve, fail, come back, end."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wasmtime import Engine, Module

from sandboxd.channel import layout, pairs
from sandboxd.channel.memfd import create_channel
from sandboxd.channel.sync_vm import VmLost
from sandboxd.jail.facts import machine_facts
from sandboxd.jail.filter_files import load_filters
from sandboxd.jail.jailer import Jailer
from sandboxd.jail.layers import ALWAYS_REQUIRED, Layer
from sandboxd.limits import MIB
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import frames, launch
from sandboxd.vm.artefacts import BLOB_NAMES, Bundle, write_bundle
from sandboxd.vm.link import plan
from sandboxd.vm.wasm_binary import parse
from tests.support.guests import GUESTS
from tests.support.modules import EVERYTHING, bundle, guest, misdeed
from tests.support.worker_process import LIMITS, OneVm, WorkerProcess, configuration

REQUEST = pairs.encode([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"x")])
RESPONSE = pairs.encode([(b":status", b"200")])
CALLBACK = "proxy_on_request_headers"
GROW_AND_PANIC = guest(
    '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)'
    " (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable)"
)
"""What a toolchain's allocator does when the host gives no more memory."""


def file(path: str) -> Bundle:
    """Return the bundle of a guest."""
    return bundle((GUESTS / f"{path}.wasm").read_bytes())


BUNDLE = file("c/c_add_header")


def request(one: OneVm) -> Any:
    """Open a stream and send request headers; returns the verdict."""
    stream = one.vm.client.open_stream(b"", time.time_ns())
    return one.vm.call(stream, layout.REQUEST_HEADERS, REQUEST, end_of_stream=True)


def test_serves_a_request() -> None:
    """A Rust filter sees a request; the verdict comes back over the channel."""
    with OneVm(file("rust/http_headers")) as one:
        started = one.worker.receive("vm_started")
        assert (started.vm_id, started.generation) == (1, 1)
        assert one.vm.wait_ready(5) == 1

        verdict = request(one)

        assert verdict.code == layout.CODE_OK
        assert one.worker.silent(0.05)


def test_worker_reports_its_layers() -> None:
    """All that the machine can give, and the kernel says the same of the process."""
    spec = launch.WorkerSpec("test")
    with WorkerProcess() as worker:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
        fds = sorted(int(entry.name) for entry in Path(f"/proc/{worker.pid}/fd").iterdir())

    assert worker.layers == tuple(layer.value for layer in spec.plan(5, 7).layers())
    assert {Layer(name) for name in worker.layers} >= ALWAYS_REQUIRED
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp_filters:\t1" in status
    assert re.search(r"NSpid:\t\d+\t1\n", status)
    assert "CapBnd:\t0000000000000000" in status
    assert len(fds) == 5  # 0 to 2, the control socket, and its own maps until the modules are loaded
    for name, value in (
        ("core file size", "0"),
        ("file size", "0"),
        ("open files", "64"),
        ("locked memory", "0"),
    ):
        line = next(line for line in limits.splitlines() if line.startswith(f"Max {name}  "))
        assert line.removeprefix(f"Max {name}").split()[:2] == [value, value]


def test_jail_is_complete_before_a_guest_runs() -> None:
    """The second filter is there when the first VM says that it runs, in every thread."""
    with OneVm(file("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        tasks = list(Path(f"/proc/{one.worker.pid}/task").iterdir())
        filters = [re.search(r"Seccomp_filters:\t(\d)", (task / "status").read_text()) for task in tasks]
        fds = {str(entry.readlink()) for entry in Path(f"/proc/{one.worker.pid}/fd").iterdir()}
        maps = Path(f"/proc/{one.worker.pid}/maps").read_text()

    assert len(tasks) >= 3
    assert {found[1] for found in filters if found} == {"2"}
    assert not any(name.startswith("/proc") for name in fds)
    assert " rwx" not in maps


def test_plugin_is_not_loaded_once_a_vm_was_opened() -> None:
    """No memory becomes executable any more, so the supervisor must not ask; one that does has a bug."""
    with OneVm(file("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        fd = os.memfd_create("late")
        one.worker.send(control.ToWorker(load_plugin=control.LoadPlugin(plugin_id=2)), (fd,))
        os.close(fd)

        assert "cannot be loaded once a VM was opened" in one.worker.receive("error").message
        assert one.worker.process.wait(5) == 70


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_worker_takes_its_own_user() -> None:
    """For good, and with no group left."""
    with WorkerProcess(uid=64321, gid=64322) as worker:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        waiter = Path(f"/proc/{worker.process.pid}/status").read_text()

    for text in (status, waiter):
        assert "Uid:\t64321\t64321\t64321\t64321" in text
        assert "Gid:\t64322\t64322\t64322\t64322" in text
        assert "Groups:\t \n" in text or "Groups:\t\n" in text


def test_worker_serves_in_a_user_namespace() -> None:
    """The road of a daemon without privilege: a namespace with a single id takes the place of the uid."""
    facts = replace(machine_facts(), privileged=False, may_change_uid=False)
    with OneVm(BUNDLE, jailer=Jailer(facts, load_filters())) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)

        assert request(one).code == layout.CODE_OK
        outside = Path("/proc/self/ns/user").readlink()
        assert Path(f"/proc/{one.worker.pid}/ns/user").readlink() != outside
        assert Path(f"/proc/{one.worker.pid}/uid_map").read_text().split() == ["65534", str(os.getuid()), "1"]
        assert "uid" in one.worker.layers


@pytest.mark.parametrize("plan", [b"", b"rubbish", b'{"steps": [["inside", "dance", "uid", {}]], "missing": []}'])
def test_worker_without_a_plan_ends(plan: bytes) -> None:
    """It never goes on unjailed."""
    with frames.Pair() as pair:
        process = launch.start(pair.theirs)
        sock = pair.ours
    with sock:
        setup = control.WorkerSetup(tenant="t", jail_plan=plan)
        frames.send(sock, control.ToWorker(setup=setup).SerializeToString())

        assert process.wait(10) != 0
        assert process.stderr is not None
        words = process.stderr.read().decode()
        process.stderr.close()
    assert "the jail's plan makes no sense" in words or "dance" in words


def test_worker_ends_with_its_socket() -> None:
    """A supervisor that is gone needs no worker."""
    with OneVm(file("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        one.worker.socket.close()

        assert one.worker.process.wait(5) == 0


def test_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """Even one that hangs: the kernel does it."""
    import subprocess
    import sys

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


@pytest.mark.parametrize(
    ("module", "cause", "callback", "text"),
    [
        (misdeed("vm_start_false"), "START_REFUSED", "", "proxy_on_vm_start returned false"),
        (misdeed("configure_false"), "START_REFUSED", "", "proxy_on_configure returned false"),
        (misdeed("trap_in_initialize"), "TRAP", "_initialize", "unreachable"),
        (misdeed("trap_in_start_section"), "TRAP", "_initialize", "unreachable"),
        (misdeed("trap_in_configure"), "TRAP", "proxy_on_configure", "unreachable"),
        (misdeed("loop_in_start_section"), "CPU_LIMIT", "_initialize", "CPU limit"),
        (misdeed("loop_in_initialize"), "CPU_LIMIT", "_initialize", "CPU limit"),
        (misdeed("loop_in_vm_start"), "CPU_LIMIT", "proxy_on_vm_start", "CPU limit"),
        (misdeed("loop_in_configure"), "CPU_LIMIT", "proxy_on_configure", "CPU limit"),
        (
            guest(
                '(func (export "_initialize") (call 0 (i32.const 7)))',
                imports='(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))',
            ),
            "EXIT",
            "_initialize",
            r"proc_exit\(7\)",
        ),
        (
            misdeed("host_call_in_initialize"),
            "ABI_VIOLATION",
            "_initialize",
            "not allowed during initialisation",
        ),
    ],
)
def test_failed_start_is_reported_and_tried_again(module: bytes, cause: str, callback: str, text: str) -> None:
    """With the supervisor's leave, and only then; the client sees a VM that is not there."""
    with OneVm(bundle(module), start_ms=50) as one:
        failures = [one.worker.receive("vm_failed")]
        assert one.worker.silent(0.05)
        for _ in range(2):
            one.worker.send(control.ToWorker(restart_vm=control.RestartVm(vm_id=1)))
            failures.append(one.worker.receive("vm_failed"))
        one.vm.client.drain()

        assert one.vm.client.vm_state in (layout.VM_FAILED, layout.VM_STARTING)

    assert [failure.generation for failure in failures] == [1, 2, 3]
    for failure in failures:
        assert control.FailureCause.Name(failure.cause) == f"FAILURE_CAUSE_{cause}"
        assert failure.while_starting
        assert failure.callback == callback or not callback
        assert text.replace("\\", "") in failure.message


@pytest.mark.parametrize(
    ("module", "cause", "callback", "text"),
    [
        (misdeed("trap_in_request_headers"), "TRAP", CALLBACK, "unreachable"),
        (misdeed("loop_in_request_headers"), "CPU_LIMIT", CALLBACK, "CPU limit exceeded"),
        (misdeed("loop_in_context_create"), "CPU_LIMIT", "proxy_on_context_create", "CPU limit exceeded"),
        (misdeed("recurse_forever"), "TRAP", CALLBACK, "call stack exhausted"),
        (misdeed("proc_exit_in_headers"), "EXIT", CALLBACK, "proc_exit"),
        (GROW_AND_PANIC, "MEMORY_LIMIT", CALLBACK, "(guest memory 16777216 of 16777216 bytes)"),
    ],
)
def test_failed_event_ends_the_vm_and_a_new_one_comes(module: bytes, cause: str, callback: str, text: str) -> None:
    """The client learns of it at once, and the next generation serves on the same channel."""
    with OneVm(bundle(module), start_ms=400, cpu_ms=100) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)

        with pytest.raises(VmLost):
            request(one)

        failure = one.worker.receive("vm_failed")
        assert control.FailureCause.Name(failure.cause) == f"FAILURE_CAUSE_{cause}"
        assert (failure.callback, failure.while_starting, failure.generation) == (callback, False, 1)
        assert text in failure.message
        assert one.worker.receive("vm_started").generation == 2
        assert one.vm.wait_ready(5) == 2
        with pytest.raises(VmLost):
            request(one)
        assert one.worker.receive("vm_failed").generation == 2


def whole_stream(one: OneVm) -> None:
    """Send every event of a stream."""
    stream = one.vm.client.open_stream(b"", time.time_ns())
    for kind in (layout.REQUEST_HEADERS, layout.REQUEST_BODY, layout.REQUEST_TRAILERS):
        one.vm.call(stream, kind, b"body" if kind == layout.REQUEST_BODY else REQUEST)
    for kind in (layout.RESPONSE_HEADERS, layout.RESPONSE_BODY, layout.RESPONSE_TRAILERS):
        one.vm.call(stream, kind, b"body" if kind == layout.RESPONSE_BODY else RESPONSE)
    one.vm.close_stream(stream)


@pytest.mark.parametrize(
    ("name", "cause", "callback"),
    [
        ("loop_in_allocator", "CPU_LIMIT", CALLBACK),
        ("loop_in_request_body", "CPU_LIMIT", "proxy_on_request_body"),
        ("loop_in_response_headers", "CPU_LIMIT", "proxy_on_response_headers"),
        ("loop_in_response_body", "CPU_LIMIT", "proxy_on_response_body"),
        ("loop_in_done", "CPU_LIMIT", "proxy_on_done"),
        ("loop_in_log", "CPU_LIMIT", "proxy_on_log"),
        ("loop_in_delete", "CPU_LIMIT", "proxy_on_delete"),
        ("trap_in_allocator", "TRAP", CALLBACK),
        ("trap_in_request_body", "TRAP", "proxy_on_request_body"),
        ("trap_in_response_headers", "TRAP", "proxy_on_response_headers"),
        ("trap_in_response_body", "TRAP", "proxy_on_response_body"),
        ("trap_in_log", "TRAP", "proxy_on_log"),
        ("host_call_in_allocator", "ABI_VIOLATION", CALLBACK),
    ],
)
def test_misdeed_in_any_callback_ends_the_vm(name: str, cause: str, callback: str) -> None:
    """Whatever the callback: the cause is told, and the next generation starts."""
    with OneVm(bundle(misdeed(name)), cpu_ms=20) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        with pytest.raises(VmLost):
            whole_stream(one)

        failure = one.worker.receive("vm_failed")
        assert control.FailureCause.Name(failure.cause) == f"FAILURE_CAUSE_{cause}"
        assert failure.callback in (callback, "proxy_on_memory_allocate")
        assert one.worker.receive("vm_started").generation == 2


@pytest.mark.parametrize(
    "name",
    [
        "grow_forever",
        "table_grow_forever",
        "allocator_returns_zero",
        "allocator_returns_outside",
        "wild_pointers",
    ],
)
def test_misdeeds_that_have_an_answer_do_not_end_the_vm(name: str) -> None:
    """The guest gets a status or a -1, and the stream goes through."""
    with OneVm(bundle(misdeed(name)), cpu_ms=2000) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        whole_stream(one)

        assert one.worker.silent(0.05)


def test_backtrace_names_the_guests_functions() -> None:
    """From the module's name section, the innermost first."""
    module = guest(
        "(func $a_function_of_the_guest unreachable)",
        '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)'
        " (call $a_function_of_the_guest) (i32.const 0))",
    )
    with OneVm(bundle(module)) as one:
        one.vm.wait_ready(5)
        one.worker.receive("vm_started")
        with pytest.raises(VmLost):
            request(one)

        failed = one.worker.receive("vm_failed")

    assert "a_function_of_the_guest" in failed.backtrace[0]
    assert len(failed.backtrace) >= 2
    assert "unreachable" in failed.message


def test_endless_loop_costs_its_own_vm_alone() -> None:
    """
    Two VMs of one engine: the innocent one computes on, longer in sum than the limit, and is not stopped.
    """
    busy = guest(
        """(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local i32)
        (local.set 3 (i32.const 1000000))
        (loop $l (local.set 3 (i32.sub (local.get 3) (i32.const 1))) (br_if $l (local.get 3))) (i32.const
        0))"""
    )
    from sandboxd.channel.client import VmClient
    from sandboxd.channel.sync_vm import SyncVm

    both = {2: bundle(busy)}
    options: dict[str, Any] = {"cpu_ms": 30, "more": both}
    with OneVm(bundle(misdeed("loop_in_request_headers")), **options) as one:
        one.worker.receive("vm_started")
        fds = create_channel(65536)
        other = SyncVm(VmClient(fds))
        one.worker.open(fds, configuration(bundle(busy).manifest, 65536), 2, 2)
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        other.wait_ready(5)
        done = threading.Event()
        lost: list[int] = []

        def offend() -> None:
            while not done.is_set():
                try:
                    one.vm.wait_ready(5)
                    request(one)
                except VmLost:
                    lost.append(1)

        thread = threading.Thread(target=offend)
        thread.start()
        until = time.monotonic() + 1.0
        served = 0
        while time.monotonic() < until:
            stream = other.client.open_stream(b"", 1)
            assert other.call(stream, layout.REQUEST_HEADERS, REQUEST).code == layout.CODE_OK
            other.close_stream(stream)
            served += 1
        done.set()
        thread.join(10)
        other.close()

    assert served > 50
    assert len(lost) > 3


def test_memory_limit_is_the_policys() -> None:
    """memory.grow answers -1 past the limit, and the guest lives on."""
    module = guest(
        '(func (export "proxy_on_vm_start") (param i32 i32) (result i32)'
        " (i32.and (i32.eq (memory.grow (i32.const 15)) (i32.const 1))"
        " (i32.eq (memory.grow (i32.const 1)) (i32.const -1))))"
    )
    with OneVm(bundle(module, memory_bytes=1 * MIB)) as one:
        one.worker.receive("vm_started")
        one.worker.send(control.ToWorker(ping=control.Ping(number=1)))

        assert one.worker.receive("pong").vms[0].guest_memory_bytes == 1 * MIB


def test_a_vm_waits_for_leave() -> None:
    """However long; the generations count on. Nobody else who has the channel can make the worker miscount."""
    with OneVm(bundle(misdeed("trap_in_request_headers")), restarts=0) as one:
        for generation in (1, 2):
            assert one.worker.receive("vm_started").generation == generation
            assert one.vm.wait_ready(5) == generation
            with pytest.raises(VmLost):
                request(one)
            failed = one.worker.receive("vm_failed")
            assert (failed.generation, failed.while_starting) == (generation, False)
            assert one.worker.silent(0.1)
            assert one.vm.client.vm_state == layout.VM_FAILED
            os.pwrite(one.fds.memfd, (77).to_bytes(4, "little"), layout.OFFSET_VM_GENERATION)
            one.worker.send(control.ToWorker(restart_vm=control.RestartVm(vm_id=1)))
        assert one.worker.receive("vm_started").generation == 3


@pytest.mark.parametrize("module", ["c/c_add_header", "misdeeds/configure_false"])
def test_close_ends_the_vm(module: str) -> None:
    """Whether it serves or waits for its next start; the channel says that nobody is there."""
    with OneVm(file(module)) as one:
        one.worker.receive("vm_started" if module.startswith("c/") else "vm_failed")
        one.worker.send(control.ToWorker(close_vm=control.CloseVm(vm_id=1)))

        assert one.worker.receive("vm_closed").vm_id == 1
        assert one.vm.client.vm_state == layout.VM_GONE
        one.worker.send(control.ToWorker(ping=control.Ping(number=1)))
        assert len(one.worker.receive("pong").vms) == 0


def test_close_breaks_off_a_call() -> None:
    """A guest that loops within its limit does not hold up the end."""
    with OneVm(bundle(misdeed("loop_in_request_headers")), cpu_ms=60_000) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        stream = one.vm.client.open_stream(b"", 1)
        one.vm.client.submit(stream, layout.REQUEST_HEADERS, REQUEST, True, 1)
        one.vm.client.flush()
        time.sleep(0.05)
        one.worker.send(control.ToWorker(close_vm=control.CloseVm(vm_id=1)))

        assert one.worker.receive("vm_closed").vm_id == 1


def test_shutdown_by_the_client_ends_the_vm_and_close_is_answered() -> None:
    """After SHUTDOWN nobody serves the channel; VmClosed still waits for CloseVm."""
    with OneVm(file("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        one.vm.wait(one.vm.client.shutdown(1), 5)
        deadline = time.monotonic() + 5
        while one.vm.client.vm_state != layout.VM_GONE:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert one.worker.silent(0.05)
        one.worker.send(control.ToWorker(close_vm=control.CloseVm(vm_id=1)))

        assert one.worker.receive("vm_closed").vm_id == 1


def test_broken_submission_ring_is_final() -> None:
    """A counter that no client writes: the VM is not started again by itself."""
    with OneVm(file("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        os.pwrite(one.fds.memfd, (3).to_bytes(4, "little"), layout.OFFSET_SQ_TAIL)
        os.eventfd_write(one.fds.vm_event_fd, 1)

        failure = one.worker.receive("vm_failed")

        assert failure.cause == control.FAILURE_CAUSE_PROTOCOL
        assert one.vm.client.vm_state == layout.VM_GONE


def test_idle_worker_uses_no_cpu() -> None:
    """Neither VM nor watchdog run when nothing comes."""
    with OneVm(file("rust/http_headers")) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        request(one)
        time.sleep(0.3)
        before = one.worker.cpu_ticks()
        time.sleep(1)

        assert one.worker.cpu_ticks() - before <= 1


def test_denied_function_is_reported_with_its_index() -> None:
    """The guest gets the ABI's answer, the client a DENIED record."""
    module = guest(
        '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)'
        " (if (i32.ne (call 0 (i32.const 0)) (i32.const 10)) (then unreachable)) (i32.const 0))",
        imports='(import "env" "proxy_close_stream" (func (param i32) (result i32)))',
    )
    with OneVm(bundle(module, EVERYTHING - {"proxy_close_stream"})) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)

        verdict = request(one)

        assert verdict.code == layout.CODE_OK
        assert any(effect.kind == layout.DENIED and effect.arg == 0 for effect in verdict.notices)


def test_host_calls_per_event_are_limited() -> None:
    """A guest that does nothing but call the host ends at the limit."""
    module = guest(
        '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)'
        " (loop $l (drop (call 0)) (br $l)) (i32.const 0))",
        imports='(import "env" "proxy_done" (func (result i32)))',
    )
    with OneVm(bundle(module), cpu_ms=5000, limits=replace(LIMITS, host_calls_per_event=1000)) as one:
        one.worker.receive("vm_started")
        one.vm.wait_ready(5)
        with pytest.raises(VmLost):
            request(one)

        assert "host calls" in one.worker.receive("vm_failed").message


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
        assert worker.load(file("c/c_add_header").data, 3) == ""


def test_live_clock_moves_within_an_event() -> None:
    """Only with the policy's leave; a guest reads it twice and sees a difference."""
    from sandboxd.vm.config_blob import Flag

    module = guest(
        """(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local i64 i32)
        (drop (call 0 (i32.const 1) (i64.const 0) (i32.const 64))) (local.set 3 (i64.load (i32.const 64)))
        (local.set 4 (i32.const 3000000))
        (loop $l (local.set 4 (i32.sub (local.get 4) (i32.const 1))) (br_if $l (local.get 4)))
        (drop (call 0 (i32.const 1) (i64.const 0) (i32.const 64)))
        (if (i64.lt_u (i64.sub (i64.load (i32.const 64)) (local.get 3)) (i64.const 100000)) (then
        unreachable))
        (i32.const 0))""",
        imports='(import "wasi_snapshot_preview1" "clock_time_get" (func (param i32 i64 i32) (result i32)))',
    )
    with OneVm(bundle(module), cpu_ms=1000, flags=Flag.LIVE_CLOCK) as one:
        one.vm.wait_ready(5)
        assert request(one).code == layout.CODE_OK
    with OneVm(bundle(module), cpu_ms=1000) as one:
        one.vm.wait_ready(5)
        with pytest.raises(VmLost):
            request(one)


def test_usage_is_reported() -> None:
    """Streams, memory, CPU and crashes of each VM."""
    with OneVm(file("rust/http_headers")) as one:
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


def test_killed_worker_leaves_no_half_state() -> None:
    """SIGKILL needs no cooperation: the socket ends."""
    with OneVm(file("c/c_add_header")) as one:
        one.worker.receive("vm_started")
        os.kill(one.worker.pid, signal.SIGKILL)

        assert one.worker.process.wait(5) == -signal.SIGKILL
        assert one.worker.socket.recv(1) == b""
