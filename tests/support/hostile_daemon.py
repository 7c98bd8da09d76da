"""``sandboxd serve`` whose workers were taken over (`tests.support.hostile_worker`): ``hostile_daemon.py CONFIG``."""

from __future__ import annotations

import socket
import subprocess
import sys

from sandboxd.cli import main
from sandboxd.jail.command import python_module
from sandboxd.supervisor import launch


def start(control_socket: socket.socket) -> subprocess.Popen[bytes]:
    """Do as `sandboxd.supervisor.launch.start`, with another program."""
    fd = control_socket.fileno()
    argv, environment = python_module("tests.support.hostile_worker", str(fd))
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(fd,),
        cwd="/",
        env=environment,
        start_new_session=True,
    )


if __name__ == "__main__":
    launch.start = start
    sys.exit(main(["serve", "--config", sys.argv[1]]))
