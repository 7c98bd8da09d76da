"""``sandboxd run`` with real modules: what is met passes, what is not is shown, key by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from sandboxd.cli import main
from tests.support.daemon_client import ADD_HEADER, GUESTS, RUST_HEADERS, policy_text

TOKEN_GATE = GUESTS / "rust" / "token_gate.wasm"
JSON_BODY = GUESTS / "c" / "c_json_body.wasm"


class Runner:
    """Writes the files of a run and starts it."""

    def __init__(self, directory: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._directory, self._cache, self._capsys = directory, cache, capsys

    def __call__(self, policy: str, cases: str, *arguments: str) -> tuple[int, str, str]:
        """Return exit status, output and errors."""
        (self._directory / "p.yaml").write_text(policy)
        (self._directory / "c.yaml").write_text(cases)
        files = [str(self._directory / "p.yaml"), str(self._directory / "c.yaml")]
        status = main(["run", *files, "--cache-directory", str(self._cache), *arguments])
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err


@pytest.fixture
def run(tmp_path: Path, artefact_cache: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Return the runner."""
    return Runner(tmp_path, artefact_cache, capsys)


def test_what_is_expected_passes(run: Runner) -> None:
    """Headers of both sides, a body in chunks, and a hidden header that survives."""
    cases = """
cases:
  - name: adds a header
    request: {headers: {authorization: secret, x-a: ["1", "2"]}, body: {size: 100KiB}, chunks: 3000}
    response: {status: 201, headers: {content-type: text/plain}, body: hello}
    expect:
      upstream:
        headers: {x-wasm-processed: "Yes", authorization: secret, x-a: ["1", "2"], x-none: null}
        body: {size: 100KiB}
      client: {status: 201, body: hello, headers: {content-type: {matches: "text/.*"}}}
      denied: []
"""
    status, out, err = run(policy_text("t", ADD_HEADER), cases)

    assert (status, err) == (0, "")
    assert "1 of 1 cases as expected" in out


def test_every_difference_is_shown(run: Runner) -> None:
    """Expected and found, by key; the exit status is 1."""
    cases = """
cases:
  - name: all wrong
    request: {headers: {x-a: "1"}}
    response: {body: hello}
    expect:
      action: respond
      upstream: {headers: {x-wasm-processed: "No", x-a: [a, b], x-b: {matches: c}}, trailers: {t: x}}
      client: {status: 404, body: help}
      local_response: {status: 403}
      logs: [word, {level: warn, contains: word}]
      properties: {a.b: c}
      denied: [proxy_http_call]
"""
    status, out, _ = run(policy_text("t", ADD_HEADER), cases)

    assert status == 1
    assert "FAIL all wrong" in out
    assert "c.yaml:3" in out
    for text in (
        "action:\n    - respond\n    + continue",
        "upstream.headers.x-wasm-processed:\n    - 'No'\n    + 'Yes'",
        "upstream.headers.x-a:\n    - 'a', 'b'\n    + '1'",
        "upstream.headers.x-b:\n    - one value that matches c\n    + absent",
        "upstream.trailers.t:\n    - 'x'\n    + absent",
        "client.status:\n    - 404\n    + 200",
        "client.body: differs at byte 3",
        "local_response: the plugin sent none",
        "logs: no line contains 'word'; nothing was logged",
        "logs: no line at level warn contains 'word'",
        "properties.a.b: was not set (set: none)",
        "denied:\n    - proxy_http_call",
    ):
        assert text in out, text


def test_a_local_response(run: Runner) -> None:
    """The plugin answers; the upstream sees nothing."""
    cases = """
cases:
  - name: no token
    expect: {local_response: {status: 403}, client: {status: 403}}
  - name: a token
    request: {headers: {x-token: sesame}}
    expect: {client: {status: 200}}
"""
    status, out, err = run(policy_text("t", TOKEN_GATE, more="configuration: sesame"), cases)

    assert status == 0, out + err


def test_a_body_is_rewritten(run: Runner) -> None:
    """By the JSON module, whatever the chunks are."""
    cases = """
cases:
  - name: in pieces
    response: {headers: {content-type: application/json}, body: {json: {a: 1}}, chunks: 2}
    expect: {client: {body: {contains: '"a":1'}}}
"""
    status, out, _ = run(policy_text("t", JSON_BODY), cases)

    assert status == 0, out


@pytest.mark.parametrize(
    ("before", "after", "body", "shown"),
    [
        ("", "", '{"sandboxed":true,"a":1}', None),
        ("preset: standard}", "preset: standard}\n    write: {body: false}", '{"a":1}', "left out: body"),
        (
            "preset: standard}",
            "preset: standard, deny: [proxy_set_buffer_bytes]}",
            '{"a":1}',
            "denied: proxy_set_buffer",
        ),
    ],
)
def test_a_held_body_that_may_not_be_written(
    run: Runner, before: str, after: str, body: str, shown: str | None
) -> None:
    """What came goes on. Only who could change it, and may not, is told that something was left out."""
    cases = f"""
cases:
  - name: in pieces
    response: {{headers: {{content-type: application/json}}, body: '{{"a":1}}', chunks: 2}}
    expect: {{client: {{body: '{body}'}}}}
"""
    status, out, err = run(policy_text("t", JSON_BODY).replace(before, after), cases, "--verbose")

    assert status == 0, out + err
    assert ("left out: " in out) == (shown == "left out: body")
    assert shown is None or shown in out


def test_logs_and_redaction(run: Runner) -> None:
    """The Rust example logs every header that it sees; authorization is not among them."""
    cases = """
cases:
  - name: logs
    request: {headers: {authorization: secret, x-a: shown}}
    expect: {logs: [{level: info, contains: shown}], no_logs: [secret]}
  - name: logs too much
    request: {headers: {x-a: shown}}
    expect: {no_logs: [shown]}
"""
    status, out, _ = run(policy_text("t", RUST_HEADERS), cases, "--json")

    result = json.loads(out)
    assert status == 1
    assert [case["ok"] for case in result["cases"]] == [True, False]
    assert "'shown' was logged" in result["cases"][1]["differences"][0]
    assert any("shown" in line["text"] for line in result["cases"][0]["logs"])


@pytest.mark.parametrize(("policy", "status"), [("closed", 503), ("open", 0)])
def test_a_trap_is_a_failure_and_the_next_case_gets_a_fresh_vm(run: Runner, policy: str, status: int) -> None:
    """What the client gets is the failure policy's decision."""
    client = f", client: {{status: {status}}}" if status else ""
    case = f"{{action: fail{client}}}"
    cases = f"cases:\n  - {{name: one, expect: {case}}}\n  - {{name: two, expect: {case}}}\n"
    trapping = GUESTS / "misdeeds" / "loop_in_request_headers.wasm"
    more = f"failure: {{policy: {policy}}}\nlimits: {{cpu_per_call: 20ms, time_per_event: 2s}}"

    code, out, _ = run(policy_text("t", trapping, more=more), cases, "--verbose")

    assert code == 0, out
    assert "cpu limit" in out


def test_write_rules_apply(run: Runner) -> None:
    """What the policy denies is left out, and shown."""
    cases = """
cases:
  - name: denied write
    expect: {upstream: {headers: {x-wasm-processed: null}}}
"""
    policy = policy_text("t", ADD_HEADER, more="write: {deny_headers: [x-wasm-*]}")

    status, out, _ = run(policy, cases, "--verbose")

    assert status == 0, out
    assert "left out: x-wasm-processed (denied_by_policy)" in out


def test_a_plugin_has_to_be_chosen(run: Runner) -> None:
    """If there are several; the error names them."""
    both = policy_text("t", ADD_HEADER) + policy_text("t", ADD_HEADER, name="two").partition("plugins:\n")[2]
    cases = "cases: [{name: a, expect: {}}]"

    assert run(both, cases)[0] == 2
    status, _, err = run(both, cases, "--plugin", "three")
    assert status == 2
    assert err.startswith("sandboxd: error: ")
    assert "(allowed: main, two)" in err
    assert run(both, cases, "--plugin", "two")[0] == 0


def test_errors_are_one_line(run: Runner) -> None:
    """Bad files end with status 2, a bad module with 1; never a traceback."""
    status, _, err = run("tenant: [", "cases: [{name: a, expect: {}}]")
    assert status == 2
    assert err.count("\n") == 1
    status, _, err = run(policy_text("t", ADD_HEADER), "cases: 5")
    assert status == 2
    assert "c.yaml:1: cases: must be a list" in err
    status, _, err = run(policy_text("t", ADD_HEADER, sha256="0" * 64), "cases: [{name: a, expect: {}}]")
    assert status == 1
    assert "sha256" in err


TICK = """(module
  (import "env" "proxy_set_tick_period_milliseconds" (func $period (param i32) (result i32)))
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 64) "tick")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (drop (call $period (i32.const 1))) (i32.const 1))
  (func (export "proxy_on_tick") (param i32) %s))"""
LOGS, TRAPS = "(drop (call $log (i32.const 2) (i32.const 64) (i32.const 4)))", "unreachable"


@pytest.fixture
def ticking(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a module with this in its tick, each millisecond or as often as it may."""

    def make(body: str) -> Path:
        path = tmp_path / "ticking.wasm"
        path.write_bytes(bytes(wat2wasm(TICK % body)))
        return path

    return make


def test_a_case_can_wait_for_ticks(run: Runner, ticking: Callable[[str], Path]) -> None:
    """A service too; and no oftener than the policy lets it tick."""
    cases = """
cases:
  - {name: before, expect: {no_logs: [tick]}}
  - {name: after, wait: 400ms, expect: {logs: [{level: info, contains: tick}]}}
"""
    policy = policy_text("t", ticking(LOGS), more="kind: service\nlimits: {tick_period: 100ms}")
    status, out, _ = run(policy, cases, "--json")

    assert status == 0, out
    assert 1 <= len(json.loads(out)["cases"][1]["logs"]) <= 5


@pytest.mark.parametrize(("wait", "problem"), [("61s", "cases[0].wait"), ("soon", "duration")])
def test_a_wait_is_bounded(run: Runner, wait: str, problem: str) -> None:
    status, _, err = run(policy_text("t", ADD_HEADER), f"cases: [{{name: x, wait: {wait}, expect: {{}}}}]")

    assert status == 2
    assert problem in err


def test_a_vm_that_traps_while_a_case_waits(run: Runner, ticking: Callable[[str], Path]) -> None:
    cases = "cases: [{name: waits, wait: 500ms, expect: {action: fail, client: {status: 503}}}]"
    status, out, _ = run(policy_text("t", ticking(TRAPS)), cases, "--verbose")

    assert status == 0, out
    assert "while it waited" in out
    assert "proxy_on_tick" in out
