"""
What the daemon's own file, ``sandboxd.yaml``, says: frozen data and its defaults. `sandboxd.config_file` reads it.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sandboxd import limits

DEFAULT_CONFIG_PATH = Path("/etc/sandboxd/sandboxd.yaml")
INDEX = "{index}"
RUNTIME = "{runtime_directory}"
DEFAULT_SOCKET = f"{RUNTIME}/front-{INDEX}.sock"
DEFAULT_ATTACH_SOCKET = f"{RUNTIME}/attach.sock"
DEFAULT_METRICS_SOCKET = f"{RUNTIME}/metrics.sock"


class LogLevel(enum.StrEnum):
    """The least grave message that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(enum.StrEnum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class UnixListen:
    """A Unix socket for each front process."""

    template: str
    """Path with ``{index}`` for the front's number; ``{runtime_directory}`` is already replaced."""

    def path(self, index: int) -> Path:
        """Return the socket of one front process, counted from 0."""
        return Path(self.template.replace(INDEX, str(index)))


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TCP listener."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Clients must show a certificate of this authority; None: anybody may connect."""


@dataclass(frozen=True, slots=True)
class TcpListen:
    """A TCP port that all front processes share."""

    host: str
    port: int
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """The gRPC servers."""

    processes: int
    listen: tuple[UnixListen | TcpListen, ...]
    tenant_sockets: Mapping[str, UnixListen] = field(default_factory=dict)
    """Sockets bound to one tenant: whoever connects there is that tenant, whatever the metadata says."""
    socket_mode: int = 0o660
    """Permissions of the Unix sockets."""
    user: str = ""
    """
    Started as root, whom fronts run as once they listen: a name or a uid; empty: ``sandboxd`` if there is such a
    user, else a uid that belongs to nobody.
    """
    mode_override: bool = False
    """Tell the proxy not to send bodies that a plugin has no callback for."""


def _unless_one_cpu(spin_us: int) -> int:
    return spin_us if len(os.sched_getaffinity(0)) > 1 else 0


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The tenants' worker processes."""

    uid_base: int = 200_000
    """Started as root, the nth tenant's worker runs as this uid (and gid) plus n."""
    spin_us: int = field(default_factory=lambda: _unless_one_cpu(limits.DEFAULT_WORKER_SPIN_US))
    """Busy waiting for the next event before sleep."""
    spares: int = 2
    """Processes that wait to become a worker, so that a restart takes milliseconds."""


@dataclass(frozen=True, slots=True)
class JailConfig:
    """The jail of workers and compilers."""

    tolerate: tuple[str, ...] = ()
    """Layers, and groups of them, that may be missing though every machine should have them."""
    self_test: bool = True
    """Attack the jail at start, and do not serve if it does not hold."""


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """The shared memory between a front and a VM."""

    ring_bytes: int = limits.DEFAULT_RING_BYTES
    """Each of the two rings; a power of two."""
    spin_us: int = field(default_factory=lambda: _unless_one_cpu(limits.DEFAULT_SPIN_US))
    """Busy waiting for a verdict before sleep."""


@dataclass(frozen=True, slots=True)
class AttachConfig:
    """The socket on which other programs, such as a proxy with libsandboxd, get channels of their own."""

    socket: Path
    uids: frozenset[int]
    """Users that may attach."""
    channels: int = 4
    """Channels of one plugin at a time: one for each thread that uses it. Each is a VM, and a thread of the worker."""


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """Where Prometheus reads the daemon's and the plugins' metrics; one of `socket` and `port`."""

    socket: Path | None = None
    socket_mode: int = 0o660
    host: str = ""
    """A loopback address: nothing is encrypted, and nobody is asked who they are."""
    port: int = 0


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The daemon's log, to standard error."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.TEXT


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """The whole file."""

    policies: Path
    """Directory of the tenants' files."""
    runtime_directory: Path
    """Sockets; need not survive a restart."""
    cache_directory: Path
    """Compiled modules."""
    state_directory: Path
    """What must survive a restart: the keys of redaction and of compiled modules."""
    front: FrontConfig
    worker: WorkerConfig = WorkerConfig()
    jail: JailConfig = JailConfig()
    channel: ChannelConfig = ChannelConfig()
    attach: AttachConfig | None = None
    """None: nobody can attach."""
    metrics: MetricsConfig | None = None
    """None: nothing listens; `sandboxd metrics` shows them all the same."""
    log: LogConfig = LogConfig()
    source_path: str = ""


# --- defaults --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Machine:
    """What the defaults depend on; given, so that reading stays pure."""

    euid: int
    cpus: int
    environ: Mapping[str, str]

    @classmethod
    def here(cls) -> Machine:
        """Return the machine and user that this process runs on and as."""
        return cls(os.geteuid(), len(os.sched_getaffinity(0)), dict(os.environ))


def default_config(machine: Machine | None = None, base: Path = DEFAULT_CONFIG_PATH.parent) -> DaemonConfig:
    """
    Return the configuration of an empty file.

    Root gets the system's directories, another user their own, so that ``sandboxd serve`` works without
    privilege.

    Args:
        machine: None for this one.
        base: the directory of the configuration file.
    """
    machine = machine or Machine.here()
    runtime, cache, state = _system_directories() if machine.euid == 0 else _user_directories(machine)
    return DaemonConfig(
        policies=base / "policies",
        runtime_directory=runtime,
        cache_directory=cache,
        state_directory=state,
        front=FrontConfig(min(2, machine.cpus), (UnixListen(in_runtime(DEFAULT_SOCKET, runtime)),)),
    )


def _system_directories() -> tuple[Path, Path, Path]:
    return Path("/run/sandboxd"), Path("/var/cache/sandboxd"), Path("/var/lib/sandboxd")


def _user_directories(machine: Machine) -> tuple[Path, Path, Path]:
    """Return the XDG base directories; without a runtime one, sockets live under the state directory."""
    home = Path(machine.environ.get("HOME") or "/nonexistent")
    cache = Path(machine.environ.get("XDG_CACHE_HOME") or home / ".cache") / "sandboxd"
    state = Path(machine.environ.get("XDG_STATE_HOME") or home / ".local/state") / "sandboxd"
    given = machine.environ.get("XDG_RUNTIME_DIR")
    return (Path(given) / "sandboxd" if given else state / "run"), cache, state


def in_runtime(template: str, runtime: Path) -> str:
    """Return the template with the runtime directory in its place."""
    return template.replace(RUNTIME, str(runtime))
