"""Policy files: what they give, and that every bad one says where and what."""

from __future__ import annotations

import copy
import hashlib
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import from_url

from sandboxd import limits
from sandboxd.errors import ModuleRejected, PolicyError
from sandboxd.policy import capabilities as caps
from sandboxd.policy.load import ISOLATION_LAYERS, load_directory, load_policy, parse_policy, verify_module
from sandboxd.policy.model import (
    DEFAULT_HEADER_RULES,
    Clock,
    FailurePolicy,
    HeaderLeniency,
    HeaderRule,
    Isolation,
    ModuleRef,
    OnFailure,
    PluginKind,
    PluginLimits,
    PropertyRule,
    RedactionPolicy,
    RedactMode,
    RestartPolicy,
    SharedPolicy,
    TenantPolicy,
    WritePolicy,
)

SHA = "1f8c" * 16
SECRET = "hunter2"
EXAMPLES = Path(__file__).parents[2] / "policies/examples"


def document(**plugin: Any) -> dict[str, Any]:
    """The least policy, with keys added to its one plugin."""
    return {
        "tenant": "acme",
        "plugins": [{"name": "p", "module": {"file": "m.wasm", "sha256": SHA}, **plugin}],
    }


def parse(document: dict[str, Any] | str) -> TenantPolicy:
    text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
    return parse_policy(text, "policies/acme.yaml", module_root=None)


def error(document: dict[str, Any] | str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        parse(document)
    assert caught.value.path == "policies/acme.yaml"
    return caught.value


FULL = textwrap.dedent(
    f"""\
    tenant: acme
    isolation: {{memory: 1GiB, cpu: 0.5, pids: 8, require: [cgroup, seccomp]}}
    plugins:
      - name: add-header
        module: {{file: modules/a.wasm, sha256: {SHA.upper()}}}
        root_id: add_header
        configuration: {{header: x-a, value: "Yes", list: [1, 2.5, null, true], date: 2020-01-01}}
        vm:
          id: shared
          configuration: "as it is"
          environment: {{REGION: eu, EMPTY: ""}}
          memory: 16MiB
          clock: live
        limits:
          cpu_per_call: 1.5ms
          time_per_event: 1s
          start_time: 20s
          body_buffer: 2MiB
          open_streams: 7
          log_bytes_per_event: 1KiB
          log_lines_per_event: 3
          log_lines_per_second: 6
          log_bytes_per_second: 7KiB
          metrics: 4
          host_calls_per_event: 5
          table_elements: 2000
          module_size: 8KiB
        capabilities: {{preset: minimal, allow: [proxy_http_call], deny: [proxy_get_property]}}
        redact:
          request_headers: {{authorization: show, Cookie: hash, x-internal-*: mask}}
          response_trailers: [grpc-message]
          properties: [source.address, [metadata, a.b], {{path: source.port, mode: show}}]
        write:
          deny_headers: [":authority", X-Tenant-*]
          allow_headers: []
          local_response: false
          body: false
          properties: false
          max_headers: 1
          max_header_bytes: 2KiB
          max_headers_bytes: 3KiB
        failure: {{policy: reload, status: 500, restart: {{backoff: 2s, max_crashes: 1, window: 1m}}}}
        allow_on_headers_stop_iteration: true
        header_leniency: envoy
    """
)


# --- what a good file gives ---


def test_every_key() -> None:
    policy = parse(FULL)
    plugin = policy.plugins[0]

    assert policy.tenant == "acme"
    assert policy.isolation == Isolation(limits.GIB, 0.5, 8, ("cgroup", "seccomp"))
    assert policy.source_path == "policies/acme.yaml"
    assert policy.digest == hashlib.sha256(FULL.encode()).hexdigest()
    assert policy.plugin("add-header") is plugin
    assert policy.plugin("other") is None
    assert plugin.module == ModuleRef(Path("policies/modules/a.wasm"), SHA)
    assert plugin.root_id == "add_header"
    assert plugin.configuration == b'{"header":"x-a","value":"Yes","list":[1,2.5,null,true],"date":"2020-01-01"}'
    assert (plugin.vm.vm_id, plugin.vm.configuration) == ("shared", b"as it is")
    assert plugin.vm.environment == (("REGION", "eu"), ("EMPTY", ""))
    assert (plugin.vm.memory_bytes, plugin.vm.clock) == (16 * limits.MIB, Clock.LIVE)
    assert plugin.limits == PluginLimits(
        1_500_000, 10**9, 20 * 10**9, 2 * limits.MIB, 7, 1024, 3, 4, 5, 6, 7168, table_elements=2000, module_bytes=8192
    )
    assert plugin.capabilities == (caps.PRESETS["minimal"] | {"proxy_http_call"}) - {"proxy_get_property"}
    assert plugin.write == WritePolicy((":authority", "x-tenant-*"), (), False, False, False, 1, 2048, 3072)
    assert plugin.failure == FailurePolicy(OnFailure.RELOAD, 500, RestartPolicy(2000, 1, 60_000))
    assert plugin.allow_on_headers_stop_iteration
    assert plugin.header_leniency is HeaderLeniency.ENVOY


def test_redaction_is_the_defaults_and_what_the_file_says() -> None:
    redact = parse(FULL).plugins[0].redact
    modes = {rule.pattern: rule.mode for rule in redact.request_headers}

    assert modes["authorization"] is RedactMode.SHOW
    assert modes["cookie"] is RedactMode.HASH
    assert modes["x-internal-*"] is RedactMode.MASK
    assert modes["x-forwarded-for"] is RedactMode.DROP
    assert len(modes) == len(redact.request_headers) == len(DEFAULT_HEADER_RULES) + 1
    assert redact.response_headers == DEFAULT_HEADER_RULES
    assert HeaderRule("grpc-message", RedactMode.DROP) in redact.response_trailers
    assert set(redact.properties) == {
        PropertyRule(("source", "address")),
        PropertyRule(("source", "port"), shown=True),
        PropertyRule(("metadata", "a.b")),
    }


def test_the_least_file_gets_secure_defaults() -> None:
    policy = parse(document())
    plugin = policy.plugins[0]

    assert policy.isolation == Isolation(256 * limits.MIB, None, 16, ())
    assert plugin.capabilities == caps.PRESETS["minimal"]
    assert plugin.redact == RedactionPolicy()
    assert plugin.redact.request_headers
    assert plugin.limits == PluginLimits()
    assert plugin.limits.cpu_per_call_ns == 5_000_000
    assert plugin.limits.time_per_event_ns == 200_000_000
    assert plugin.failure.policy is OnFailure.CLOSED
    assert plugin.vm.clock is Clock.EVENT
    assert plugin.vm.environment == ()
    assert plugin.header_leniency is HeaderLeniency.LENIENT
    assert not plugin.allow_on_headers_stop_iteration


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, caps.PRESETS["minimal"]),
        ({}, caps.PRESETS["minimal"]),
        ({"preset": "none"}, frozenset()),
        ({"allow": []}, frozenset()),
        ({"allow": ["proxy_log"]}, {"proxy_log"}),
        ({"preset": "none", "allow": ["proxy_log", "fd_write"], "deny": ["proxy_log"]}, {"fd_write"}),
        ({"preset": "full"}, caps.ALL),
    ],
)
def test_capabilities(given: dict[str, Any] | None, expected: frozenset[str]) -> None:
    plugin = document() if given is None else document(capabilities=given)

    assert parse(plugin).plugins[0].capabilities == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("text\nas it is", b"text\nas it is"),
        ("", b""),
        (None, b""),
        ({}, b"{}"),
        ([], b"[]"),
        (False, b"false"),
        (7, b"7"),
        ({"ü": "ß"}, '{"ü":"ß"}'.encode()),
    ],
)
def test_configuration_is_json_or_a_string_as_it_is(given: Any, expected: bytes) -> None:
    plugin = parse(document(configuration=given, vm={"configuration": copy.copy(given)})).plugins[0]

    assert plugin.configuration == expected
    assert plugin.vm.configuration == expected


def test_secrets_are_not_in_a_repr() -> None:
    plugin = document(configuration=SECRET, vm={"configuration": SECRET, "environment": {"TOKEN": SECRET}})

    assert SECRET not in repr(parse(plugin))


def test_policies_are_hashable_and_comparable() -> None:
    assert parse(FULL) == parse(FULL)
    assert hash(parse(FULL)) == hash(parse(FULL))
    assert parse(FULL) != parse(FULL + "# changed\n")


# --- what a bad file says ---

BAD_PLUGINS: list[tuple[dict[str, Any], str, str]] = [
    ({"nam": 1}, "nam", "did you mean name?"),
    ({"name": "Bad"}, "name", "is not a name"),
    ({"name": "-a"}, "name", "is not a name"),
    ({"name": "a" * 64}, "name", "is not a name"),
    ({"name": "a\n"}, "name", "is not a name"),
    ({"name": 5}, "name", "must be a string, but is an integer (put it in quotes)"),
    ({"name": ["a"]}, "name", "must be a string, but is a list"),
    ({"callouts": {}}, "callouts", "needs the key upstreams"),
    ({"callouts": {"upstreams": {"a": {}}}}, "callouts.upstreams.a", "needs the key url"),
    ({"module": "m.wasm"}, "module", "must be a mapping, but is a string"),
    ({"module": {"file": "m.wasm"}}, "module", "needs the key sha256"),
    ({"module": {"sha256": SHA}}, "module", "needs the key file"),
    ({"module": {"file": "m", "sha256": "12"}}, "module.sha256", "is not a SHA-256 digest"),
    ({"module": {"file": "m", "sha256": "g" * 64}}, "module.sha256", "is not a SHA-256 digest"),
    ({"module": {"file": "", "sha256": SHA}}, "module.file", "must not be empty"),
    ({"root_id": "a" * 257}, "root_id", "at most 256 bytes"),
    ({"vm": {"memory": 5}}, "vm.memory", "'5' is not a size"),
    ({"vm": {"memory": "5MB"}}, "vm.memory", "'5MB' is not a size"),
    ({"vm": {"memory": "1KiB"}}, "vm.memory", "out of range (allowed: 1MiB to 2GiB)"),
    ({"vm": {"memory": "1100KiB"}}, "vm.memory", "must be a multiple of a wasm page"),
    ({"vm": {"memory": "512MiB"}}, "", "vm.memory is more than isolation.memory"),
    ({"vm": {"clock": "wall"}}, "vm.clock", "allowed: event, live"),
    ({"vm": {"environment": {"A=B": "1"}}}, "vm.environment.A=B", "nor hold '=' or NUL"),
    ({"vm": {"environment": {"A\0": "1"}}}, "vm.environment.A\0", "nor hold '=' or NUL"),
    ({"vm": {"environment": {"": "1"}}}, "vm.environment.", "must not be empty"),
    ({"vm": {"environment": {"A": "\0"}}}, "vm.environment.A", "must not hold NUL"),
    ({"vm": {"environment": {"A": 1}}}, "vm.environment.A", "put it in quotes"),
    ({"vm": {"environment": {"A": True}}}, "vm.environment.A", "put it in quotes"),
    ({"vm": {"environment": {"A": "x" * 70_000}}}, "vm.environment", "larger than 65536 bytes"),
    ({"vm": {"environment": {f"A{n}": "" for n in range(257)}}}, "vm.environment", "at most 256"),
    ({"limits": {"cpu_per_call": "5 msec"}}, "limits.cpu_per_call", "one of ns us ms s m, such as 5ms"),
    ({"limits": {"cpu_per_call": 5}}, "limits.cpu_per_call", "is not a duration"),
    ({"limits": {"cpu_per_call": 0.5}}, "limits.cpu_per_call", "is not a duration"),
    ({"limits": {"cpu_per_call": "-5ms"}}, "limits.cpu_per_call", "is not a duration"),
    ({"limits": {"cpu_per_call": "5MS"}}, "limits.cpu_per_call", "is not a duration"),
    ({"limits": {"cpu_per_call": "100000.5ns"}}, "limits.cpu_per_call", "finer than a duration can be"),
    ({"limits": {"cpu_per_call": "0ms"}}, "limits.cpu_per_call", "allowed: 100us to 10s"),
    ({"limits": {"time_per_event": "2m"}}, "limits.time_per_event", "out of range"),
    ({"limits": {"start_time": "1ns"}}, "limits.start_time", "out of range"),
    ({"limits": {"body_buffer": "1ms"}}, "limits.body_buffer", "is not a size"),
    ({"limits": {"open_streams": "many"}}, "limits.open_streams", "must be an integer"),
    ({"limits": {"open_streams": 0}}, "limits.open_streams", "allowed: 1 to 1000000"),
    ({"limits": {"open_streams": True}}, "limits.open_streams", "must be an integer"),
    ({"limits": {"cpu": "5ms"}}, "limits.cpu", "is not a known key"),
    ({"capabilities": {"preset": "std"}}, "capabilities.preset", "none, minimal, standard, full"),
    ({"capabilities": {"allow": ["proxy_htp_call"]}}, "capabilities.allow[0]", "mean proxy_http_call?"),
    ({"capabilities": {"deny": ["nope"]}}, "capabilities.deny[0]", "'nope' is not a capability"),
    ({"capabilities": {"allow": "proxy_log"}}, "capabilities.allow", "must be a list, but is a string"),
    (
        {"capabilities": {"preset": "minimal", "deny": ["proxy_on_context_create"]}},
        "capabilities",
        "proxy_on_context_create must be granted",
    ),
    ({"redact": {"headers": {}}}, "redact.headers", "is not a known key"),
    ({"redact": {"request_headers": {"a": "hide"}}}, "redact.request_headers.a", "show, drop, mask, hash"),
    ({"redact": {"request_headers": {"a b": "drop"}}}, "redact.request_headers.a b", "not a header pattern"),
    ({"redact": {"request_headers": {"a*b": "drop"}}}, "redact.request_headers.a*b", "not a header pattern"),
    ({"redact": {"request_headers": {"A": "drop", "a": "mask"}}}, "redact.request_headers.a", "given twice"),
    ({"redact": {"properties": ["a..b"]}}, "redact.properties[0]", "no empty segment"),
    ({"redact": {"properties": [[]]}}, "redact.properties[0]", "no empty segment"),
    ({"redact": {"properties": {"a.b": "mask"}}}, "redact.properties.a.b", "allowed: drop, show"),
    ({"redact": {"properties": [{"path": "a"}]}}, "redact.properties[0]", "needs the key mode"),
    ({"write": {"deny_headers": ["x y"]}}, "write.deny_headers[0]", "is not a header pattern"),
    ({"write": {"body": "maybe"}}, "write.body", "allowed: true, false"),
    ({"write": {"max_headers": 5000}}, "write.max_headers", "allowed: 0 to 1024"),
    ({"failure": {"policy": "opn"}}, "failure.policy", "did you mean open?"),
    ({"failure": {"status": 200}}, "failure.status", "allowed: 400 to 599"),
    ({"failure": {"restart": {"backoff": "1.5us"}}}, "failure.restart.backoff", "whole number of milli"),
    ({"failure": {"restart": {"backoff": "1"}}}, "failure.restart.backoff", "is not a duration"),
    ({"failure": "open"}, "failure", "must be a mapping, but is a string"),
    ({"header_leniency": "strict"}, "header_leniency", "lenient, envoy"),
    ({"allow_on_headers_stop_iteration": "x"}, "allow_on_headers_stop_iteration", "true, false"),
    ({"configuration": {"a": float("nan")}}, "configuration.a", "JSON cannot hold"),
    ({"configuration": "x" * 300_000}, "configuration", "at most 262144"),
]  # fmt: skip


@pytest.mark.parametrize(("plugin", "key", "problem"), BAD_PLUGINS)
def test_bad_plugins(plugin: dict[str, Any], key: str, problem: str) -> None:
    """Keys are relative to the plugin."""
    found = error(document(**plugin))

    assert found.key == (f"plugins[0].{key}" if key else "plugins[0]")
    assert problem in str(found)
    assert found.line > 0


@pytest.mark.parametrize(
    ("change", "key", "problem"),
    [
        ({"tenant": None}, "tenant", "must be a string, but is empty"),
        ({"tenants": "a"}, "tenants", "did you mean tenant?"),
        ({"plugins": []}, "plugins", "needs at least one plugin"),
        ({"plugins": {}}, "plugins", "must be a list, but is a mapping"),
        ({"plugins": [None]}, "plugins[0]", "must be a mapping, but is empty"),
        ({"isolation": {"memory": "1B"}}, "isolation.memory", "allowed: 64MiB to 64GiB"),
        ({"isolation": {"cpu": 0}}, "isolation.cpu", "must be a number"),
        ({"isolation": {"cpu": "50%"}}, "isolation.cpu", "must be a number"),
        ({"isolation": {"pids": 1}}, "isolation.pids", "must be an integer"),
        ({"isolation": {"require": ["jail"]}}, "isolation.require[0]", ", ".join(ISOLATION_LAYERS)),
    ],
)
def test_bad_tenants(change: dict[str, Any], key: str, problem: str) -> None:
    found = error({**document(), **change})

    assert found.key == key
    assert problem in str(found)


def test_missing_keys() -> None:
    assert "needs the key tenant" in str(error({"plugins": document()["plugins"]}))
    assert "needs the key plugins" in str(error({"tenant": "a"}))


def test_the_text_of_an_error_names_file_line_key_and_allowed_values() -> None:
    found = error(FULL.replace("policy: reload", "policy: shut"))

    assert found.line == 1 + FULL.splitlines().index(next(line for line in FULL.splitlines() if "failure:" in line))
    assert str(found) == (
        f"policies/acme.yaml:{found.line}: plugins[0].failure.policy: 'shut' is not one of the allowed "
        "values (allowed: closed, open, reload)"
    )
    assert found.allowed == ("closed", "open", "reload")
    assert str(copy.copy(found)) == str(found)


def test_two_plugins_of_one_name() -> None:
    twice = document()
    twice["plugins"] = twice["plugins"] + copy.deepcopy(twice["plugins"])

    assert "plugin p is defined twice" in str(error(twice))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 0, "is empty"),
        ("# only a comment\n", 0, "is empty"),
        ("tenant: [", 1, "is not valid YAML"),
        ("tenant: a\n\tplugins: b", 2, "is not valid YAML"),
        ("tenant: a\ntenant: b\n", 2, "is given twice, first in line 1"),
        ("tenant: &x a\n", 1, "anchors are not supported"),
        ("tenant: a\nplugins: *x\n", 2, "aliases are not supported"),
        ("<<: {tenant: a}\n", 1, "keys must be strings"),
        ("1: a\n", 1, "keys must be strings (quote it), but one is an integer"),
        ("[a]: b\n", 1, "keys must be strings"),
        ("tenant: !!python/object/apply:os.system [x]\n", 1, "must be a string"),
        ("tenant: !custom x\n", 1, "a value with a YAML tag"),
        ("- a\n", 1, "must be a mapping, but is a list"),
        ("--- a\n--- b\n", 2, "is not valid YAML"),
        ("a: " + "[" * 40 + "]" * 40, 1, "nested deeper than 32"),
        ("a: \x00", 0, "characters that YAML does not allow"),
        ('tenant: "\\ud800"', 1, "surrogate"),
        ("#" * (limits.MAX_POLICY_FILE_BYTES + 1), 0, "is larger than"),
    ],
)
def test_bad_yaml(text: str, line: int, problem: str) -> None:
    found = error(text)

    assert problem in str(found)
    if line:
        assert found.line == line


@pytest.mark.parametrize(
    "configuration",
    [
        f"{{token: {SECRET}, token: {SECRET}}}",
        f"{{token: !{SECRET} x}}",
        f"{{token: !{SECRET}!x y}}",
        f"{{token: *{SECRET}}}",
        f"{{token: &{SECRET} x}}",
        f"{{token: '{SECRET}}}",
        f'{{token: "{SECRET}\\q"}}',
        f"{{token: [{SECRET}}}",
        f"{{token: {SECRET}: {SECRET}}}",
        f"{{token: !!binary {SECRET}}}",
        f"{{token: {'9' * 5000}}}",
    ],
)
def test_secrets_are_not_in_error_texts(configuration: str) -> None:
    text = FULL.replace(FULL[FULL.index("{header:") : FULL.index("\n    vm:")], configuration)
    assert configuration in text

    found = error(text)

    assert SECRET not in str(found)
    assert "9999" not in str(found)
    assert found.__cause__ is None
    assert found.__suppress_context__ or found.__context__ is None


# --- files ---


def write_module(directory: Path, name: str = "m.wasm", data: bytes = b"\0asm") -> str:
    (directory / name).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def write_policy(directory: Path, name: str, tenant: str = "acme") -> Path:
    (directory / name).write_text(yaml.safe_dump({**document(), "tenant": tenant}))
    return directory / name


def test_load_policy(tmp_path: Path) -> None:
    write_module(tmp_path)
    policy = load_policy(write_policy(tmp_path, "a.yaml"))

    assert policy.plugins[0].module.path == tmp_path / "m.wasm"
    assert policy.source_path == str(tmp_path / "a.yaml")


def test_a_module_file_must_be_there(tmp_path: Path) -> None:
    path = write_policy(tmp_path, "a.yaml")
    with pytest.raises(PolicyError, match=r"module\.file: module file .*m\.wasm: No such file"):
        load_policy(path)

    (tmp_path / "m.wasm").mkdir()
    with pytest.raises(PolicyError, match="is not a regular file"):
        load_policy(path)


def test_unreadable_policy_files(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        load_policy(tmp_path / "none.yaml")

    (tmp_path / "latin.yaml").write_bytes(b"tenant: a\n# \xe9\n")
    with pytest.raises(PolicyError, match=r"latin\.yaml:2: is not UTF-8"):
        load_policy(tmp_path / "latin.yaml")

    (tmp_path / "big.yaml").write_bytes(b"#" * (limits.MAX_POLICY_FILE_BYTES + 1))
    with pytest.raises(PolicyError, match="is larger than"):
        load_policy(tmp_path / "big.yaml")


def test_a_directory_keeps_the_good_and_names_the_bad(tmp_path: Path) -> None:
    write_module(tmp_path)
    write_policy(tmp_path, "a.yaml", "one")
    write_policy(tmp_path, "b.yml", "two")
    write_policy(tmp_path, ".hidden.yaml", "three")
    (tmp_path / "bad.yaml").write_text("tenant: x\n")
    (tmp_path / "README.md").write_text("no policy")

    found = load_directory(tmp_path)

    assert list(found.policies) == ["one", "two"]
    assert list(found.errors) == [str(tmp_path / "bad.yaml")]
    assert "needs the key plugins" in str(found.errors[str(tmp_path / "bad.yaml")])


def test_two_files_of_one_tenant_are_both_errors(tmp_path: Path) -> None:
    write_module(tmp_path)
    paths = [str(write_policy(tmp_path, name)) for name in ("a.yaml", "b.yaml")]
    write_policy(tmp_path, "c.yaml", "other")

    found = load_directory(tmp_path)

    assert list(found.policies) == ["other"]
    assert list(found.errors) == paths
    for here, there in (paths, reversed(paths)):
        assert here in str(found.errors[here])
        assert there in str(found.errors[here])


def test_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot read the policy directory: No such file"):
        load_directory(tmp_path / "none")


def test_verify_module(tmp_path: Path) -> None:
    digest = write_module(tmp_path, data=b"\0asm1234")

    assert verify_module(ModuleRef(tmp_path / "m.wasm", digest)) == b"\0asm1234"
    with pytest.raises(ModuleRejected, match=f"has sha256 {digest}, but the policy says {SHA}"):
        verify_module(ModuleRef(tmp_path / "m.wasm", SHA))
    assert verify_module(ModuleRef(tmp_path / "m.wasm", digest), 8) == b"\0asm1234"
    with pytest.raises(ModuleRejected, match=r"is larger than 7 bytes: limits\.module_size"):
        verify_module(ModuleRef(tmp_path / "m.wasm", digest), 7)
    with pytest.raises(ModuleRejected, match="cannot be read: No such file"):
        verify_module(ModuleRef(tmp_path / "none", SHA))


def test_an_oversized_module_is_refused_without_being_kept(tmp_path: Path) -> None:
    with (tmp_path / "m.wasm").open("wb") as file:
        file.truncate(limits.MAX_MODULE_BYTES + 1)

    with pytest.raises(ModuleRejected, match="is larger than"):
        verify_module(ModuleRef(tmp_path / "m.wasm", SHA))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path) -> None:
    policy = parse_policy(path.read_text(), str(path), module_root=None)

    assert policy.tenant == path.stem


def test_there_are_examples() -> None:
    assert len(list(EXAMPLES.glob("*.yaml"))) >= 3


def test_shared_memory() -> None:
    assert parse(document()).shared == SharedPolicy()
    given = {"memory": "128KiB", "value": "4KiB", "queue_items": 7}
    assert parse({**document(), "shared": given}).shared == SharedPolicy(128 * 1024, 4096, 7)
    assert parse({**document(), "shared": {}}).shared == SharedPolicy()


@pytest.mark.parametrize(
    ("shared", "key", "problem"),
    [
        ({"memory": "32KiB"}, "shared.memory", "64KiB"),
        ({"memory": "33MiB"}, "shared.memory", "32MiB"),
        ({"memory": "65537B"}, "shared.memory", "multiple"),
        ({"value": "64KiB"}, "shared.value", "65520"),
        ({"queue_items": -1}, "shared.queue_items", "1000000"),
        ({"size": 1}, "shared.size", "not a known key"),
    ],
)
def test_bad_shared_memory(shared: dict[str, Any], key: str, problem: str) -> None:
    found = error({**document(), "shared": shared})
    assert found.key == key
    assert problem in str(found)


@pytest.mark.parametrize(
    "url",
    [
        "redis://store.internal:6379/0",
        "rediss://10.0.0.1:65535",
        "redis://store/",
        "redis://[::1]:6379/15",
        "unix:///run/valkey/valkey.sock",
    ],
)
def test_addresses_of_stores(url: str) -> None:
    """What a policy may name, the client takes."""
    shared = parse(document() | {"shared": {"backend": {"url": url}}}).shared
    assert shared.backend is not None
    assert shared.backend.url == url
    assert from_url(url).connection_pool is not None


@pytest.mark.parametrize(
    "url",
    [
        "redis://[::1/0",
        "redis://[::::]/0",
        "redis://h:abc/0",
        "redis://h:99999/0",
        "redis://h:0/0",
        "redis://h/x",
        "redis://h/1/2",
        "redis:///0",
        "redis://a..b/0",
        "redis://h/0#1",
        "redis://h/0?db=1",
        "redis://u:hunter2@h/0",
        "unix://",
        "unix:///",
        "unix://run/valkey.sock",
        "unix:///run/a%00b",
        "unix:///run/valkey.sock?db=1",
        "http://h/0",
    ],
)
def test_addresses_that_no_store_has(url: str) -> None:
    """Each is an error of its file and key, not an exception, nor another store than was meant."""
    found = error(document() | {"shared": {"backend": {"url": url}}})
    assert found.key == "shared.backend.url"
    assert "is not the address of a store" in str(found)
    assert "unix:///PATH" in str(found)
    assert "hunter2" not in str(found)


def test_the_path_of_a_stores_socket_is_bounded() -> None:
    """By what the kernel takes."""
    found = error(document() | {"shared": {"backend": {"url": "unix:///" + "x" * 107}}})
    assert found.key == "shared.backend.url"
    assert "107 bytes" in str(found)


def test_kinds_of_plugins() -> None:
    assert parse(document()).plugins[0].kind is PluginKind.FILTER
    assert parse(document(kind="service")).plugins[0].kind is PluginKind.SERVICE
    assert "allowed: filter, service" in str(error(document(kind="singleton")))


@pytest.mark.parametrize("period", ["500us", "1500us", "61m", "1.5ms"])
def test_tick_period_is_whole_milliseconds(period: str) -> None:
    assert parse(document(limits={"tick_period": "20ms"})).plugins[0].limits.tick_period_ns == 20_000_000
    assert error(document(limits={"tick_period": period})).key == "plugins[0].limits.tick_period"
