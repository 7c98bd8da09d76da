"""The commands, one module each: ``add_parser`` declares it and sets ``run``, which returns the status."""

from __future__ import annotations

from typing import Protocol

from sandboxd.commands import check, crashes, daemon_control, doctor, envoy_config, metrics, run, serve, status
from sandboxd.commands.common import Subparsers


class Command(Protocol):
    """What a command's module offers."""

    def add_parser(self, commands: Subparsers) -> None:
        """Declare the command and its arguments."""


ALL: tuple[Command, ...] = (serve, check, run, envoy_config, status, crashes, metrics, daemon_control, doctor)
"""In the order of the help text."""
