"""The client of a VM: what it submits, what it accepts, and what it calls broken."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from sandboxd.channel import layout, memfd
from sandboxd.channel.client import VmClient
from sandboxd.channel.completions import Effect, EventLimits, Verdict, VmRestarted
from sandboxd.channel.errors import ChannelBroken, ChannelFull
from tests.support.fake_vm import Event, FakeVm

RING = 65536
HEADERS = layout.REQUEST_HEADERS
BODY = layout.REQUEST_BODY


class Both:
    """A client and the fake behind it, driven by hand."""

    def __init__(self, **options: object) -> None:
        fds = memfd.create_channel(RING)
        self.client = VmClient(fds, **options)  # type: ignore[arg-type]
        self.vm = FakeVm(fds)
        self.vm.begin()
        (started,) = self.client.drain()
        assert started == VmRestarted(1, [])

    def open(self) -> int:
        return self.client.open_stream(b"", 7)

    def ask(self, stream_id: int, kind: int = HEADERS, payload: bytes = b"", eos: bool = False) -> Event:
        """Submit an event and return what the VM got."""
        self.client.submit(stream_id, kind, payload, eos, 7)
        self.client.flush()
        return self.vm.take()[-1]

    def close(self) -> None:
        self.vm.stop()
        self.client.close()


@pytest.fixture
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.close()


def test_event_and_its_answer(both: Both) -> None:
    stream_id = both.client.open_stream(b"attributes", 5)
    seq = both.client.submit(stream_id, HEADERS, b"headers", True, 6)
    both.client.flush()
    opened, event = both.vm.take()

    assert (opened.kind, opened.stream_id, opened.time_ns, opened.payload) == (1, stream_id, 5, b"attributes")
    assert (event.kind, event.seq, event.end_of_stream, event.time_ns) == (HEADERS, seq, True, 6)

    note = event.effect(layout.NOTE, arg=3)
    both.vm.emit([event.effect(HEADERS), note, event.verdict(0, layout.STATE_RESPONSE_PAUSED)])
    (verdict,) = both.client.drain()

    assert verdict == Verdict(
        stream_id,
        seq,
        0,
        layout.STATE_RESPONSE_PAUSED,
        [Effect(HEADERS, 0, stream_id, seq, 0, b"")],
        [Effect(layout.NOTE, 0, stream_id, seq, 3, b"")],
    )
    assert both.client.outstanding == 0


@pytest.mark.parametrize("size", [0, 1, RING // 4 - 32, RING // 4 - 31, RING, 5 * RING + 3])
def test_bodies_of_any_size_go_both_ways(both: Both, size: int) -> None:
    body = random.Random(size).randbytes(size)
    stream_id = both.open()
    both.client.submit(stream_id, BODY, body, True, 0)
    completions: list[object] = []
    events: list[Event] = []
    for _ in range(100):
        both.client.flush()
        for event in both.vm.take():
            if event.kind == BODY:
                events.append(event)
                both.vm.emit([event.effect(BODY, event.payload[::-1]), event.verdict()])
        both.vm.emit([])
        completions += both.client.drain()
        if completions:
            break

    assert [event.payload for event in events] == [body]
    (verdict,) = completions
    assert isinstance(verdict, Verdict)
    assert verdict.effects[0].payload == body[::-1]


def test_as_submitted_gives_the_payload_back(both: Both) -> None:
    event = both.ask(both.open(), BODY, b"payload")
    both.vm.emit([event.effect(BODY, flags=layout.FLAG_AS_SUBMITTED), event.verdict()])
    (verdict,) = both.client.drain()

    assert isinstance(verdict, Verdict)
    assert verdict.effects[0].payload == b"payload"
    assert verdict.effects[0].flags & layout.FLAG_AS_SUBMITTED


def test_effects_on_another_stream_come_with_the_event(both: Both) -> None:
    first, second = both.open(), both.open()
    event = both.ask(first)
    both.vm.emit([event.effect(HEADERS, stream_id=second), event.verdict()])
    (verdict,) = both.client.drain()

    assert isinstance(verdict, Verdict)
    assert [effect.stream_id for effect in verdict.effects] == [second]


def test_notices_at_the_start_come_on_their_own(both: Both) -> None:
    both.vm.emit([(layout.LOG, 0, 0, 0, 2, b"configured")])

    assert both.client.drain() == [Effect(layout.LOG, 0, 0, 0, 2, b"configured")]


def test_full_ring_waits_in_the_backlog_and_then_refuses() -> None:
    both = Both(max_backlog_bytes=100_000)
    stream_id = both.open()

    def fill() -> None:
        for _ in range(100):
            both.client.submit(stream_id, BODY, b"x" * 10_000, False, 0)

    with pytest.raises(ChannelFull, match="wait for the VM"):
        fill()
    accepted = both.client.outstanding
    both.client.close_stream(stream_id, True, 0)
    got: list[Event] = []
    for _ in range(20):
        both.client.flush()
        got += both.vm.take()
        both.client.drain()

    assert len(got) == accepted + 2
    assert got[-1].kind == layout.STREAM_CLOSE
    assert got[-1].flags == layout.FLAG_RESET
    both.close()


def test_a_full_completion_ring_gets_going_again(both: Both) -> None:
    stream_id = both.open()
    event = both.ask(stream_id, BODY, b"x")
    both.vm.emit([event.effect(BODY, b"y" * (3 * RING)), event.verdict()])
    assert both.vm.words[layout.OFFSET_VM_WANTS_SPACE // 4] == 1
    both.vm.words[layout.OFFSET_VM_NEED_WAKE // 4] = 1

    assert both.client.drain() == []
    assert both.vm.words[layout.OFFSET_VM_NEED_WAKE // 4] == 0, "the sleeping VM was not told of the room"
    completions: list[object] = []
    for _ in range(10):
        both.vm.emit([])
        completions += both.client.drain()

    assert len(completions) == 1


# --- restart ---


def test_restart_loses_what_was_outstanding_and_drops_late_answers(both: Both) -> None:
    stream_id = both.open()
    lost = both.ask(stream_id)
    queued = both.client.submit(stream_id, BODY, b"q", False, 0)
    both.client.flush()
    both.vm.fail()
    assert both.client.vm_state == layout.VM_FAILED
    both.vm.begin()

    assert both.client.restart_unseen
    (restarted,) = both.client.drain()
    assert restarted == VmRestarted(2, [(lost.seq, stream_id), (queued, stream_id)])
    assert both.client.generation == 2

    # The new VM meets what the old one had left in the ring; nobody waits for that.
    for event in both.vm.take():
        both.vm.emit([event.effect(BODY, b"late"), event.verdict(layout.CODE_UNKNOWN_STREAM)])
    assert both.client.drain() == []
    assert both.client.dropped == 2

    event = both.ask(both.open())
    both.vm.emit([event.verdict()])
    assert len(both.client.drain()) == 1


def test_events_submitted_while_the_first_vm_starts_are_its_own() -> None:
    fds = memfd.create_channel(RING)
    client, vm = VmClient(fds), FakeVm(fds)
    client.submit(client.open_stream(b"", 0), HEADERS, b"", True, 0)
    client.flush()
    vm.begin()
    vm.poll()

    started, verdict = client.drain()
    assert started == VmRestarted(1, [])
    assert isinstance(verdict, Verdict)
    vm.stop()
    client.close()


def test_abandoned_events_keep_nothing(both: Both) -> None:
    event = both.ask(both.open(), BODY, b"x")
    both.client.abandon(event.seq)
    both.vm.emit([event.effect(BODY, b"y" * 1000), event.effect(layout.LOG, b"z"), event.verdict()])
    (verdict,) = both.client.drain()

    assert isinstance(verdict, Verdict)
    assert verdict.effects == []
    assert verdict.notices == []


def test_what_an_abandoned_event_does_to_other_streams_counts(both: Both) -> None:
    """Also if it comes in pieces, of which some were there before; pieces of its own are forgotten with the rest."""
    other = both.open()
    event = both.ask(both.open(), BODY, b"x")
    pieces = [(BODY, layout.FLAG_MORE, stream, event.seq, 0, b"fir") for stream in (other, event.stream_id)]
    both.vm.emit(pieces)
    assert both.client.drain() == []
    both.client.abandon(event.seq)
    both.vm.emit([event.effect(BODY, b"st", stream_id=other), event.effect(BODY, b"st"), event.verdict()])
    (verdict,) = both.client.drain()

    assert isinstance(verdict, Verdict)
    assert [(effect.stream_id, effect.payload) for effect in verdict.effects] == [(other, b"first")]


# --- sleeping ---


def test_sleep_handshake(both: Both) -> None:
    event = both.ask(both.open())
    assert both.client.prepare_sleep()
    assert both.vm.words[layout.OFFSET_CLIENT_NEED_WAKE // 4] == 1
    both.client.clear_event()
    both.vm.emit([event.verdict()])

    assert both.vm.words[layout.OFFSET_CLIENT_NEED_WAKE // 4] == 0
    assert not both.client.prepare_sleep(), "work came between the decision and the sleep"
    assert both.vm.words[layout.OFFSET_CLIENT_NEED_WAKE // 4] == 0


def test_the_vm_is_woken_only_when_it_sleeps(both: Both) -> None:
    import os

    both.ask(both.open())
    with pytest.raises(BlockingIOError):
        os.eventfd_read(both.client.fds.vm_event_fd)
    both.vm.words[layout.OFFSET_VM_NEED_WAKE // 4] = 1
    both.ask(both.open())
    assert os.eventfd_read(both.client.fds.vm_event_fd) == 1


# --- a hostile VM ---


def _on(kind: int, payload: bytes = b"", flags: int = 0, arg: int = 0, stream_id: int = 0):  # type: ignore[no-untyped-def]
    return lambda event: [event.effect(kind, payload, flags, arg, stream_id)]


HOSTILE = {
    "unknown kind": _on(17),
    "kind 0": lambda event: [(0xFFFF, 0, 1, event.seq, 0, b"")],
    "unknown flag": _on(HEADERS, flags=64),
    "verdict twice": lambda event: [event.verdict(), event.verdict()],
    "verdict never asked for": lambda event: [(1, 0, event.stream_id, event.seq + 1, 0, b"")],
    "verdict for the stream's opening": lambda event: [(1, 0, event.stream_id, event.seq - 1, 0, b"")],
    "verdict of another stream": lambda event: [(1, 0, event.stream_id + 1, event.seq, 0, b"")],
    "verdict with a payload": lambda event: [(1, 0, event.stream_id, event.seq, 0, b"x")],
    "verdict with unknown code": lambda event: [event.verdict(5)],
    "verdict with unknown state": lambda event: [event.verdict(0, 64)],
    "verdict inside fragments": lambda event: [
        event.effect(BODY, b"a", layout.FLAG_MORE),
        event.verdict(),
    ],
    "fragments mixed": lambda event: [
        event.effect(BODY, b"a", layout.FLAG_MORE),
        event.effect(HEADERS),
    ],
    "effect outside any event on a stream never opened": lambda _: [(HEADERS, 0, 99, 0, 0, b"")],
    "effect outside any event on no stream": lambda _: [(HEADERS, 0, 0, 0, 0, b"")],
    "effect of an event that is over": lambda event: [
        event.verdict(),
        (HEADERS, 0, event.stream_id, event.seq, 0, b""),
    ],
    "verdict outside any event": lambda event: [(1, 0, event.stream_id, 0, 0, b"")],
    "as submitted outside any event": lambda event: [(BODY, layout.FLAG_AS_SUBMITTED, event.stream_id, 0, 0, b"")],
    "effect on no stream": lambda event: [(HEADERS, 0, 0, event.seq, 0, b"")],
    "effect on a stream never opened": _on(HEADERS, stream_id=99),
    "map without MODIFIED": _on(HEADERS, b"\0\0\0\0"),
    "map too large": _on(HEADERS, b"\0" * (1024 * 1024 + 1), layout.FLAG_MODIFIED),
    "as submitted with bytes": _on(BODY, b"x", layout.FLAG_AS_SUBMITTED),
    "as submitted twice": lambda event: 2 * [event.effect(BODY, flags=layout.FLAG_AS_SUBMITTED)],
    "as submitted of another kind": _on(layout.RESPONSE_BODY, flags=layout.FLAG_AS_SUBMITTED),
    "log too long": _on(layout.LOG, b"x" * 8193),
    "log of unknown level": _on(layout.LOG, arg=6),
    "denied with a payload": _on(layout.DENIED, b"x"),
    "close of an unknown side": _on(layout.CLOSE_STREAM, arg=4),
    "VM_STARTED in an event": _on(layout.VM_STARTED, arg=2),
    "VM_STARTED of the same generation": lambda _: [(layout.VM_STARTED, 0, 0, 0, 1, b"")],
    "VM_STARTED of a huge generation": lambda _: [(layout.VM_STARTED, 0, 0, 0, 2**32, b"")],
    "log for an event never submitted": lambda event: [(layout.LOG, 0, 0, event.seq + 5, 0, b"")],
    "too many effects": lambda event: 101 * [event.effect(layout.LOG, b"x")],
    "too many notices outside events": lambda _: 101 * [(layout.LOG, 0, 0, 0, 0, b"x")],
    "too many bytes": lambda event: 3 * [event.effect(BODY, b"x" * 1024 * 1024)],
    "endless fragments": lambda event: 101 * [event.effect(BODY, b"", layout.FLAG_MORE)],
    "fragments on many streams": lambda event: [
        event.effect(BODY, b"", layout.FLAG_MORE, stream_id=1 + n % 2) for n in range(101)
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_vm_breaks_the_channel(name: str) -> None:
    both = Both(limits=EventLimits(max_effects=100, max_bytes=2 * 1024 * 1024 + 64_000, max_loose=100))
    both.open()
    event = both.ask(both.open(), BODY, b"body")
    both.vm.emit(HOSTILE[name](event))

    def drain_all() -> None:
        for _ in range(1000):
            both.client.drain()
            both.vm.emit([])

    with pytest.raises(ChannelBroken):
        drain_all()
    with pytest.raises(ChannelBroken):
        both.client.drain()
    with pytest.raises(ChannelBroken):
        both.client.submit(1, HEADERS, b"", True, 0)
    both.close()


def test_effects_outside_events_name_their_stream(both: Both) -> None:
    """A tick lets a paused stream go on: headers, and a body in fragments."""
    stream = both.open()
    records = [
        (HEADERS, 0, stream, 0, 0, b""),
        (BODY, layout.FLAG_MORE, stream, 0, 0, b"a"),
        (BODY, 0, stream, 0, 0, b"b"),
    ]
    both.vm.emit(records)

    completions = both.client.drain()

    assert [(c.kind, c.stream_id, c.payload) for c in completions if isinstance(c, Effect)] == [
        (HEADERS, stream, b""),
        (BODY, stream, b"ab"),
    ]


def test_quiet_vm_may_speak_outside_events_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that logs a line each second: the bound is per time."""
    now_ns = [0]
    monkeypatch.setattr("sandboxd.channel.intake.time.monotonic_ns", lambda: now_ns[0])
    both = Both(limits=EventLimits(max_loose=10))
    for _ in range(50):
        now_ns[0] += 1_000_000_000
        both.vm.emit([(layout.LOG, 0, 0, 0, 2, b"tick")])
        assert len(both.client.drain()) == 1
    both.close()


@pytest.mark.parametrize(("records", "breaks"), [(20, False), (60, True)])
def test_what_arises_outside_events_is_bounded_in_the_long_run(
    monkeypatch: pytest.MonkeyPatch, records: int, breaks: bool
) -> None:
    """Much at once is allowed, but not each tenth of a second: every record costs this side time."""
    now_ns = [0]
    monkeypatch.setattr("sandboxd.channel.intake.time.monotonic_ns", lambda: now_ns[0])
    both = Both(limits=EventLimits(max_loose=100, loose_per_window=20))
    windows = 0
    with pytest.raises(ChannelBroken, match="its limits") if breaks else contextlib.nullcontext():
        for windows in range(50):
            now_ns[0] += 100_000_000
            both.vm.emit([(layout.NOTE, 0, 0, 0, 7, b"")] * (100 if windows == 0 else records))
            both.client.drain()
    assert windows == (1 if breaks else 49)
    both.close()


@pytest.mark.parametrize(("effects", "breaks"), [(30, False), (80, True)])
def test_what_large_events_bring_is_bounded_in_the_long_run(
    monkeypatch: pytest.MonkeyPatch, effects: int, breaks: bool
) -> None:
    """Each event keeps to its own limit, and all of them together would still cost this side all of its time."""
    now_ns = [0]
    monkeypatch.setattr("sandboxd.channel.intake.time.monotonic_ns", lambda: now_ns[0])
    both = Both(limits=EventLimits(free_effects=10, max_effects=100, max_loose=100, loose_per_window=20))
    stream = both.open()
    answered = 0
    with pytest.raises(ChannelBroken, match="its limits") if breaks else contextlib.nullcontext():
        for _ in range(50):
            now_ns[0] += 100_000_000
            event = both.ask(stream, BODY, b"body")
            both.vm.emit([*(event.effect(layout.LOG, b"x") for _ in range(effects)), event.verdict()])
            answered += len(both.client.drain())
    assert answered == (1 if breaks else 50)
    both.close()


def test_padding_alone_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a VM could keep the client at work for ever: for each it only moves its counter."""
    monkeypatch.setattr("sandboxd.channel.intake.time.monotonic_ns", lambda: 0)
    both = Both(limits=EventLimits(max_loose=100))

    def pad_alone() -> None:
        both.client._consumer._head = RING - 64
        layout.PAD_HEAD.pack_into(both.vm._views[3], RING - 64, 64, layout.PAD, 0)
        both.vm.words[layout.OFFSET_CQ_TAIL // 4] = RING
        assert both.client.drain() == []

    for _ in range(99):  # VM_STARTED was the first
        pad_alone()
    with pytest.raises(ChannelBroken, match="its limits"):
        pad_alone()
    both.close()


def test_hostile_submission_counter(both: Both) -> None:
    both.vm.words[layout.OFFSET_SQ_HEAD // 4] = 0x1234

    def fill() -> None:
        for _ in range(100):
            both.client.submit(1, BODY, b"x" * 10_000, False, 0)

    with pytest.raises(ChannelBroken, match="position"):
        fill()


def test_random_completions_break_nothing_else() -> None:
    """Well-formed records with random fields: verdicts, effects or ChannelBroken, in bounded memory."""
    chance = random.Random(5)
    outcomes = {"fine": 0, "broken": 0}
    for _ in range(300):
        both = Both(limits=EventLimits(max_effects=50, max_bytes=100_000))
        streams = [both.open(), both.open()]
        seqs = [both.client.submit(s, k, b"x" * 40, False, 0) for s in streams for k in (HEADERS, BODY)]
        try:
            for _ in range(30):
                record = (
                    chance.choice([1, 2, 3, 6, 8, 9, 10, 12, 13, 15, 16, chance.randrange(18)]),
                    chance.choice([0, 0, 0, 1, 2, 4, 8, chance.getrandbits(16)]),
                    chance.choice([*streams, *streams, 0, chance.getrandbits(64)]),
                    chance.choice([*seqs, *seqs, 0, chance.getrandbits(32)]),
                    chance.choice([0, 0, 1, chance.getrandbits(64)]),
                    b"" if chance.random() < 0.7 else chance.randbytes(chance.randrange(2000)),
                )
                both.vm.emit([record])
                both.client.drain()
            outcomes["fine"] += 1
        except ChannelBroken:
            outcomes["broken"] += 1
        both.close()

    assert outcomes["broken"] > 100


# --- the file ---


def test_channel_files_are_checked() -> None:
    import os

    good = memfd.create_channel(RING)
    with pytest.raises(ChannelBroken, match="does not fit"):
        memfd.map_channel(good.memfd, 2 * RING)
    with pytest.raises(OSError, match="Operation not permitted"):
        os.ftruncate(good.memfd, 0)
    loose = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, layout.file_bytes(RING))
    with pytest.raises(ChannelBroken, match="not sealed"):
        memfd.map_channel(loose, RING)
    os.close(loose)
    good.close()
    with pytest.raises(ValueError, match="power of two"):
        memfd.create_channel(RING + 1)


def test_blobs() -> None:
    import os

    fd = memfd.create_blob("policy", b"text")
    assert memfd.read_blob(fd, 100) == b"text"
    assert memfd.read_blob(fd, 100) == b"text"
    with pytest.raises(ChannelBroken, match="at most 3"):
        memfd.read_blob(fd, 3)
    with pytest.raises(OSError, match="Operation not permitted"):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


# --- TCP connections ---


def connected(both: Both) -> int:
    """Open a connection and meet its verdict."""
    stream_id = both.open()
    event = both.ask(stream_id, layout.NEW_CONNECTION)
    both.vm.emit([event.verdict()])
    both.client.drain()
    return stream_id


def test_data_of_a_connection(both: Both) -> None:
    """As submitted, and outside events."""
    stream_id = connected(both)
    event = both.ask(stream_id, layout.DOWNSTREAM_DATA, b"bytes")
    as_submitted = event.effect(layout.DOWNSTREAM_DATA, flags=layout.FLAG_AS_SUBMITTED)
    both.vm.emit([as_submitted, event.effect(layout.UPSTREAM_DATA, b"held"), event.verdict()])
    both.vm.emit([(layout.UPSTREAM_DATA, 0, stream_id, 0, 0, b"loose")])
    verdict, loose = both.client.drain()

    assert isinstance(verdict, Verdict)
    assert [(effect.kind, effect.payload) for effect in verdict.effects] == [(17, b"bytes"), (18, b"held")]
    assert verdict.notices == []
    assert isinstance(loose, Effect)
    assert loose.payload == b"loose"


@pytest.mark.parametrize(
    "kind", [HEADERS, BODY, layout.LOCAL_RESPONSE, layout.CLEAR_ROUTE_CACHE, layout.RESPONSE_TRAILERS]
)
def test_effects_of_exchanges_on_a_connection(both: Both, kind: int) -> None:
    stream_id = connected(both)
    event = both.ask(stream_id, layout.DOWNSTREAM_DATA, b"x")
    both.vm.emit([event.effect(kind)])
    with pytest.raises(ChannelBroken, match="of the other kind"):
        both.client.drain()


def test_data_on_an_exchange(both: Both) -> None:
    event = both.ask(both.open())
    both.vm.emit([event.effect(layout.DOWNSTREAM_DATA, b"x")])
    with pytest.raises(ChannelBroken, match="of the other kind"):
        both.client.drain()


def test_data_as_submitted_of_the_other_direction(both: Both) -> None:
    event = both.ask(connected(both), layout.DOWNSTREAM_DATA, b"x")
    both.vm.emit([event.effect(layout.UPSTREAM_DATA, flags=layout.FLAG_AS_SUBMITTED)])
    with pytest.raises(ChannelBroken, match="AS_SUBMITTED"):
        both.client.drain()


def test_a_connection_is_forgotten_with_its_end(both: Both) -> None:
    """Nothing is kept of streams that are over."""
    stream_id = connected(both)
    both.client.close_stream(stream_id, False, 7)
    both.client.flush()
    (close,) = both.vm.take()
    both.vm.emit([close.verdict()])
    both.client.drain()

    assert not both.client._intake._connections
