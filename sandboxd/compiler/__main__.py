"""
The compiler's process: ``python -m sandboxd.compiler JOB_FD RESULT_FD CPU_SECONDS``.

Everything is imported first; then the process gives up what it can, then it reads the job. Started by
`sandboxd.compiler.client` alone.
"""

from __future__ import annotations

import os
import sys
import traceback

from sandboxd.compiler.frames import ExitCode, decode
from sandboxd.compiler.job import compile_bundle
from sandboxd.errors import ModuleRejected
from sandboxd.jail.plan import compiler_plan
from sandboxd.jail.steps import apply
from sandboxd.limits import GIB
from sandboxd.vm.artefacts import MAX_BUNDLE_BYTES
from sandboxd.vm.identity import machine

ADDRESS_SPACE_BYTES = 4 * GIB
"""Code generation for the largest accepted module stays below this."""


def main(argv: list[str]) -> int:
    """Do one job; returns the exit code."""
    parent_pid = os.getppid()
    job_fd, result_fd, cpu_seconds = (int(argument) for argument in argv)
    machine()
    apply(
        compiler_plan(
            parent_pid=parent_pid,
            keep_fds=frozenset({job_fd, result_fd}),
            cpu_seconds=cpu_seconds,
            address_space_bytes=ADDRESS_SPACE_BYTES,
            output_bytes=MAX_BUNDLE_BYTES,
        )
    )
    with open(job_fd, "rb") as job_file, open(result_fd, "wb") as result_file:
        try:
            result, code = compile_bundle(decode(job_file.read())), ExitCode.DONE
        except ModuleRejected as error:
            result, code = str(error).encode(), ExitCode.REJECTED
        except Exception:
            result, code = traceback.format_exc().encode(), ExitCode.INTERNAL
        result_file.write(result)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
