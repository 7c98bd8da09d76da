"""
Which addresses a callout may reach: public ones, and those that the upstream's policy names. Pure.

The networks are those of IANA's special-purpose registries. An IPv6 address that carries an IPv4 one (mapped,
translated, tunnelled) is judged by both: a gateway on the way would take it to the inner one.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, TypeAlias

from sandboxd.policy.callouts import Network

Address: TypeAlias = IPv4Address | IPv6Address

METADATA: Final = frozenset(
    map(ip_address, ("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"))
)
"""Where clouds hand out credentials; refused by name, for one of them is not in any special network."""

_REFUSED: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("loopback", ("127.0.0.0/8", "::1/128")),
    ("unspecified", ("0.0.0.0/8", "::/128")),
    ("link-local", ("169.254.0.0/16", "fe80::/10")),
    ("private", ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10")),
    ("carrier-grade NAT", ("100.64.0.0/10",)),
    ("multicast", ("224.0.0.0/4", "ff00::/8")),
    ("broadcast or reserved", ("240.0.0.0/4",)),
    ("protocol assignment", ("192.0.0.0/24", "192.88.99.0/24", "2001::/23")),
    ("documentation", ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")),
    ("benchmarking", ("198.18.0.0/15",)),
    ("discard", ("100::/64",)),
    ("segment routing", ("5f00::/16",)),
    ("local NAT64", ("64:ff9b:1::/48",)),
)
_NETWORKS: Final = tuple((kind, ip_network(text)) for kind, texts in _REFUSED for text in texts)
_NAT64: Final = ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ip_network("::/96")


def refusal(address: Address, allowed: tuple[Network, ...]) -> str:
    """
    Return why an address must not be reached, such as ``loopback``; empty: it may.

    Args:
        address: what a connection would be made to.
        allowed: networks that the policy names. An IPv4 network allows the mapped form of its addresses as well, which
            is the same destination; of translated and tunnelled forms the IPv6 network must be named.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address.version == network.version and address in network for network in allowed):
        return ""
    for candidate in (address, *_inside(address)):
        if candidate in METADATA:
            return "metadata service" if candidate is address else "metadata service inside an IPv6 form"
        for kind, network in _NETWORKS:
            if candidate.version == network.version and candidate in network:
                return kind if candidate is address else f"{kind} inside an IPv6 form"
    if isinstance(address, IPv6Address) and address in _COMPATIBLE:
        return "IPv4-compatible"
    return ""


def _inside(address: Address) -> Iterator[IPv4Address]:
    if not isinstance(address, IPv6Address):
        return
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in _NAT64 or address in _COMPATIBLE or (int(address) >> 32) & 0xFDFFFFFF == 0x5EFE:
        yield IPv4Address(int(address) & 0xFFFFFFFF)  # the last: ISATAP's interface id, ::[02]00:5efe:a.b.c.d
