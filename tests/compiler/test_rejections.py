"""What made a compiler hang or blow up is remembered for a while, and no longer."""

from __future__ import annotations

from sandboxd.compiler import rejections
from sandboxd.compiler.rejections import KEEP_S, Rejections


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_crash_is_remembered_for_any_time() -> None:
    clock = Clock()
    known = Rejections(clock)
    known.remember("module", "key", "it crashed")

    assert known.find("module", "key", 1e9) == "it crashed"
    assert known.find("module", "other settings", 1) == ""
    assert known.find("other", "key", 1) == ""
    clock.now_s = KEEP_S - 1
    assert known.find("module", "key", 1)
    clock.now_s = KEEP_S
    assert known.find("module", "key", 1) == ""


def test_want_of_time_is_remembered_for_no_longer_a_time() -> None:
    known = Rejections()
    known.remember("module", "key", "took more than 5 s", 5)

    assert known.find("module", "key", 5)
    assert known.find("module", "key", 4)
    assert known.find("module", "key", 6) == ""


def test_forgotten_by_module() -> None:
    known = Rejections()
    for key in ("a", "b"):
        known.remember("module", key, "it crashed")
    known.remember("other", "a", "it crashed")
    known.forget("module")

    assert known.find("module", "a", 1) == known.find("module", "b", 1) == ""
    assert known.find("other", "a", 1)


def test_bounded() -> None:
    known = Rejections()
    for number in range(rejections.MOST + 10):
        known.remember(str(number), "key", "it crashed")

    assert len(known._found) == rejections.MOST
    assert known.find("0", "key", 1) == ""
    assert known.find(str(rejections.MOST + 9), "key", 1)
