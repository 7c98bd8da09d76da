"""What a front asks for before it begins."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import json, os, sys
from sandboxd.front import process_settings
assert "grpc" not in sys.modules
process_settings.prepare()
print(json.dumps([os.sched_getscheduler(0), os.environ["GRPC_EXPERIMENTS"]]))
"""


def prepared(**environment: str) -> list[object]:
    """Return scheduler and experiments of a fresh process that asked for them."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout))


def test_threads_do_not_push_each_other_off_the_core() -> None:
    assert prepared()[0] == os.SCHED_BATCH


def test_what_the_operator_set_for_grpc_stays() -> None:
    assert "event_engine" in str(prepared()[1])
    assert prepared(GRPC_EXPERIMENTS="tcp_frame_size_tuning")[1] == "tcp_frame_size_tuning"
