"""Regenerates the Python code of ``proto/sandboxd/v1`` into this folder; a developer's tool, never run by the daemon.

``python -m sandboxd.protos.generate`` writes, ``python -m sandboxd.protos.generate --check`` compares and exits
with 1 if the files in the tree are not what the ``.proto`` files give.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SOURCES = PACKAGE.parents[1] / "proto" / "sandboxd" / "v1"
NAMES = ("control", "admin", "network_ext_proc")


def generate(target: Path) -> list[Path]:
    """Writes ``NAME_pb2.py`` and ``NAME_pb2.pyi`` for each of ``NAMES`` into ``target``; returns the files."""
    import grpc_tools  # noqa: PLC0415  (a tool of the dev extra, not of the daemon)
    from grpc_tools import protoc  # noqa: PLC0415

    google = Path(grpc_tools.__file__).with_name("_proto")

    for name in NAMES:
        arguments = [
            "protoc",
            f"-I{SOURCES}",
            f"-I{google}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"{name}.proto",
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit(f"protoc failed for {name}.proto")
    return [target / f"{name}_pb2.{suffix}" for name in NAMES for suffix in ("py", "pyi")]


def comparable(path: Path) -> str:
    """The text of a generated file without the version of protoc that wrote it."""
    return re.sub(r"Domain\.PUBLIC,\s*\d+,\s*\d+,\s*\d+", "Domain.PUBLIC", path.read_text())


def check() -> int:
    """Compares the tree with fresh output; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        stale = [f.name for f in generate(Path(folder)) if comparable(f) != comparable(PACKAGE / f.name)]
    for name in stale:
        print(f"sandboxd/protos/{name} is not what proto/ gives: run `make generate`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(check())
    generate(PACKAGE)
