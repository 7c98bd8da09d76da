"""One tenant and what may go wrong with its versions: what runs then, what is tried again, what is left behind."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from sandboxd.channel.memfd import ChannelFds, create_channel
from sandboxd.errors import JailError
from sandboxd.policy.load import PolicyDirectory
from sandboxd.policy.model import Isolation, PluginPolicy, TenantPolicy
from sandboxd.supervisor import comeback, deployment, prepare, vm_set
from sandboxd.supervisor.crash_reports import subject_of
from sandboxd.supervisor.launch import WorkerSpec
from sandboxd.supervisor.pool import Pool
from sandboxd.supervisor.prepare import PluginProblem, PreparedPlugin, PreparedTenant
from sandboxd.supervisor.tenant_state import TenantState
from sandboxd.supervisor.worker_requests import WorkerRequests
from tests.support.eventually import until
from tests.support.front_rig import policy
from tests.support.tenant_rig import PlayedFront, PlayedWorker, Rig, prepared, version


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr("sandboxd.supervisor.tenant.MIN_DELAY_S", 0.0)
    monkeypatch.setattr(comeback, "MIN_DELAY_S", 0.0)


async def test_a_version_starts_and_takes_over() -> None:
    """What all others here begin with."""
    rig = Rig(PlayedWorker(), PlayedWorker())
    assert await rig.tenant.apply(version(1)) == ""
    assert rig.tenant.state is TenantState.RUNNING
    assert rig.front.last == "attach"
    assert await rig.tenant.apply(version(2)) == ""
    assert [deployment.prepared.policy.digest for deployment in rig.tenant.draining] == ["1"]
    await rig.end()


# --- what nobody reckoned with ---


async def test_preparing_that_fails_unexpectedly_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Such as a disk that is full for a while: it is an error of this tenant alone, and with its traceback."""
    rig = Rig(PlayedWorker())
    failures = [OSError(28, "No space left on device"), ValueError("embedded null byte")]

    async def prepare_it(asked: TenantPolicy) -> PreparedTenant:
        if failures:
            raise failures.pop(0)
        return prepared(asked)

    rig.prepare = prepare_it
    error = await rig.tenant.apply(version())

    assert error == "unexpected error: OSError: [Errno 28] No space left on device"
    assert rig.tenant.state is TenantState.FAILED
    assert rig.tenant.last_error == error
    assert "in prepare_it\n" in caplog.text
    await until(lambda: rig.tenant.state is TenantState.RUNNING)
    assert rig.front.last == "attach"
    await rig.end()


async def test_a_plugin_that_cannot_be_compiled_for_want_of_means_is_no_fault_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptors, no processes: it may be another time."""

    def compiled(plugin: PluginPolicy, *_: object) -> PreparedPlugin:
        if plugin.name == "poor":
            raise OSError(24, "Too many open files")
        return prepared(version()).plugins["filter"]

    monkeypatch.setattr(prepare, "_compile_plugin", compiled)
    (tmp_path / "acme.yaml").write_text("")
    digest = hashlib.sha256(b"").hexdigest()
    plugins = (replace(policy(), name="poor"), policy())
    asked = TenantPolicy("acme", plugins, Isolation(), source_path=str(tmp_path / "acme.yaml"), digest=digest)

    found = await prepare.prepare_tenant(asked, asyncio.Semaphore(1), None)

    assert set(found.plugins) == {"filter"}
    assert found.problems == {"poor": PluginProblem("[Errno 24] Too many open files", permanent=False)}


class Failing:
    """Has what a worker is to be like fail a few times, in a way that nobody foresaw."""

    def __init__(self, rig: Rig) -> None:
        self.times = 0
        self._spec = rig.spec
        rig.spec = self._call  # type: ignore[assignment]

    def _call(self, asked: TenantPolicy) -> object:
        if self.times:
            self.times -= 1
            raise ValueError("not foreseen")
        return self._spec(asked)


async def test_swapping_that_fails_unexpectedly_leaves_the_version_before() -> None:
    """And without one it is tried again."""
    rig = Rig(PlayedWorker(), PlayedWorker())
    failing = Failing(rig)
    failing.times = 1
    assert await rig.tenant.apply(version(1)) == "unexpected error: ValueError: not foreseen"
    await until(lambda: rig.tenant.state is TenantState.RUNNING)

    failing.times = 1
    assert await rig.tenant.apply(version(2)) == "unexpected error: ValueError: not foreseen"
    assert rig.tenant.state is TenantState.RUNNING
    assert rig.tenant.policy == version(1)
    assert rig.tenant.last_error == "unexpected error: ValueError: not foreseen"

    failing.times = 1
    assert await rig.tenant.restart() == "unexpected error: ValueError: not foreseen"
    assert rig.workers[0].is_alive
    await rig.end()


async def test_a_planned_start_that_fails_unexpectedly_is_planned_again(caplog: pytest.LogCaptureFixture) -> None:
    """Else the tenant would be down until an operator comes by."""
    rig = Rig(PlayedWorker(), PlayedWorker())
    assert await rig.tenant.apply(version()) == ""
    failing = Failing(rig)
    failing.times = 2
    with caplog.at_level(logging.ERROR):
        rig.workers[0].end()
        await until(lambda: rig.tenant.current is not None and rig.workers[1].is_alive)

    assert failing.times == 0
    assert "a planned start failed" in caplog.text
    await rig.end()


# --- workers that come to nothing ---


async def test_a_worker_that_dies_as_it_starts_does_not_take_over() -> None:
    """Its last word was that the VM has started: the exit is seen before the one who waits for that word has a turn."""
    rig = Rig(PlayedWorker(), PlayedWorker(dies=True), PlayedWorker(dies=True), PlayedWorker())
    assert await rig.tenant.apply(version(1)) == ""

    assert "SIGKILL" in await rig.tenant.apply(version(2))
    assert rig.tenant.policy == version(1)
    assert rig.tenant.state is TenantState.RUNNING
    assert rig.tenant.draining == []

    rig.workers[0].end()  # now there is no other: the next one dies too, and the one after that serves
    await until(lambda: rig.workers[3].is_alive and rig.tenant.state is TenantState.RUNNING)
    assert rig.front.last == "attach"
    await rig.end()


async def test_without_channels_no_worker_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would ever end it."""
    rig = Rig(PlayedWorker(), PlayedWorker())
    failures = 1

    def channel(ring_bytes: int) -> ChannelFds:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(24, "Too many open files")
        return create_channel(ring_bytes)

    monkeypatch.setattr(vm_set, "create_channel", channel)

    assert "Too many open files" in await rig.tenant.apply(version())
    await until(lambda: not rig.workers[0].is_alive)
    await until(lambda: rig.tenant.state is TenantState.RUNNING)
    assert rig.workers[1].is_alive
    await rig.end()


async def test_a_front_gets_its_channel_when_there_is_one_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker runs and serves the other fronts: it need not be ended for that."""
    monkeypatch.setattr(deployment, "SYNC_RETRY_S", 0.0)
    rig = Rig(PlayedWorker())
    assert await rig.tenant.apply(version()) == ""
    failures = 2

    def channel(ring_bytes: int) -> ChannelFds:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(24, "Too many open files")
        return create_channel(ring_bytes)

    monkeypatch.setattr(vm_set, "create_channel", channel)
    rig.fronts[1] = other = PlayedFront(1)
    rig.tenant.introduce(other)

    await until(lambda: other.last == "attach")
    assert failures == 0
    assert rig.workers[0].is_alive
    await rig.end()


async def test_an_error_of_one_tenant_keeps_no_front_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Each is told on its own."""
    pool = Pool(Rig().services)
    broken, fine = Mock(), Mock()
    broken.introduce.side_effect = broken.fronts_changed.side_effect = ValueError("not foreseen")
    pool.tenants = {"broken": broken, "fine": fine}
    front = PlayedFront()

    pool.introduce(front)
    pool.fronts_changed(front)

    fine.introduce.assert_called_once_with(front)
    fine.fronts_changed.assert_called_once_with(front)
    assert caplog.text.count("ValueError: not foreseen") == 2


async def test_a_deployment_that_comes_to_nothing_leaves_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails between its process and its first frame."""
    rig = Rig(PlayedWorker(), PlayedWorker())
    requests, failures = deployment.WorkerRequests, 1

    def broken(*args: Any, **named: Any) -> WorkerRequests:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(24, "Too many open files")
        return requests(*args, **named)

    monkeypatch.setattr(deployment, "WorkerRequests", broken)

    assert "Too many open files" in await rig.tenant.apply(version())
    await until(lambda: not rig.workers[0].is_alive)
    await until(lambda: rig.tenant.state is TenantState.RUNNING)
    await rig.end()


async def test_removed_while_a_worker_of_it_starts() -> None:
    """The worker takes over, and is retired after that: until it has ended its channels are somebody's."""
    rig = Rig(PlayedWorker(), PlayedWorker())
    pool = Pool(rig.services)
    await pool.apply(PolicyDirectory({"acme": version()}, {}))
    rig.tenant = pool.tenants["acme"]
    rig.workers[1].go.clear()
    restart = asyncio.create_task(pool.restart("acme"))
    await rig.workers[1].started.wait()
    reload = asyncio.create_task(pool.apply(PolicyDirectory({}, {})))
    await until(lambda: not pool.tenants)
    pool.channel_drained(12345)  # as any front says at any time
    rig.workers[1].go.set()
    await restart
    assert (await reload)["acme"]["result"] == "removed"
    draining = rig.tenant.draining
    channels = [channel for one in draining for channel in one.vms.by_id]
    assert len(channels) == 2

    pool.channel_broken(channels[0], "hostile")
    assert [one.worker.killed_for for one in draining] == ["broke a channel: hostile", ""]
    await asyncio.wait_for(pool.stop(), 10)
    await until(lambda: not any(worker.is_alive for worker in rig.workers))
    await rig.end()


# --- the version before ---


async def test_the_version_before_comes_back_after_one_that_is_refused() -> None:
    """Its worker was dead and its start planned; the reload has called that off."""
    rig = Rig(PlayedWorker(), PlayedWorker())
    assert await rig.tenant.apply(version(1)) == ""
    spec = rig.spec

    def picky(asked: TenantPolicy) -> WorkerSpec:
        if asked == version(2):
            raise JailError("landlock")
        return spec(asked)

    async def meanwhile(asked: TenantPolicy) -> PreparedTenant:
        rig.workers[0].end()
        await until(lambda: rig.tenant.current is None)
        return prepared(asked)

    rig.spec = picky
    rig.prepare = meanwhile
    assert await rig.tenant.apply(version(2)) == "refused: jail step landlock: not available"

    await until(lambda: rig.tenant.state is TenantState.RUNNING)
    assert rig.tenant.policy == version(1)
    await rig.end()


async def test_a_version_that_was_always_refused_is_not_tried_again() -> None:
    """The machine does not have the layer."""
    rig = Rig()

    def picky(_: TenantPolicy) -> WorkerSpec:
        raise JailError("landlock")

    rig.spec = picky
    assert await rig.tenant.apply(version()) == "refused: jail step landlock: not available"
    assert rig.tenant.state is TenantState.REFUSED
    assert rig.tenant.restarts == 0
    await rig.end()


async def test_quarantine_is_lifted_for_a_changed_plugin_only_if_its_version_works() -> None:
    """Else it is the old plugin that would be without it, and nobody would start its VMs."""
    rig = Rig(PlayedWorker(), PlayedWorker(fails=True), PlayedWorker())
    assert await rig.tenant.apply(version(1)) == ""
    old = version(1).plugins[0]
    rig.crash(old, old.failure.restart.max_crashes + 1)
    quarantine = rig.ledger.quarantine(subject_of("acme", old))
    assert quarantine is not None

    assert "failed while starting" in await rig.tenant.apply(version(2, configuration=b"worse"))
    assert rig.ledger.quarantine(subject_of("acme", old)) == quarantine
    assert await rig.tenant.apply(version(3, configuration=b"better")) == ""
    assert rig.ledger.quarantine(subject_of("acme", old)) is None
    await rig.end()
