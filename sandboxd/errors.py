"""
The project's errors, split by whose fault they are.

::

    SandboxdError
    ├── OperatorError           the operator: a file that cannot be accepted
    │   ├── ConfigError         the daemon's own file
    │   └── PolicyError         a tenant's policy file
    ├── PeerError               the proxy that speaks to us
    ├── GuestError              the tenant's module
    │   ├── ModuleRejected      it cannot be loaded at all
    │   ├── GuestTrap           it trapped
    │   ├── BudgetExceeded      it went past a limit
    │   └── AbiViolation        it broke the rules of the ABI
    ├── JailError               the machine cannot give an isolation layer
    ├── WorkerError             a worker process died, hung or lied
    └── InternalError           us: a bug

Exceptions are for boundaries. Inside the pure layers a failure is a value.
Anybody may import this module; it imports nothing of the project.
"""

from __future__ import annotations

import os
from typing import Any


class SandboxdError(Exception):
    """Base of everything that the project raises on purpose."""


class OperatorError(SandboxdError):
    """
    A file written by the operator cannot be accepted.

    The text never repeats a value that may be a secret (configuration, environment); the key is enough to
    find it.

    Args:
        problem: what is wrong, in words, without place.
        path: the file as the operator named it; empty if there is none.
        line: line number from 1; 0 if the problem is the file as a whole.
        key: dotted path of the key, such as ``plugins[0].limits.cpu_per_call``.
        allowed: what would have been accepted.
    """

    def __init__(
        self, problem: str, *, path: str = "", line: int = 0, key: str = "", allowed: tuple[str, ...] = ()
    ) -> None:
        self.problem = problem
        self.path = path
        self.line = line
        self.key = key
        self.allowed = allowed
        super().__init__(self._text())

    def _text(self) -> str:
        place = f"{self.path}:{self.line}" if self.path and self.line else self.path
        text = ": ".join(part for part in (place, self.key, self.problem) if part)
        return f"{text} (allowed: {', '.join(self.allowed)})" if self.allowed else text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by the default protocol, which copy.copy() follows.
        place = {"path": self.path, "line": self.line, "key": self.key, "allowed": self.allowed}
        return (_rebuild, (type(self), self.problem, place))


def _rebuild(kind: type[OperatorError], problem: str, place: dict[str, Any]) -> OperatorError:
    return kind(problem, **place)


class ConfigError(OperatorError):
    """The daemon's configuration file cannot be accepted."""


class PolicyError(OperatorError):
    """A tenant's policy file cannot be accepted."""


class PeerError(SandboxdError):
    """The proxy broke its protocol: message out of order, unknown tenant, oversized event."""


class GuestError(SandboxdError):
    """The tenant's module is at fault. The failure policy decides what the stream gets."""


class ModuleRejected(GuestError):  # noqa: N818 - the event, not a kind of bug
    """The module cannot be loaded: not wasm, wrong digest, no ABI marker, unknown import, start refused."""


class GuestTrap(GuestError):  # noqa: N818 - the event, not a kind of bug
    """The guest trapped; its VM is gone for good."""


class BudgetExceeded(GuestError):  # noqa: N818 - the event, not a kind of bug
    """The guest went past a limit of its policy."""


class AbiViolation(GuestError):  # noqa: N818 - the event, not a kind of bug
    """The guest broke a rule of the ABI that has no status code of its own."""


class JailError(SandboxdError):
    """
    An isolation layer that the policy asks for cannot be had on this machine.

    Args:
        step: the step of the jail that failed, by its name in the plan.
        errno: the kernel's answer, 0 if it was not a system call that failed.
        hint: what the operator can do about it.
    """

    def __init__(self, step: str, errno: int = 0, hint: str = "") -> None:
        self.step = step
        self.errno = errno
        self.hint = hint
        reason = os.strerror(errno) if errno else "not available"
        super().__init__(f"jail step {step}: {reason}" + (f" ({hint})" if hint else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.step, self.errno, self.hint))


class FolderError(SandboxdError):
    """A folder that a policy gives to a plugin cannot be read, or holds more than the policy allows."""


class WorkerError(SandboxdError):
    """A worker process died, hung, or said something that no honest worker says."""


class InternalError(SandboxdError):
    """A bug of sandboxd itself; an invariant is gone. Please report it."""
