"""The daemon's own file: defaults, every key, and errors that say where and what."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandboxd import limits
from sandboxd.config import (
    ChannelConfig,
    DaemonConfig,
    LogConfig,
    LogFormat,
    LogLevel,
    Machine,
    MetricsConfig,
    TcpListen,
    TlsFiles,
    UnixListen,
    WorkerConfig,
    default_config,
)
from sandboxd.config_file import load_config, parse_config
from sandboxd.errors import ConfigError
from sandboxd.jail.front_jail import FRONT_UID
from sandboxd.jail.full_plan import INSIDE_ID
from sandboxd.jail.jailer import SPARE_UID

ROOT = Machine(euid=0, cpus=8, environ={"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0"})
USER = Machine(euid=1000, cpus=1, environ={"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1000"})
PATH = "/etc/sandboxd/sandboxd.yaml"


def parse(document: Any, machine: Machine = ROOT) -> DaemonConfig:
    text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
    return parse_config(text, PATH, machine)


def error(document: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(document)
    assert caught.value.path == PATH
    return caught.value


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "  \n"])
def test_an_empty_file_is_the_defaults(text: str) -> None:
    config = parse(text)

    assert config.policies == Path("/etc/sandboxd/policies")
    assert config.runtime_directory == Path("/run/sandboxd")
    assert config.cache_directory == Path("/var/cache/sandboxd")
    assert config.state_directory == Path("/var/lib/sandboxd")
    assert config.front.processes == 2
    assert config.front.listen == (UnixListen("/run/sandboxd/front-{index}.sock"),)
    assert config.front.tenant_sockets == {}
    assert (config.worker, config.channel, config.log) == (WorkerConfig(), ChannelConfig(), LogConfig())
    assert config.source_path == PATH


def test_another_user_gets_directories_of_their_own() -> None:
    config = parse("", USER)

    assert config.runtime_directory == Path("/run/user/1000/sandboxd")
    assert config.cache_directory == Path("/home/u/.cache/sandboxd")
    assert config.state_directory == Path("/home/u/.local/state/sandboxd")
    assert config.front.processes == 1
    assert parse("", Machine(1000, 4, {"HOME": "/h"})).runtime_directory == Path("/h/.local/state/sandboxd/run")
    assert parse("", Machine(1000, 4, {"XDG_CACHE_HOME": "/c"})).cache_directory == Path("/c/sandboxd")


def test_no_default_listens_on_the_network() -> None:
    for machine in (ROOT, USER):
        assert all(isinstance(listen, UnixListen) for listen in default_config(machine).front.listen)


def test_this_machine() -> None:
    assert default_config().front.processes in (1, 2)


def test_every_key() -> None:
    config = parse(
        textwrap.dedent(
            """\
            policies: tenants
            runtime_directory: run
            cache_directory: /c
            state_directory: /s
            front:
              processes: 3
              socket_mode: 0600
              mode_override: true
              user: 4242
              listen:
                - "{runtime_directory}/f-{index}.sock"
                - unix: other-{index}.sock
                - tcp: 127.0.0.1:9000
                - {tcp: "[::]:9001", tls: {certificate: c.pem, key: k.pem, client_ca: /ca.pem}}
              tenant_sockets: {acme: "{runtime_directory}/acme-{index}.sock"}
            worker: {uid_base: 300000, spin_us: 0, spares: 5}
            channel: {ring_bytes: 2MiB, spin_us: 20}
            log: {level: debug, format: json}
            """
        )
    )

    assert config.policies == Path("/etc/sandboxd/tenants")
    assert (config.cache_directory, config.state_directory) == (Path("/c"), Path("/s"))
    assert config.front.processes == 3
    assert config.front.socket_mode == 0o600
    assert config.front.mode_override
    assert config.front.user == "4242"
    assert config.front.listen == (
        UnixListen("/etc/sandboxd/run/f-{index}.sock"),
        UnixListen("/etc/sandboxd/other-{index}.sock"),
        TcpListen("127.0.0.1", 9000),
        TcpListen(
            "::",
            9001,
            TlsFiles(Path("/etc/sandboxd/c.pem"), Path("/etc/sandboxd/k.pem"), Path("/ca.pem")),
        ),
    )
    acme = config.front.tenant_sockets["acme"]
    assert acme.path(2) == Path("/etc/sandboxd/run/acme-2.sock")
    assert config.worker == WorkerConfig(300_000, 0, 5)
    assert config.channel == ChannelConfig(2 * limits.MIB, 20)
    assert config.log == LogConfig(LogLevel.DEBUG, LogFormat.JSON)


def test_the_default_socket_follows_the_runtime_directory() -> None:
    for document in ({"runtime_directory": "/r"}, {"runtime_directory": "/r", "front": {"processes": 2}}):
        assert parse(document).front.listen == (UnixListen("/r/front-{index}.sock"),)


def test_tenant_sockets_alone_are_enough() -> None:
    front = {"listen": [], "tenant_sockets": {"acme": "/r/a-{index}.sock"}}

    assert parse({"front": front}).front.listen == ()


@pytest.mark.parametrize(
    ("document", "key", "problem"),
    [
        ({"policy": "x"}, "policy", "did you mean policies?"),
        ({"policies": ["x"]}, "policies", "must be a string, but is a list"),
        ({"front": {"processes": 0}}, "front.processes", "allowed: 1 to 256"),
        ({"front": {"listen": "x"}}, "front.listen", "must be a list"),
        ({"front": {"listen": []}}, "front.listen", "at least one socket"),
        ({"front": {"listen": ["/r/one.sock"]}}, "front.listen[0]", "needs {index}"),
        ({"front": {"listen": ["/r/{pid}-{index}"]}}, "front.listen[0]", "unknown placeholder"),
        ({"front": {"listen": ["/" + "r" * 100 + "{index}"], "processes": 11}}, "front.listen[0]", ""),
        (
            {"front": {"listen": ["/" + "r" * 106 + "{index}"]}},
            "front.listen[0]",
            "Unix socket's path has 107",
        ),
        ({"front": {"listen": [{}]}}, "front.listen[0]", "exactly one of unix and tcp"),
        ({"front": {"listen": [{"unix": "/{index}", "tcp": "[::1]:1"}]}}, "front.listen[0]", "exactly one"),
        ({"front": {"listen": [{"unix": "/{index}", "tls": {}}]}}, "front.listen[0]", "tls goes with tcp"),
        ({"front": {"listen": [{"tcp": "9000"}]}}, "front.listen[0].tcp", "HOST:PORT"),
        ({"front": {"listen": [{"tcp": "a:70000"}]}}, "front.listen[0].tcp", "HOST:PORT"),
        ({"front": {"listen": [{"tcp": "0.0.0.0:9000"}]}}, "front.listen[0].tcp", "needs tls"),
        ({"front": {"listen": [{"tcp": "10.0.0.1:9000"}]}}, "front.listen[0].tcp", "needs tls"),
        (
            {"front": {"listen": [{"tcp": "0.0.0.0:9000", "tls": {"key": "k"}}]}},
            "front.listen[0].tls",
            "needs the key certificate",
        ),
        ({"front": {"tenant_sockets": {"ACME": "/{index}"}}}, "front.tenant_sockets.ACME", "is not a name"),
        ({"front": {"socket_mode": "rw"}}, "front.socket_mode", "is not a file mode"),
        ({"worker": {"uid_base": 0}}, "worker.uid_base", "allowed: 1000 to"),
        ({"worker": {"uid_base": 64533}}, "worker.uid_base", "allowed: 1000 to 64532, 65535 to"),
        ({"worker": {"uid_base": 65534}}, "worker.uid_base", "sandboxd's own, 65532 to 65534"),
        ({"worker": {"spares": 65}}, "worker.spares", "allowed: 0 to 64"),
        ({"front": {"user": ""}}, "front.user", "must not be empty"),
        ({"worker": {"spin_us": "50us"}}, "worker.spin_us", "must be an integer"),
        ({"worker": {"spin_us": 10_001}}, "worker.spin_us", "allowed: 0 to 10000"),
        ({"channel": {"ring_bytes": 1048576}}, "channel.ring_bytes", "is not a size"),
        ({"channel": {"ring_bytes": "3MiB"}}, "channel.ring_bytes", "power of two"),
        ({"channel": {"ring_bytes": "32KiB"}}, "channel.ring_bytes", "allowed: 64KiB to 4MiB"),
        ({"attach": {"socket": "x" * 108}}, "attach.socket", "longer than a Unix socket's path"),
        ({"attach": {"channels": 0}}, "attach.channels", "1 to 256"),
        ({"attach": {"uids": ["envoy"]}}, "attach.uids[0]", "integer"),
        ({"log": {"level": "warn"}}, "log.level", "did you mean warning?"),
        ({"log": {"format": "xml"}}, "log.format", "allowed: text, json"),
        ([], "", "must be a mapping, but is a list"),
    ],
)
def test_bad_values(document: Any, key: str, problem: str) -> None:
    if not problem:  # the longest socket fits: the harmless twin of the next case
        assert parse(document).front.processes == 11
        return
    found = error(document)

    assert found.key == key
    assert problem in str(found)
    assert found.line > 0


@pytest.mark.parametrize("base", [1000, 64532, 65535, 2**31])
def test_no_tenant_can_have_a_uid_of_our_own(base: int) -> None:
    """What is just outside is accepted; the range holds every uid that the jails take."""
    assert parse({"worker": {"uid_base": base}}).worker.uid_base == base
    assert {FRONT_UID, SPARE_UID, INSIDE_ID} == set(limits.OUR_UIDS)
    assert not set(range(base, base + limits.MAX_TENANTS)) & set(limits.OUR_UIDS)


def test_bad_yaml_names_the_line() -> None:
    assert error("policies: a\nlog: [\n").line >= 2


def test_load_config(tmp_path: Path) -> None:
    path = tmp_path / "sandboxd.yaml"
    path.write_text("policies: p\n")

    assert load_config(path, USER).policies == tmp_path / "p"


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(tmp_path / "bad.yaml")


def test_nobody_attaches_unless_it_is_asked_for() -> None:
    assert parse({}).attach is None
    found = parse({"attach": {}, "runtime_directory": "/r"}, USER).attach
    assert found is not None
    assert (found.socket, found.uids, found.channels) == (Path("/r/attach.sock"), {USER.euid}, 4)
    found = parse({"attach": {"socket": "{runtime_directory}/a", "uids": [0, 101], "channels": 9}}).attach
    assert found is not None
    assert (found.socket.name, found.uids, found.channels) == ("a", {0, 101}, 9)


def test_metrics_listen_on_a_socket_or_on_loopback() -> None:
    assert parse("").metrics is None
    assert parse({"metrics": {}}).metrics == MetricsConfig(socket=Path("/run/sandboxd/metrics.sock"))
    named = parse({"metrics": {"listen": "run/m.sock", "socket_mode": "600"}}).metrics
    assert named == MetricsConfig(socket=Path("/etc/sandboxd/run/m.sock"), socket_mode=0o600)
    assert parse({"metrics": {"listen": "127.0.0.1:9464"}}).metrics == MetricsConfig(host="127.0.0.1", port=9464)
    assert parse({"metrics": {"listen": "[::1]:9464"}}).metrics == MetricsConfig(host="::1", port=9464)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"listen": "0.0.0.0:9464"}, "loopback"),
        ({"listen": "127.0.0.1"}, "not an address"),
        ({"listen": "127.0.0.1:0"}, "not an address"),
        ({"listen": "/" + "x" * 200}, "longer than"),
        ({"listen": "127.0.0.1:9464", "socket_mode": "600"}, "Unix socket"),
        ({"socket_mode": "9"}, "not a file mode"),
        ({"port": 1}, "is not a known key"),
    ],
)
def test_bad_metrics_sections_are_refused(section: Any, problem: str) -> None:
    found = error({"metrics": section})
    assert problem in str(found)
    assert "metrics" in str(found)
