"""Asking the running daemon, for the commands that do."""

from __future__ import annotations

import argparse
from typing import Any

from sandboxd.commands.common import config_of, split_plugin
from sandboxd.protos import admin_pb2 as admin

TIMEOUT_S = 10.0


def ask(args: argparse.Namespace, command: admin.AdminCommand, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """
    Return the daemon's answer to a command.

    Args:
        args: say which daemon is meant (`add_config_arguments`), and in ``plugin`` which tenant or plugin; None: all.
        command: what to do.
        timeout_s: how long that may take.

    Raises:
        ConfigError: no daemon listens there, or the arguments name no plugin.
        WorkerError: the daemon refused, with its reason; or it did not answer.
    """
    # Only here: parsing arguments need not load it.
    from sandboxd.supervisor.admin import admin_socket, call  # noqa: PLC0415

    given = getattr(args, "plugin", None)
    tenant, plugin = ("", "") if given is None else split_plugin(given)
    request = admin.AdminRequest(command=command, tenant=tenant, plugin=plugin)
    return call(admin_socket(config_of(args)), request, timeout_s)
