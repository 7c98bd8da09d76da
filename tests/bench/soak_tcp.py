"""A soak's TCP: connections through Envoy to an upstream that echoes, each looked at byte for byte and to its end."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from sandboxd.commands.envoy_network import network_ext_proc
from sandboxd.demo import envoy_config
from tests.bench.soak_scenes import Lane, Part
from tests.support import guests

CLUSTER = "soak-tcp"
THREADS = 2
"""For each lane, one connection after the other each."""
STUCK_S = 30.0
PIECES, PIECE_BYTES = 6, 20_000
"""A connection carries at most so many pieces of at most so many bytes."""
BYE = b"bye"
"""After this the upstream ends the connection by itself."""
PAUSE_S = 0.005
FAR_LIMIT = '{"total_connections": 100000%d}'
"""Counted at every connection, and never reached."""
MIN_WHOLE = 0.9
"""Of all connections: with a worker the bytes that it has are lost, and its connections with them."""

WHOLE, RESET, CUT, WRONG, STUCK = OUTCOMES = ("whole", "reset", "cut", "wrong", "stuck")
"""How a connection ended; ``cut``: in an orderly way, in the middle."""
_RESET_NOW = struct.pack("ii", 1, 0)


class Echo:
    """The upstream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.open = 0
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                self.open += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
                if data.endswith(BYE):
                    break
        with self._lock:
            self.open -= 1

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)


def converse(port: int, chance: random.Random) -> str:
    """Have one connection with the echo, and return which of `OUTCOMES` it had."""
    try:
        with socket.create_connection(("127.0.0.1", port), STUCK_S) as client:
            client.settimeout(STUCK_S)
            for _ in range(chance.randint(1, PIECES)):
                outcome = _exchange(client, chance.randbytes(chance.randint(1, PIECE_BYTES)))
                if outcome != WHOLE:
                    return outcome
            return _end(client, chance.choice(("ours", "theirs", "reset")))
    except TimeoutError:
        return STUCK
    except OSError:
        return RESET


def _exchange(client: socket.socket, piece: bytes) -> str:
    client.sendall(piece)
    have = bytearray()
    while len(have) < len(piece):
        data = client.recv(1 << 16)
        if not data:
            return CUT
        have += data
    return WHOLE if have == piece else WRONG


def _end(client: socket.socket, how: str) -> str:
    """End a connection: by our end, by the upstream's, or at once."""
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_NOW)
        return WHOLE
    if how == "theirs":
        outcome = _exchange(client, BYE)
        if outcome != WHOLE:
            return outcome
    else:
        client.shutdown(socket.SHUT_WR)
    return WRONG if client.recv(1) else WHOLE


@dataclass
class Traffic:
    """What the connections of all lanes came to."""

    lanes: tuple[Lane, ...]
    echo: Echo
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def drive(self, ports: Mapping[str, int]) -> Iterator[None]:
        """Have connections for the length of a ``with`` block, and then wait for the ends of all of them."""
        stop = threading.Event()
        self.counts = {lane.name: Counter() for lane in self.lanes}
        threads = [
            threading.Thread(target=self._talk, args=(lane.name, ports[lane.name], seed, stop))
            for lane in self.lanes
            for seed in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(STUCK_S * 2)
            self._await_ends()

    def _talk(self, name: str, port: int, seed: int, stop: threading.Event) -> None:
        chance, own = random.Random(seed), Counter[str]()
        while not stop.wait(PAUSE_S):
            outcome = converse(port, chance)
            own[outcome] += 1
            if outcome != WHOLE:
                stop.wait(20 * PAUSE_S)  # the worker is starting again
        self.counts[name] += own

    def _await_ends(self) -> None:
        deadline = time.monotonic() + STUCK_S
        while self.echo.open and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.echo.open:
            self.said.append(f"TCP: {self.echo.open} connections of the upstream never ended")

    def judge(self) -> list[str]:
        """Return what is wrong."""
        return self.said + [line for name, counts in self.counts.items() for line in wrong_with(name, counts)]

    def figures(self) -> dict[str, int]:
        """Return how many connections ended how, over all lanes."""
        return {f"tcp_{outcome}": sum(one[outcome] for one in self.counts.values()) for outcome in OUTCOMES}


def wrong_with(name: str, counts: Mapping[str, int]) -> list[str]:
    """Return what is wrong with a lane's connections. Pure."""
    what = {
        CUT: "ended in the middle as if that were the whole",
        WRONG: "carried other bytes than were sent",
        STUCK: f"stood still for {STUCK_S:g} s",
    }
    wrong = [f"{name}: {counts[key]} connections {text}" for key, text in what.items() if counts.get(key)]
    total, whole = sum(counts.values()), counts.get(WHOLE, 0)
    if whole < MIN_WHOLE * max(total, 1):
        wrong.append(f"{name}: only {whole} of {total} connections were whole")
    return wrong


@contextlib.contextmanager
def part() -> Iterator[Part]:
    """Run the upstream, and return the part, for the length of a ``with`` block."""
    echo = Echo()
    try:
        lanes = tuple(
            Lane(f"tcp-{name}", guests.C_TCP_FLOW, name == "open", configuration=FAR_LIMIT, is_http=False)
            for name in ("open", "closed")
        )
        traffic = Traffic(lanes, echo)
        listeners = [envoy_config.tcp_listener(lane.name, [_filter(lane)], CLUSTER) for lane in lanes]
        yield Part(
            lanes,
            listeners=listeners,
            clusters=[envoy_config.tcp_cluster(CLUSTER, echo.port)],
            drive=traffic.drive,
            judge=partial(_judge, traffic),
            figures=lambda _sandbox: traffic.figures(),
        )
    finally:
        echo.close()


def _judge(traffic: Traffic, _sandbox: object) -> list[str]:
    return traffic.judge()


def _filter(lane: Lane) -> dict[str, object]:
    return network_ext_proc(
        "sandboxd", lane.name, lane.guest.name, timeout_ns=2_500_000_000, attributes=("source.address", "source.port")
    )
