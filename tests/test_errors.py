"""The errors' texts and the shape of their tree."""

from __future__ import annotations

import copy
import errno

import pytest

from sandboxd import errors
from sandboxd.errors import ConfigError, GuestError, JailError, PolicyError, SandboxdError


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (PolicyError("is bad"), "is bad"),
        (PolicyError("is bad", path="a.yaml"), "a.yaml: is bad"),
        (PolicyError("is bad", path="a.yaml", line=3, key="b.c"), "a.yaml:3: b.c: is bad"),
        (ConfigError("is bad", key="b", allowed=("x", "y")), "b: is bad (allowed: x, y)"),
        (
            JailError("seccomp", errno.EPERM, "run as root"),
            "jail step seccomp: Operation not permitted (run as root)",
        ),
        (JailError("cgroup"), "jail step cgroup: not available"),
    ],
)
def test_texts(given: SandboxdError, text: str) -> None:
    assert str(given) == text
    assert str(copy.copy(given)) == text


def test_everything_is_a_sandboxd_error() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]

    assert len(kinds) == 14
    assert all(issubclass(kind, SandboxdError) for kind in kinds)
    for name in ("ModuleRejected", "GuestTrap", "BudgetExceeded", "AbiViolation"):
        assert issubclass(getattr(errors, name), GuestError)
