"""A process whose threads hang ends all the same; one whose threads end is not held up."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def end_of(work: str, *, leave_s: float) -> subprocess.CompletedProcess[str]:
    """Run a program that gives its loop's pool some work, and ends without waiting for it."""
    program = f"""
        import asyncio, threading, time
        from sandboxd.supervisor.leaving import UnwaitedExecutor, leave_in_time

        async def main():
            asyncio.get_running_loop().set_default_executor(UnwaitedExecutor(thread_name_prefix="work"))
            begun = threading.Event()
            work = asyncio.create_task(asyncio.to_thread(lambda: (begun.set(), {work})))
            while not begun.is_set():
                await asyncio.sleep(0.01)

        asyncio.run(main())
        leave_in_time(7, {leave_s})
        print("the end", flush=True)
        """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_a_thread_that_hangs_is_left_behind() -> None:
    """With the status that was given, and a word about it."""
    done = end_of("time.sleep(1000)", leave_s=0.2)

    assert done.returncode == 7, done.stderr
    assert done.stdout == "the end\n"
    assert "left behind, for they did not end: work_0" in done.stderr


def test_what_ends_by_itself_is_waited_for() -> None:
    """Its work is done, and the process ends as if nothing had been said, long before its time."""
    done = end_of("(time.sleep(1), print('work is done', flush=True))", leave_s=50)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "the end\nwork is done\n"
    assert done.stderr == ""
