"""
Runs in the machine, at every boot: the proofs of this boot one by one, then the reboot or the end.

Reports JSON lines on the port that the host listens on. What was done survives the reboot in a state file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import failures
import install
import life
import limits
import names
import system

PORT = Path("/dev/virtio-ports/sandboxd.proof")
STATE = Path("/var/lib/sandboxd-proof.json")
LAST_BOOT = 2

Proof = Callable[[], dict[str, Any] | None]


def main() -> None:
    """Run this boot's proofs."""
    number = _count_boot()
    with PORT.open("w", buffering=1) as port:

        def tell(event: str, **fields: Any) -> None:
            port.write(json.dumps({"event": event, **fields}) + "\n")

        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        tell("boot", number=number, kernel=platform.release(), uptime_s=uptime_s)
        if number == 1 and _run_all(names.FIRST_BOOT, tell):
            os.sync()
            subprocess.run(["systemctl", "--no-block", "reboot"], check=True)
            return
        if number == LAST_BOOT:
            _run_all(names.SECOND_BOOT, tell)
            tell("done")
    subprocess.run(["systemctl", "--no-block", "poweroff"], check=True)


def _count_boot() -> int:
    number = 1 + (json.loads(STATE.read_text())["boots"] if STATE.exists() else 0)
    STATE.write_text(json.dumps({"boots": number}))
    os.sync()
    return int(number)


def _run_all(wanted: Sequence[str], tell: Callable[..., None]) -> bool:
    """Run proofs and report each; return whether it makes sense to go on."""
    for name in wanted:
        started_s = time.monotonic()
        error, facts = "", {}
        try:
            facts = _find(name)() or {}
        except Exception:  # in whatever way a proof breaks, it failed
            error = traceback.format_exc(limit=-3) + system.journal_tail(since_s=time.monotonic() - started_s + 2)
        tell("proof", name=name, ok=not error, seconds=time.monotonic() - started_s, facts=facts, error=error)
        if error and name == names.ESSENTIAL:
            return False
    return True


def _find(name: str) -> Proof:
    for module in (install, limits, life, failures):
        proof: Proof | None = getattr(module, name, None)
        if proof is not None:
            return proof
    raise LookupError(f"there is no proof {name}")


if __name__ == "__main__":
    main()
