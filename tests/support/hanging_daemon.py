"""The daemon with fake fronts whose compilers never come to an end: ``hanging_daemon.py CONFIG``."""

from __future__ import annotations

import sys

from sandboxd.compiler import process
from sandboxd.supervisor import daemon
from tests.support.fake_daemon import main

MARK = "a compiler that hangs"


def start(_module: str, *_arguments: str) -> tuple[list[str], dict[str, str]]:
    """Do as `sandboxd.jail.command.python_module`, with another program."""
    return [sys.executable, "-c", "import time; time.sleep(1000)", MARK], {}


if __name__ == "__main__":
    process.python_module = start
    daemon.EXTEND_START_S = 0.3
    sys.exit(main(sys.argv[1]))
