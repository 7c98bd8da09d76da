"""
From a policy to what a worker can run: modules verified and compiled, in sealed memory files, and folders read.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import secrets
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from sandboxd.channel.memfd import create_blob
from sandboxd.compiler import client
from sandboxd.compiler.client import CompileSettings, HostCode, compile_module, host_code
from sandboxd.errors import FolderError, ModuleRejected, PolicyError, SandboxdError
from sandboxd.jail.jailer import Jailer
from sandboxd.policy.load import verify_module
from sandboxd.policy.model import PluginPolicy, SharedPolicy, TenantPolicy
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor import folders, upstream_tls
from sandboxd.supervisor.folders import Mount, encoded, open_folders
from sandboxd.supervisor.hostcore_config import vm_config
from sandboxd.vm import config_blob
from sandboxd.vm.artefacts import Manifest
from sandboxd.vm.link import Binding

COMPILE_TIMEOUT_S = 120.0
"""Go's modules, the largest common ones, take about five seconds on one slow core."""


class Blob:
    """A sealed memory file that closes itself when nobody holds it any more."""

    def __init__(self, name: str, data: bytes) -> None:
        self.fd = create_blob(name, data)
        weakref.finalize(self, os.close, self.fd)


@dataclass(frozen=True, slots=True)
class PreparedPlugin:
    """A plugin whose module is compiled."""

    policy: PluginPolicy
    manifest: Manifest
    bundle: Blob = field(repr=False)
    folders: tuple[Mount, ...] = field(default=(), repr=False)

    @property
    def imported_functions(self) -> tuple[str, ...]:
        """Granted host functions that the module imports."""
        found = {item.name for item in self.manifest.imports if item.binding is Binding.HOST}
        return tuple(sorted(found))

    def load_request(self, plugin_id: int) -> control.LoadPlugin:
        """Return the frame that has a worker load it."""
        asked = self.policy.limits
        return control.LoadPlugin(
            plugin_id=plugin_id,
            name=self.policy.name,
            memory_bytes=self.policy.vm.memory_bytes,
            cpu_per_call_ns=asked.cpu_per_call_ns,
            start_cpu_ns=asked.start_time_ns,
            table_elements=asked.table_elements,
        )

    def open_request(self, vm_id: int, plugin_id: int, ring_bytes: int, spin: int, restarts: int = 0) -> control.OpenVm:
        """Return the frame that has a worker start a VM; ``restarts`` as in `control.OpenVm`."""
        return control.OpenVm(vm_id=vm_id, plugin_id=plugin_id, ring_bytes=ring_bytes, spin=spin, restarts=restarts)

    def configuration(self, ring_bytes: int, log_level: int = 0, shared: SharedPolicy | None = None) -> Blob:
        """Return the configuration blob of one VM, with fresh entropy; arguments as for `vm_config`."""
        data = config_blob.encode(
            vm_config(self.policy, self.manifest, ring_bytes, log_level, shared, folders=encoded(self.folders)),
            entropy=secrets.token_bytes(config_blob.ENTROPY_BYTES),
            start_time_ns=time.time_ns(),
        )
        return Blob("configuration", data)


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """Why a plugin cannot be run."""

    text: str
    permanent: bool
    """It will be the same next time: the module or the policy has to change."""


@dataclass(frozen=True, slots=True)
class PreparedTenant:
    """One version of a tenant."""

    policy: TenantPolicy
    text: Blob
    """The policy file's text, for the fronts."""
    plugins: Mapping[str, PreparedPlugin]
    problems: Mapping[str, PluginProblem]
    """By plugin name; disjoint from `plugins`."""
    material: Blob | None = None
    """What the TLS files of callouts hold, for the egress broker. None: no plugin may call out."""


def policy_text(policy: TenantPolicy) -> str:
    """
    Return the text that a policy was read from.

    Raises:
        PolicyError: the file is another one by now.
    """
    path = Path(policy.source_path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        text = ""
    if hashlib.sha256(text.encode()).hexdigest() != policy.digest:
        raise PolicyError("changed while it was being loaded; reload again", path=policy.source_path)
    return text


@functools.cache
def our_code() -> HostCode:
    """Return hostcore and membrane, read (and if need be built) once."""
    return host_code()


def prepare_plugin(
    plugin: PluginPolicy,
    cache_directory: Path | None,
    jailer: Jailer | None = None,
    artefact_key: bytes | None = None,
) -> PreparedPlugin:
    """
    Verify and compile a plugin's module, and read its folders. Blocking; no asyncio.

    Args:
        plugin: the plugin's policy.
        cache_directory: of compiled modules; None: compile anew.
        jailer: of the compiler; None: this machine's, with nothing tolerated.
        artefact_key: authenticates what is in the cache; None: see `sandboxd.compiler.cache.ArtefactCache`.

    Raises:
        ModuleRejected: the module cannot be used; it will be the same next time.
        SandboxdError: it could not be compiled this time, or a folder not be read.
    """
    compiled = _compile_plugin(plugin, cache_directory, jailer, artefact_key)
    return replace(compiled, folders=open_folders(plugin.wasi.folders))


def _compile_plugin(
    plugin: PluginPolicy, cache_directory: Path | None, jailer: Jailer | None, artefact_key: bytes | None
) -> PreparedPlugin:
    bundle = compile_module(
        verify_module(plugin.module, plugin.limits.module_bytes),
        CompileSettings(granted=plugin.capabilities, memory_bytes=plugin.vm.memory_bytes),
        timeout_s=COMPILE_TIMEOUT_S,
        cache_directory=cache_directory,
        cache_key_bytes=artefact_key,
        host=our_code(),
        jailer=jailer,
    )
    return PreparedPlugin(plugin, bundle.manifest, Blob("bundle", bundle.data))


async def prepare_tenant(
    policy: TenantPolicy,
    compilers: asyncio.Semaphore,
    cache_directory: Path | None,
    jailer: Jailer | None = None,
    artefact_key: bytes | None = None,
) -> PreparedTenant:
    """
    Compile all plugins of a tenant and read their folders; one for which that fails does not keep the others from
    running.

    Args:
        policy: the tenant's.
        compilers: as many tenants may compile at once. One whose disk hangs has left it, and holds up no other.
        cache_directory: as for `prepare_plugin`, and so the two after it.

    Raises:
        PolicyError: the policy file changed after it was loaded.
    """
    async with compilers:
        compiled = await asyncio.to_thread(_compile_tenant, policy, cache_directory, jailer, artefact_key)
    if not any(plugin.policy.wasi.folders for plugin in compiled.plugins.values()):
        return compiled
    thread = ThreadPoolExecutor(1, thread_name_prefix="folders")  # not one of those that everybody shares
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, _with_folders, compiled)
    finally:
        thread.shutdown(wait=False)


def _with_folders(compiled: PreparedTenant) -> PreparedTenant:
    """Read all folders: a disk that hangs costs a tenant `folders.DISK_TIMEOUT_S`, however many lie on it."""
    deadline_s = time.monotonic() + folders.DISK_TIMEOUT_S
    plugins: dict[str, PreparedPlugin] = {}
    problems = dict(compiled.problems)
    for name, plugin in compiled.plugins.items():
        try:
            plugins[name] = replace(plugin, folders=open_folders(plugin.policy.wasi.folders, deadline_s))
        except FolderError as error:
            problems[name] = PluginProblem(f"{compiled.policy.source_path}: wasi.folders: {error}", permanent=False)
    return replace(compiled, plugins=plugins, problems=problems)


def _compile_tenant(
    policy: TenantPolicy, cache_directory: Path | None, jailer: Jailer | None, artefact_key: bytes | None
) -> PreparedTenant:
    text = Blob("policy", policy_text(policy).encode())
    plugins: dict[str, PreparedPlugin] = {}
    problems: dict[str, PluginProblem] = {}
    files: dict[str, bytes] = {}
    for plugin in policy.plugins:
        try:
            files.update(upstream_tls.read_files(plugin, policy.source_path))
            plugins[plugin.name] = _compile_plugin(plugin, cache_directory, jailer, artefact_key)
        except ModuleRejected as error:
            problems[plugin.name] = PluginProblem(str(error), permanent=True)
        except (SandboxdError, OSError) as error:
            problems[plugin.name] = PluginProblem(str(error), permanent=False)
    calls_out = any(plugin.callouts.upstreams for plugin in policy.plugins)
    material = Blob("material", upstream_tls.encode_files(files.items())) if calls_out else None
    return PreparedTenant(policy, text, plugins, problems, material)


def try_again(policy: TenantPolicy) -> None:
    """Forget that modules of a tenant made the compiler hang or blow up."""
    for plugin in policy.plugins:
        client.try_again(plugin.module.sha256)
