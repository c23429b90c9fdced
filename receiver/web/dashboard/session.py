"""Who looks at the dashboard: somebody who has shown one of `RECEIVER_API_KEYS`; without any, whom the gate lets in.

A session is a signed cookie and nothing else, so it holds on every replica and after a restart. It is signed with a key that follows
from the API key that was shown: when that one is taken out of the settings, its sessions end with it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from receiver.clock import Clock

LASTS: Final = 24 * 3600
"""Seconds until one must log in again."""
_TRIES, _ALL_TRIES, _WITHIN = 10, 100, 60.0
"""Wrong keys of one address, and of all together, in so many seconds, before no key is looked at."""
_ADDRESSES = 1000


class Sessions:
    """`keys`: those that may log in; none, where nobody needs to."""

    def __init__(self, keys: Sequence[str], clock: Clock) -> None:
        self._keys = [key.encode() for key in keys]
        self._clock = clock

    def begin(self, shown: str) -> str | None:
        """The cookie of a new session; None if `shown` is not one of the keys."""
        # All are compared, so that the time taken does not tell which one is close.
        matching = [key for key in self._keys if hmac.compare_digest(key, shown.encode())]
        if not matching:
            return None
        claim = f"{int(self._clock.wall()) + LASTS}.{self._clock.token()}"
        return f"{claim}.{_signature(matching[0], claim)}"

    def holds(self, cookie: str | None) -> bool:
        """Whether it is of a session that has begun here, or on a replica, and is not over."""
        claim, _, signature = (cookie or "").rpartition(".")
        until = claim.partition(".")[0]
        genuine = [hmac.compare_digest(_signature(key, claim).encode(), signature.encode()) for key in self._keys]
        return any(genuine) and int(until) > self._clock.wall()


def _signature(key: bytes, claim: str) -> str:
    signing = hmac.digest(key, b"receiver dashboard session", "sha256")
    return hmac.new(signing, claim.encode(), hashlib.sha256).hexdigest()


def form_token(cookie: str) -> str:
    """What a form of ours carries, to show that it is: it follows from a cookie that no other page can read."""
    return hashlib.sha256(b"form " + cookie.encode()).hexdigest()


def is_form_token(token: str, cookie: str | None) -> bool:
    """Whether `token` is the one that follows from `cookie`."""
    return bool(cookie) and hmac.compare_digest(form_token(cookie or "").encode(), token.encode())


class Tries:
    """Wrong keys, counted: guessing is slow. In memory, of this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque()

    def wait(self, address: str) -> float:
        """Seconds until another key of this address is looked at; 0: now."""
        since = self._clock.monotonic() - _WITHIN
        waits = [0.0]
        for tries, most in ((self._all, _ALL_TRIES), (self._of.get(address, deque()), _TRIES)):
            while tries and tries[0] <= since:
                tries.popleft()
            if len(tries) >= most:
                waits.append(tries[0] - since)
        return max(waits)

    def failed(self, address: str) -> None:
        """Another wrong key came from there."""
        now = self._clock.monotonic()
        self._all.append(now)
        self._of.setdefault(address, deque()).append(now)
        self._of.move_to_end(address)
        if len(self._of) > _ADDRESSES:
            self._of.popitem(last=False)
