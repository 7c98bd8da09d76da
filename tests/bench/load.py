"""The load generator `load.c`: built once by the compiler in ziglang, then run for a few seconds."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("load.c")


@dataclass(frozen=True)
class Load:
    """What one run of the generator found."""

    rps: float
    p50_us: float
    p99_us: float
    requests: int


class LoadError(Exception):
    """The generator could not be built or run, or what it loaded did not answer as it should."""


def build(directory: Path, source: Path = SOURCE) -> Path:
    """Return the path of a program of one file, built if this very source has not been built there before."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = directory / f"{source.stem}-{digest}"
    if not program.exists():
        directory.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-O2"]
        words += ["-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise LoadError(f"{source.name} does not compile:\n{done.stderr}")
    return program


@dataclass(frozen=True)
class Route:
    """What is asked for, and how hastily."""

    path: str = "/x"
    pause_us: int = 0
    """Between an answer and the connection's next request."""


def command(program: Path, port: int, connections: int, seconds: float, route: Route) -> list[str]:
    """Return the command line that loads a port of the loopback interface; see `load.c`."""
    return [str(program), "127.0.0.1", str(port), route.path, str(connections), f"{seconds:g}", str(route.pause_us)]


def run(program: Path, port: int, connections: int, seconds: float, route: Route = Route()) -> Load:
    """
    Load a port of the loopback interface.

    Raises:
        LoadError: an answer was not 200, or a connection broke: a rate of errors is no figure.
    """
    words = command(program, port, connections, seconds, route)
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 20, check=False)
    if done.returncode:
        raise LoadError(done.stderr.strip())
    found = json.loads(done.stdout)
    if found["failed"] or found["broken"] or not found["requests"]:
        raise LoadError(f"port {port} did not answer every request with 200: {done.stdout.strip()}")
    return Load(found["rps"], found["p50_us"], found["p99_us"], found["requests"])
