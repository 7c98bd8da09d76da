"""
Upstream, sandboxd and Envoy for a few tenants: the route ``/TENANT/PLUGIN/`` goes through that plugin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandboxd.demo import daemon, echo, envoy, envoy_config, http1
from sandboxd.demo.client import Request, fetch
from tests.support import envoy_module

EXT_PROC, SHM = TRANSPORTS = ("ext_proc", "shm")
"""How Envoy reaches sandboxd."""


@dataclass(frozen=True)
class Tenant:
    """A tenant with its plugins' entries as in a policy file."""

    name: str
    plugins: Sequence[dict[str, Any]]
    body: str = "NONE"
    """Envoy's body mode for the routes of this tenant."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the policy file."""

    def policy(self) -> dict[str, Any]:
        """Return the policy file's content."""
        isolation = {"pids": 64, "memory": "1GiB"}
        return {"tenant": self.name, "isolation": isolation, "plugins": list(self.plugins), **self.more}

    def write(self, policies: Path) -> None:
        """Write the policy file anew, at once."""
        temporary = policies / f".{self.name}"
        temporary.write_text(json.dumps(self.policy(), indent=1))
        temporary.rename(policies / f"{self.name}.yaml")

    def routes(self, transport: str = EXT_PROC) -> list[dict[str, Any]]:
        """Return Envoy's routes of this tenant."""
        if transport == SHM:
            return [
                envoy_config.route(
                    f"/{self.name}/{plugin['name']}/", "upstream", envoy_config.shm_route(self.name, plugin["name"])
                )
                for plugin in self.plugins
            ]
        mode = envoy_config.processing_mode(self.body, trailers=self.body != "NONE")
        return [
            envoy_config.route(
                f"/{self.name}/{plugin['name']}/",
                "upstream",
                envoy_config.ext_proc_route(self.name, plugin["name"], mode),
            )
            for plugin in self.plugins
        ]


@dataclass(frozen=True)
class Stage:
    """The running whole."""

    proxy: envoy.Envoy
    sandbox: daemon.Daemon
    recorder: echo.Recorder
    policies: Path

    @property
    def port(self) -> int:
        """Envoy's port."""
        return self.proxy.ports["stage"]

    def send(self, request: Request, timeout_s: float = 10.0) -> http1.Message:
        """Send one request on a connection of its own and return the answer."""
        self.recorder.take()
        return asyncio.run(fetch(self.port, request, timeout_s))

    def get(self, path: str, *headers: tuple[str, str], timeout_s: float = 10.0) -> http1.Message:
        """Send a GET request."""
        return self.send(Request("GET", path, headers), timeout_s)

    def worker_pid(self, tenant: str) -> int:
        """Return the process id of a tenant's worker."""
        return int(self.sandbox.tenants()[tenant]["worker"]["pid"])


@contextlib.contextmanager
def running(
    directory: Path,
    tenants: Sequence[Tenant],
    *,
    fronts: int = 1,
    config: Mapping[str, Any] | None = None,
    ext_proc: Mapping[str, Any] | None = None,
    clusters: Callable[[daemon.Daemon], list[dict[str, Any]]] | None = None,
    transport: str = EXT_PROC,
    shm: Mapping[str, Any] | None = None,
    behind: Sequence[dict[str, Any]] = (),
) -> Iterator[Stage]:
    """
    Run everything for the length of a ``with`` block.

    Args:
        directory: empty.
        tenants: who has a policy and routes.
        fronts: front processes.
        config: further sections of ``sandboxd.yaml``.
        ext_proc: further fields of Envoy's filter.
        clusters: the cluster ``sandboxd`` and what else Envoy needs; None: the fronts' Unix sockets.
        transport: one of `TRANSPORTS`.
        shm: further keys of the dynamic module's configuration.
        behind: filters of Envoy's behind sandboxd's.
    """
    if transport == SHM:
        envoy_module.built()
        config = {"attach": {"channels": 2}, **(config or {})}
    policies = directory / "policies"
    policies.mkdir()
    for tenant in tenants:
        tenant.write(policies)
    recorder = echo.Recorder()
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(echo.running(recorder.record))
        sandbox = stack.enter_context(daemon.running(policies, directory, fronts=fronts, config=config))
        sandbox.expect_tenants()
        servers = clusters(sandbox) if clusters else [envoy_config.grpc_cluster("sandboxd", sandbox.sockets)]
        listener = envoy_config.listener(
            "stage",
            [
                envoy_config.shm(sandbox.runtime / "attach.sock", **(shm or {}))
                if transport == SHM
                else envoy_config.ext_proc("sandboxd", **(ext_proc or {})),
                *behind,
            ],
            [route for tenant in tenants for route in tenant.routes(transport)],
            buffer_bytes=16 << 20,
        )
        bootstrap = envoy_config.bootstrap([listener], [envoy_config.http_cluster("upstream", upstream.port), *servers])
        yield Stage(stack.enter_context(envoy.running(bootstrap, directory)), sandbox, recorder, policies)


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    """Wait until a condition holds; fail with ``what`` if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
