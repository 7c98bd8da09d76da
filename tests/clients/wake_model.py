"""
The sleeping handshake of ``docs/channel.md``, chapter 1, as a model that is explored exhaustively.

Two processes, a producer and a sleeper, take one step at a time in every order. Stores go through a store buffer of
their process (total store order, as on x86-64; weaker machines get the same order from the release stores and fences
of the code), and reach memory at any later time; a fence waits until the buffer is empty, an atomic exchange does too.

A state in which the sleeper sleeps, the producer is through and there is unread work is a lost wake-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

COUNTER, NEED_WAKE = 0, 1
PRODUCER, SLEEPER = 0, 1

Step = tuple[str, ...]

PRODUCER_STEPS: tuple[Step, ...] = (
    ("publish",),
    ("fence",),
    ("look",),  # at need_wake; without it the round is over
    ("swap",),  # need_wake to 0; if it was 0 meanwhile nothing is written
    ("raise",),
)
SLEEPER_STEPS: tuple[Step, ...] = (
    ("consume",),
    ("want",),  # need_wake = 1
    ("fence",),
    ("recheck",),  # work: back to the beginning by way of awake
    ("sleep",),  # on the eventfd, until its count is not 0; lowers it
    ("awake",),  # need_wake = 0
)


@dataclass(frozen=True)
class State:
    """All that there is: program counters, memory, store buffers, the eventfd."""

    at: tuple[int, int] = (0, 0)
    memory: tuple[int, int] = (0, 0)
    buffers: tuple[tuple[tuple[int, int], ...], ...] = ((), ())
    event: int = 0
    published: int = 0
    consumed: int = 0


@dataclass(frozen=True)
class Model:
    """The handshake, or a damaged one: ``without`` names steps (process, name) that are left out."""

    rounds: int = 3
    batches: bool = False
    """The producer may publish again before it goes on, though not leave it at that."""
    forgets: bool = False
    """... or leave it at that."""
    without: frozenset[tuple[int, str]] = frozenset()
    steps: tuple[tuple[Step, ...], tuple[Step, ...]] = field(default=(PRODUCER_STEPS, SLEEPER_STEPS))

    def load(self, state: State, who: int, place: int) -> int:
        """A process sees its own stores first."""
        for written, value in reversed(state.buffers[who]):
            if written == place:
                return value
        return state.memory[place]

    def next_states(self, state: State) -> Iterator[State]:
        """Every state that one step, or one store that reaches memory, leads to."""
        for who in (PRODUCER, SLEEPER):
            yield from self._drained(state, who)
            yield from self._stepped(state, who)

    def _drained(self, state: State, who: int) -> Iterator[State]:
        buffer = state.buffers[who]
        if buffer:
            place, value = buffer[0]
            memory = tuple(value if index == place else old for index, old in enumerate(state.memory))
            buffers = tuple(buffer[1:] if index == who else old for index, old in enumerate(state.buffers))
            yield replace(state, memory=memory, buffers=buffers)

    def _stepped(self, state: State, who: int) -> Iterator[State]:
        name = self.steps[who][state.at[who]][0]
        if (who, name) in self.without:
            yield self._go(state, who)
            return
        act = getattr(self, f"_{name}")
        yield from act(state, who)

    def _go(self, state: State, who: int, to: int | None = None) -> State:
        following = (state.at[who] + 1) % len(self.steps[who]) if to is None else to
        return replace(state, at=tuple(following if index == who else old for index, old in enumerate(state.at)))

    def _stored(self, state: State, who: int, place: int, value: int) -> State:
        buffers = tuple((*old, (place, value)) if index == who else old for index, old in enumerate(state.buffers))
        return replace(state, buffers=buffers)

    # --- the producer ---

    def _publish(self, state: State, who: int) -> Iterator[State]:
        if state.published < self.rounds:
            count = state.published + 1
            stored = self._stored(replace(state, published=count), who, COUNTER, count)
            yield self._go(stored, who)
            if self.batches and (count < self.rounds or self.forgets):
                yield stored

    def _look(self, state: State, who: int) -> Iterator[State]:
        wanted = self.load(state, who, NEED_WAKE)
        yield self._go(state, who) if wanted else self._go(state, who, 0)

    def _swap(self, state: State, who: int) -> Iterator[State]:
        if state.buffers[who]:
            return
        found = state.memory[NEED_WAKE]
        swapped = replace(state, memory=(state.memory[COUNTER], 0))
        yield self._go(swapped, who) if found else self._go(swapped, who, 0)

    def _raise(self, state: State, who: int) -> Iterator[State]:
        yield self._go(replace(state, event=min(state.event + 1, 2)), who)

    # --- the sleeper ---

    def _consume(self, state: State, who: int) -> Iterator[State]:
        yield self._go(replace(state, consumed=self.load(state, who, COUNTER)), who)

    def _want(self, state: State, who: int) -> Iterator[State]:
        yield self._go(self._stored(state, who, NEED_WAKE, 1), who)

    def _recheck(self, state: State, who: int) -> Iterator[State]:
        work = self.load(state, who, COUNTER) != state.consumed
        yield self._go(state, who, len(self.steps[who]) - 1) if work else self._go(state, who)

    def _sleep(self, state: State, who: int) -> Iterator[State]:
        if state.event:
            yield self._go(replace(state, event=0), who)

    def _awake(self, state: State, who: int) -> Iterator[State]:
        yield self._go(self._stored(state, who, NEED_WAKE, 0), who)

    # --- both ---

    def _fence(self, state: State, who: int) -> Iterator[State]:
        if not state.buffers[who]:
            yield self._go(state, who)


def explore(model: Model) -> tuple[int, list[State]]:
    """Return how many states can be reached, and those of them that nothing leads out of although there is work."""
    todo, seen, lost = [State()], {State()}, []
    while todo:
        state = todo.pop()
        following = list(model.next_states(state))
        if not following and state.consumed != state.published:
            lost.append(state)
        for other in following:
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return len(seen), lost
