"""Starting threads under a limit of threads."""

from __future__ import annotations

import threading

from sandboxd.errors import WorkerError


def start_thread(thread: threading.Thread) -> None:
    """
    Start a thread.

    Raises:
        WorkerError: the kernel gives no more. It counts in two ways: the worker's cgroup, and all processes of its uid.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise WorkerError(
            f"no thread for {thread.name}: {error}; the limit is isolation.pids, and processes with this worker's uid"
            " count towards it, also those of another daemon with the same worker.uid_base"
        ) from error
