"""
One worker process in the supervisor's event loop: its life, its control socket, its pulse.

Everything runs in the loop's thread. What the worker says is checked by `worker_protocol`; whatever does not
pass, and whatever comes too fast, ends the worker. Callers get events and, exactly once, `on_exit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from collections.abc import Callable, Sequence

from sandboxd.errors import JailError, WorkerError
from sandboxd.jail.full_plan import JailPlan
from sandboxd.jail.waiter import worker_pid
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import cgroups, exits, frames, launch, worker_events
from sandboxd.supervisor.callouts import CalloutPiece
from sandboxd.supervisor.exits import Exit, ExitCause
from sandboxd.supervisor.outbox import Outbox, OutboxFullError
from sandboxd.supervisor.reading_pace import CONGESTION_PAUSE_S, ReadingPace
from sandboxd.supervisor.stderr_tail import StderrTail
from sandboxd.supervisor.worker_events import Event
from sandboxd.supervisor.worker_protocol import VmState, VmView, WorkerView

_log = logging.getLogger(__name__)

READY_TIMEOUT_S = 30.0
"""From exec to WorkerReady; Python and the engine load in about a second on an idle machine."""
PING_PERIOD_S = 1.0
PONG_TIMEOUT_S = 8.0
"""A main thread that is silent for so long is stuck for good: it does nothing that takes a second."""
STOP_GRACE_S = 2.0
"""From closing the control socket to SIGKILL."""
FRAMES_PER_TURN = 64
TURN_S = 0.005
"""A worker is not read for longer than that before the others have a turn; one frame may take longer."""
LAST_TURN_S = 0.1
"""Of a worker that has died: there is no turn after it."""
SLOW_READER_FRAMES = 256
"""A worker that has so much to read gets one callout in, each pause."""


class WorkerProcess:
    """
    A worker from exec to exit.

    Args:
        spec: what it makes of itself.
        on_event: called with each checked event.
        on_exit: called once when the process is gone.

    Raises:
        JailError: its control group or its jail cannot be made.
        OSError: it cannot be started.
    """

    def __init__(
        self, spec: launch.WorkerSpec, on_event: Callable[[Event], None], on_exit: Callable[[Exit], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._on_exit = on_exit
        self.view = WorkerView()
        self.started_s = self._loop.time()
        self.killed_for = ""
        self._kill_cause = ExitCause.WORKER_PROTOCOL
        self.stopping = False
        self.exited = False
        self.layers: tuple[str, ...] = ()
        self.name = spec.tenant
        self._pace = ReadingPace(self._loop.time())
        self._pause: asyncio.TimerHandle | None = None
        self.congested: Callable[[], bool] = lambda: False
        """Whether callouts have to wait because others' are under way."""
        self._last_pong_s = self._loop.time()
        self.cgroup = spec.make_cgroup()
        launched, self._plan, self._pidfd = self._begin(spec)
        self._process: subprocess.Popen[bytes] = launched.process
        self._socket = launched.socket
        self.pid = self._process.pid
        """Of the worker; until it is ready, of the process that becomes its waiter."""
        self.waiter_pid = self._process.pid
        self._socket.setblocking(False)
        self._outbox = Outbox(self._loop, self._socket)
        assert self._process.stderr is not None
        self._stderr = StderrTail(self._loop, self._process.stderr)
        self._loop.add_reader(self._pidfd, self._exited)
        self._loop.add_reader(self._socket, self._readable)
        self._timer = self._loop.call_later(READY_TIMEOUT_S, self.kill, "was not ready in time", ExitCause.START_TIME)
        self.send(spec.setup(self._plan))

    # --- its jail and its cgroup ---

    def _begin(self, spec: launch.WorkerSpec) -> tuple[launch.Launched, JailPlan, int]:
        """Return the process in its cgroup, its jail's plan, and its pidfd. If that fails, nothing of it is left."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._leave_cgroup)
            launched = spec.launch()
            undo.callback(launched.kill)
            pid = launched.process.pid
            plan = spec.plan(launched.control_fd, pid)
            if self.cgroup is not None:
                self.cgroup.enter(pid)
            pidfd = os.pidfd_open(pid)
            undo.pop_all()
        return launched, plan, pidfd

    def _is_jailed(self, event: worker_events.Ready) -> None:
        """
        Take note of the layers: the plan's. Until now it was our own code that ran there, but one that says
        that it did something else has a bug.
        """
        told = tuple(layer.value for layer in self._plan.layers())
        if event.layers != told:
            raise WorkerError(f"was told to put on {', '.join(told)} and says {', '.join(event.layers)}")
        self.layers = told
        with contextlib.suppress(OSError):  # it is gone already; the exit status comes
            self.pid = worker_pid(self.waiter_pid)

    def _hold_cgroup(self) -> None:
        """It is ready and has seen nothing of the tenant: all limits hold from here."""
        if self.cgroup is None:
            return
        try:
            self.cgroup.hold()
        except JailError as error:
            self.kill(f"cannot be limited: {error}")
        else:
            self.layers = (*self.layers, cgroups.LAYER)

    def _leave_cgroup(self) -> None:
        """Kill what is left in it, such as processes that the worker started, and remove it."""
        if self.cgroup is not None:
            self._removal = self._loop.create_task(self.cgroup.remove())

    # --- what callers ask for ---

    def load_plugin(self, request: control.LoadPlugin, bundle_fd: int) -> None:
        """Have a plugin's artefact loaded; the answer is a `PluginLoaded` event."""
        self.view.plugins[request.plugin_id] = False
        self.send(control.ToWorker(load_plugin=request), (bundle_fd,))

    def open_vm(self, request: control.OpenVm, fds: Sequence[int]) -> None:
        """
        Have a VM started on a channel; a `VmStarted` or `VmFailed` event follows. The descriptors stay ours.
        """
        self.view.vms[request.vm_id] = VmView(request.plugin_id)
        self.send(control.ToWorker(open_vm=request), fds)

    def restart_vm(self, vm_id: int, fds: Sequence[int] = ()) -> None:
        """
        Give a VM that failed leave to start again; a `VmStarted` or `VmFailed` event follows. ``fds``: none, or the
        configuration that it starts with from now on, which stays ours.
        """
        vm = self.view.vms.get(vm_id)
        if vm is not None and vm.state is VmState.FAILED:
            vm.state = VmState.STARTING
            vm.starts += 1
            self.send(control.ToWorker(restart_vm=control.RestartVm(vm_id=vm_id)), fds)

    def close_vm(self, vm_id: int) -> None:
        """Have a VM shut down; a `VmClosed` event follows."""
        vm = self.view.vms.get(vm_id)
        if vm is not None and vm.state is not VmState.CLOSING:
            vm.state = VmState.CLOSING
            self.send(control.ToWorker(close_vm=control.CloseVm(vm_id=vm_id)))

    def kill(self, reason: str, cause: ExitCause = ExitCause.WORKER_PROTOCOL) -> None:
        """SIGKILL, now. `on_exit` follows when the kernel has cleaned up."""
        if self.exited or self.killed_for:
            return
        self.killed_for = reason
        self._kill_cause = cause
        _log.debug("tenant %s: worker %d is killed: it %s", self.name, self.pid, reason)
        self._kill()

    def stop(self) -> None:
        """End the worker in peace: close its control socket, and kill it if it has not gone after a grace."""
        if self.exited or self.stopping:
            return
        self.stopping = True
        self._timer.cancel()
        self._timer = self._loop.call_later(STOP_GRACE_S, self._kill)
        self._close_socket()

    def abandon(self) -> None:
        """Do as `stop`, for one who has come to nothing as well: nobody is told of the end."""
        self._on_event, self._on_exit = _nobody, _nobody
        self.stop()

    def send(self, frame: control.ToWorker, fds: Sequence[int] = ()) -> None:
        """Send a frame, or queue it; a worker that does not read is killed."""
        try:
            self._outbox.send(frame, fds)
        except OutboxFullError as error:
            self.kill(str(error))

    def waiting_bytes(self) -> int:
        """Return how much it has not read, beside what is in the kernel."""
        return self._outbox.waiting_bytes

    # --- incoming, hostile ---

    def _readable(self) -> None:
        self._read(TURN_S)

    def _read(self, turn_s: float) -> None:
        """Read what there is; after so long, or so many frames, the others of this loop have a turn."""
        end_s = self._loop.time() + turn_s
        for _ in range(FRAMES_PER_TURN):
            try:
                data = frames.receive_plain(self._socket)
                if not data:
                    self._end_of_socket()
                    return
                if self._hear(data):
                    return
            except BlockingIOError:
                return
            except (WorkerError, frames.FrameTooLongError) as error:
                self._loop.remove_reader(self._socket)
                self.kill(str(error))
                return
            except OSError as error:
                _log.debug("tenant %s: control socket of worker %d: %s", self.name, self.pid, error)
                self._end_of_socket()
                return
            if self._socket.fileno() < 0 or self._loop.time() > end_s:
                return

    def _hear(self, data: bytes) -> bool:
        """Deal with a frame; return True if the worker is not read for a while."""
        began_s = self._loop.time()
        event = self.view.feed(data)
        if isinstance(event, CalloutPiece):
            self._handle(event)
            return self._paused(len(data))
        if isinstance(event, worker_events.SharedAsk):  # while the store is away, answered as fast as they are asked
            self._handle(event)
            return self._pauses(self._pace.callout(len(data), began_s, congested=False))
        self._pace.frame(began_s)
        self._handle(event)
        return self._pauses(self._pace.worked(self._loop.time() - began_s))

    def _end_of_socket(self) -> None:
        self._close_socket()
        if not self.stopping and not self.exited:
            # It closed its socket or died; if it lives, give it a moment to say so by its exit status.
            self._timer.cancel()
            self._timer = self._loop.call_later(0.5, self.kill, "closed its control socket", ExitCause.WORKER_EXIT)

    def _paused(self, size: int) -> bool:
        """Return True if the worker is not read for a while, since it has asked for a callout."""
        congested = self.congested() or len(self._outbox) > SLOW_READER_FRAMES
        return self._pauses(self._pace.callout(size, self._loop.time(), congested=congested))

    def _pauses(self, wait_s: float) -> bool:
        if not wait_s or self._socket.fileno() < 0 or self.exited:
            return False
        self._loop.remove_reader(self._socket)
        self._last_pong_s += wait_s  # a worker that is not read cannot answer either
        self._pause = self._loop.call_later(wait_s, self._resume)
        return True

    def _resume(self) -> None:
        self._pause = None
        if self._socket.fileno() < 0 or self.killed_for:
            return
        if self.congested():
            self._pause = self._loop.call_later(CONGESTION_PAUSE_S, self._resume)
        else:
            self._loop.add_reader(self._socket, self._readable)

    def _handle(self, event: Event) -> None:
        if isinstance(event, worker_events.Ready):
            self._is_jailed(event)
            self._hold_cgroup()
            self._last_pong_s = self._loop.time()
            self._timer.cancel()
            self._timer = self._loop.call_later(PING_PERIOD_S, self._pulse)
        elif isinstance(event, worker_events.Pong):
            self._last_pong_s = self._loop.time()
        elif isinstance(event, worker_events.WorkerFailed):
            _log.error("tenant %s: worker %d gives up: %s", self.name, self.pid, event.message)
            self._stderr.said(event.message)
        self._on_event(event)

    def _pulse(self) -> None:
        silence_s = self._loop.time() - self._last_pong_s
        if silence_s > PONG_TIMEOUT_S:
            self.kill(f"did not answer for {silence_s:.0f} seconds", ExitCause.WORKER_SILENT)
            return
        self.view.last_ping += 1
        self.send(control.ToWorker(ping=control.Ping(number=self.view.last_ping)))
        self._timer = self._loop.call_later(PING_PERIOD_S, self._pulse)

    # --- the end ---

    def _kill(self) -> None:
        if self.cgroup is not None:
            self.cgroup.kill()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        return_code = self._process.wait()
        self.exited = True
        self._timer.cancel()
        self._drain_socket()
        self._close_socket()
        words = self._stderr.close()
        text = exits.sentence(return_code, killed_for=self.killed_for)
        cause = self._kill_cause if self.killed_for else exits.cause(return_code)
        if self.cgroup is not None and not self.killed_for and (death := self.cgroup.memory_death()):
            text, cause = death, ExitCause.WORKER_MEMORY
        self._leave_cgroup()
        if words and not self.stopping:
            text = f"{text}; its last words: {words}"
        on_exit = self._on_exit
        # Whoever listens holds this object. Without the way back, what it holds (memory files) is freed with it.
        self._on_event, self._on_exit = _nobody, _nobody
        on_exit(Exit(text, cause))

    def _drain_socket(self) -> None:
        """Hear what it said before it died: the reason is often there."""
        if self._socket.fileno() >= 0 and not self.killed_for:
            self._read(LAST_TURN_S)

    def _close_socket(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._outbox.close()
            self._socket.close()


def _nobody(_: object) -> None:
    """Nobody listens any more."""
