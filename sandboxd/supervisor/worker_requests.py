"""
What a worker asks the supervisor for on behalf of its guests: callouts, shared data that is kept elsewhere, and changes
to the tenant's folders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING

from sandboxd.errors import WorkerError
from sandboxd.policy.model import TenantPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.callouts import CalloutPiece, CalloutRoute, Rules, lost_answer
from sandboxd.supervisor.egress import Egress
from sandboxd.supervisor.exits import ExitCause
from sandboxd.supervisor.folders import FileChanges, apply_changes
from sandboxd.supervisor.prepare import Blob, PreparedPlugin, PreparedTenant
from sandboxd.supervisor.process import WorkerProcess
from sandboxd.supervisor.worker_events import SharedAsk
from sandboxd.supervisor.worker_protocol import VmState

if TYPE_CHECKING:
    from sandboxd.supervisor.remote_store import RemoteStore


def open_store(policy: TenantPolicy) -> RemoteStore | None:
    """
    Return the place outside this machine where a tenant's shared data is kept; None: its region is all there is.

    Raises:
        WorkerError: the client for it is not installed.
    """
    backend = policy.shared.backend
    if backend is None:
        return None
    try:
        from sandboxd.supervisor.remote_store import RemoteStore  # noqa: PLC0415 - few tenants need the client
    except ImportError as error:
        raise WorkerError(f"shared.backend needs the Python package redis: {error}") from None
    return RemoteStore(policy.tenant, backend)


class WorkerRequests:
    """
    Args:
        prepared: the version that the worker runs.
        worker: who asks.
        plugin_ids: the worker's number of each plugin.
        redaction_key: the tenant's key for the ``hash`` redaction.
        egress: where callouts go; None: nowhere.
        store: see `open_store`.
    """

    def __init__(
        self,
        prepared: PreparedTenant,
        worker: WorkerProcess,
        *,
        plugin_ids: Mapping[str, int],
        redaction_key: bytes,
        egress: Egress | None,
        store: RemoteStore | None,
    ) -> None:
        self._prepared = prepared
        self._worker = worker
        self._plugin_names = {number: name for name, number in plugin_ids.items()}
        self._egress = egress
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()
        policy = prepared.policy
        material = prepared.material or Blob("material", b"")
        self._rules = Rules(policy.tenant, policy.source_path, prepared.text, material, redaction_key)
        self._route = self._open_route()

    def _open_route(self) -> CalloutRoute | None:
        egress = self._egress
        if egress is None or self._prepared.material is None:
            return None
        self._worker.congested = lambda: egress.congested
        return egress.open(self._rules, self._worker.send, self._worker.waiting_bytes)

    def promote(self) -> None:
        """From now on the rules of this version count for the tenant's new callouts."""
        if self._egress is not None:
            self._egress.promote(self._rules)

    def vm_gone(self, vm_id: int) -> None:
        """Give up a VM's callouts: nobody waits for them."""
        if self._route is not None:
            self._route.vm_gone(vm_id)

    def store_counts(self) -> dict[str, int] | None:
        """Return how many questions the store was asked and did not answer; None: there is no store."""
        return None if self._store is None else {"asked": self._store.asked, "failed": self._store.failed}

    def close(self) -> None:
        """The worker is gone."""
        if self._store is not None:
            self._spawn(self._store.close())
        if self._route is not None:
            self._route.close()

    def callout(self, piece: CalloutPiece, plugin: str) -> None:
        """Take a piece of a callout of one of the plugin's VMs."""
        view = self._worker.view.vms.get(piece.vm_id)
        if view is None or view.state not in (VmState.STARTING, VmState.RUNNING):
            return
        if self._route is not None:
            self._route.take(piece, plugin, self._plugin(plugin).policy.callouts.concurrency)
            return
        if self._egress is not None:
            self._egress.denied(self._prepared.policy.tenant, plugin)
        if not piece.more:  # the worker keeps every call until it is answered
            self._worker.send(lost_answer(piece.call_id, "denied by the policy: upstreams"))

    def shared_data(self, asked: SharedAsk) -> None:
        """Have the store answer."""
        if self._store is None:
            reason = "asked for shared data elsewhere, though its policy names no place"
            self._worker.kill(reason, ExitCause.WORKER_PROTOCOL)
            return
        self._spawn(self._answer(self._store, asked))

    async def _answer(self, store: RemoteStore, asked: SharedAsk) -> None:
        plugin = self._plugin(self._plugin_names[asked.plugin_id])
        data = await store.ask(plugin.policy.vm.vm_id, asked.question)
        view = self._worker.view.vms.get(asked.vm_id)
        if view is not None:
            view.asking -= 1
        if not self._worker.exited:
            self._worker.send(control.ToWorker(shared_answer=control.SharedAnswer(number=asked.number, data=data)))

    def file_changes(self, changes: FileChanges) -> None:
        """Decide on changes that a guest made to its copy of a folder."""
        try:
            apply_changes(self._plugin(self._plugin_names[changes.plugin_id]).folders, changes)
        except WorkerError as error:
            self._worker.kill(str(error), ExitCause.WORKER_PROTOCOL)

    def _plugin(self, name: str) -> PreparedPlugin:
        return self._prepared.plugins[name]

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
