"""
Prove the service on a machine of its own: ``python -m tests.machine``.

Builds a Debian image (systemd as process 1, cgroup v2), boots it in qemu, installs the service in it as the
README says, and runs ``tests/machine/inside`` there, through a reboot. Exit status: 0 all is proven, 1 something
is not, 2 the machine lacks what the proof needs. ``--if-possible``: 0 in the place of 2, after saying loudly that
nothing was proven, and why.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from tests.machine import image, needs
from tests.machine.inside.names import PROOFS
from tests.machine.machine import Machine
from tests.machine.report import Report

TIMEOUT_S = 900.0
"""Of the machine; with a minute and a half for the image that is under a quarter of an hour."""
CONSOLE_TAIL_BYTES = 4000


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.machine", description=__doc__)
    parser.add_argument("--only-image", action="store_true", help="build the image and stop")
    parser.add_argument("--if-possible", action="store_true", help="no failure if this machine cannot run the proof")
    args = parser.parse_args()
    started_s = time.monotonic()
    try:
        needs.ensure()
        built = image.build()
    except needs.Missing as error:
        if not args.if_possible:
            print(f"tests.machine: this machine cannot run the proof: {error}", file=sys.stderr)
            return 2
        sys.stderr.flush()
        print(f"{'!' * 72}\nNOT RUN: the proofs in a virtual machine: {error}", flush=True)
        return 0
    except (subprocess.SubprocessError, RuntimeError, OSError) as error:
        print(f"tests.machine: the image could not be built: {error}", file=sys.stderr)
        return 1
    print(f"image ready after {time.monotonic() - started_s:.0f} s", flush=True)
    if args.only_image:
        return 0
    print("booting it ...", flush=True)
    status = prove(built)
    print(f"{time.monotonic() - started_s:.0f} s in all")
    return status


def prove(built: image.Image) -> int:
    """Boot the image and follow the proof; return the exit status."""
    report = Report(PROOFS)
    machine = Machine(built, image.BUILD)
    problems: list[str] = []
    try:
        for line in machine.lines(TIMEOUT_S):
            if text := report.feed(line):
                print(text, flush=True)
    except (TimeoutError, RuntimeError) as error:
        problems.append(str(error))
    finally:
        machine.close()
    problems += report.problems()
    if not problems:
        print(f"{len(report.passed)} proofs, {report.boots} boots: all is proven")
        return 0
    print("\n".join(["", *problems]))
    print(f"the console's end (all of it: {machine.console}):")
    print(machine.console.read_bytes()[-CONSOLE_TAIL_BYTES:].decode(errors="replace"))
    return 1


if __name__ == "__main__":
    sys.exit(main())
