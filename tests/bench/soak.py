"""
`python -m tests.bench.soak`: many requests through the dynamic module while a worker is killed every few seconds.

The plugin fails open, so each request is answered with 200, filtered or not; anything else ends the soak. Prints
Envoy's memory and descriptors after the first slice and after the last. Exit code 0: flat; 1: they grew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import psutil

from sandboxd.demo import daemon, envoy, envoy_config
from tests.bench import load, proxies
from tests.support import envoy_module

RSS_SLACK_BYTES = 16 << 20
FD_SLACK = 8
"""A channel may be in the making when the descriptors are counted."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--slice-seconds", type=float, default=5.0)
    parser.add_argument("--kill-every", type=float, default=3.0, help="seconds")
    return parser.parse_args()


def _kill(sandbox: daemon.Daemon, every_s: float, stop: threading.Event, killed: list[int]) -> None:
    while not stop.wait(every_s):
        worker = sandbox.tenants()[proxies.TENANT]["worker"]
        if worker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)
                killed.append(worker["pid"])


def _policies(directory: Path) -> Path:
    policies = directory / "policies"
    policies.mkdir()
    restart = {"backoff": "50ms", "max_crashes": 1000}
    plugin = proxies.GUEST.plugin(failure={"policy": "open", "restart": restart})
    (policies / "bench.yaml").write_text(json.dumps({"tenant": proxies.TENANT, "plugins": [plugin]}))
    return policies


def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, int]:
    """Return the figures. Raises LoadError if a request was not answered with 200."""
    envoy_module.built()
    program = load.build(Path("build"))
    quiet = {"log": {"level": "error"}, "attach": {}}
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(daemon.running(_policies(directory), directory, config=quiet))
        attach = sandbox.runtime / "attach.sock"
        filters = [envoy_config.shm(attach, proxies.TENANT, proxies.GUEST.name, failure="open")]
        listener = envoy_config.listener("shm", filters, [envoy_config.direct_route("hello world\n")])
        proxy = stack.enter_context(envoy.running(envoy_config.bootstrap([listener], []), directory))
        process = psutil.Process(proxy.child.pid)
        stop, killed = threading.Event(), list[int]()
        killer = threading.Thread(target=_kill, args=(sandbox, arguments.kill_every, stop, killed))
        killer.start()
        stack.callback(killer.join)
        stack.callback(stop.set)
        requests = 0
        first: tuple[int, int] | None = None
        while requests < arguments.requests:
            done = load.run(program, proxy.ports["shm"], arguments.connections, arguments.slice_seconds)
            requests += done.requests
            first = first or (process.memory_info().rss, process.num_fds())
            print(f"{requests} requests, {len(killed)} workers killed", file=sys.stderr, flush=True)
        assert first is not None
        counters = {name.rpartition(".")[2]: value for name, value in proxy.stats("sandboxd.(streams|failed)").items()}
        return {
            "requests": requests,
            "workers_killed": len(killed),
            "rss_first": first[0],
            "rss_last": process.memory_info().rss,
            "fds_first": first[1],
            "fds_last": process.num_fds(),
            **counters,
        }


def main() -> int:
    """Soak, print the figures, and judge them."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="sandboxd-soak-") as name:
        figures = soak(arguments, Path(name))
    for key, value in figures.items():
        print(f"{key:<20}{value:>14}")
    grown = figures["rss_last"] > figures["rss_first"] + RSS_SLACK_BYTES
    return int(grown or figures["fds_last"] > figures["fds_first"] + FD_SLACK)


if __name__ == "__main__":
    sys.exit(main())
