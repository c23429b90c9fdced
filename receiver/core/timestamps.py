"""Reader's times."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def unix(timestamp: Any) -> float | None:
    """Reader's ISO 8601 as Unix seconds; None if it is not that."""
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except (TypeError, ValueError):
        return None
