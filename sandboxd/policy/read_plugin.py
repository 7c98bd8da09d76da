"""One plugin of a policy file, all but its redaction and write rules. Pure but for a look at the file."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from sandboxd import limits
from sandboxd.policy import capabilities as caps
from sandboxd.policy import capability_names
from sandboxd.policy.folders import WasiPolicy
from sandboxd.policy.model import (
    Clock,
    FailurePolicy,
    HeaderLeniency,
    ModuleRef,
    OnFailure,
    PluginKind,
    PluginLimits,
    PluginPolicy,
    ResolvedCapabilities,
    RestartPolicy,
    VmPolicy,
)
from sandboxd.policy.read_callouts import read_callouts
from sandboxd.policy.read_rules import read_redaction, read_write
from sandboxd.policy.read_wasi import read_wasi
from sandboxd.yaml_nodes import Section, Value, did_you_mean

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NAME_FORM = "1 to 63 of a-z 0-9 - _, not beginning with - or _"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLUGIN_KEYS = (
    "name",
    "module",
    "root_id",
    "configuration",
    "vm",
    "limits",
    "capabilities",
    "redact",
    "write",
    "failure",
    "allow_on_headers_stop_iteration",
    "header_leniency",
    "callouts",
    "wasi",
    "kind",
)


@dataclass(frozen=True, slots=True)
class Modules:
    """Where module files are."""

    root: Path
    must_exist: bool


def read_name(value: Value) -> str:
    """Read the name of a tenant or plugin; it appears in paths, metrics and logs, so it is plain."""
    return checked_name(value.string(), value)


def checked_name(text: str, place: Value) -> str:
    """Return the text if it is a name; the error is that of ``place``."""
    if not _NAME.fullmatch(text):
        raise place.fail(f"{text[:70]!r} is not a name", (_NAME_FORM,))
    return text


def read_plugin(value: Value, modules: Modules) -> PluginPolicy:
    """Read one entry of ``plugins``."""
    section = value.section(_PLUGIN_KEYS)
    root_id, configuration = section.get("root_id"), section.get("configuration")
    kind = section.get("kind")
    stop, leniency = section.get("allow_on_headers_stop_iteration"), section.get("header_leniency")
    wasi = read_wasi(section.get("wasi"), modules.root)
    return PluginPolicy(
        name=read_name(section.need("name")),
        module=_module(section.need("module"), modules),
        root_id=_root_id(root_id) if root_id else "",
        configuration=configuration.json_bytes() if configuration else b"",
        vm=_vm(section.get("vm")),
        limits=_limits(section.get("limits")),
        capabilities=_capabilities(section.get("capabilities"), wasi),
        redact=read_redaction(section.get("redact")),
        write=read_write(section.get("write")),
        failure=_failure(section.get("failure")),
        allow_on_headers_stop_iteration=stop.boolean() if stop else False,
        header_leniency=leniency.choice(HeaderLeniency) if leniency else HeaderLeniency.LENIENT,
        callouts=read_callouts(section.get("callouts"), modules.root),
        wasi=wasi,
        kind=kind.choice(PluginKind) if kind else PluginKind.FILTER,
    )


def _root_id(value: Value) -> str:
    return _short_text(value, "root_id")


def _short_text(value: Value, what: str) -> str:
    text = value.string(empty=True)
    if len(text.encode()) > 256 or "\0" in text:
        raise value.fail(f"{what} must be at most 256 bytes without NUL")
    return text


def _module(value: Value, modules: Modules) -> ModuleRef:
    section = value.section(("file", "sha256"))
    file = section.need("file")
    path = modules.root / file.string()
    if "\0" in str(path):
        raise file.fail("must not hold a NUL")
    if modules.must_exist:
        _check_regular_file(file, path)
    digest = section.get("sha256")
    if digest is None:
        raise value.fail(f"needs the key sha256; `sha256sum {path}` prints it")
    text = digest.raw()
    if not _SHA256.fullmatch(text.lower()):
        raise digest.fail("is not a SHA-256 digest", ("64 hex digits",))
    return ModuleRef(path=path, sha256=text.lower())


def _check_regular_file(place: Value, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise place.fail(f"module file {path}: {reason}") from None
    if not stat.S_ISREG(mode):
        raise place.fail(f"module file {path}: is not a regular file")


def _vm(value: Value | None) -> VmPolicy:
    default = VmPolicy()
    if value is None:
        return default
    section = value.section(("id", "configuration", "environment", "memory", "clock"))
    vm_id, configuration, memory = section.get("id"), section.get("configuration"), section.get("memory")
    environment, clock = section.get("environment"), section.get("clock")
    return VmPolicy(
        vm_id=_short_text(vm_id, "vm.id") if vm_id else "",
        configuration=configuration.json_bytes() if configuration else b"",
        environment=_environment(environment) if environment else (),
        memory_bytes=_vm_memory(memory) if memory else default.memory_bytes,
        clock=clock.choice(Clock) if clock else default.clock,
    )


def _vm_memory(value: Value) -> int:
    size = value.size(limits.MIN_VM_MEMORY_BYTES, limits.MAX_VM_MEMORY_BYTES)
    if size % limits.WASM_PAGE_BYTES:
        raise value.fail("must be a multiple of a wasm page", ("multiples of 64KiB",))
    return size


def _environment(value: Value) -> tuple[tuple[str, str], ...]:
    entries = value.mapping()
    if len(entries) > limits.MAX_ENVIRONMENT_ENTRIES:
        raise value.fail(f"has {len(entries)} entries, at most {limits.MAX_ENVIRONMENT_ENTRIES} are allowed")
    found = []
    for name, entry in entries.items():
        text = entry.string(empty=True)
        if not name or "=" in name or "\0" in name:
            raise entry.fail("environment names must not be empty nor hold '=' or NUL")
        if "\0" in text:
            raise entry.fail("environment values must not hold NUL")
        found.append((name, text))
    if sum(len(name.encode()) + len(text.encode()) + 2 for name, text in found) > limits.MAX_ENVIRONMENT_BYTES:
        raise value.fail(f"is larger than {limits.MAX_ENVIRONMENT_BYTES} bytes in all")
    return tuple(found)


_DURATIONS = {
    "cpu_per_call": (limits.MIN_CPU_PER_CALL_NS, limits.MAX_CPU_PER_CALL_NS),
    "time_per_event": (limits.MIN_TIME_PER_EVENT_NS, limits.MAX_TIME_PER_EVENT_NS),
    "time_per_pause": (limits.MIN_TIME_PER_EVENT_NS, limits.MAX_TIME_PER_PAUSE_NS),
    "start_time": (limits.MIN_START_TIME_NS, limits.MAX_START_TIME_NS),
    "tick_period": (limits.DEFAULT_TICK_PERIOD_NS, limits.MAX_TICK_PERIOD_NS),
}
_SIZES = {
    "body_buffer": (limits.MIN_BODY_BUFFER_BYTES, limits.MAX_BODY_BUFFER_BYTES),
    "log_bytes_per_event": (0, limits.MAX_LOG_BYTES_PER_EVENT),
    "log_bytes_per_second": (0, limits.MAX_LOG_BYTES_PER_SECOND),
    "module_size": (limits.MIN_MODULE_BYTES, limits.MAX_MODULE_BYTES),
}
_SIZE_FIELDS = {"body_buffer": "body_buffer_bytes", "module_size": "module_bytes"}
_COUNTS = {
    "open_streams": (1, limits.MAX_OPEN_STREAMS),
    "log_lines_per_event": (0, limits.MAX_LOG_LINES_PER_EVENT),
    "log_lines_per_second": (0, limits.MAX_LOG_LINES_PER_SECOND),
    "metrics": (0, limits.MAX_METRICS),
    "host_calls_per_event": (1, limits.MAX_HOST_CALLS_PER_EVENT),
    "table_elements": (limits.MIN_TABLE_ELEMENTS, limits.MAX_TABLE_ELEMENTS),
}


def _limits(value: Value | None) -> PluginLimits:
    if value is None:
        return PluginLimits()
    section = value.section((*_DURATIONS, *_SIZES, *_COUNTS))
    found: dict[str, int] = {}
    for key in section:
        given = section.need(key)
        if key in _DURATIONS:
            found[f"{key}_ns"] = given.duration_ns(*_DURATIONS[key])
            if key == "tick_period" and found[f"{key}_ns"] % limits.MS_NS:
                raise given.fail("must be whole milliseconds")
        elif key in _SIZES:
            found[_SIZE_FIELDS.get(key, key)] = given.size(*_SIZES[key])
        else:
            found[key] = given.integer(*_COUNTS[key])
    return PluginLimits(**found)


def _capabilities(value: Value | None, wasi: WasiPolicy) -> ResolvedCapabilities:
    """
    Read grants. No section: the default preset. Names to allow without a preset: those alone. Folders grant what one
    needs to use them, unless it is denied by name.
    """
    files = capability_names.FILE_FUNCTIONS if wasi.folders else frozenset[str]()
    if value is None:
        return caps.PRESETS[caps.DEFAULT_PRESET] | files
    section = value.section(("preset", "allow", "deny"))
    preset, allow, deny = section.get("preset"), section.get("allow"), section.get("deny")
    otherwise = "none" if allow else caps.DEFAULT_PRESET
    resolved = caps.resolve(
        preset.choice(caps.PRESETS) if preset else otherwise,
        [*files, *_capability_names(allow)],
        _capability_names(deny),
    )
    for problem in caps.validate_combination(resolved):
        if problem.fatal:
            raise value.fail(f"{problem.name} {problem.problem}")
    return resolved


def _capability_names(value: Value | None) -> list[str]:
    return [_capability_name(item) for item in value.items(most=len(capability_names.ALL))] if value else []


def _capability_name(value: Value) -> str:
    name = value.string()
    if name not in capability_names.ALL:
        raise value.fail(
            f"{name[:70]!r} is not a capability{did_you_mean(name, sorted(capability_names.ALL))}",
            ("host functions, WASI functions and callbacks by their ABI names",),
        )
    return name


def _failure(value: Value | None) -> FailurePolicy:
    default = FailurePolicy()
    if value is None:
        return default
    section = value.section(("policy", "status", "restart"))
    policy, status, restart = section.get("policy"), section.get("status"), section.get("restart")
    return FailurePolicy(
        policy=policy.choice(OnFailure) if policy else default.policy,
        status=status.integer(400, 599) if status else default.status,
        restart=_restart(restart.section(("backoff", "max_crashes", "window"))) if restart else default.restart,
    )


def _restart(section: Section) -> RestartPolicy:
    default = RestartPolicy()
    backoff, crashes, window = (section.get(key) for key in ("backoff", "max_crashes", "window"))
    return RestartPolicy(
        backoff_ms=backoff.duration_ms(0, limits.MAX_RESTART_BACKOFF_MS) if backoff else default.backoff_ms,
        max_crashes=crashes.integer(0, limits.MAX_RESTART_MAX_CRASHES) if crashes else default.max_crashes,
        window_ms=window.duration_ms(1, limits.MAX_RESTART_WINDOW_MS) if window else default.window_ms,
    )
