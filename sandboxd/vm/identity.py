"""
Which engine, set up how, makes and runs machine code: part of every artefact's cache key.

Pure, and without wasmtime, so that the trusted side can compute the key. `sandboxd.vm.engine` applies
`SETTINGS`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from dataclasses import dataclass
from pathlib import Path

from sandboxd.vm.link_modules import LINK_VERSION
from sandboxd.vm.settings import SETTINGS


def engine_identity(hostcore: bytes) -> str:
    """
    Return a short text that differs whenever an artefact of one engine must not be loaded by the other.

    Args:
        hostcore: hostcore's WebAssembly; it is compiled into every bundle.
    """
    parts = {
        "settings": SETTINGS,
        "link": LINK_VERSION,
        "hostcore": hashlib.sha256(hostcore).hexdigest(),
        "cpu": machine().cpu_features,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return f"wasmtime-{machine().wasmtime_version}-{platform.machine()}-{digest}"


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine adds to the identity."""

    wasmtime_version: str
    cpu_features: str


@functools.cache
def machine() -> Machine:
    """
    Return the machine's part. Read from files once: the compiler calls it before it gives up opening files.
    """
    return Machine(importlib.metadata.version("wasmtime"), _cpu_features())


def settings_sha256(granted: frozenset[str], memory_bytes: int) -> str:
    """Return the digest of the settings that decide what a bundle contains."""
    text = json.dumps({"granted": sorted(granted), "memory_bytes": memory_bytes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cache_key(module_sha256: str, engine: str, settings: str) -> str:
    """Return the name under which a bundle is cached: 64 hex digits."""
    return hashlib.sha256("\n".join((module_sha256, engine, settings)).encode()).hexdigest()


def _cpu_features() -> str:
    """Return the CPU's feature list: machine code is made for the CPU that compiles."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
