"""
The compiler's process: ``python -m sandboxd.compiler JOB_FD RESULT_FD``, its jail's plan on standard input.

Everything is imported first; then the process closes its jail, then it reads the job. Started by
`sandboxd.compiler.process` alone.
"""

from __future__ import annotations

import os
import sys
import traceback

from sandboxd.compiler.frames import ExitCode, decode
from sandboxd.compiler.job import compile_bundle
from sandboxd.errors import ModuleRejected
from sandboxd.jail import full_plan
from sandboxd.jail.enter import enter
from sandboxd.vm.artefacts import MAX_BUNDLE_BYTES
from sandboxd.vm.identity import machine


def main(argv: list[str]) -> int:
    """Do one job; returns the exit code. Returns in another process than it was called in."""
    job_fd, result_fd = (int(argument) for argument in argv)
    machine()  # asks for files that are gone afterwards
    enter(full_plan.decode(sys.stdin.buffer.read()))
    with open(job_fd, "rb") as job_file, open(result_fd, "wb") as result_file:
        result, code = _answer(job_file.read())
        if len(result) > MAX_BUNDLE_BYTES:
            result, code = b"", ExitCode.EXHAUSTED
        result_file.write(result)
    return code


def _answer(job: bytes) -> tuple[bytes, ExitCode]:
    try:
        return compile_bundle(decode(job)), ExitCode.DONE
    except ModuleRejected as error:
        return str(error).encode(), ExitCode.REJECTED
    except MemoryError:
        return b"", ExitCode.EXHAUSTED
    except Exception:
        return traceback.format_exc().encode(), ExitCode.INTERNAL


if __name__ == "__main__":
    status = 1
    try:
        status = main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
