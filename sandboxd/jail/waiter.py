"""A worker behind its waiter, by the kernel's word and not by the worker's."""

from __future__ import annotations

from pathlib import Path

import psutil


def worker_pid(waiter_pid: int) -> int:
    """
    Return the worker's pid as we see it, from its waiter's.

    Raises:
        OSError: the waiter is gone or has no child yet.
    """
    children = _children(waiter_pid)
    if len(children) != 1:
        raise OSError(0, f"process {waiter_pid} has {len(children)} children, not one worker")
    return children[0]


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(word) for word in path.read_text().split()]
    except FileNotFoundError:
        # The kernel may have been built without CONFIG_PROC_CHILDREN.
        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except psutil.Error as error:
            raise OSError(0, f"process {pid} is gone") from error
