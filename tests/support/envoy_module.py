"""Envoy's dynamic module, built when its sources are newer than it."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

from sandboxd.demo import envoy

CLIENTS = Path(__file__).resolve().parents[2] / "clients"


@functools.cache
def builder() -> ModuleType:
    """Return ``clients/envoy/build.py``."""
    spec = importlib.util.spec_from_file_location("sandboxd_envoy_build", CLIENTS / "envoy" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def built() -> Path:
    """Return the module's file, where `sandboxd.demo.envoy` looks for it."""
    file = envoy.MODULES / "libsandboxd_envoy.so"
    made = file.stat().st_mtime if file.exists() else 0.0
    sources = [path for folder in ("envoy", "c") for path in (CLIENTS / folder).iterdir() if path.is_file()]
    if made < max(path.stat().st_mtime for path in sources):
        builder().build(envoy.MODULES.parent)
    return file
