"""
Policy files: YAML to `sandboxd.policy.model`. The only module of this package that reads files.

Every error is a `PolicyError` that names file, line, key and what is allowed, and never repeats a
configuration or environment value.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sandboxd import limits
from sandboxd.errors import ModuleRejected, PolicyError
from sandboxd.jail.layers import GROUPS, Layer
from sandboxd.policy.model import Isolation, ModuleRef, PluginPolicy, SharedBackend, SharedPolicy, TenantPolicy
from sandboxd.policy.read_plugin import Modules, read_name, read_plugin
from sandboxd.yaml_compose import compose
from sandboxd.yaml_nodes import Source, Value

ISOLATION_LAYERS = (*(layer.value for layer in Layer), *GROUPS)
"""
Layers, and groups of them, that ``isolation.require`` may name. Whether the machine has one is the jail's
business.
"""

_TENANT_KEYS = ("tenant", "isolation", "shared", "plugins")

# No user, password, query or fragment; of the authority and the path only what the client cannot misread.
_STORE_LABEL = "[A-Za-z0-9_-]{1,63}"
_STORE_HOST = rf"{_STORE_LABEL}(?:\.{_STORE_LABEL})*|\[[0-9A-Fa-f:.]+\]"
_STORE_TCP = re.compile(rf"rediss?://(?:{_STORE_HOST})(?::[0-9]{{1,5}})?(?:/[0-9]{{0,5}})?")
_STORE_UNIX = re.compile(r"unix://(/[^\s\x00-\x1f?#%]*[^\s\x00-\x1f?#%/])")
_STORE_FORMS = (
    "redis://HOST:PORT/DB or rediss://HOST:PORT/DB, with PORT 1 to 65535 and DB a number",
    "unix:///PATH",
)


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyDirectory:
    """What a policy directory holds: the good policies and, by file, what is wrong with the others."""

    policies: dict[str, TenantPolicy]
    errors: dict[str, PolicyError]


def load_directory(directory: Path | str) -> PolicyDirectory:
    """
    Load every ``*.yaml`` and ``*.yml`` of a directory in the order of their names; hidden files are left out.

    One bad file never hides the good ones. Two files of one tenant are both errors: neither is more right.

    Raises:
        PolicyError: the directory itself cannot be read, or holds more than `limits.MAX_TENANTS` files.
    """
    found: dict[str, TenantPolicy] = {}
    errors: dict[str, PolicyError] = {}
    by_tenant: dict[str, list[TenantPolicy]] = {}
    for path in _policy_files(Path(directory)):
        try:
            policy = load_policy(path)
        except PolicyError as error:
            errors[str(path)] = error
        else:
            by_tenant.setdefault(policy.tenant, []).append(policy)
    for tenant, same in by_tenant.items():
        if len(same) == 1:
            found[tenant] = same[0]
        else:
            errors.update(_duplicate_errors(tenant, same))
    return PolicyDirectory(found, dict(sorted(errors.items())))


def _policy_files(directory: Path) -> list[Path]:
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise PolicyError(f"cannot read the policy directory: {error.strerror}", path=str(directory)) from None
    files = [path for path in entries if path.suffix in (".yaml", ".yml") and path.name[0] != "."]
    if len(files) > limits.MAX_TENANTS:
        raise PolicyError(f"{len(files)} policy files, at most {limits.MAX_TENANTS}", path=str(directory))
    return files


def _duplicate_errors(tenant: str, same: list[TenantPolicy]) -> Iterable[tuple[str, PolicyError]]:
    paths = [policy.source_path for policy in same]
    for path in paths:
        others = ", ".join(other for other in paths if other != path)
        problem = f"tenant {tenant} is defined here and in {others}; each tenant has one file"
        yield path, PolicyError(problem, path=path, key="tenant")


def load_policy(path: Path | str) -> TenantPolicy:
    """
    Load one policy file. Module files are relative to it, and must exist.

    Raises:
        PolicyError: the file cannot be read or accepted.
    """
    return parse_policy(_read_text(Path(path)), str(path), module_root=Path(path).parent)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limits.MAX_POLICY_FILE_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"cannot be read: {error.strerror}", path=str(path)) from None
    if len(data) > limits.MAX_POLICY_FILE_BYTES:
        raise PolicyError(f"is larger than {limits.MAX_POLICY_FILE_BYTES} bytes", path=str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError("is not UTF-8 text", path=str(path), line=line) from None


def verify_module(ref: ModuleRef, max_bytes: int = limits.MAX_MODULE_BYTES) -> bytes:
    """
    Read a module once and return its bytes, which are those that were checked.

    Raises:
        ModuleRejected: it cannot be read, is not a regular file, is too large, or has another digest.
    """
    try:
        with ref.path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ModuleRejected(f"module {ref.path} cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise ModuleRejected(f"module {ref.path} is larger than {max_bytes} bytes: limits.module_size")
    digest = hashlib.sha256(data).hexdigest()
    if digest != ref.sha256:
        raise ModuleRejected(f"module {ref.path} has sha256 {digest}, but the policy says {ref.sha256}")
    return data


# --- parsing --------------------------------------------------------------------------------------


def parse_policy(text: str, path: str, *, module_root: Path | None) -> TenantPolicy:
    """
    Read a policy.

    Args:
        text: the file's text.
        path: its name, for errors and `TenantPolicy.source_path`.
        module_root: what relative files are relative to; those of modules and passwords must exist. None: relative
            to the directory of ``path``, and no file is looked at.

    Raises:
        PolicyError: the text cannot be accepted.
    """
    root = compose(text, Source(path, PolicyError)).section(_TENANT_KEYS)
    tenant, isolation = read_name(root.need("tenant")), _isolation(root.get("isolation"))
    modules = Modules(module_root or Path(path).parent, must_exist=module_root is not None)
    plugins = _plugins(root.need("plugins"), modules)
    for plugin, place in plugins:
        if plugin.vm.memory_bytes > isolation.memory_bytes:
            raise place.fail(f"vm.memory is more than isolation.memory ({isolation.memory_bytes} bytes)")
    return TenantPolicy(
        tenant=tenant,
        plugins=tuple(plugin for plugin, _ in plugins),
        isolation=isolation,
        shared=_shared(root.get("shared"), isolation, modules),
        source_path=path,
        digest=hashlib.sha256(text.encode("utf-8")).hexdigest(),
    )


def _isolation(value: Value | None) -> Isolation:
    default = Isolation()
    if value is None:
        return default
    section = value.section(("memory", "cpu", "pids", "require"))
    memory, cpu, pids, require = (section.get(key) for key in ("memory", "cpu", "pids", "require"))
    layers = require.items(most=len(ISOLATION_LAYERS)) if require else []
    return Isolation(
        memory_bytes=memory.size(limits.MIN_TENANT_MEMORY_BYTES, limits.MAX_TENANT_MEMORY_BYTES)
        if memory
        else default.memory_bytes,
        cpu=cpu.number(0.01, limits.MAX_TENANT_CPU) if cpu else None,
        pids=pids.integer(limits.MIN_PIDS, limits.MAX_PIDS) if pids else default.pids,
        require=tuple(dict.fromkeys(layer.choice(ISOLATION_LAYERS) for layer in layers)),
    )


def _store_address(value: Value) -> str:
    """Return the URL of a store: one that the client takes, and takes as it is meant."""
    text = value.string()
    if (socket := _STORE_UNIX.fullmatch(text)) is not None:
        if len(socket[1].encode()) > limits.MAX_UNIX_PATH_BYTES:
            raise value.fail(f"has a longer path than a Unix socket may have ({limits.MAX_UNIX_PATH_BYTES} bytes)")
        return text
    try:
        # The port is read for its range, and an address in brackets when the URL is split.
        if _STORE_TCP.fullmatch(text) is None or urlsplit(text).port == 0:
            raise ValueError
    except ValueError:
        raise value.fail("is not the address of a store", _STORE_FORMS) from None
    return text


def _backend(value: Value, modules: Modules) -> SharedBackend:
    section = value.section(("url", "timeout", "password_file"))
    url, timeout, password = section.need("url"), section.get("timeout"), section.get("password_file")
    text = _store_address(url)
    file = modules.root / password.string() if password else None
    if modules.must_exist and password and file is not None and not file.is_file():
        raise password.fail(f"{file}: is not a file that can be read")
    return SharedBackend(
        url=text,
        timeout_ms=timeout.duration_ms(1, limits.MAX_SHARED_TIMEOUT_MS)
        if timeout
        else limits.DEFAULT_SHARED_TIMEOUT_MS,
        password_file=file,
    )


def _shared(value: Value | None, isolation: Isolation, modules: Modules) -> SharedPolicy:
    default = SharedPolicy()
    if value is None:
        return default
    section = value.section(("memory", "value", "queue_items", "backend"))
    backend = section.get("backend")
    memory, one, items = (section.get(key) for key in ("memory", "value", "queue_items"))
    size = memory.size(limits.MIN_SHARED_BYTES, limits.MAX_SHARED_BYTES) if memory else default.memory_bytes
    if memory and size % 4096:
        raise memory.fail("must be a multiple of a page", ("multiples of 4KiB",))
    if memory and size > isolation.memory_bytes:
        raise memory.fail(f"is more than isolation.memory ({isolation.memory_bytes} bytes)")
    return SharedPolicy(
        memory_bytes=size,
        value_bytes=one.size(0, limits.MAX_SHARED_VALUE_BYTES) if one else default.value_bytes,
        backend=_backend(backend, modules) if backend else None,
        queue_items=items.integer(0, limits.MAX_QUEUE_ITEMS) if items else default.queue_items,
    )


def _plugins(value: Value, modules: Modules) -> list[tuple[PluginPolicy, Value]]:
    items = value.items(most=limits.MAX_PLUGINS)
    if not items:
        raise value.fail("needs at least one plugin")
    found: dict[str, tuple[PluginPolicy, Value]] = {}
    for item in items:
        plugin = read_plugin(item, modules)
        if plugin.name in found:
            first = found[plugin.name][1].line
            raise item.fail(f"plugin {plugin.name} is defined twice, first in line {first}")
        found[plugin.name] = (plugin, item)
    return list(found.values())
