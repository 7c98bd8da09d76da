"""How long one event takes through a channel from C: against a real VM, and against a thread that only answers."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.bench.load import LoadError
from tests.support import c_client
from tests.support.daemon_client import ADD_HEADER, fake_daemon, policy_text

EVENTS = 20_000
TIMEOUT_S = 300
SPIN_US = 100
"""Of both sides: shorter than the pause of ``bench_rtt`` between the turns in which both sleep."""
PERCENTILES = {"p50": "", "p90": "_p90", "p99": "_p99", "p999": "_p999"}
FIGURES = tuple(
    f"channel_{subject}_{way}{ending}"
    for subject in ("rtt", "alone")
    for way in ("spin_ns", "sleep_us")
    for ending in PERCENTILES.values()
)
CONFIG = f"jail: {{self_test: false}}\nworker: {{spin_us: {SPIN_US}}}\nattach: {{}}\n"

Turns = dict[str, dict[str, float]]


def build(directory: Path) -> Path:
    """Build the library and ``bench_rtt`` as users would."""
    spec = importlib.util.spec_from_file_location("libsandboxd_build", c_client.SOURCES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build(directory)
    binary = directory / "bench_rtt"
    command = [
        *module.zig(), "-std=c11", "-D_GNU_SOURCE", "-O2", "-pthread", "-I", str(directory / "include"),
        str(c_client.SOURCES / "bench_rtt.c"), str(directory / "lib" / "libsandboxd.a"), "-o", str(binary),
    ]  # fmt: skip
    module.run(command, directory)
    return binary


def run(binary: Path, *arguments: str) -> Turns:
    """
    Return percentiles in ns by the way of waiting, ``spin_ns`` and ``sleep_ns``.

    Raises:
        LoadError: not every event got its verdict.
    """
    command = [str(binary), *arguments, str(EVENTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise LoadError(f"bench_rtt: {done.stderr.strip()}")
    return dict(json.loads(done.stdout))


def summarise(prefix: str, rounds: Iterable[Turns]) -> dict[str, Any]:
    """Return each percentile's median over rounds: spinning in ns, sleeping in us."""
    taken = list(rounds)
    found: dict[str, Any] = {}
    for way, unit, name in (("spin_ns", 1, "spin_ns"), ("sleep_ns", 1000, "sleep_us")):
        for percentile, ending in PERCENTILES.items():
            value = statistics.median(turns[way][percentile] for turns in taken) / unit
            found[f"{prefix}_{name}{ending}"] = round(value, 1)
    return found


def measure(rounds: int, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """
    Return ``channel_rtt_*`` (one headers event of a C guest that does next to nothing) and ``channel_alone_*``.

    The daemon is a real one with workers in their jail; its fronts are not asked.
    """
    binary = build(directory / "clients")
    cache = directory / "channel-cache"
    cache.mkdir(mode=0o700)
    real: list[Turns] = []
    alone: list[Turns] = []
    with (
        tempfile.TemporaryDirectory(prefix="sbx") as short,
        fake_daemon(Path(short), cache, {"a": policy_text("bench", ADD_HEADER)}, fronts=1, more=CONFIG) as daemon,
    ):
        socket = str(daemon.runtime / "attach.sock")
        for _ in range(rounds):
            real.append(run(binary, socket, "bench", "main"))
            alone.append(run(binary, "--loop"))
    say(f"channel: {rounds} rounds done")
    return summarise("channel_rtt", real) | summarise("channel_alone", alone)
