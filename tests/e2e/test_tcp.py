"""TCP connections through a real Envoy: the flow-control example, failure, reload, and what a pause may last."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support import tcp_stage
from tests.support.guests import C_TCP_FLOW, Guest, tcp_probe
from tests.support.stage import eventually
from tests.support.tcp_stage import TENANT, TcpStage

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]


def flow(name: str, **limits: int) -> Guest:
    """The example with these limits; its counts are its own."""
    return replace(C_TCP_FLOW, name=name, configuration=json.dumps(limits))


FLOWS = (
    flow("at-once", connections=2),
    flow("per-second", connections_per_second=3),
    flow("bytes", bytes_per_second=1000),
    flow("total", total_connections=1),
    flow("unlimited"),
)
PAUSING = tcp_probe("whole-lines")
CALLBACKS = ("proxy_on_context_create", "proxy_on_configure", "proxy_on_downstream_data")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpStage]:
    """The flow-control plugins and some probes."""
    guests = [*FLOWS, PAUSING, tcp_probe("trap"), tcp_probe("pass")]
    quick = {"time_per_pause": "200ms"}
    plugins = [tcp_stage.plugin(guest, **({"limits": quick} if guest is PAUSING else {})) for guest in guests]
    for entry in plugins:
        entry["failure"] = {"restart": {"backoff": "0ms", "max_crashes": 100}}
    with tcp_stage.running(guests, tmp_path_factory.mktemp("tcp"), plugins=plugins, timeout_s=1.2) as made:
        yield made


def connect(stage: TcpStage, plugin: str) -> socket.socket:
    """Open a connection and have its first bytes echoed."""
    made = socket.create_connection(("127.0.0.1", stage.proxy.ports[f"net-{plugin}"]), 5)
    made.sendall(b"hello")
    return made


def served(connection: socket.socket) -> bool:
    """Whether the echo came, rather than the end."""
    try:
        return connection.recv(5) == b"hello"
    except ConnectionResetError:
        return False


def test_connections_at_a_time(stage: TcpStage) -> None:
    """A third is closed; when one is over, there is room again."""
    held = [connect(stage, "at-once") for _ in range(2)]
    assert all(map(served, held))
    with connect(stage, "at-once") as third:
        assert not served(third)
    held.pop().close()

    def room() -> bool:
        with connect(stage, "at-once") as again:
            return served(again)

    eventually(room, "the place of a closed connection is free")
    for connection in held:
        connection.close()


def test_connections_per_second(stage: TcpStage) -> None:
    """Of ten at once at most three for each second that they took pass; a second later others do."""
    begin = time.time()
    outcomes = []
    for _ in range(10):
        with connect(stage, "per-second") as connection:
            outcomes.append(served(connection))
    seconds = int(time.time()) - int(begin) + 1

    assert 3 <= sum(outcomes) <= 3 * seconds
    time.sleep(1.05)
    with connect(stage, "per-second") as connection:
        assert served(connection)


def test_bytes_per_second(stage: TcpStage) -> None:
    """Who sends too many is cut off."""
    with connect(stage, "bytes") as connection:
        assert served(connection)
        connection.sendall(bytes(2000))
        assert connection.recv(1) == b""


def test_all_addresses_together(stage: TcpStage) -> None:
    """The total counts everybody."""
    with connect(stage, "total") as first:
        assert served(first)
        with connect(stage, "total") as second:
            assert not served(second)


def test_no_limits(stage: TcpStage) -> None:
    """An empty configuration lets all pass."""
    connections = [connect(stage, "unlimited") for _ in range(20)]
    assert all(map(served, connections))
    for connection in connections:
        connection.close()


def test_a_pause_may_last(stage: TcpStage) -> None:
    """Longer than time_per_pause, and longer than Envoy waits: the bytes that complete the line free it."""
    with socket.create_connection(("127.0.0.1", stage.proxy.ports["net-tcp-whole-lines"]), 5) as connection:
        connection.sendall(b"half ")
        time.sleep(1.6)
        connection.sendall(b"line\n")
        got = b""
        while len(got) < 10:
            piece = connection.recv(64)
            assert piece, "closed"
            got += piece

    assert got == b"half line\n"


def test_a_trap_costs_its_connections_and_the_next_ones_are_served(stage: TcpStage) -> None:
    """A reset, no orderly end; the VM starts anew."""
    trapped = stage.talk("net-tcp-trap", (b"ab", b"trap"))
    assert (trapped.client, trapped.client_end) == (b"ab", "reset")

    eventually(lambda: stage.talk("net-tcp-trap", (b"ab",)).client == b"ab", "the plugin serves again")


def test_a_reload_lets_connections_go_on(stage: TcpStage) -> None:
    """Those that began before it."""
    path = stage.policies / f"{TENANT}.yaml"
    with connect(stage, "tcp-pass") as old:
        assert served(old)
        policy = json.loads(path.read_text())
        (entry,) = (plugin for plugin in policy["plugins"] if plugin["name"] == "tcp-pass")
        entry["configuration"] = "upper"
        path.write_text(json.dumps(policy))
        stage.sandbox.command("reload")
        eventually(lambda: stage.talk("net-tcp-pass", (b"new",)).client == b"NEW", "the new version serves")
        old.sendall(b"still")
        assert old.recv(5) == b"still"


def test_nothing_is_left(stage: TcpStage) -> None:
    """Of all these connections none is open in Envoy any more."""

    def open_connections() -> dict[str, int]:
        found = stage.proxy.stats(r"^listener\.127.*downstream_cx_active$")
        assert found
        return {name: value for name, value in found.items() if value}

    eventually(lambda: not open_connections(), "all connections are closed")
