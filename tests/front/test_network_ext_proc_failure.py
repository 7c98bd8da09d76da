"""Network ext_proc: what becomes of connections whose plugin fails, or whose VM goes away."""

from __future__ import annotations

from tests.support.front_rig import Rig, plugin
from tests.support.network_play import DOWN, EMPTY, FAST, HELD, OPEN, READ, WRITE, scripted


async def test_failure_closed_is_a_reset(rig: Rig) -> None:
    """No orderly end: what was cut off must not look whole."""
    rig.attach(plugin(FAST), answer=scripted(lambda event: [] if event.kind == DOWN else None))
    call = rig.connect()
    await call.down(b"x")

    assert await call.reply() == ("CLOSE_RST", b"", False)
    assert rig.count("failed.timeout") == 1
    assert rig.count("failure.reset") == 1


async def test_failure_open_goes_on_without_the_plugin(rig: Rig) -> None:
    """From the message that failed on."""
    rig.attach(plugin(f"{FAST}\n{OPEN}"), answer=scripted(lambda event: [] if event.kind == DOWN else None))
    call = rig.connect()
    await call.down(b"x")
    assert await call.reply() == (READ, b"x", False)
    await call.up(b"y")
    assert await call.reply() == (WRITE, b"y", False)

    assert rig.count("failure.open") == 1
    await call.done()


async def test_failure_open_cannot_make_up_bytes(rig: Rig) -> None:
    """What the VM held is gone with it."""
    rig.attach(plugin(OPEN), answer=scripted(lambda event: [event.verdict(0, HELD)] if event.kind == DOWN else None))
    call = rig.connect()
    await call.down(b"a")
    await call.down(b"b")
    assert await call.reply() == EMPTY
    rig.registry.detach(1, "gone")

    assert await call.reply() == ("CLOSE_RST", b"", False)
    assert rig.count("failure.open_impossible") == 1


async def test_a_vm_that_goes_away_ends_the_connection(rig: Rig) -> None:
    """With its next message at the latest."""
    rig.attach()
    call = rig.connect()
    await call.down(b"a")
    await call.reply()
    rig.registry.detach(1, "gone")
    await call.down(b"b")

    assert await call.reply() == ("CLOSE_RST", b"", False)


async def test_a_reload_lets_connections_end_on_the_old_vm(rig: Rig) -> None:
    """New ones get the new VM."""
    rig.attach()
    old = rig.connect()
    await old.down(b"a")
    await old.reply()
    rig.attach()
    new = rig.connect()
    await new.down(b"n")
    await new.reply()
    await old.down(b"b")

    assert await old.reply() == (READ, b"b", False)
    assert [len([e for e in vm.seen if e.kind == DOWN]) for vm in rig.vms] == [2, 1]
    await old.done()
    await rig.until(lambda: rig.drained == [1])
    await new.done()
