"""What is shown of a signing secret."""

from __future__ import annotations

import pytest

from receiver.core.fingerprint import FORM, fingerprint
from receiver.web.keyring import Keyring

pytestmark = pytest.mark.anyio

OLD, NEW = "the-present-secret-of-old", "the-secret-of-tomorrow"


def test_a_fingerprint_is_short_and_always_the_same() -> None:
    """Fixed for good: a command of one release asks a server of another."""
    assert fingerprint("whsec-of-the-system-tests") == "6a47a673"
    assert FORM.fullmatch(fingerprint("ä" * 256))


async def test_a_keyring_tells_the_accepted_secrets_in_order_and_what_webhooks_were_signed_with() -> None:
    old, new = fingerprint(OLD), fingerprint(NEW)
    keyring = Keyring([NEW, OLD])
    assert await keyring.told() == {"secrets": [new, old], "webhooks": {}}
    keyring.signed(new, 1)
    assert (await keyring.told())["webhooks"] == {new: old}
    keyring.signed(new, 0)
    assert (await keyring.told())["webhooks"] == {new: new}


async def test_what_anybody_may_write_into_the_header_neither_stays_nor_stands_in_the_way() -> None:
    keyring = Keyring([NEW])
    for number in range(100):
        keyring.signed(f"{number:08x}", 0)
    keyring.signed("<script>", 0)
    assert (await keyring.told())["webhooks"] == {}
    keyring.signed(fingerprint(NEW), 0)
    keyring.signed("00000001", 0)
    assert (await keyring.told())["webhooks"] == {fingerprint(NEW): fingerprint(NEW)}
