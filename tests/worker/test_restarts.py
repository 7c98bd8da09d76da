"""Leave to start again."""

from __future__ import annotations

from sandboxd.worker.restarts import Leave


def test_each_leave_is_for_one_start() -> None:
    """And waits until it is taken."""
    leave = Leave()
    assert not leave.failed(while_starting=False)
    assert not leave.take()

    leave.give()

    assert leave.take()
    assert not leave.take()


def test_a_vm_that_has_served_may_come_back_at_once_so_often() -> None:
    """What a tool with one guest of its own asks for; a start that fails waits all the same."""
    leave = Leave(2)

    assert not leave.failed(while_starting=True)
    assert [leave.failed(while_starting=False) for _ in range(3)] == [True, True, False]
    assert leave.failures == 4
