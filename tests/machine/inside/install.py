"""Proofs: the service is installed as the README says, starts, is bounded, and works."""

from __future__ import annotations

import json
import os
import pwd
import time
from pathlib import Path
from typing import Any

import exchange
import grpc
import system
import tenants

_CAPABILITIES = {"SETUID": 7, "SETGID": 6, "SETPCAP": 8, "SYS_ADMIN": 21, "KILL": 5}
_PACKAGE = "python3 -m venv /opt/sandboxd && /opt/sandboxd/bin/pip install ."
"""What the image's build did, with wheels in the network's place."""
_NOT_FOR_THE_DOCTOR = (
    *("Type=", "NotifyAccess=", "ExecStart=", "ExecReload=", "Restart=", "Watchdog"),
    *("RuntimeDirectory", "StateDirectory", "CacheDirectory"),
)
"""What makes the unit a daemon; all other options stay as they are."""
_MAX_EXPOSURE = 5.0
"""systemd's own score, 0 (nothing) to 10; a service without any option has 9.6."""


def machine_has_systemd_and_cgroup_v2() -> dict[str, Any]:
    """The machine is what it has to be for the other proofs to mean anything."""
    assert Path("/proc/1/comm").read_text().strip() == "systemd"
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    assert {"memory", "cpu", "pids"} <= set(controllers), controllers
    assert "cgroup2 /sys/fs/cgroup" in Path("/proc/mounts").read_text().replace(" - ", " ")
    version = system.run("systemctl", "--version").stdout.split()[1]
    return {"systemd": version, "controllers": " ".join(controllers)}


def unit_verifies() -> None:
    """systemd has nothing to say about the unit, the group and the directories."""
    result = system.run("systemd-analyze", "verify", str(system.PROOF / "systemd" / "sandboxd.service"))
    words = [line for line in result.stderr.splitlines() if "sandboxd" in line]
    assert not words, words


def service_installs_as_the_readme_says() -> dict[str, Any]:
    """The README's own lines, one by one: the unit becomes active when tenants run."""
    package, *commands, start = _readme_commands()
    assert package == _PACKAGE, "the image was built by other commands than the README's"
    assert start == "systemctl enable --now sandboxd"
    for command in commands:
        system.run(*command.split(), cwd=system.PROOF)
    tenants.write_all()
    started_s = time.monotonic()
    system.run(*start.split())
    seconds = time.monotonic() - started_s
    assert system.show("Type") == "notify"
    assert system.show("ActiveState") == "active"
    assert "3 of 3 tenants run" in system.show("StatusText"), system.show("StatusText")
    assert system.show("NRestarts") == "0"
    return {"seconds to active": round(seconds, 1), "status": system.show("StatusText")}


def _readme_commands() -> list[str]:
    """Return the lines of the README's block on the service."""
    chapter = (system.PROOF / "README.md").read_text().split("## Running it as a service", 1)[1]
    return chapter.split("```sh\n", 1)[1].split("```", 1)[0].splitlines()


def service_is_hardened() -> dict[str, Any]:
    """What the unit asks for is in force for the daemon and its fronts."""
    expected = sum(1 << number for number in _CAPABILITIES.values())
    daemon = system.main_pid()
    for pid in (daemon, *(front["pid"] for front in system.status()["fronts"])):
        fields = _status_fields(Path(f"/proc/{pid}"))
        if pid == daemon:
            assert int(fields["CapBnd"], 16) == expected, fields["CapBnd"]
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        root = f"/proc/{pid}/root"
        for place in ("/etc", "/usr", "/opt", "/boot"):
            assert os.statvfs(root + place).f_flag & os.ST_RDONLY, f"{place} can be written"
        assert not os.statvfs(root + "/run/sandboxd").f_flag & os.ST_RDONLY
    group = Path("/run/sandboxd/front-0.sock").stat()
    assert group.st_mode & 0o777 == 0o660
    assert Path("/run/sandboxd/front-0.sock").group() == "sandboxd"
    words = system.run("systemd-analyze", "security", "--no-pager", system.UNIT).stdout.splitlines()[-1]
    exposure = float(words.split(":", 1)[1].split()[0])
    assert exposure <= _MAX_EXPOSURE, words
    return {"exposure, of 10": exposure}


def _status_fields(process: Path) -> dict[str, str]:
    """Return the fields of a process's, or a thread's, status."""
    lines = (process / "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def fronts_have_nothing_left() -> dict[str, Any]:
    """No thread of a front is root or has a capability, though the daemon has and the sockets are root's."""
    assert int(_status_fields(Path(f"/proc/{system.main_pid()}"))["CapEff"], 16)
    user = pwd.getpwnam("sandboxd")
    assert user.pw_uid
    threads = 0
    for front in system.status()["fronts"]:
        for thread in Path(f"/proc/{front['pid']}/task").iterdir():
            fields = _status_fields(thread)
            assert set(fields["Uid"].split()) == {str(user.pw_uid)}, fields
            assert set(fields["Gid"].split()) == {str(user.pw_gid)}, fields
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(fields[name], 16) == 0, (name, fields)
            assert fields["NoNewPrivs"] == "1"
            threads += 1
        # Not dumpable: /proc/PID belongs to root.
        assert Path(f"/proc/{front['pid']}/environ").stat().st_uid == 0
    assert Path("/run/sandboxd/front-0.sock").owner() == "root"
    return {"threads": threads, "user": f"{user.pw_name} ({user.pw_uid})"}


def jail_holds_under_the_units_hardening() -> dict[str, Any]:
    """The doctor's attacks, from a unit with the same options: none takes away what a jail is made of."""
    findings = Path("/run/doctor.json")
    unit = Path("/run/systemd/system/doctor.service")
    lines = (system.PROOF / "systemd" / "sandboxd.service").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(_NOT_FOR_THE_DOCTOR)]
    own = [
        "[Service]",
        "Type=oneshot",
        f"ExecStart={system.PYTHON} -m sandboxd.doctor --json",
        f"StandardOutput=file:{findings}",
    ]
    unit.parent.mkdir(exist_ok=True)
    unit.write_text("\n".join([*kept, *own]))
    system.run("systemctl", "daemon-reload")
    result = system.run("systemctl", "start", unit.name, ok=False)
    found = json.loads(findings.read_text())
    assert "layers" in found, found
    layers = {item["layer"]: item for item in found["layers"]}
    assert found["sound"] is True, [item for item in layers.values() if item["state"] not in ("live", "applied")]
    assert result.returncode == 0, result.stderr
    assert found["identity"] == "a uid of its own", found["identity"]
    for name in ("pid_namespace", "network_namespace", "mount_namespace", "seccomp", "no_new_exec", "landlock"):
        assert layers[name]["state"] == "live", layers[name]
    live = [name for name, item in layers.items() if item["state"] == "live"]
    return {"live": " ".join(live), "not": " ".join(sorted(layers.keys() - set(live)))}


def commands_work() -> dict[str, Any]:
    """``status`` and ``check`` as an operator types them."""
    found = json.loads(system.run(system.SANDBOXD, "status", "--json").stdout)
    assert {item["tenant"]: item["state"] for item in found["tenants"]} == dict.fromkeys(
        ("busy", "calm", "hungry"), "running"
    )
    assert found["cgroup"]["live"] is True, found["cgroup"]
    text = system.run(system.SANDBOXD, "status").stdout
    assert "calm" in text
    checked = system.run(system.SANDBOXD, "check", str(system.POLICIES / "calm.yaml"))
    assert "calm" in checked.stdout + checked.stderr
    bad = Path("/tmp/bad.yaml")
    bad.write_text(tenants.calm().replace("isolation:", "isolatoin:"))
    refused = system.run(system.SANDBOXD, "check", str(bad), ok=False)
    assert refused.returncode in (1, 2), refused
    assert "isolatoin" in refused.stdout + refused.stderr
    return {"layers": " ".join(found["tenants"][1]["worker"]["layers"])}


def requests_are_filtered() -> None:
    """A filter changes a request; a tenant that is not there is refused."""
    exchange.check_calm()
    assert exchange.refusal("nobody") is grpc.StatusCode.NOT_FOUND
