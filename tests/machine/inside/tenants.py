"""The tenants of the proofs: policy files made of a few lines."""

from __future__ import annotations

import hashlib

from system import PROOF, write_policy

CALM_MEMORY_MIB = 192
HUNGRY_MEMORY_MIB = 160
BUSY_CPU = 0.3
BUSY_CALL_S = 6
PIDS = 24


def policy(tenant: str, guest: str, isolation: str, plugin: str = "", comment: str = "") -> str:
    """Return a policy file of one plugin, ``filter``, that may do all."""
    module = PROOF / "guests" / guest
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    return f"""\
# {comment}
tenant: {tenant}
isolation: {{{isolation}}}
plugins:
  - name: filter
    module: {{file: {module}, sha256: {digest}}}
    capabilities: {{preset: standard}}
{plugin}"""


def calm(comment: str = "") -> str:
    """Add a header; the neighbour of whoever misbehaves."""
    isolation = f"memory: {CALM_MEMORY_MIB}MiB, pids: {PIDS}, require: [cgroup]"
    return policy("calm", "c/c_add_header.wasm", isolation, comment=comment)


def hungry() -> str:
    """Take memory without end: the VM's own limit is as large as the whole worker's."""
    plugin = f"""\
    vm: {{memory: {HUNGRY_MEMORY_MIB}MiB}}
    limits: {{cpu_per_call: 10s, time_per_event: 60s}}
"""
    isolation = f"memory: {HUNGRY_MEMORY_MIB}MiB, pids: {PIDS}, require: [cgroup]"
    return policy("hungry", "misdeeds/grow_forever.wasm", isolation, plugin)


def busy() -> str:
    """Loop in a callback for as long as its CPU limit lets it."""
    plugin = f"    limits: {{cpu_per_call: {BUSY_CALL_S}s, time_per_event: 60s}}\n"
    isolation = f"memory: {CALM_MEMORY_MIB}MiB, cpu: {BUSY_CPU}, pids: {PIDS}, require: [cgroup]"
    return policy("busy", "misdeeds/loop_in_request_headers.wasm", isolation, plugin)


def write_all() -> None:
    """Put every tenant's policy in place."""
    write_policy("calm", calm())
    write_policy("hungry", hungry())
    write_policy("busy", busy())
