"""Tell systemd how we are: the ``sd_notify`` protocol, without its library."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

_log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 1.0


class Notifier:
    """Sends state to ``NOTIFY_SOCKET``; does nothing if there is none."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environment)
        """How often systemd wants a sign of life; 0: never."""

    def ready(self, status: str) -> None:
        """The daemon serves (also the end of a reload)."""
        self._send(f"READY=1\nSTATUS={status}")

    def still_starting(self, more_s: float) -> None:
        """The start goes on, and is not to be given up for ``more_s``; the next word comes before they are over."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(more_s * 1e6)}")

    def reloading(self) -> None:
        """A reload began; `ready` ends it."""
        # systemd tells this reload from older ones by CLOCK_MONOTONIC in microseconds.
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The daemon began to stop."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The event loop is alive."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                # The kernel queues about ten messages; past that a manager that does not read would stop us for good.
                sock.settimeout(SEND_TIMEOUT_S)
                sock.sendto(text.encode(), self._address)
        except OSError as error:
            _log.warning("systemd cannot be told %s: %s", text.partition("=")[0], error)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return int(environment.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return 0.0
