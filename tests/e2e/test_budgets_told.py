"""A plugin that runs into a limit: the log and `sandboxd crashes` name the plugin, the limit's key and its value."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.cli import main
from tests.support.daemon_client import ADD_HEADER, FakeDaemon, fake_daemon, policy_text, wait_for
from tests.support.modules import guest

pytestmark = pytest.mark.timeout(120)

HEADERS = '(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {} (i32.const 0))'
CONFIGURE = '(func (export "proxy_on_configure") (param i32 i32) (result i32) {} (i32.const 1))'
CALL = '(import "env" "proxy_set_effective_context" (func $call (param i32) (result i32)))'
FOREVER = "(loop $l {} (br $l))"

# module, limits of the policy, what is said
CASES = {
    "cpu": (
        guest(HEADERS.format(FOREVER.format(""))),
        "cpu_per_call: 30ms, time_per_event: 5s",
        "limit is 30ms of CPU in one call: limits.cpu_per_call",
    ),
    "start": (
        guest(CONFIGURE.format(FOREVER.format(""))),
        "start_time: 200ms",
        "limit is 200ms of CPU for the whole start: limits.start_time",
    ),
    "calls": (
        guest(HEADERS.format(FOREVER.format("(drop (call $call (i32.const 1)))")), imports=CALL),
        "host_calls_per_event: 77, cpu_per_call: 1s",
        "limit is 77: limits.host_calls_per_event",
    ),
    "memory": (
        guest(HEADERS.format("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable")),
        "cpu_per_call: 1s",
        "limit is 32MiB: vm.memory",
    ),
    "table": (
        guest("(table 3000 funcref)", HEADERS.format("")),
        "table_elements: 2000",
        "limit is 2000: limits.table_elements",
    ),
    "stack": (
        guest("(func $down (call $down))", HEADERS.format("(call $down)")),
        "cpu_per_call: 1s",
        "limit is 512KiB, which no policy changes",
    ),
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeDaemon]:
    """One tenant with a plugin for each limit."""
    with tempfile.TemporaryDirectory(prefix="sbx") as name:
        directory = Path(name)
        text = "isolation: {pids: 32}\n" + policy_text("alpha", ADD_HEADER)
        for case, (module, limits, _) in CASES.items():
            file = directory / f"{case}.wasm"
            file.write_bytes(module)
            text += policy_text("alpha", file, name=case, more=f"limits: {{{limits}}}").partition("plugins:\n")[2]
        large = directory / "large.wasm"
        large.write_bytes(guest(HEADERS.format(" nop" * 1000)))
        small = policy_text("beta", large, more="limits: {module_size: 1KiB}")
        with fake_daemon(directory, directory / "artefacts", {"a": text, "b": small}, fronts=1) as found:
            yield found


@pytest.mark.parametrize("case", CASES)
def test_a_limit_is_told_with_key_and_value(daemon: FakeDaemon, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = CASES[case][2]

    def told() -> bool:
        daemon.ask(f"alpha {case}")  # again and again: at first the plugin may be starting, and fail for that
        return any(f"tenant alpha: plugin {case}: " in line and said in line for line in daemon.log.splitlines())

    wait_for(told, 20, f"{said} in the log")
    assert main(["crashes", f"alpha/{case}", "--config", str(daemon.config)]) in (0, 1)
    assert said in capsys.readouterr().out


def test_twin_is_none_the_worse(daemon: FakeDaemon) -> None:
    assert daemon.serves("alpha main")
    assert "tenant alpha: plugin main: " not in daemon.log


def test_a_module_that_is_too_large_is_told(daemon: FakeDaemon) -> None:
    said = "is larger than 1024 bytes: limits.module_size"

    assert said in daemon.tenant("beta")["last_error"]
    found = [line for line in daemon.log.splitlines() if said in line]
    assert found, daemon.log
    assert any("tenant beta: " in line for line in found), found
