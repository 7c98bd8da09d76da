"""
What this machine's kernel can give, asked of the kernel itself and not of its version.

`read_facts` forks one child that tries every namespace, so it needs a process with one thread. Everybody else
calls `machine_facts`, which asks once per process and, where there are threads already, has a fresh process
ask.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.errors import JailError
from sandboxd.jail import capabilities, landlock, namespaces, speculation
from sandboxd.jail.cgroup import CgroupFacts, read_cgroup_facts
from sandboxd.jail.command import python_module
from sandboxd.jail.syscalls import prctl, syscall

_CAP_SETGID, _CAP_SETUID, _CAP_SETPCAP, _CAP_SYS_ADMIN = 6, 7, 8, 21
_CHANGE_UID: Final = 1 << _CAP_SETGID | 1 << _CAP_SETUID | 1 << _CAP_SETPCAP
_PRIVILEGES: Final = _CHANGE_UID | 1 << _CAP_SYS_ADMIN
_ASK_TIMEOUT_S: Final = 30.0

_PR_GET_MDWE: Final = 66
_PR_SCHED_CORE, _PR_SCHED_CORE_GET = 62, 0
_KEYCTL_GET_KEYRING_ID, _KEY_SPEC_SESSION = 0, -3

_MOUNT_POINTS: Final = ("/tmp", "/run", "/var", "/usr", "/proc")  # noqa: S108 (covered in a namespace, never used)

_KNOBS: Final = {
    "yama_ptrace_scope": "kernel/yama/ptrace_scope",
    "unprivileged_userns_clone": "kernel/unprivileged_userns_clone",
    "apparmor_restrict_unprivileged_userns": "kernel/apparmor_restrict_unprivileged_userns",
    "max_user_namespaces": "user/max_user_namespaces",
    "unprivileged_bpf_disabled": "kernel/unprivileged_bpf_disabled",
    "perf_event_paranoid": "kernel/perf_event_paranoid",
    "io_uring_disabled": "kernel/io_uring_disabled",
}


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What the plan and the doctor need to know."""

    architecture: str
    kernel: str
    privileged: bool
    """We may change uid and make namespaces by ourselves: workers get real uids, not a user namespace."""
    namespaces: dict[str, str]
    """By kind: empty if it can be had, else the reason. ``user`` is asked even if it is not needed."""
    seccomp: bool
    landlock_abi: int
    mdwe: bool
    keyrings: bool
    core_scheduling: bool
    speculation: dict[str, str]
    mount_point: str
    cgroup: CgroupFacts
    may_change_uid: bool = False
    """We may change uid, but perhaps not make namespaces: root in a container."""
    knobs: dict[str, str] = field(default_factory=dict)
    """Settings that explain an answer, as /proc/sys spells them; absent ones are left out."""

    @property
    def own_uids(self) -> bool:
        """
        Whether jailed processes get a uid of their own: with privilege, and where a uid can be changed and no
        user namespace be had.
        """
        return self.privileged or (self.may_change_uid and bool(self.namespaces.get("user")))

    def encode(self) -> str:
        """Return the facts as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> MachineFacts:
        """Read what `encode` wrote. Raises ValueError, KeyError, TypeError."""
        fields = json.loads(text)
        group = fields.pop("cgroup")
        return cls(**fields, cgroup=CgroupFacts(**{**group, "controllers": tuple(group["controllers"])}))


@functools.cache
def machine_facts() -> MachineFacts:
    """
    Return the facts of this machine as this process has them; asked once. Any thread may call it.

    Raises:
        JailError: a fresh process that was to ask did not answer.
    """
    if len(list(Path("/proc/self/task").iterdir())) == 1:
        return read_facts()
    argv, environment = python_module("sandboxd.jail.facts")
    try:
        done = subprocess.run(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
            check=True,
        )
        return MachineFacts.decode(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise JailError("facts", 0, f"the machine could not be asked: {error}") from error


def read_facts() -> MachineFacts:
    """Ask the kernel. Forks once; the caller must have one thread only."""
    effective, _permitted, _inheritable = capabilities.effective_sets()
    privileged = effective & _PRIVILEGES == _PRIVILEGES
    return MachineFacts(
        architecture=platform.machine(),
        kernel=platform.release(),
        privileged=privileged,
        namespaces=_try_namespaces(privileged),
        seccomp=_has_seccomp(),
        landlock_abi=landlock.abi_version(),
        mdwe=_answers(lambda: prctl(_PR_GET_MDWE)),
        keyrings=_answers(lambda: syscall("keyctl", _KEYCTL_GET_KEYRING_ID, _KEY_SPEC_SESSION, 0)),
        core_scheduling=_can(speculation.own_core),
        speculation={name: speculation.state(name) for name in speculation.CONTROLS},
        mount_point=next((path for path in _MOUNT_POINTS if Path(path).is_dir()), "/"),
        cgroup=read_cgroup_facts(),
        may_change_uid=effective & _CHANGE_UID == _CHANGE_UID,
        knobs=_read_knobs(Path("/proc/sys")),
    )


def _answers(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except OSError:
        return False
    return True


def _has_seccomp() -> bool:
    try:
        return "kill_process" in Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    except OSError:
        return False


def _read_knobs(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, path in _KNOBS.items():
        try:
            found[name] = (root / path).read_text().strip()
        except OSError:
            continue
    return found


def _can(action: Callable[[], object]) -> bool:
    """Try something irreversible in a child."""
    return not _in_child(lambda: _reason(action))[0]


def _try_namespaces(privileged: bool) -> dict[str, str]:
    """Try each kind in a child, as the plan will: in a user namespace of its own unless we are privileged."""
    kinds = [kind for kind in namespaces.CLONE_FLAGS if kind != "user"]

    def attempt() -> dict[str, str]:
        found: dict[str, str] = {}
        if not privileged:
            found["user"] = _reason(_user_namespace)
        for kind in kinds:
            found[kind] = _reason(functools.partial(namespaces.unshare, kind))
        return found

    answers = _in_child(attempt)[1]
    if privileged:
        answers["user"] = _in_child(lambda: _reason(_user_namespace))[0]
    return answers


def _user_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    namespaces.unshare("user")
    namespaces.map_single_id(65534, uid, gid)


def _reason(action: Callable[[], object]) -> str:
    try:
        action()
    except (OSError, JailError) as error:
        return str(error)
    return ""


def _in_child(action: Callable[[], object]) -> tuple[str, dict[str, str]]:
    """Run ``action`` in a forked child and return what it returned: a text, or a table of texts."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(action()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = json.loads(stream.read() or b'"the probe died"')
    os.waitpid(pid, 0)
    return (answer, {}) if isinstance(answer, str) else ("", answer)


if __name__ == "__main__":
    print(read_facts().encode())
