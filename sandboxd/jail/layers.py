"""
The isolation layers of a worker by name: what a policy may require, a status line shows and a self-attack
proves.

Pure; imports nothing of the project.
"""

from __future__ import annotations

import enum
from typing import Final


class Layer(enum.StrEnum):
    """One thing that keeps a worker in, with what it stops."""

    FDS = "fds"
    """Descriptors of the parent that were never meant for a worker."""
    ENVIRONMENT = "environment"
    """Secrets in environment variables."""
    PARENT_DEATH_SIGNAL = "parent_death_signal"
    """Workers that outlive their supervisor."""
    UID = "uid"
    """
    Files and processes of other users: a uid of the tenant's own, or a user namespace with one id in it.
    """
    PID_NAMESPACE = "pid_namespace"
    """Seeing, signalling and tracing other processes."""
    NETWORK_NAMESPACE = "network_namespace"
    """The network, loopback and abstract Unix sockets included."""
    MOUNT_NAMESPACE = "mount_namespace"
    """Files: the root is an empty read-only tmpfs."""
    IPC_NAMESPACE = "ipc_namespace"
    """System V shared memory, POSIX message queues."""
    UTS_NAMESPACE = "uts_namespace"
    """The machine's name."""
    CGROUP_NAMESPACE = "cgroup_namespace"
    """The names of other tenants' cgroups."""
    TIME_NAMESPACE = "time_namespace"
    """Clock offsets of the machine."""
    CAPABILITIES = "capabilities"
    """Every privileged operation, in every set, for good."""
    NO_NEW_PRIVS = "no_new_privs"
    """Privilege by set-uid programs."""
    NON_DUMPABLE = "non_dumpable"
    """Core dumps; tracing by processes of the same uid."""
    RLIMITS = "rlimits"
    """Floods of descriptors, threads, queued signals and locked memory."""
    KEYRING = "keyring"
    """Keys of the parent's session."""
    LANDLOCK = "landlock"
    """Files and TCP, by another part of the kernel than the namespaces."""
    LANDLOCK_SCOPES = "landlock_scopes"
    """Signals and abstract Unix sockets to processes outside."""
    SPECULATION = "speculation"
    """Speculative store bypass and poisoned indirect branches, where the processor has them."""
    TSC = "tsc"
    """A fast clock for native code, which cache attacks need."""
    CORE_SCHEDULING = "core_scheduling"
    """Another tenant on the sibling thread of the same core."""
    SECCOMP = "seccomp"
    """Most of the kernel: about 350 system calls."""
    NO_NEW_EXEC = "no_new_exec"
    """Native code that was not there before."""
    MDWE = "mdwe"
    """Memory that was writable and becomes executable, by another part of the kernel than seccomp."""
    CGROUP = "cgroup"
    """Eating the machine's memory, processors and process table."""


NAMESPACES: Final = (
    Layer.PID_NAMESPACE,
    Layer.NETWORK_NAMESPACE,
    Layer.MOUNT_NAMESPACE,
    Layer.IPC_NAMESPACE,
    Layer.UTS_NAMESPACE,
)

GROUPS: Final = {"namespaces": NAMESPACES}
"""Names that a policy may use for several layers at once."""

ALWAYS_REQUIRED: Final = frozenset(
    {
        Layer.FDS,
        Layer.ENVIRONMENT,
        Layer.PARENT_DEATH_SIGNAL,
        Layer.UID,
        Layer.CAPABILITIES,
        Layer.NO_NEW_PRIVS,
        Layer.NON_DUMPABLE,
        Layer.RLIMITS,
        Layer.SECCOMP,
        Layer.NO_NEW_EXEC,
        *NAMESPACES,
    }
)
"""
Layers that every kernel since 5.10 has: a machine without one of them is refused unless the operator says so.
"""


def resolve(names: tuple[str, ...]) -> frozenset[Layer]:
    """Return the layers behind names and group names. Raises ValueError for an unknown one."""
    found: set[Layer] = set()
    for name in names:
        found.update(GROUPS.get(name) or (Layer(name),))
    return frozenset(found)
