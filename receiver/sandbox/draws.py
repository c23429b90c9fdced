"""Chance without dice: each draw is a hash of what it is about.

A shared generator would make the story depend on the order in which sockets happened to be served.
Here (seed, kind, job, n-th) always gives the same answer, so two runs tell the same story.
"""

from __future__ import annotations

import math
from hashlib import blake2b

_SEPARATOR = "\x1f"  # so that ("a", "bc") and ("ab", "c") are different questions


def _hash(seed: int, about: tuple[object, ...], size: int) -> bytes:
    text = _SEPARATOR.join(map(str, (seed, *about)))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def draw(seed: int, *about: object) -> float:
    """A number from [0, 1)."""
    return (int.from_bytes(_hash(seed, about, 8)) >> 11) / (1 << 53)


def between(low: float, high: float, seed: int, *about: object) -> float:
    """A number from [low, high], each doubling as likely as the next: durations and sizes are like that."""
    share = draw(seed, *about)
    if low <= 0 or high <= low:
        return low + (high - low) * share
    # By the difference of logarithms: the quotient overflows for the smallest numbers there are.
    found = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return min(max(found, low), high)


def token(seed: int, length: int, *about: object) -> str:
    """`length` (1..128) lower-case hexadecimal digits."""
    return _hash(seed, about, (length + 1) // 2).hex()[:length]


def uuid(seed: int, *about: object) -> str:
    """Something shaped like a random UUID."""
    digits = _hash(seed, about, 16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
