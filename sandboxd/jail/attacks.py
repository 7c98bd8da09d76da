"""
What a worker that has been taken over would try: one small attack per promise of the jail, as bare system
calls.

An attack returns normally if it got what it wanted and raises OSError with the kernel's answer if not;
seccomp may also end the process. `stopped_by` names every layer that stops the attack **on its own**; the
self-test proves each of them alone, and that the attack works where none of them is
(`sandboxd.doctor.probe`).

Attacks do no lasting harm where they succeed: the bait they go for is put out by the one who runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sandboxd.jail import attack_calls as calls
from sandboxd.jail.attack_calls import Bait
from sandboxd.jail.layers import Layer


@dataclass(frozen=True, slots=True)
class Attack:
    """One attempt. ``privileged_only``: layers that stop it only where workers have a uid of their own."""

    name: str
    wants: str
    """What it would win; completes "a worker cannot ..."."""
    run: Callable[[Bait, int], object]
    """Takes the bait and what `prepare` returned."""
    stopped_by: frozenset[Layer]
    privileged_only: frozenset[Layer] = frozenset()
    prepare: Callable[[], int] = field(default=lambda: 0)
    """Runs before the jail is closed: native code that was there all along."""

    landlock_abi: int = 1
    """The oldest Landlock that knows of what it does."""

    def stoppers(self, privileged: bool, landlock_abi: int) -> frozenset[Layer]:
        """Return the layers that stop it by themselves, with the kernel's Landlock of this age."""
        found = self.stopped_by if not privileged else self.stopped_by | self.privileged_only
        return found if landlock_abi >= self.landlock_abi else found - {Layer.LANDLOCK}


_SECCOMP: Final = frozenset({Layer.SECCOMP})
_OTHER_PROCESS: Final = frozenset({Layer.SECCOMP, Layer.PID_NAMESPACE})
_FILE: Final = frozenset({Layer.SECCOMP, Layer.MOUNT_NAMESPACE, Layer.LANDLOCK})
_UID: Final = frozenset({Layer.UID})
_TRACE: Final = frozenset({Layer.UID, Layer.LANDLOCK, Layer.LANDLOCK_SCOPES})
"""What the rule of who may look into whom leans on: same uid and user namespace, same Landlock domain."""
_LESS_THAN_PARENT: Final = frozenset({Layer.CAPABILITIES})
"""That rule also forbids looking into a process with more capabilities, which a parent that is root has."""
_BOTH_FILTERS: Final = frozenset({Layer.SECCOMP, Layer.NO_NEW_EXEC})
"""Each filter checks the architecture, and takes prctl away, for itself."""

PORTABLE: Final = (
    Attack(
        "tcp_connect",
        "connect to a service of the machine",
        calls.connect_tcp,
        frozenset({Layer.SECCOMP, Layer.NETWORK_NAMESPACE, Layer.LANDLOCK}),
        landlock_abi=4,
    ),
    Attack("udp_send", "send a datagram", calls.send_udp, frozenset({Layer.SECCOMP, Layer.NETWORK_NAMESPACE})),
    Attack(
        "abstract_socket",
        "connect to an abstract Unix socket",
        calls.abstract_socket,
        frozenset({Layer.SECCOMP, Layer.NETWORK_NAMESPACE, Layer.LANDLOCK_SCOPES}),
    ),
    Attack("netlink_socket", "talk to the kernel's network configuration", calls.netlink, _SECCOMP),
    Attack("open", "read a file", calls.open_file, _FILE),
    Attack("write_file", "write to a file", calls.write_file, _FILE | {Layer.RLIMITS}),
    Attack(
        "proc_environ",
        "read another process's environment",
        calls.process_environment,
        _FILE | _UID,  # a reader with CAP_PERFMON is not asked for its Landlock domain
        _LESS_THAN_PARENT,
    ),
    Attack(
        "proc_mem",
        "read another process's memory through /proc",
        calls.process_memory_file,
        _FILE | _TRACE,
        _LESS_THAN_PARENT,
    ),
    Attack("leaked_fd", "use a descriptor that was left open", calls.leaked_descriptor, frozenset({Layer.FDS})),
    Attack(
        "mount",
        "mount a file system",
        calls.mount,
        frozenset({Layer.SECCOMP, Layer.CAPABILITIES, Layer.LANDLOCK}),
        _UID,
    ),
    Attack("execve", "run another program", calls.execve, _FILE | {Layer.NO_NEW_EXEC}),
    Attack("fork", "make a process", calls.fork, _SECCOMP),
    Attack("clone3", "make a process by clone3", calls.clone3, _SECCOMP),
    Attack("ptrace", "trace another process", calls.ptrace, _OTHER_PROCESS | _TRACE, _LESS_THAN_PARENT),
    Attack("kill", "signal another process", calls.kill, _OTHER_PROCESS | {Layer.LANDLOCK_SCOPES}, _UID),
    Attack("queue_signal", "queue a signal", calls.queue_signal, _OTHER_PROCESS | {Layer.LANDLOCK_SCOPES}, _UID),
    Attack(
        "signal_thread",
        "signal a thread",
        calls.signal_thread,
        _OTHER_PROCESS | {Layer.LANDLOCK_SCOPES},
        _UID,
    ),
    Attack(
        "read_memory",
        "read another process's memory",
        calls.read_memory,
        _OTHER_PROCESS | _TRACE,
        _LESS_THAN_PARENT,
    ),
    Attack(
        "steal_fd",
        "take a descriptor from another process",
        calls.steal_descriptor,
        _OTHER_PROCESS | _TRACE,
        _LESS_THAN_PARENT,
    ),
    Attack(
        "shared_memory",
        "attach shared memory of others",
        calls.shared_memory,
        frozenset({Layer.SECCOMP, Layer.IPC_NAMESPACE}),
    ),
    Attack("keyctl", "find a key of its parent", calls.search_key, frozenset({Layer.SECCOMP, Layer.KEYRING})),
    Attack(
        "setns",
        "go back to the machine's network",
        calls.join_namespace,
        frozenset({Layer.SECCOMP, Layer.FDS, Layer.CAPABILITIES}),
        _UID,
    ),
    Attack("user_namespace", "gain capabilities in a user namespace", calls.new_user_namespace, _SECCOMP),
    Attack(
        "network_namespace",
        "make a namespace",
        calls.new_network_namespace,
        frozenset({Layer.SECCOMP, Layer.CAPABILITIES}),
        _UID,
    ),
    Attack(
        "setresuid",
        "become another user",
        calls.become_other,
        frozenset({Layer.SECCOMP, Layer.CAPABILITIES}),
        _UID,
    ),
    Attack(
        "clock_settime",
        "set the clock",
        calls.set_clock,
        frozenset({Layer.SECCOMP, Layer.CAPABILITIES}),
        _UID,
    ),
    Attack(
        "host_name",
        "learn the machine's name",
        calls.host_name,
        frozenset({Layer.SECCOMP, Layer.UTS_NAMESPACE}),
    ),
    Attack(
        "shared_flags",
        "make the trusted side's end of a shared descriptor block",
        calls.shared_flags,
        _SECCOMP,
    ),
    Attack("dumpable", "make itself traceable again", calls.undo_dumpable, _BOTH_FILTERS),
    Attack("death_signal", "outlive its supervisor", calls.undo_death_signal, _BOTH_FILTERS),
    Attack("io_uring", "submit calls past the filter by io_uring", calls.io_uring, _SECCOMP | {Layer.RLIMITS}),
    Attack("bpf", "load a BPF object", calls.bpf, frozenset({Layer.SECCOMP, Layer.CAPABILITIES}), _UID),
    Attack("userfaultfd", "stall the kernel by page faults", calls.userfaultfd, _SECCOMP),
    Attack("perf_event", "count events of the processor", calls.perf, _SECCOMP),
    Attack("unknown_call", "make a call that is not on the list", calls.unknown_call, _SECCOMP),
    Attack(
        "map_executable",
        "map new executable memory",
        calls.map_executable,
        frozenset({Layer.SECCOMP, Layer.NO_NEW_EXEC}),
    ),
    Attack(
        "map_writable_executable",
        "map memory that is writable and executable",
        calls.map_both,
        frozenset({Layer.SECCOMP, Layer.NO_NEW_EXEC, Layer.MDWE}),
    ),
    Attack(
        "make_executable",
        "turn data into code",
        calls.make_executable,
        frozenset({Layer.NO_NEW_EXEC, Layer.MDWE}),
        prepare=calls.writable_page,
    ),
    Attack(
        "write_to_code",
        "overwrite code that is there",
        calls.write_to_code,
        frozenset({Layer.NO_NEW_EXEC}),
        prepare=lambda: calls.code_page(b"\xc3"),
    ),
    Attack("thread_flood", "start threads without end", calls.many_threads, frozenset({Layer.RLIMITS})),
    Attack("fd_flood", "duplicate descriptors without end", calls.many_descriptors, frozenset({Layer.RLIMITS})),
    Attack("lock_memory", "pin memory", calls.locked_memory, frozenset({Layer.SECCOMP, Layer.RLIMITS})),
)

X86_64: Final = (
    Attack("x32_call", "make a call by its x32 number", calls.x32_call, _BOTH_FILTERS),
    Attack(
        "int80_call",
        "make a call by its 32-bit number",
        calls.compatibility_call,
        _BOTH_FILTERS,
        prepare=lambda: calls.code_page(calls.INT80_GETPID),
    ),
    Attack(
        "rdtsc",
        "read the cycle counter",
        calls.read_tsc,
        frozenset({Layer.TSC}),
        prepare=lambda: calls.code_page(calls.RDTSC),
    ),
)

ATTACKS: Final[Mapping[str, tuple[Attack, ...]]] = {"x86_64": PORTABLE + X86_64, "aarch64": PORTABLE}
"""By architecture."""
