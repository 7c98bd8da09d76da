"""Addresses that a callout must not reach, each with a harmless twin; and names that lead there."""

from __future__ import annotations

import asyncio
import socket
import threading
from ipaddress import ip_address, ip_network

import pytest

from sandboxd.egress import resolve
from sandboxd.egress.resolve import AddressRefusedError, GuardedResolver, SystemLookup
from sandboxd.egress.ssrf import refusal

PAIRS = [
    ("127.0.0.1", "loopback", "128.0.0.1"),
    ("::1", "loopback", "2606:4700::1"),
    ("0.0.0.0", "unspecified", "1.0.0.1"),
    ("::", "unspecified", "2a00::1"),
    ("169.254.169.254", "metadata service", "169.253.169.254"),
    ("168.63.129.16", "metadata service", "168.63.129.17"),
    ("169.254.1.1", "link-local", "169.255.1.1"),
    ("fe80::1", "link-local", "2a00:fe80::1"),
    ("10.0.0.1", "private", "11.0.0.1"),
    ("172.31.255.255", "private", "172.32.0.0"),
    ("192.168.1.1", "private", "192.169.1.1"),
    ("fd00::1", "private", "2a00:fd00::1"),
    ("100.64.0.1", "carrier-grade NAT", "100.128.0.1"),
    ("224.0.0.1", "multicast", "223.0.0.1"),
    ("255.255.255.255", "broadcast or reserved", "223.255.255.255"),
    ("::ffff:127.0.0.1", "loopback", "::ffff:8.8.8.8"),
    ("64:ff9b::7f00:1", "loopback inside an IPv6 form", "64:ff9b::808:808"),
    ("2002:a9fe:a9fe::1", "metadata service inside an IPv6 form", "2002:808:808::1"),
    ("2001:0:808:808::80ff:fffe", "protocol assignment", "2a00:0:808:808::80ff:fffe"),
    ("::127.0.0.1", "loopback inside an IPv6 form", "2a00::7f00:1"),
    ("2a00::5efe:10.0.0.1", "private inside an IPv6 form", "2a00::5efe:8.8.8.8"),
    ("2a00::200:5efe:10.0.0.1", "private inside an IPv6 form", "2a00::200:5efe:8.8.8.8"),
]


@pytest.mark.parametrize(("bad", "why", "good"), PAIRS)
def test_refused_and_its_twin(bad: str, why: str, good: str) -> None:
    assert refusal(ip_address(bad), ()) == why
    assert refusal(ip_address(good), ()) == ""


def test_a_named_network_is_allowed_and_no_other() -> None:
    allowed = (ip_network("127.0.0.0/8"),)
    assert refusal(ip_address("127.0.0.1"), allowed) == ""
    assert refusal(ip_address("::ffff:127.0.0.1"), allowed) == ""
    assert refusal(ip_address("10.0.0.1"), allowed) == "private"
    assert refusal(ip_address("64:ff9b::7f00:1"), allowed) == "loopback inside an IPv6 form"


async def test_a_name_that_rebinds_is_judged_at_every_lookup() -> None:
    answers = iter((["8.8.8.8"], ["127.0.0.1"], ["8.8.8.8", "127.0.0.1"]))

    async def lookup(host: str, port: int) -> list[str]:
        return next(answers)

    guard = GuardedResolver((), lookup)
    assert await guard.addresses("example.com", 80) == ["8.8.8.8"]
    with pytest.raises(AddressRefusedError, match="loopback"):
        await guard.addresses("example.com", 80)
    assert await guard.addresses("example.com", 80) == ["8.8.8.8"]


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "127.0.0.1.", "[::1]".strip("[]"), "::ffff:7f00:1"],
)
async def test_an_address_in_disguise_is_judged_by_what_it_is(host: str) -> None:
    """As the C library reads it; names that it does not know are no address either."""
    with pytest.raises(OSError, match=r"loopback|unspecified|not known|no address|[Nn]ame"):
        await GuardedResolver((), SystemLookup()).addresses(host, 80)


async def test_a_socket_is_never_made_for_a_refused_address() -> None:
    """The last look, in case that anything before it was wrong."""
    guard = GuardedResolver((), SystemLookup())
    with pytest.raises(AddressRefusedError, match="metadata"):
        guard.socket_factory((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80)))
    guard.socket_factory((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))).close()


async def test_lookups_of_one_tenant_do_not_take_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()

    def stuck(host: str, port: int) -> list[str]:
        if host == "slow.example":
            held.wait(10)
        return ["8.8.8.8"]

    monkeypatch.setattr(resolve, "_addresses", stuck)
    one, other = SystemLookup(), SystemLookup()
    waiting = [asyncio.ensure_future(one("slow.example", 80)) for _ in range(2 * resolve.LOOKUP_THREADS)]
    try:
        await asyncio.sleep(0.1)
        assert await asyncio.wait_for(other("quick.example", 80), 2) == ["8.8.8.8"]
    finally:
        held.set()
        await asyncio.gather(*waiting)
