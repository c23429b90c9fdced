"""Sign and verify deliveries: bytes in, nothing or one exception out.

The rule is Reader's: `X-Reader-Signature: sha256=<hex>` is the HMAC-SHA256, under the secret's UTF-8 bytes, of the
`X-Reader-Timestamp`, a full stop and the raw body. Only those two things are signed.

Stricter than the vendor's samples where they are lax: the timestamp is checked in both directions (theirs accept any
future), and both headers have exactly one accepted spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cryptography.hazmat.primitives import constant_time
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from receiver.errors import SignatureError

TOLERANCE = 300
"""Seconds a delivery may be old, or ahead of us."""

_SIGNATURE = re.compile(r"sha256=([0-9a-f]{64})")
# Canonical decimal: no sign, no underscore, no leading zero, which int() would all let pass.
_TIMESTAMP = re.compile(r"0|[1-9][0-9]{0,11}")


def sign(body: bytes, *, timestamp: int | str, secret: str) -> str:
    """The value of `X-Reader-Signature` for a body sent at `timestamp` (Unix seconds)."""
    mac = HMAC(secret.encode(), SHA256())
    mac.update(f"{timestamp}.".encode() + body)
    return f"sha256={mac.finalize().hex()}"


def verify(
    body: bytes,
    *,
    timestamp: str,
    signature: str,
    secrets: Iterable[str] | str,
    now: float,
    tolerance: float = TOLERANCE,
) -> None:
    """Return if any of `secrets` signed `body` at `timestamp`, and that is at most `tolerance` seconds from `now`.

    Raises `SignatureError`, and never anything else, whatever comes in.
    """
    Verifier(secrets).verify(body, timestamp=timestamp, signature=signature, now=now, tolerance=tolerance)


class Verifier:
    """Verifies against a fixed set of secrets. Preparing their key states once saves a third of each delivery's cost."""

    def __init__(self, secrets: Iterable[str] | str) -> None:
        """Raises `SignatureError` without a usable secret: an empty key would let anybody sign."""
        try:
            # A lone string is one secret, not a secret for each of its characters.
            keys = [s.encode() for s in ([secrets] if isinstance(secrets, str) else secrets)]
        except (AttributeError, TypeError, UnicodeEncodeError) as error:
            raise SignatureError("no_secret", "a signing secret must be text that UTF-8 can encode") from error
        if not keys or not all(keys):
            raise SignatureError("no_secret", "a delivery cannot be verified without a secret, or with an empty one")
        self._states = [HMAC(key, SHA256()) for key in keys]

    def verify(self, body: bytes, *, timestamp: str, signature: str, now: float, tolerance: float = TOLERANCE) -> int:
        """See `verify`. Returns which of the secrets it was, counted from 0.

        `now` counts in whole seconds, as the timestamp does: exactly `tolerance` seconds is in time.
        """
        try:
            claimed = _SIGNATURE.fullmatch(signature)
            sent = _TIMESTAMP.fullmatch(timestamp)
            if claimed is None or sent is None:
                raise SignatureError("malformed", "the signature or the timestamp is not in the one accepted form")
            digest = bytes.fromhex(claimed[1])
            message = timestamp.encode("ascii") + b"." + body
            age = int(float(now)) - int(sent[0])  # float() first: it bounds what the refusal's text has to spell out
            timely = abs(age) <= tolerance
        except (TypeError, ValueError, OverflowError) as error:
            raise SignatureError("malformed", "a delivery is bytes, two ASCII headers and a finite time") from error
        # Every secret is tried, found or not, so that the time taken does not tell which one matched.
        matches = [constant_time.bytes_eq(_digest(state, message), digest) for state in self._states]
        if not any(matches):
            raise SignatureError("mismatch", "no configured secret made this signature")
        if not timely:
            raise SignatureError(
                "stale" if age > 0 else "future",
                f"genuinely signed, but {abs(age)} s {'ago' if age > 0 else 'ahead'}: a replay, or a clock is off",
            )
        return matches.index(True)


def _digest(state: HMAC, message: bytes) -> bytes:
    mac = state.copy()
    mac.update(message)
    return mac.finalize()
