"""
A Debian image with systemd, the package and the proof, built in ``build/machine``, kept by a key of its inputs.

Two layers: the system as debootstrap makes it (minutes; changes with its list of packages alone) and, on a
copy of it, the package as the README installs it (seconds; changes with any of the sources).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.machine import wheels
from tests.machine.needs import SYSTEM_PATH, Missing, debian_mirror

ROOT = wheels.ROOT
BUILD = ROOT / "build" / "machine"
INSIDE = Path(__file__).resolve().parent / "inside"

SUITE = "bookworm"
"""cgroup v2, Linux 6.1, systemd 252, Python 3.11: the oldest system that is still common."""
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "procps",
    "python3",
    "python3-venv",
    "systemd",
    "systemd-sysv",
    "udev",
)
DISK_BYTES = 3 << 30
PREFIX = "/opt/sandboxd"
"""Where the README installs the package."""
PROOF = "/opt/proof"

_UNIT = f"""\
[Unit]
Description=Proof of sandboxd's promises on a real machine
After=multi-user.target
# Restarts of the service under proof must not restart the proof.
[Service]
Type=simple
ExecStart={PREFIX}/bin/python -u -B {PROOF}
StandardOutput=journal+console
StandardError=journal+console
TimeoutStopSec=5s
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What qemu needs."""

    disk: Path
    kernel: Path
    initrd: Path


def build() -> Image:
    """
    Return the image for the sources as they are now.

    Raises:
        Missing: no mirror is known, or debootstrap has no success with it.
        CalledProcessError: a tool failed; its words are on stderr, or in the log that the text names.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    key = _key(_inputs())
    image = Image(BUILD / f"disk-{key}.img", BUILD / f"vmlinuz-{key}", BUILD / f"initrd-{key}")
    if all(path.exists() for path in (image.disk, image.kernel, image.initrd)):
        print(f"image {key}: there already", flush=True)
        return image
    base = _base()
    for old in (*BUILD.glob("disk-*"), *BUILD.glob("vmlinuz-*"), *BUILD.glob("initrd-*")):
        old.unlink()
    tree = BUILD / "tree"
    try:
        print(f"image {key}: installing the package", flush=True)
        _remove(tree)
        _run("cp", "-a", "--reflink=auto", str(base), str(tree))
        _install_package(tree)
        _configure(tree)
        shutil.copyfile(tree / "vmlinuz", image.kernel)
        shutil.copyfile(tree / "initrd.img", image.initrd)
        unfinished = image.disk.with_suffix(".new")
        with unfinished.open("wb") as disk:
            disk.truncate(DISK_BYTES)
        _run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", str(tree), str(unfinished))
        unfinished.rename(image.disk)
    finally:
        _remove(tree)
    return image


def _inputs() -> Iterable[Path]:
    """Yield every file that ends up in the image or decides what does."""
    for name in ("pyproject.toml", "setup.py", "README.md", "tests/machine/image.py", "tests/machine/wheels.py"):
        yield ROOT / name
    for folder in ("sandboxd", "policies", "proto", "systemd", "tests/guests", "tests/machine/inside"):
        yield from (ROOT / folder).rglob("*")


def _key(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(set(paths)):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _base() -> Path:
    """Return the tree that debootstrap made."""
    key = hashlib.sha256("\0".join((SUITE, *PACKAGES)).encode()).hexdigest()[:16]
    base = BUILD / f"base-{key}"
    if base.exists():
        return base
    for old in BUILD.glob("base-*"):
        _remove(old)
    mirror = debian_mirror()
    print(f"building a Debian {SUITE} system (about a minute and a half) ...", flush=True)
    unfinished = BUILD / "base.new"
    _remove(unfinished)
    log = BUILD / "debootstrap.log"
    include = f"--include={','.join(PACKAGES)}"
    with log.open("wb") as output:
        command = ["debootstrap", "--variant=minbase", include, SUITE, str(unfinished), mirror]
        try:
            result = subprocess.run(command, stdout=output, stderr=output, env=_environment(), timeout=900, check=False)
        except subprocess.TimeoutExpired:
            raise Missing(f"debootstrap had made no system from {mirror} after 15 minutes, see {log}") from None
    if result.returncode:
        tail = log.read_text(errors="replace")[-1500:]
        raise Missing(f"debootstrap could not make a system from {mirror}, see {log}:\n{tail}")
    shutil.rmtree(unfinished / "var" / "cache" / "apt" / "archives", ignore_errors=True)
    unfinished.rename(base)
    return base


def _install_package(tree: Path) -> None:
    """Install as the README says, from wheels in the place of the network."""
    inside = tree / "var" / "tmp" / "wheels"
    inside.mkdir()
    wheels.download(inside)
    own = wheels.build_own(inside)
    _chroot(tree, "python3", "-m", "venv", PREFIX)
    pip = (
        f"{PREFIX}/bin/pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
    )
    _chroot(tree, *pip, "--no-index", "--find-links=/var/tmp/wheels", f"/var/tmp/wheels/{own.name}")
    shutil.rmtree(inside)


def _configure(tree: Path) -> None:
    """Put in what an operator would have at hand, and the proof, which installs the service itself."""
    proof = tree / PROOF.lstrip("/")
    shutil.copytree(INSIDE, proof, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "README.md", proof / "README.md")
    shutil.copytree(ROOT / "systemd", proof / "systemd")
    shutil.copytree(ROOT / "policies", proof / "policies")
    shutil.copytree(ROOT / "tests" / "guests", proof / "guests")
    (tree / "etc" / "hostname").write_text("proof\n")
    (tree / "etc" / "fstab").write_text("LABEL=root / ext4 defaults 0 1\n")
    unit = tree / "etc" / "systemd" / "system" / "sandboxd-proof.service"
    unit.write_text(_UNIT)
    _chroot(tree, "systemctl", "enable", "--quiet", "sandboxd-proof.service")
    # Nothing here waits for a network or refreshes packages while a proof measures.
    _chroot(tree, "systemctl", "mask", "--quiet", "apt-daily.timer", "apt-daily-upgrade.timer", "fstrim.timer")


def _chroot(tree: Path, *command: str) -> None:
    _run("chroot", str(tree), *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, env=_environment(), timeout=600)


def _environment() -> dict[str, str]:
    return {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", "TERM": os.environ.get("TERM", "dumb")}


def _remove(tree: Path) -> None:
    """Remove a tree of ours; `rm` does not follow links out of it."""
    if tree.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", str(tree)], check=True, timeout=300)
