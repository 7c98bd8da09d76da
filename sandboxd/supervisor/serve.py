"""
From the daemon's file to a daemon that runs, and to the processes that it forks.

What has to be done while there is one thread, and before anything of a tenant's is read, is done here, in this order.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import sys
from dataclasses import replace

from sandboxd import log
from sandboxd.compiler.cache import KEY_NAME, read_or_make_key
from sandboxd.config import DaemonConfig, UnixListen
from sandboxd.errors import ConfigError, SandboxdError
from sandboxd.front import process_settings
from sandboxd.jail.cgroup import read_cgroup_facts
from sandboxd.jail.front_jail import FrontJail, front_jail, give_up_most
from sandboxd.jail.jailer import Jailer, this_machine
from sandboxd.jail.layers import resolve
from sandboxd.policy.load import load_directory
from sandboxd.supervisor.cgroups import Cgroups
from sandboxd.supervisor.daemon import Daemon
from sandboxd.supervisor.egress import EGRESS_INDEX
from sandboxd.supervisor.fronts import FRONT_REFUSED
from sandboxd.supervisor.leaving import leave_in_time
from sandboxd.supervisor.logs import FrontLogs
from sandboxd.supervisor.prepare import our_code
from sandboxd.supervisor.rundir import RedactionKeys, RuntimeDirectory, remove_dead_socket
from sandboxd.supervisor.zygote import FrontMain, Zygote

_log = logging.getLogger(__name__)


def serve(config: DaemonConfig, front_main: FrontMain | None = None) -> int:
    """
    Run the daemon until SIGTERM or SIGINT; return the exit status. The process has to end then, and is made to after a
    while if threads hang.

    Args:
        config: the daemon's file.
        front_main: runs one front; the gRPC one if None.

    Raises:
        ConfigError: directories or sockets cannot be had.
        PolicyError: the policy directory cannot be read.
    """
    log.configure(config.log.level, config.log.format)
    loaded = load_directory(config.policies)
    runtime = RuntimeDirectory(config.runtime_directory)
    keys = RedactionKeys(config.state_directory)
    jailer = _jailer(config)  # while there is one thread
    artefact_key = read_or_make_key(config.state_directory / KEY_NAME)
    our_code()  # built once, before anybody waits for it
    cgroups = Cgroups.take(read_cgroup_facts())  # while we are alone in ours
    if not cgroups.live:
        _log.warning("tenants have no cgroups: %s", cgroups.reason)
    jailer = replace(jailer, compiler_cgroup=cgroups.compiler)
    logs = FrontLogs()
    jail = front_jail(config.front.user)
    front_main = front_main or functools.partial(_front_main, config, jail)
    zygote = Zygote(functools.partial(_child_main, front_main, jail))
    logs.fronts_can_be_forked()
    status = 1
    try:
        daemon = Daemon(config, runtime, keys, zygote, cgroups=cgroups, jailer=jailer, artefact_key=artefact_key)
        status = asyncio.run(daemon.run(loaded))
        return status
    finally:
        leave_in_time(status)
        zygote.close()
        _remove_sockets(config)
        runtime.close()
        logs.close()


def _jailer(config: DaemonConfig) -> Jailer:
    """
    Return what makes the jails; say loudly what they lack.

    Raises:
        JailError: the machine lacks a layer that every worker needs.
    """
    jailer = this_machine(resolve(config.jail.tolerate))
    for layer, reason in jailer.tolerated():
        _log.warning("WORKERS ARE LESS ISOLATED: jail.tolerate does without %s (%s)", layer, reason)
    jailer.check(frozenset())
    return jailer


def _remove_sockets(config: DaemonConfig) -> None:
    """Remove what the fronts listened on; they have no right to any more."""
    for listen in (*config.front.listen, *config.front.tenant_sockets.values()):
        paths = map(listen.path, range(config.front.processes)) if isinstance(listen, UnixListen) else ()
        for path in paths:
            with contextlib.suppress(OSError, ConfigError):
                remove_dead_socket(path)


def _child_main(front_main: FrontMain, jail: FrontJail, index: int, control: socket.socket) -> None:
    if index != EGRESS_INDEX:
        front_main(index, control)
        return
    try:
        process_settings.prepare()
        give_up_most(jail)
        from sandboxd.egress.broker import serve_egress  # noqa: PLC0415  (only in the child, as below)

        serve_egress(control, jail)
    except SandboxdError as error:
        _log.critical("%s", error)
        sys.exit(FRONT_REFUSED)


def _front_main(config: DaemonConfig, jail: FrontJail, index: int, control: socket.socket) -> None:
    try:
        process_settings.prepare()
        give_up_most(jail)
        # Only here, in the forked child: the supervisor itself never loads gRPC.
        from sandboxd.front.server import serve_front  # noqa: PLC0415

        serve_front(index, control, config, jail)
    except SandboxdError as error:
        _log.critical("%s", error)
        sys.exit(FRONT_REFUSED)
