"""What the machine needs to build and boot an image; installed when we may, named when we may not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where administrators' tools are; an ordinary user's PATH may lack some of it."""

PACKAGES = {
    "debootstrap": "debootstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "chroot": "coreutils",
}
"""Program to Debian package."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Missing(Exception):  # noqa: N818 - a finding about the machine, not a bug
    """The image cannot be built or booted here; the text says what to do."""


def ensure() -> None:
    """
    Install what is missing.

    Raises:
        Missing: we are not root, or the packages cannot be had.
    """
    packages = _missing()
    if os.geteuid() != 0:
        also = f"; it would also install: {' '.join(packages)}" if packages else ""
        raise Missing(f"has to run as root, for debootstrap makes a system in a chroot{also}")
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise Missing(f"needs these Debian packages, and there is no apt-get to install them: {' '.join(packages)}")
    print(f"installing {' '.join(packages)} ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for command in (["apt-get", "update", "-qq"], install):
        try:
            result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        except subprocess.TimeoutExpired:
            raise Missing(f"{' '.join(command)} had not ended after 10 minutes") from None
        if result.returncode:
            raise Missing(f"{' '.join(command)} failed:\n{result.stderr.strip()[-2000:]}")
    if still := _missing():
        raise Missing(f"installed its packages and still lacks: {' '.join(still)}")


def _missing() -> list[str]:
    found = [package for program, package in PACKAGES.items() if shutil.which(program, path=SYSTEM_PATH) is None]
    if not KEYRING.exists():
        found.append("debian-archive-keyring")
    return found


def debian_mirror() -> str:
    """
    Return the URL of a Debian mirror: ``DEBIAN_MIRROR``, or what this machine's own apt uses.

    Raises:
        Missing: neither says.
    """
    if given := os.environ.get("DEBIAN_MIRROR"):
        return given
    wanted = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian", "Created-By: Packages"]
    hint = "set DEBIAN_MIRROR to the URL of a Debian mirror"
    try:
        result = subprocess.run(wanted, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        raise Missing(f"cannot ask apt for a mirror; {hint}") from None
    mirrors = [uri for uri in result.stdout.split() if "security" not in uri]
    if not mirrors:
        raise Missing(f"this machine's apt names no mirror of Debian (or `apt-get update` never ran); {hint}")
    return mirrors[0]
