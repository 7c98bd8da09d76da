"""A worker that gets no thread from the kernel says which limit that was."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, sys, threading
from sandboxd.errors import WorkerError
from sandboxd.worker.threads import start_thread
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(64999, 64999, 64999)
    os.setresuid(64999, 64999, 64999)
most, hard = int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NPROC)[1]
most = most if hard == resource.RLIM_INFINITY else min(most, hard)
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
thread = threading.Thread(target=print, args=("ran",), name="vm-1")
try:
    start_thread(thread)
    thread.join()
except WorkerError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("most", "said"), [(1, "no thread for vm-1: can't start new thread; the limit is isolation.pids"), (100_000, "ran")]
)
def test_no_more_threads(most: int, said: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(most)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )

    assert ran.stdout.startswith(said), ran.stderr
