"""
One Envoy with every guest three times: in Envoy's own Wasm filter (V8), and in sandboxd, behind ext_proc and behind
the dynamic module.

Listeners are named ``v8-GUEST``, ``MODE-GUEST`` (a body mode of ext_proc) and ``shm-GUEST``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxd.demo import daemon, echo, envoy, envoy_config
from tests.support import envoy_module, stage
from tests.support.guests import Guest
from tests.support.subjects import Subject

BUFFER_BYTES = 16 << 20
"""More than the largest body of the cases, for Envoy's listeners and clusters alike."""

TENANT = "compared"

QUIET: dict[str, Any] = {"log": {"level": "warning"}, "attach": {"channels": 1}}
"""As Envoy is started: a guest can ask for the level."""

ROOMY = {
    "cpu_per_call": "5s",
    "time_per_event": "2s",
    "body_buffer": "16MiB",
    "host_calls_per_event": 10_000_000,
}
"""The comparison is about behaviour; limits have tests of their own."""


@dataclass(frozen=True)
class Pair:
    """What a test needs of the running whole."""

    proxy: envoy.Envoy
    sandbox: daemon.Daemon
    recorder: echo.Recorder

    def port(self, listener: str) -> int:
        """Return the port of a listener."""
        return self.proxy.ports[listener]


def _plugin(subject: Subject) -> dict[str, Any]:
    """Return a plugin that may do and see what it could inside Envoy."""
    guest = subject.guest
    shown = dict.fromkeys(("authorization", "cookie", "set-cookie", "x-forwarded-for"), "show")
    redact = {"request_headers": shown, "response_headers": shown}
    entry = guest.plugin(limits=ROOMY, header_leniency="envoy", redact=redact, **subject.more)
    return {**entry, "vm": {**entry.get("vm", {}), "id": guest.name}}


def policy(subjects: Iterable[Subject]) -> dict[str, Any]:
    """Return the policy of all guests."""
    plugins = [_plugin(subject) for subject in subjects]
    return {"tenant": TENANT, "isolation": {"pids": 2 * len(plugins) + 16, "memory": "1GiB"}, "plugins": plugins}


def _v8(guest: Guest) -> dict[str, Any]:
    filter_ = envoy_config.wasm(guest.name, guest.path, guest.configuration, root_id=guest.root_id)
    if guest.environment:
        vm = filter_["typed_config"]["config"]["vm_config"]
        vm["environment_variables"] = {"key_values": guest.environment}
    return filter_


def _routes(per_filter: dict[str, Any], more: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    every = envoy_config.route("/", "upstream", per_filter)
    return [*({**every, **route} for route in more), every]


def _listeners(
    subjects: Iterable[Subject], attach: Path, more_routes: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    plain = _routes({}, more_routes)
    for subject in subjects:
        guest = subject.guest
        yield envoy_config.listener(f"v8-{guest.name}", [_v8(guest)], plain, buffer_bytes=BUFFER_BYTES)
        module = [envoy_config.shm(attach, TENANT, guest.name)]
        yield envoy_config.listener(f"{stage.SHM}-{guest.name}", module, plain, buffer_bytes=BUFFER_BYTES)
        metadata = {"receiving_namespaces": {"untyped": [f"sandboxd.{TENANT}.{guest.name}"]}}
        for mode in subject.modes:
            processing = envoy_config.processing_mode(mode, trailers=mode != "NONE")
            route = envoy_config.ext_proc_route(TENANT, guest.name, processing)
            yield envoy_config.listener(
                f"{mode}-{guest.name}",
                [envoy_config.ext_proc("sandboxd", timeout_s=5, metadata_options=metadata)],
                _routes(route, more_routes),
                buffer_bytes=BUFFER_BYTES,
            )


@contextlib.contextmanager
def running(
    subjects: tuple[Subject, ...],
    directory: Path,
    more_clusters: Sequence[dict[str, Any]] = (),
    more_routes: Sequence[dict[str, Any]] = (),
) -> Iterator[Pair]:
    """
    Run upstream, sandboxd and Envoy for the length of a ``with`` block.

    Args:
        subjects: the guests.
        directory: empty.
        more_clusters: that guests call.
        more_routes: that come before the one for everything; only what they have in place of its fields.
    """
    policies = directory / "policies"
    policies.mkdir()
    (policies / "compared.yaml").write_text(json.dumps(policy(subjects)))
    recorder = echo.Recorder()
    envoy_module.built()
    with echo.running(recorder.record) as upstream, daemon.running(policies, directory, config=QUIET) as sandbox:
        sandbox.expect_tenants()
        clusters = [
            envoy_config.http_cluster("upstream", upstream.port, buffer_bytes=BUFFER_BYTES),
            envoy_config.grpc_cluster("sandboxd", sandbox.sockets, buffer_bytes=BUFFER_BYTES),
            *more_clusters,
        ]
        config = envoy_config.bootstrap(
            list(_listeners(subjects, sandbox.runtime / "attach.sock", more_routes)), clusters
        )
        with envoy.running(config, directory) as proxy:
            yield Pair(proxy, sandbox, recorder)
