"""``sandboxd serve`` whose workers were taken over (`tests.support.hostile_worker`): ``hostile_daemon.py CONFIG``."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace

from sandboxd.cli import main
from sandboxd.jail import jailer
from sandboxd.jail.command import python_module
from sandboxd.jail.filter_files import FilterSet, load_filters
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


def generous_filters() -> FilterSet:
    """Let workers send descriptors: what the trusted side makes of them shall not hang on the filter alone."""
    filters = load_filters()
    sendto = next(rule for rule in filters.worker.rules if rule.syscall == "sendto")
    sendmsg = replace(sendto, syscall="sendmsg")
    return replace(filters, worker=replace(filters.worker, rules=(*filters.worker.rules, sendmsg)))


if __name__ == "__main__":
    jailer.load_filters = generous_filters
    launch.start = start
    sys.exit(main(["serve", "--config", sys.argv[1]]))
