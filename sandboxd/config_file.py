"""
Reads the daemon's own file, ``sandboxd.yaml``.

As with policies: unknown keys, bad units and wrong types are errors (`ConfigError`) that name file, line, key
and what is allowed. Relative paths are relative to the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from sandboxd import limits
from sandboxd.config import (
    DEFAULT_ATTACH_SOCKET,
    DEFAULT_METRICS_SOCKET,
    DEFAULT_SOCKET,
    INDEX,
    RUNTIME,
    AttachConfig,
    ChannelConfig,
    DaemonConfig,
    FrontConfig,
    JailConfig,
    LogConfig,
    LogFormat,
    LogLevel,
    Machine,
    MetricsConfig,
    TcpListen,
    TlsFiles,
    UnixListen,
    WorkerConfig,
    default_config,
    in_runtime,
)
from sandboxd.errors import ConfigError
from sandboxd.jail.layers import ALWAYS_REQUIRED, GROUPS, Layer
from sandboxd.policy.read_plugin import checked_name
from sandboxd.yaml_compose import compose
from sandboxd.yaml_nodes import Source, Value

_LOOPBACK = re.compile(r"127(?:\.\d{1,3}){3}|::1|localhost")
_TCP = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})")
_MODE = re.compile(r"0?[0-7]{3}")


def load_config(path: Path | str, machine: Machine | None = None) -> DaemonConfig:
    """
    Read the daemon's file.

    Raises:
        ConfigError: it cannot be read or accepted.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(limits.MAX_POLICY_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=str(path)) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", path=str(path)) from None
    return parse_config(text, str(path), machine)


def parse_config(text: str, path: str, machine: Machine | None = None) -> DaemonConfig:
    """
    Read the daemon's configuration; an empty text is the defaults.

    Args:
        text: the file's text.
        path: its name, for errors and as the base of relative paths.
        machine: what the defaults depend on; None for this one.

    Raises:
        ConfigError: the text cannot be accepted.
    """
    base = Path(path).absolute().parent
    default = replace(default_config(machine, base), source_path=path)
    if not any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        return default
    directories = ("policies", "runtime_directory", "cache_directory", "state_directory")
    parts = ("front", "worker", "jail", "channel", "attach", "metrics", "log")
    root = compose(text, Source(path, ConfigError)).section((*directories, *parts))

    def directory(key: str) -> Path:
        value = root.get(key)
        return base / value.string() if value else Path(getattr(default, key))

    runtime = directory("runtime_directory")
    return DaemonConfig(
        policies=directory("policies"),
        runtime_directory=runtime,
        cache_directory=directory("cache_directory"),
        state_directory=directory("state_directory"),
        front=_front(root.get("front"), default.front.processes, runtime, base),
        worker=_worker(root.get("worker")),
        jail=_jail(root.get("jail")),
        channel=_channel(root.get("channel")),
        attach=_attach(root.get("attach"), runtime, base, machine or Machine.here()),
        metrics=_metrics(root.get("metrics"), runtime, base),
        log=_log(root.get("log")),
        source_path=path,
    )


def _front(value: Value | None, processes: int, runtime: Path, base: Path) -> FrontConfig:
    if value is None:
        return FrontConfig(processes, (UnixListen(in_runtime(DEFAULT_SOCKET, runtime)),))
    section = value.section(("processes", "listen", "tenant_sockets", "socket_mode", "user", "mode_override"))
    count, listen, mode = section.get("processes"), section.get("listen"), section.get("socket_mode")
    tenants, override, user = section.get("tenant_sockets"), section.get("mode_override"), section.get("user")
    processes = count.integer(1, limits.MAX_FRONT_PROCESSES) if count else processes
    sockets = _Sockets(runtime, base, processes)
    if listen:
        listeners = tuple(sockets.listener(item) for item in listen.items(most=16))
        if not listeners and not tenants:
            raise listen.fail("needs at least one socket, or tenant_sockets")
    else:
        listeners = (UnixListen(in_runtime(DEFAULT_SOCKET, runtime)),)
    return FrontConfig(
        processes=processes,
        listen=listeners,
        tenant_sockets=_tenant_sockets(tenants, sockets) if tenants else {},
        socket_mode=_socket_mode(mode) if mode else 0o660,
        user=_user(user) if user else "",
        mode_override=override.boolean() if override else False,
    )


def _tenant_sockets(value: Value, sockets: _Sockets) -> dict[str, UnixListen]:
    return {checked_name(name, place): sockets.unix(place) for name, place in value.mapping().items()}


def _user(value: Value) -> str:
    text = value.raw()
    if not text:
        raise value.fail("must not be empty")
    return text


def _socket_mode(value: Value) -> int:
    text = value.raw()
    if not _MODE.fullmatch(text):
        raise value.fail("is not a file mode", ("three octal digits, such as 660",))
    return int(text, 8)


@dataclass(frozen=True, slots=True)
class _Sockets:
    """Reads listeners, which depend on the runtime directory and the number of fronts."""

    runtime: Path
    base: Path
    processes: int

    def listener(self, value: Value) -> UnixListen | TcpListen:
        if not value.is_mapping():
            return self.unix(value)
        section = value.section(("unix", "tcp", "tls"))
        unix, tcp, tls = section.get("unix"), section.get("tcp"), section.get("tls")
        if (unix is None) == (tcp is None):
            raise value.fail("needs exactly one of unix and tcp")
        if tcp is not None:
            return self.tcp(tcp, tls)
        if unix is None or tls is not None:
            raise value.fail("tls goes with tcp")
        return self.unix(unix)

    def unix(self, value: Value) -> UnixListen:
        template = in_runtime(value.string(), self.runtime)
        if "{" in template.replace(INDEX, "") or "}" in template.replace(INDEX, "") or "\0" in template:
            raise value.fail("has an unknown placeholder", (INDEX, RUNTIME))
        if self.processes > 1 and INDEX not in template:
            raise value.fail(f"needs {INDEX}: each of {self.processes} front processes has its own socket")
        listen = UnixListen(str(self.base / template))
        longest = len(str(listen.path(self.processes - 1)).encode())
        if longest > limits.MAX_UNIX_PATH_BYTES:
            raise value.fail(f"is {longest} bytes, a Unix socket's path has {limits.MAX_UNIX_PATH_BYTES}")
        return listen

    def tcp(self, value: Value, tls: Value | None) -> TcpListen:
        host, port = _host_and_port(value)
        if tls is None and not _LOOPBACK.fullmatch(host):
            raise value.fail("needs tls: request headers and bodies would cross the network in the clear")
        return TcpListen(host, port, self._tls(tls) if tls else None)

    def _tls(self, value: Value) -> TlsFiles:
        section = value.section(("certificate", "key", "client_ca"))
        client_ca = section.get("client_ca")
        return TlsFiles(
            certificate=self.base / section.need("certificate").string(),
            key=self.base / section.need("key").string(),
            client_ca=self.base / client_ca.string() if client_ca else None,
        )


def _host_and_port(value: Value) -> tuple[str, int]:
    match = _TCP.fullmatch(value.string())
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise value.fail("is not an address", ("HOST:PORT, such as 127.0.0.1:9000 or [::1]:9000",))
    return match[1] or match[2], int(match[3])


def _worker(value: Value | None) -> WorkerConfig:
    default = WorkerConfig()
    if value is None:
        return default
    section = value.section(("uid_base", "spin_us", "spares"))
    uid, spin, spares = section.get("uid_base"), section.get("spin_us"), section.get("spares")
    return WorkerConfig(
        uid_base=_uid_base(uid) if uid else default.uid_base,
        spin_us=spin.integer(0, limits.MAX_SPIN_US) if spin else default.spin_us,
        spares=spares.integer(0, limits.MAX_SPARE_WORKERS) if spares else default.spares,
    )


def _uid_base(value: Value) -> int:
    # Below 1000 live the system's own users; 2^31 leaves room for every tenant.
    base, ours = value.integer(1000, 2**31), limits.OUR_UIDS
    lowest = ours.start - limits.MAX_TENANTS
    if lowest < base < ours.stop:
        problem = f"tenants would get uids of sandboxd's own, {ours.start} to {ours.stop - 1}"
        raise value.fail(problem, (f"1000 to {lowest}", f"{ours.stop} to {2**31}"))
    return base


def _jail(value: Value | None) -> JailConfig:
    default = JailConfig()
    if value is None:
        return default
    section = value.section(("tolerate", "self_test"))
    tolerate, self_test = section.get("tolerate"), section.get("self_test")
    names = tuple(layer.value for layer in Layer if layer in ALWAYS_REQUIRED)
    return JailConfig(
        tolerate=tuple(item.choice((*names, *GROUPS)) for item in tolerate.items(most=len(Layer)))
        if tolerate
        else default.tolerate,
        self_test=self_test.boolean() if self_test else default.self_test,
    )


def _channel(value: Value | None) -> ChannelConfig:
    default = ChannelConfig()
    if value is None:
        return default
    section = value.section(("ring_bytes", "spin_us"))
    ring, spin = section.get("ring_bytes"), section.get("spin_us")
    return ChannelConfig(
        ring_bytes=_ring(ring) if ring else default.ring_bytes,
        spin_us=spin.integer(0, limits.MAX_SPIN_US) if spin else default.spin_us,
    )


def _attach(value: Value | None, runtime: Path, base: Path, machine: Machine) -> AttachConfig | None:
    if value is None:
        return None
    section = value.section(("socket", "uids", "channels"))
    place, uids, channels = section.get("socket"), section.get("uids"), section.get("channels")
    path = _socket(place or value, place.string() if place else DEFAULT_ATTACH_SOCKET, runtime, base)
    allowed = [item.integer(0, 2**32 - 2) for item in uids.items(most=64)] if uids else [machine.euid]
    return AttachConfig(path, frozenset(allowed), channels.integer(1, limits.MAX_ATTACHED) if channels else 4)


def _metrics(value: Value | None, runtime: Path, base: Path) -> MetricsConfig | None:
    if value is None:
        return None
    section = value.section(("listen", "socket_mode"))
    listen, mode = section.get("listen"), section.get("socket_mode")
    text = listen.string() if listen else DEFAULT_METRICS_SOCKET
    if listen is None or "/" in text:
        path = _socket(listen or value, text, runtime, base)
        return MetricsConfig(socket=path, socket_mode=_socket_mode(mode) if mode else 0o660)
    host, port = _host_and_port(listen)
    if not _LOOPBACK.fullmatch(host):
        raise listen.fail("must be a loopback address or a path: metrics are not encrypted, and shown to whoever asks")
    if mode is not None:
        raise mode.fail("goes with a Unix socket")
    return MetricsConfig(host=host, port=port)


def _socket(value: Value, template: str, runtime: Path, base: Path) -> Path:
    path = base / in_runtime(template, runtime)
    if len(str(path).encode()) > limits.MAX_UNIX_PATH_BYTES:
        raise value.fail(f"is longer than a Unix socket's path, {limits.MAX_UNIX_PATH_BYTES} bytes")
    return path


def _ring(value: Value) -> int:
    size = value.size(limits.MIN_RING_BYTES, limits.MAX_RING_BYTES)
    if size & (size - 1):
        raise value.fail("must be a power of two", ("64KiB", "128KiB", "...", "16MiB"))
    return size


def _log(value: Value | None) -> LogConfig:
    default = LogConfig()
    if value is None:
        return default
    section = value.section(("level", "format"))
    level, form = section.get("level"), section.get("format")
    return LogConfig(
        level=level.choice(LogLevel) if level else default.level,
        format=form.choice(LogFormat) if form else default.format,
    )
