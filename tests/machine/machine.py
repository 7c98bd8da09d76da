"""A virtual machine: qemu with a serial console and a port on which the proof reports, line by line."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.machine.image import Image

PORT: Final = "sandboxd.proof"
"""Name of the reporting port: ``/dev/virtio-ports/`` in the machine."""
MEMORY_MIB: Final = 2048
CPUS: Final = 2
POLL_S: Final = 0.2


class Machine:
    """
    A machine from power on to power off.

    Args:
        image: what it boots; never written to.
        directory: where its console and reports go.
    """

    def __init__(self, image: Image, directory: Path) -> None:
        self.console = directory / "console.log"
        self.reports = directory / "reports.jsonl"
        for path in (self.console, self.reports):
            path.write_bytes(b"")
        self._process = subprocess.Popen(
            _command(image, self.console, self.reports),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def lines(self, timeout_s: float) -> Iterator[str]:
        """
        Yield the proof's lines as they come, until the machine is off.

        Raises:
            TimeoutError: it was not off in time.
            RuntimeError: qemu itself failed.
        """
        deadline_s = time.monotonic() + timeout_s
        with self.reports.open(encoding="utf-8", errors="replace") as reports:
            rest = ""
            while True:
                ended = self._process.poll() is not None
                rest += reports.read()
                *whole, rest = rest.split("\n")
                yield from whole
                if ended:
                    self._check_exit()
                    return
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"the machine was not done in {timeout_s:.0f} s")
                time.sleep(POLL_S)

    def close(self) -> None:
        """End qemu, by its pid, whatever state it is in."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _check_exit(self) -> None:
        if self._process.returncode:
            assert self._process.stderr is not None
            words = self._process.stderr.read().decode(errors="replace").strip()[-1000:]
            raise RuntimeError(f"qemu ended with status {self._process.returncode}: {words}")


def _command(image: Image, console: Path, reports: Path) -> list[str]:
    kernel_line = "root=LABEL=root rw console=ttyS0 panic=5 psi=1 systemd.show_status=0 quiet"
    return [
        "qemu-system-x86_64",
        # Software emulation works wherever qemu does; its largest processor has what the engine asks for.
        *(
            "-machine",
            "pc",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            str(CPUS),
            "-m",
            str(MEMORY_MIB),
        ),
        *("-display", "none", "-monitor", "none", "-nic", "none", "-serial", f"file:{console}"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", kernel_line),
        # With snapshot=on all writes go to a file that is gone when qemu is, and reboots still see them.
        *("-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on,cache=unsafe"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"file,id=reports,path={reports}"),
        *("-device", f"virtserialport,chardev=reports,name={PORT}"),
    ]
