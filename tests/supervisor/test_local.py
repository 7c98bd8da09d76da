"""`LocalSandbox`: a real compiler, worker and channel from synchronous code."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from sandboxd.channel import layout
from sandboxd.channel.pairs import encode
from sandboxd.errors import ModuleRejected, WorkerError
from sandboxd.policy.load import parse_policy
from sandboxd.policy.model import PluginPolicy
from sandboxd.supervisor.local import LocalSandbox, VmStartError
from tests.support.daemon_client import ADD_HEADER, GUESTS, alive, policy_text

HEADERS = encode([(b":method", b"GET"), (b":path", b"/")])


def plugin(module: Path, more: str = "") -> PluginPolicy:
    """Return a policy's only plugin."""
    return parse_policy(policy_text("t", module, more=more), "p.yaml", module_root=Path("/")).plugins[0]


def test_an_event_goes_through(artefact_cache: Path) -> None:
    """Also through a second VM of the same worker, and usage tells of both."""
    with LocalSandbox(plugin(ADD_HEADER), cache_directory=artefact_cache) as sandbox:
        for vm in (sandbox.open_vm(), sandbox.open_vm()):
            stream_id = vm.client.open_stream(b"", 1)
            verdict = vm.call(stream_id, layout.REQUEST_HEADERS, HEADERS, end_of_stream=True)
            assert verdict.code == layout.CODE_OK
            assert b"x-wasm-processed" in verdict.effects[0].payload
        assert "no_new_privs" in sandbox.layers
        assert [usage.vm_id for usage in sandbox.usage()] == [1, 2]
        pid = sandbox.pid
    assert not alive(pid)


def test_a_start_that_fails_says_why_and_what_was_logged(artefact_cache: Path) -> None:
    """The cause and the callback come from the worker, the log lines from the channel."""
    bad = plugin(GUESTS / "misdeeds" / "configure_false.wasm")
    with LocalSandbox(bad, cache_directory=artefact_cache) as sandbox:
        with pytest.raises(VmStartError, match="failed while starting") as caught:
            sandbox.open_vm()
        assert caught.value.failure.cause == "start_refused"


def test_an_endless_start_is_bounded(artefact_cache: Path) -> None:
    """By the policy's start_time."""
    bad = plugin(GUESTS / "misdeeds" / "loop_in_configure.wasm", "limits: {start_time: 50ms}")
    with (
        LocalSandbox(bad, cache_directory=artefact_cache) as sandbox,
        pytest.raises(VmStartError, match="cpu limit"),
    ):
        sandbox.open_vm()


def test_a_module_that_is_none(tmp_path: Path) -> None:
    """Rejected before any process is started."""
    path = tmp_path / "m.wasm"
    path.write_bytes(b"hello")
    with pytest.raises(ModuleRejected, match="wasm"):
        LocalSandbox(plugin(path))


def test_a_dead_worker(artefact_cache: Path) -> None:
    """The operator's sentence, not a broken pipe."""
    with LocalSandbox(plugin(ADD_HEADER), cache_directory=artefact_cache) as sandbox:
        os.kill(sandbox.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="was killed with SIGKILL"):
            sandbox.usage()
