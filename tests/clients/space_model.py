"""
The handshake for room in the submission ring (``docs/channel.md``, chapter 1), explored exhaustively.

A client has pieces of one event to send, more than the ring takes: it sleeps until there is room. The VM takes pieces,
answers nothing before the last, and sleeps when there is none. Each goes to sleep and wakes the other at the same time.
Steps and store buffers are as in `wake_model`. A state that nothing leads out of, with pieces left, is a lost wake-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

TAIL, HEAD, CLIENT_WANTS, CLIENT_NEED, VM_NEED = range(5)
CLIENT, VM = 0, 1
CAPACITY: Final = 1


@dataclass(frozen=True)
class State:
    """Next steps, memory, store buffers, eventfds and what each side knows by itself (pieces sent, pieces taken)."""

    at: tuple[str, str]
    memory: tuple[int, ...] = (0, 0, 0, 0, 0)
    buffers: tuple[tuple[tuple[int, int], ...], ...] = ((), ())
    events: tuple[bool, bool] = (False, False)
    own: tuple[int, int] = (0, 0)

    def load(self, who: int, place: int) -> int:
        """A process sees its own stores first."""
        for written, value in reversed(self.buffers[who]):
            if written == place:
                return value
        return self.memory[place]

    def store(self, who: int, place: int, value: int) -> State:
        """Into the store buffer."""
        return replace(self, buffers=put(self.buffers, who, (*self.buffers[who], (place, value))))

    def counted(self, who: int) -> State:
        """One piece more."""
        return replace(self, own=put(self.own, who, self.own[who] + 1))

    def drained(self) -> Iterator[State]:
        """One store of either side reaches memory."""
        for who, buffer in enumerate(self.buffers):
            if buffer:
                place, value = buffer[0]
                yield replace(self, memory=put(self.memory, place, value), buffers=put(self.buffers, who, buffer[1:]))


def put(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    """The tuple with one value replaced."""
    return (*values[:index], value, *values[index + 1 :])


# Programs: what a step does, and where it leads: (operation, arguments), next step, next step if it said no.
Program = Mapping[str, tuple[tuple[Any, ...], str, str]]

CLIENT_PROGRAM: Final[Program] = {
    "room": (("room",), "publish", "wants"),
    "publish": (("publish",), "fence", ""),
    "fence": (("fence",), "look", ""),
    "look": (("is", VM_NEED), "swap", "room"),
    "swap": (("swap", VM_NEED), "raise", "room"),
    "raise": (("raise", VM), "room", ""),
    "wants": (("store", CLIENT_WANTS, 1), "need", ""),
    "need": (("store", CLIENT_NEED, 1), "settle", ""),
    "settle": (("fence",), "recheck", ""),
    "recheck": (("room",), "awake", "sleep"),
    "sleep": (("sleep",), "awake", ""),
    "awake": (("store", CLIENT_NEED, 0), "room", ""),
}

_WAKE: Final[Program] = {
    "wake": (("is", CLIENT_WANTS), "wake_fence", "after"),
    "wake_fence": (("fence",), "wake_look", ""),
    "wake_look": (("is", CLIENT_NEED), "wake_swap", "after"),
    "wake_swap": (("swap", CLIENT_NEED), "wake_raise", "after"),
    "wake_raise": (("raise", CLIENT), "after", ""),
}
_SLEEP: Final[Program] = {
    "need": (("store", VM_NEED, 1), "settle", ""),
    "settle": (("fence",), "recheck", ""),
    "recheck": (("work",), "awake", "before_sleep"),
    "sleep": (("sleep",), "awake", ""),
    "awake": (("store", VM_NEED, 0), "work", ""),
}


def _joined(take_leads_to: str, after_wake: str, before_sleep: str) -> Program:
    """The VM's steps: what comes when no piece is left, after it woke the client, and before it sleeps."""
    names = {"after": after_wake, "before_sleep": before_sleep}
    steps = {"work": (("work",), "take", take_leads_to), "take": (("take",), "work", ""), **_WAKE, **_SLEEP}
    return {name: (act, names.get(yes, yes), names.get(no, no)) for name, (act, yes, no) in steps.items()}


VM_PROGRAM: Final = _joined("need", "sleep", "wake")
"""It says first that it will sleep: the fence there is between its counter and the look at the client's wish."""
VM_THAT_LOOKS_FIRST: Final = _joined("wake", "need", "sleep")
"""It looks at the client's wish while its own counter may still be in the store buffer."""


def _can(state: State, who: int, name: str, pieces: int) -> bool:
    """Whether the step can be taken now: fences wait for the store buffer, sleepers for the eventfd."""
    match name:
        case "fence" | "swap":
            return not state.buffers[who]
        case "sleep":
            return state.events[who]
        case "room":
            return state.own[CLIENT] != pieces  # else all is sent
        case _:
            return True


def _step(state: State, who: int, act: tuple[Any, ...]) -> tuple[State, bool]:
    """Return the state after a step, and its answer."""
    name, *given = act
    made, answer = state, True
    match name:
        case "store":
            made = state.store(who, given[0], given[1])
        case "is":
            answer = bool(state.load(who, given[0]))
        case "swap":
            made, answer = replace(state, memory=put(state.memory, given[0], 0)), bool(state.memory[given[0]])
        case "raise":
            made = replace(state, events=put(state.events, given[0], True))
        case "sleep":
            made = replace(state, events=put(state.events, who, False))
        case "room":
            answer = state.own[CLIENT] - state.load(who, HEAD) < CAPACITY
        case "publish":
            sent = state.counted(CLIENT)
            made = sent.store(who, CLIENT_WANTS, 0).store(who, TAIL, sent.own[CLIENT])
        case "work":
            answer = state.load(who, TAIL) != state.own[VM]
        case "take":
            taken = state.counted(VM)
            made = taken.store(who, HEAD, taken.own[VM])
    return made, answer


def explore(vm: Program, pieces: int = 3) -> tuple[int, list[State]]:
    """Return how many states can be reached, and those of them that nothing leads out of although pieces are left."""
    begin = State(("room", "work"))
    todo, seen, lost = [begin], {begin}, []
    while todo:
        state = todo.pop()
        following = list(state.drained())
        for who, program in ((CLIENT, CLIENT_PROGRAM), (VM, vm)):
            act, yes, no = program[state.at[who]]
            if _can(state, who, act[0], pieces):
                made, answer = _step(state, who, act)
                following.append(replace(made, at=put(made.at, who, yes if answer else no)))
        if not following and state.own[VM] != pieces:
            lost.append(state)
        for other in following:
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return len(seen), lost
