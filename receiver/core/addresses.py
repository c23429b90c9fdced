"""Which addresses an event may be sent to: never those where clouds keep a machine's keys, whatever name led there."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Self, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

REFUSED: Final = tuple(
    ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local; nearly every cloud's metadata are at 169.254.169.254
        "fe80::/10",
        "fd00:ec2::/32",  # AWS
        "fd20:ce::/32",  # Google
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure
        "192.0.0.192/32",  # Oracle
        "0.0.0.0/32",
        "::/128",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "ff00::/8",
    )
)
_NAT64: Final = ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class AllowList:
    """The only places there are, if any is named: networks, and names of hosts (`*.example.com` too)."""

    networks: tuple[Network, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, entries: tuple[str, ...]) -> Self:
        """From words such as `10.0.0.0/8`, `192.0.2.7`, `hooks.example.com`. Raises `ValueError`."""
        networks: list[Network] = []
        names: list[str] = []
        for entry in entries:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                if "/" in entry or ":" in entry or not entry.strip("*."):
                    raise ValueError(f"{entry!r} is neither a network such as 10.0.0.0/8 nor the name of a host") from None
                names.append(entry.lower().rstrip("."))
        return cls(tuple(networks), tuple(names))

    def __bool__(self) -> bool:
        return bool(self.networks or self.names)

    def has_name(self, host: str) -> bool:
        """Whether the host itself is named, whatever address it has."""
        return any(fnmatchcase(host.lower().rstrip("."), name) for name in self.names)


EVERYWHERE: Final = AllowList()


def why_not(host: str, address: str, allowed: AllowList = EVERYWHERE) -> str | None:
    """Why `address`, which the name `host` led to, may not be connected to; None: it may be.

    A network that is named allows what lies in it, even what is refused otherwise; the name of a host does not.
    """
    meant = _meant(ip_address(address.partition("%")[0]))
    named = any(meant in network for network in allowed.networks)
    if named:
        return None
    if any(meant in network for network in REFUSED):
        return "a link-local address, or one of a cloud's own services"
    if allowed and not allowed.has_name(host):
        return "not in RECEIVER_HOOK_ALLOW"
    return None


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, if it does: packets to it arrive there."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address
