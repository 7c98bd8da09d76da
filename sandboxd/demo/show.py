"""What the demo prints: plain words, colour on a terminal only (and never with ``NO_COLOR``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TextIO

from sandboxd.demo import http1
from sandboxd.demo.tour import Check, Exchange, Stop, Tenant

_CODES = {"bold": "1", "dim": "2", "green": "32", "red": "31", "cyan": "36"}
_MAX_BODY_CHARACTERS = 300
_DULL = frozenset({"date", "server", "x-envoy-upstream-service-time", "content-type", "content-length"})
"""Response headers that say nothing about a filter."""


class Screen:
    """Prints the tour."""

    def __init__(self, stream: TextIO = sys.stdout, environment: Mapping[str, str] = os.environ) -> None:
        self._stream = stream
        self._colour = stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self._colour else text

    def line(self, text: str = "", colour: str = "") -> None:
        """Print one line."""
        print(self._paint(text, colour) if colour else text, file=self._stream, flush=True)

    def stage(self, tenants: tuple[Tenant, ...], workers: Mapping[str, int], envoy: str) -> None:
        """Introduce who runs where."""
        self.line(f"{envoy} hands its HTTP filtering to sandboxd over ext_proc.")
        self.line("Each tenant's WebAssembly filter runs in a process of its own, under its own policy file:")
        self.line()
        for tenant in tenants:
            pid = f"pid {workers[tenant.name]}" if tenant.name in workers else "pid ?"
            self.line(f"  {tenant.name:<8}{tenant.language:<16}{pid:<12}{tenant.does}")

    def stop(self, number: int, stop: Stop, curl: str) -> None:
        """Announce a stop of the tour."""
        self.line()
        self.line(f"{number}. {stop.tenant}", "bold")
        self.line(f"   $ {curl}", "cyan")

    def answer(self, exchange: Exchange) -> None:
        """Show what came back, without what is always there."""
        message = exchange.answer
        telling = ", ".join(f"{name}: {value}" for name, value in message.headers if name not in _DULL)
        self.line(f"   < {message.status}  {telling}", "dim")
        self.line(f"   < {_short(message)}", "dim")

    def check(self, check: Check, holds: bool) -> None:
        """Show one finding."""
        if holds:
            self.line(f"   {self._paint('ok', 'green')}  {check.sentence}")
        else:
            self.line(f"   {self._paint('NOT SO', 'red')}  {check.sentence}")

    def urls(self, stops: tuple[Stop, ...], port: int, directory: str) -> None:
        """Show what the user can try."""
        self.line()
        self.line("Everything stays up. Try it yourself:", "bold")
        for curl in dict.fromkeys(stop.curl(port) for stop in stops):
            self.line(f"  {curl}", "cyan")
        self.line(f"Logs: {directory}/sandboxd.log and envoy.log. Ctrl-C ends it all.")


def _short(message: http1.Message) -> str:
    text = message.body.decode("utf-8", errors="replace").strip()
    return text if len(text) <= _MAX_BODY_CHARACTERS else text[:_MAX_BODY_CHARACTERS] + " ..."
