"""
`python -m sandboxd.demo [--once] [--port PORT]`

Exit codes: 0 the tour went as it should (without ``--once``: and the user ended it), 1 something was not as
expected, 2 the demo could not be started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sandboxd.demo import daemon, echo, envoy, envoy_config, tour
from sandboxd.demo.client import fetch
from sandboxd.demo.process import Child, ChildFailedError
from sandboxd.demo.show import Screen

POLICIES = Path(__file__).resolve().parents[2] / "policies" / "demo"
DEFAULT_PORT = 10000
BUFFER_BYTES = 4 << 20


class CannotStartError(Exception):
    """The demo cannot run here; the text says what to do."""


class InterruptedByUserError(Exception):
    """The user ended the demo by Ctrl-C, or the system by SIGTERM."""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandboxd.demo", description="sandboxd behind a real Envoy.")
    parser.add_argument("--once", action="store_true", help="end after the tour; exit 1 if anything was wrong")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="Envoy's port, 0 for any free one")
    parser.add_argument(
        "--tolerate",
        metavar="LAYER,...",
        default="",
        help="isolation layers that this machine cannot give (jail.tolerate): uid,namespaces in many containers",
    )
    return parser.parse_args(argv)


def _check_machine(port: int) -> None:
    if not POLICIES.is_dir():
        raise CannotStartError(f"the demo runs from a checkout of the project: there is no {POLICIES}")
    try:
        envoy.find_envoy()
    except envoy.EnvoyMissingError as error:
        raise CannotStartError(str(error)) from None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CannotStartError(f"port {port}: {reason}; choose another with --port, 0 for any free one") from None


def _envoy_config(port: int, upstream_port: int, sandbox: daemon.Daemon) -> dict[str, object]:
    routes = [
        envoy_config.route(
            f"/{tenant.name}/",
            "upstream",
            envoy_config.ext_proc_route(tenant.name, tenant.plugin, envoy_config.processing_mode(tenant.body)),
        )
        for tenant in tour.TENANTS
    ]
    filters = [envoy_config.ext_proc("sandboxd")]
    clusters = [
        envoy_config.http_cluster("upstream", upstream_port),
        envoy_config.grpc_cluster("sandboxd", sandbox.sockets),
    ]
    listener = envoy_config.listener("demo", filters, routes, buffer_bytes=BUFFER_BYTES, port=port)
    return envoy_config.bootstrap([listener], clusters)


def _visit(stop: tour.Stop, port: int, recorder: echo.Recorder) -> tour.Exchange:
    recorder.take()
    answer = asyncio.run(fetch(port, stop.request))
    return tour.Exchange(answer, next(iter(recorder.take()), None))


def _tour(screen: Screen, port: int, recorder: echo.Recorder) -> bool:
    """Make every request of the tour and say what came of it. True if all was as it should be."""
    all_hold = True
    for number, stop in enumerate(tour.STOPS, 1):
        screen.stop(number, stop, stop.curl(port))
        try:
            exchange = _visit(stop, port, recorder)
        except (OSError, EOFError) as error:
            screen.line(f"   no answer: {error or type(error).__name__}", "red")
            all_hold = False
            continue
        screen.answer(exchange)
        for check in stop.checks:
            holds = check.holds(exchange)
            screen.check(check, holds)
            all_hold = all_hold and holds
    return all_hold


def _stay(children: tuple[Child, ...]) -> None:
    """Wait until the user ends the demo. Raises ChildFailedError if a part of it ends before."""
    while True:
        for child in children:
            if child.exit_code is not None:
                raise ChildFailedError(f"{child.name} ended with exit code {child.exit_code}:\n{child.said()}")
        time.sleep(0.2)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into an exception; the clean-up that follows is left in peace."""

    def interrupt(_number: int, _frame: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise InterruptedByUserError

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    yield


def _workers(sandbox: daemon.Daemon) -> dict[str, int]:
    """Return each tenant's worker process id."""
    return {name: tenant["worker"]["pid"] for name, tenant in sandbox.tenants().items() if tenant["worker"]}


def _run(arguments: argparse.Namespace, screen: Screen) -> int:
    _check_machine(arguments.port)
    recorder = echo.Recorder()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandboxd-demo-")))
        upstream = stack.enter_context(echo.running(recorder.record))
        screen.line("Starting sandboxd; the first start compiles every module ...", "dim")
        jail = {"jail": {"tolerate": [name for name in arguments.tolerate.split(",") if name]}}
        sandbox = stack.enter_context(daemon.running(POLICIES, directory, fronts=2, config=jail))
        sandbox.expect_tenants()
        config = _envoy_config(arguments.port, upstream.port, sandbox)
        proxy = stack.enter_context(envoy.running(config, directory))
        port = proxy.ports["demo"]
        screen.stage(tour.TENANTS, _workers(sandbox), "Envoy " + proxy.version())
        as_expected = _tour(screen, port, recorder)
        screen.line()
        screen.line("All as it should be." if as_expected else "Not all was as it should be.", "bold")
        if not arguments.once:
            screen.urls(tour.STOPS, port, str(directory))
            try:
                _stay((sandbox.child, proxy.child))
            except InterruptedByUserError:
                screen.line("\nEnding.")
                return 0
        return 0 if as_expected else 1


def main(argv: list[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    arguments = _arguments(argv)
    screen = Screen()
    try:
        with _interruptible():
            return _run(arguments, screen)
    except (CannotStartError, ChildFailedError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except InterruptedByUserError:
        print("demo: ended before the tour was over", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
