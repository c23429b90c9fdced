"""A delivery as Reader sends it: its headers, signed."""

from __future__ import annotations

from receiver.core.signature import sign


def headers(body: bytes, *, event: str, delivery: str, timestamp: int, secret: str) -> dict[str, str]:
    """Reader's headers for a body sent at `timestamp` (Unix seconds). `delivery` is the delivery's id."""
    return {
        "Content-Type": "application/json",
        "User-Agent": "Reader-Webhook/1.0",
        "X-Reader-Event": event,
        "X-Reader-Delivery": delivery,
        "X-Reader-Timestamp": str(timestamp),
        "X-Reader-Signature": sign(body, timestamp=timestamp, secret=secret),
    }
