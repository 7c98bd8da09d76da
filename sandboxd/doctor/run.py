"""The self-test for callers that have threads: the doctor in a process of its own."""

from __future__ import annotations

import json
import subprocess
from typing import Final

from sandboxd.errors import JailError
from sandboxd.jail.command import python_module
from sandboxd.jail.layers import Layer

TIMEOUT_S: Final = 60.0


def self_test(uid: int = 0, timeout_s: float = TIMEOUT_S, tolerate: frozenset[Layer] = frozenset()) -> dict[str, str]:
    """
    Attack the jail as this process's workers get it; about a second.

    Args:
        uid: a uid of the range that workers get, if they get one; 0: the doctor's own choice.
        timeout_s: for all attacks together.
        tolerate: layers that may be missing.

    Returns:
        The attacks that were not stopped, each with what happened: empty if the jail holds.

    Raises:
        JailError: the jail cannot be made here, or the doctor said nothing that makes sense.
    """
    arguments = ["--quick", "--json"]
    if uid:
        arguments += ["--uid", str(uid)]
    if tolerate:
        arguments += ["--tolerate", ",".join(sorted(tolerate))]
    argv, environment = python_module("sandboxd.doctor", *arguments)
    try:
        done = subprocess.run(
            argv,
            env=environment,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        found = json.loads(done.stdout)
        if "error" in found:
            raise JailError("self-test", 0, str(found["error"]))
        return {str(name): str(answer) for name, answer in found["through"].items()}
    except subprocess.TimeoutExpired as error:
        raise JailError("self-test", 0, f"no answer in {timeout_s} s") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JailError("self-test", 0, f"the doctor failed: {error}") from error
