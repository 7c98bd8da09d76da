"""Shared data in a real Redis server, for two daemons that serve one tenant; also when it goes away and comes back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from sandboxd.errors import PolicyError, WorkerError
from sandboxd.policy.load import parse_policy
from sandboxd.policy.model import SharedBackend
from sandboxd.protos import control_pb2 as control
from sandboxd.supervisor.questions import (
    CAS_MISMATCH,
    GET,
    INTERNAL_FAILURE,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    NOT_FOUND,
    OK,
    SET,
    Question,
    read_question,
)
from sandboxd.supervisor.remote_store import AWAY_S, RemoteStore
from sandboxd.supervisor.worker_protocol import MAX_QUESTIONS, VmView, WorkerView
from tests.support.daemon_client import GUESTS, FakeDaemon, fake_daemon, policy_text, wait_for
from tests.support.redis_server import Server, redis_server

COUNTER = GUESTS / "c/c_counter.wasm"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A real one."""
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as running:
        yield running


class Store:
    """A store on a loop of its own."""

    def __init__(self, url: str, tenant: str = "acme") -> None:
        self._runner = asyncio.Runner()
        self.store = self._runner.run(self._made(tenant, SharedBackend(url, timeout_ms=300)))

    async def _made(self, tenant: str, backend: SharedBackend) -> RemoteStore:
        return RemoteStore(tenant, backend)

    def ask(self, question: Question, vm_id: str = "") -> tuple[int, int, bytes]:
        """Status, compare-and-swap number and value."""
        data = self._runner.run(self.store.ask(vm_id, question))
        return int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little"), data[8:]

    def get(self, key: bytes, vm_id: str = "") -> tuple[int, int, bytes]:
        return self.ask(Question(GET, 0, key, b""), vm_id)

    def set(self, key: bytes, value: bytes, cas: int = 0, vm_id: str = "") -> int:
        return self.ask(Question(SET, cas, key, value), vm_id)[0]

    def close(self) -> None:
        self._runner.run(self.store.close())
        self._runner.close()


@pytest.fixture
def stores(server: Server) -> Iterator[tuple[Store, Store]]:
    """Two machines of one tenant."""
    found = Store(server.url), Store(server.url)
    yield found
    for store in found:
        store.close()


def test_what_one_machine_sets_the_other_gets(stores: tuple[Store, Store]) -> None:
    """Any bytes, empty ones too; numbers count up."""
    one, other = stores
    assert one.get(b"k") == (NOT_FOUND, 0, b"")
    assert one.set(b"k", b"\0\xffvalue") == OK
    assert other.get(b"k") == (OK, 1, b"\0\xffvalue")
    assert other.set(b"k", b"") == OK
    assert one.get(b"k") == (OK, 2, b"")
    assert one.set(b"", b"x" * MAX_VALUE_BYTES) == OK
    assert other.get(b"")[2] == b"x" * MAX_VALUE_BYTES


@pytest.mark.parametrize("field", ["v", "c"])
def test_what_is_too_long_stays_on_the_server(server: Server, stores: tuple[Store, Store], field: str) -> None:
    """Whoever has put it there; its length is looked at where it lies."""
    one, _ = stores
    one.set(b"k", b"v")
    with redis.Redis.from_url(server.url) as client:
        client.hset("sandboxd:acme:0::k", field, b"1" * (4 << 20))
        before = client.info("stats")["total_net_output_bytes"]
        assert one.get(b"k") == (NOT_FOUND, 0, b"")
        assert client.info("stats")["total_net_output_bytes"] - before < 1 << 20


def test_compare_and_swap_is_the_servers(stores: tuple[Store, Store]) -> None:
    """The second of two that have read the same loses; 0 means whatever is there; a key that is not there is set."""
    one, other = stores
    assert one.set(b"new", b"a", 7) == OK
    cas = one.get(b"new")[1]
    assert other.set(b"new", b"b", cas) == OK
    assert one.set(b"new", b"c", cas) == CAS_MISMATCH
    assert one.set(b"new", b"d", 0) == OK
    assert one.get(b"new")[2] == b"d"


def test_scopes_do_not_meet(server: Server, stores: tuple[Store, Store]) -> None:
    """Tenants, and VM ids of one; also those that are put together from the same letters."""
    one, _ = stores
    one.set(b"k", b"1", vm_id="a")
    stranger = Store(server.url, "acme2")
    try:
        found = [stranger.get(b"k", "a"), one.get(b"k", "b"), one.get(b":k", ""), one.get(b"a:k", "")]
    finally:
        stranger.close()
    assert [status for status, _, _ in found] == [NOT_FOUND] * 4
    assert one.get(b"k", "a")[0] == OK


def test_away_and_back(server: Server, stores: tuple[Store, Store], caplog: pytest.LogCaptureFixture) -> None:
    """Answered in bounded time, then at once; nothing is lost over the server's restart; said once."""
    one, _ = stores
    assert one.set(b"k", b"before") == OK
    server.stop()
    started_s = time.monotonic()
    assert one.get(b"k")[0] == INTERNAL_FAILURE
    assert one.set(b"k", b"lost") == INTERNAL_FAILURE
    assert time.monotonic() - started_s < 1
    assert (one.store.asked, one.store.failed) == (3, 2)
    server.start()
    time.sleep(AWAY_S)
    assert one.get(b"k") == (OK, 1, b"before")
    said = [record.message for record in caplog.records if "the store of its shared data" in record.message]
    assert [("is away" in text, "is back" in text) for text in said] == [(True, False), (False, True)]


def test_a_server_that_hangs_is_away(server: Server, stores: tuple[Store, Store]) -> None:
    """It takes connections and says nothing."""
    one, _ = stores
    assert server.process is not None
    one.set(b"k", b"v")
    server.process.send_signal(19)
    try:
        started_s = time.monotonic()
        assert one.get(b"k")[0] == INTERNAL_FAILURE
        assert 0.2 < time.monotonic() - started_s < 2
    finally:
        server.process.send_signal(18)


# ---- through workers ---------------------------------------------------------------------------------------------


def count(daemon: FakeDaemon, front: int = 0) -> tuple[int, int] | None:
    """The number that a request gets, and the last status. None: the answer came too late for the fake front."""
    answer = daemon.ask("alpha main", front)
    if "headers" not in answer:
        assert "failed" in answer, (answer, daemon.log)
        return None
    headers = dict(answer["headers"])
    return int(headers["x-count"]), int(headers["x-status"])


def number(daemon: FakeDaemon) -> int:
    """The number that a request gets; 0: none."""
    found = count(daemon)
    return found[0] if found else 0


@pytest.fixture
def machines(short_path: Path, artefact_cache: Path, server: Server) -> Iterator[list[FakeDaemon]]:
    """Two daemons, each with two VMs, that serve one tenant."""
    text = policy_text("alpha", COUNTER).replace(
        "plugins:", f"shared: {{backend: {{url: '{server.url}', timeout: 100ms}}}}\nplugins:"
    )
    for name in ("1", "2"):
        (short_path / name).mkdir()
    with (
        fake_daemon(short_path / "1", artefact_cache, {"a": text}) as one,
        fake_daemon(short_path / "2", artefact_cache, {"a": text}) as other,
    ):
        yield [one, other]


def test_machines_count_together_and_outlive_the_servers_restart(machines: list[FakeDaemon], server: Server) -> None:
    """Exactly, at the same time; while it is away requests go on uncounted; afterwards they count on."""
    wait_for(lambda: number(machines[0]) > 0, 10, "it counts")
    before = number(machines[0])
    assert before > 0
    outcomes: list[tuple[int, int] | None] = []

    def many(daemon: FakeDaemon) -> None:
        for _ in range(30):
            outcomes.append(count(daemon))

    threads = [threading.Thread(target=many, args=(daemon,)) for daemon in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    numbers = [outcome[0] for outcome in outcomes if outcome is not None and outcome[0]]
    after = number(machines[0])
    assert len(outcomes) == 60
    assert len(numbers) > 40, "hardly anything was counted: that proves nothing"
    assert len(set(numbers)) == len(numbers), "two requests got one number"
    assert len(numbers) <= after - before - 1 <= 60

    server.stop()
    assert count(machines[1]) in {(0, INTERNAL_FAILURE), None}
    wait_for(lambda: "the store of its shared data is away" in machines[1].log, 5, "it is said")
    wait_for(lambda: count(machines[1]) == (0, INTERNAL_FAILURE), 5, "requests go on, uncounted")
    counts = machines[1].tenant("alpha")["shared_store"]
    assert counts["asked"] > counts["failed"] > 0
    server.start()
    wait_for(lambda: number(machines[1]) > after, 10, "it counts on where it was")
    assert "the store of its shared data is back" in machines[1].log


# ---- what a worker says, and what a policy may -------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(11),
        bytes(12),
        (3).to_bytes(4, "little") + bytes(8),
        b"\1\0\0\0" + bytes(4) + (5).to_bytes(4, "little") + b"key",
        b"\1\0\0\0" + bytes(8) + b"value with a get",
        b"\2\0\0\0" + bytes(8) + b"x" * (MAX_VALUE_BYTES + 1),
        b"\2\0\0\0" + bytes(4) + (MAX_KEY_BYTES + 1).to_bytes(4, "little") + b"k" * (MAX_KEY_BYTES + 1),
    ],
)
def test_a_question_that_hostcore_never_asks(data: bytes) -> None:
    """The worker is a liar; the honest twin passes."""
    assert read_question(b"\2\0\0\0" + bytes(4) + b"\3\0\0\0keyvalue") == Question(SET, 0, b"key", b"value")
    with pytest.raises(WorkerError):
        read_question(data)


def test_a_worker_asks_only_so_much_at_once() -> None:
    """A VM waits for its answer."""
    view = WorkerView(ready=True, vms={1: VmView(plugin_id=1)})
    data = b"\1\0\0\0" + bytes(8)
    frame = control.FromWorker(shared_ask=control.SharedAsk(vm_id=1, number=1, data=data)).SerializeToString()
    for _ in range(MAX_QUESTIONS):
        view.feed(frame)
    with pytest.raises(WorkerError, match="waits for answers"):
        view.feed(frame)


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("{}", "url"),
        ("{url: 'http://x'}", "address of a store"),
        ("{url: 'redis://user:secret@x'}", "address of a store"),
        ("{url: 'redis://x?db=1'}", "address of a store"),
        ("{url: 'redis://x', timeout: 2s}", "timeout"),
        ("{url: 'redis://x', password_file: none}", "is not a file"),
        ("{url: 'redis://x', password: secret}", "password"),
    ],
)
def test_policies(backend: str, says: str, tmp_path: Path) -> None:
    """Errors name the place and hold no secret."""
    (tmp_path / "m").touch()
    plugin = f"  - name: p\n    module: {{file: m, sha256: {'0' * 64}}}\n"
    head = f"tenant: a\nshared: {{backend: {backend}}}\nplugins:\n{plugin}"
    with pytest.raises(PolicyError) as caught:
        parse_policy(head, "/etc/a.yaml", module_root=tmp_path)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("reply", [[b"value", b"no number"], b"what", None], ids=["cas", "bytes", "nothing"])
async def test_what_another_has_put_there_is_answered(monkeypatch: pytest.MonkeyPatch, reply: object) -> None:
    """A guest waits for the answer, whatever the server says."""
    store = RemoteStore("acme", SharedBackend("redis://127.0.0.1:1", timeout_ms=300))

    async def get(**_more: object) -> object:
        return reply

    monkeypatch.setattr(store, "_get", get)
    found = await store.ask("", Question(GET, 0, b"key", b""))

    assert int.from_bytes(found[:4], "little") == INTERNAL_FAILURE
    await store.close()


@pytest.mark.parametrize(("content", "says"), [(b"\xff\xfe", "is not UTF-8"), (None, "cannot be read: No such file")])
def test_password_that_cannot_be_read_is_an_error_that_names_the_file(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    """It may have changed since the policy was loaded."""
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(WorkerError, match=f"password_file: {file} {says}"):
        RemoteStore("acme", SharedBackend("redis://127.0.0.1/0", password_file=file))
