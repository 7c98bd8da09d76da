"""The command line: exit statuses, one-line errors, and the commands to a running daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.cli import main
from sandboxd.commands.common import Colours, with_runtime_directory
from sandboxd.commands.status import is_well, lines
from sandboxd.config_file import parse_config
from tests.support.daemon_client import ADD_HEADER, fake_daemon, policy_text


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["check"], ["run", "one"], ["serve", "--fronts", "x"]])
def test_wrong_usage_is_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With argparse's own words."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: sandboxd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--config", "{d}/none.yaml"], "none.yaml: cannot be read"),
        (
            ["serve", "--config", "{d}/bad.yaml"],
            "bad.yaml:1: polices: is not a known key (did you mean policies?)",
        ),
        (
            ["serve", "--config", "{d}/good.yaml", "--policies", "{d}/none"],
            "cannot read the policy directory",
        ),
        (
            ["serve", "--config", "{d}/good.yaml", "--fronts", "0"],
            "--fronts: is not a number of front processes",
        ),
        (["serve", "--config", "{d}/one.yaml", "--fronts", "2"], "needs {index}"),
        (["status", "--config", "{d}/good.yaml"], "is it running?"),
        (["reload", "--config", "{d}/good.yaml"], "is it running?"),
        (["envoy-config", "--config", "{d}/good.yaml"], "there is no policy file"),
    ],
)
def test_operator_errors_are_two_and_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``sandboxd: error: file:line: key: text``."""
    (tmp_path / "bad.yaml").write_text("polices: x\n")
    directories = "".join(f"{name}_directory: {tmp_path}/{name}\n" for name in ("runtime", "cache", "state"))
    (tmp_path / "p").mkdir()
    (tmp_path / "good.yaml").write_text(f"policies: p\n{directories}")
    (tmp_path / "one.yaml").write_text(f"policies: p\n{directories}front: {{processes: 1, listen: [one.sock]}}\n")

    assert main([argument.replace("{d}", str(tmp_path)) for argument in arguments]) == 2

    err = capsys.readouterr().err
    assert err.startswith("sandboxd: error: ")
    assert err.count("\n") == 1
    assert words in err


def test_runtime_directory_moves_the_default_sockets() -> None:
    """Only those that lie in it."""
    config = parse_config("front: {listen: ['{runtime_directory}/f-{index}.sock', '/x/{index}']}", "/c.yaml")
    moved = with_runtime_directory(config, Path("/elsewhere"))
    assert [listen.path(1) for listen in moved.front.listen] == [  # type: ignore[union-attr]
        Path("/elsewhere/f-1.sock"),
        Path("/x/1"),
    ]


def test_status_reload_restart(short_path: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a running daemon, for a person and for a program."""
    with fake_daemon(short_path, artefact_cache, {"a": policy_text("alpha", ADD_HEADER)}, fronts=1) as daemon:
        config = ["--config", str(daemon.config)]
        assert main(["status", *config]) == 0
        out = capsys.readouterr().out
        assert "TENANT" in out
        assert "alpha/main" in out
        assert "Problems" not in out

        assert main(["status", "--json", *config]) == 0
        body = json.loads(capsys.readouterr().out)
        assert body["tenants"][0]["tenant"] == "alpha"

        assert main(["reload", *config]) == 0
        assert "alpha: unchanged" in capsys.readouterr().out
        (daemon.policies / "a.yaml").write_text("tenant: [")
        assert main(["reload", *config]) == 1
        assert "alpha: kept: " in capsys.readouterr().out
        assert main(["status", *config]) == 1
        assert "a.yaml:1: is not valid YAML" in capsys.readouterr().out

        assert main(["restart", "alpha", *config]) == 0
        assert "alpha: restarted" in capsys.readouterr().out
        assert main(["restart", "nobody", *config]) == 1
        assert "there is no tenant nobody" in capsys.readouterr().err


def test_status_shows_what_is_wrong() -> None:
    """A tenant without worker, a bad file, failures of a VM; hostile text stays one harmless line."""
    failure = {
        "time_s": 0.0,
        "cause": "trap",
        "callback": "proxy_on_log",
        "while_starting": False,
        "message": "a\nb\x1b[31m",
    }
    vm = {"state": "down", "guest_memory_bytes": 1 << 20, "streams": 0, "crashes": 6, "cpu_ms": 5.0}
    plugin = {
        "plugin": "p",
        "kind": "service",
        "abi": "0.2.1",
        "module_sha256": "0" * 64,
        "vms": [vm],
        "last_failures": [failure],
        "crash_counts": {"trap": 5, "cpu_limit": 1},
        "quarantine": {"since_s": 0.0, "reason": "six"},
    }
    body = {
        "version": "1",
        "pid": 1,
        "uptime_s": 3700,
        "rss_bytes": 1 << 30,
        "policies": "/p",
        "policy_errors": {"/p/x.yaml": "/p/x.yaml:3: bad"},
        "fronts": [],
        "egress": {"pid": 0, "restarts": 0, "callouts": {}},
        "cgroup": {"missing": "nobody gave us one"},
        "jail": {
            "identity": "own uid",
            "self_test": "passed",
            "layers": ["uid", "seccomp"],
            "missing": {"network_namespace": "a container"},
            "tolerated": {"network_namespace": "a container"},
        },
        "tenants": [
            {
                "tenant": "a",
                "state": "failed",
                "last_error": "oh",
                "restarts": 2,
                "worker": None,
                "plugins": [plugin],
            }
        ],
    }
    shown = list(lines(body, Colours()))

    assert not is_well(body)
    assert shown[0].startswith("sandboxd 1  pid 1  up 1h01m  1024 MiB")
    assert r"  a/p: 1970-01-01T00:00:00Z trap in proxy_on_log: a\nb\x1b[31m" in shown
    assert "  a/p: 5 trap, 1 cpu limit (`sandboxd crashes` shows them)" in shown
    assert "  tenant a: oh" in shown
    assert "No cgroups: nobody gave us one" in shown
    assert "Jail: 2 layers, own uid, self-test passed; missing: network_namespace" in shown
    assert "WORKERS ARE LESS ISOLATED: no network_namespace (a container)" in shown
    assert "  /p/x.yaml:3: bad" in shown
    assert any(line.startswith("a/p (service)") for line in shown)
    assert any("0/1" in line and "1024 KiB" in line and " 6 QUARANTINE " in line for line in shown)


@pytest.mark.parametrize("jail", ["", "jail: {tolerate: [namespaces]}"])
def test_doctor(tmp_path: Path, jail: str) -> None:
    """In a process of its own, as the operator runs it; exit status 0 on a machine that has everything."""
    (tmp_path / "c.yaml").write_text(jail)
    command = [sys.executable, "-m", "sandboxd", "doctor", "--quick", "--json", "--config", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, json.loads(done.stdout)) == (0, {"sound": True, "through": {}}), done.stderr


def test_unknown_layers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With the known ones in the error."""
    assert main(["doctor", "--tolerate", "gravity"]) == 2
    shown = capsys.readouterr().err
    assert "'gravity' is not a valid Layer" in shown
    assert "network_namespace" in shown


def test_light_commands_load_no_grpc() -> None:
    """And nothing of the engine: only fronts and workers do."""
    code = (
        "import sys, sandboxd.cli, sandboxd.supervisor.serve;"
        "print([name for name in ('grpc', 'wasmtime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
