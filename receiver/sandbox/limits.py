"""Requests per sliding window, for one workspace."""

from __future__ import annotations

import math
from collections import deque

from receiver.sandbox.problems import ApiError


class Window:
    """At most `limit` requests in any `seconds`. A refused request does not count."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._taken: deque[float] = deque()

    def take(self, now: float) -> None:
        """Count one request. Raises `ApiError` rate_limited when the window is full."""
        while self._taken and self._taken[0] <= now - self.seconds:
            self._taken.popleft()
        if len(self._taken) >= self.limit:
            raise rate_limited(math.ceil(self._taken[0] + self.seconds - now), self.limit, self.seconds)
        self._taken.append(now)


def rate_limited(wait: float, limit: int, window: float) -> ApiError:
    """429 with all that Reader tells about it."""
    wait = max(1, math.ceil(wait))
    details = {"retryAfterSeconds": wait, "limit": limit, "windowSeconds": math.ceil(window)}
    return ApiError("rate_limited", "Rate limit exceeded", details, headers={"Retry-After": str(wait)})
