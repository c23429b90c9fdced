"""Where events may go: not to where clouds keep a machine's keys, however that place is written."""

from __future__ import annotations

import pytest

from receiver.core.addresses import EVERYWHERE, AllowList, why_not

REFUSED = [
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "::",
    "239.1.2.3",
    "255.255.255.255",
    "ff02::1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_link_local_and_metadata_addresses_are_refused(address: str) -> None:
    assert why_not("hooks.example.com", address) is not None
    assert why_not("hooks.example.com", address, AllowList.of(("hooks.example.com",))) is not None, "though the name is allowed"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.1", "fd12::1", "93.184.216.34", "2606:2800::1"])
def test_all_others_are_not(address: str) -> None:
    """An indexer in the same network, or on the same machine, is what many have."""
    assert why_not("indexer", address, EVERYWHERE) is None


@pytest.mark.parametrize(
    ("entries", "host", "address", "fine"),
    [
        (("10.0.0.0/8",), "indexer", "10.1.2.3", True),
        (("10.0.0.0/8",), "indexer", "11.1.2.3", False),
        (("10.0.0.0/8",), "indexer", "::ffff:10.1.2.3", True),
        (("192.0.2.7",), "indexer", "192.0.2.7", True),
        (("192.0.2.7",), "indexer", "192.0.2.8", False),
        (("2001:db8::/32",), "indexer", "2001:db8::1", True),
        (("hooks.example.com",), "Hooks.Example.COM.", "93.184.216.34", True),
        (("hooks.example.com",), "hooks.example.com.evil.example", "93.184.216.34", False),
        (("*.example.com",), "a.example.com", "93.184.216.34", True),
        (("*.example.com",), "example.com", "93.184.216.34", False),
        (("*.example.com", "10.0.0.0/8"), "indexer", "10.1.2.3", True),
        (("169.254.7.0/24",), "indexer", "169.254.7.9", True),
    ],
)
def test_with_an_allow_list_only_what_it_names_is_fine(entries: tuple[str, ...], host: str, address: str, fine: bool) -> None:
    assert (why_not(host, address, AllowList.of(entries)) is None) == fine


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "10.0.0.0/40", "http://a.example", "*", "a/b"])
def test_what_names_no_place_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="neither a network"):
        AllowList.of((entry,))
