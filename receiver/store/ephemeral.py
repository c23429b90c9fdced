"""Platforms whose disk goes with the process: an SQLite file there would take acknowledged deliveries with it."""

from __future__ import annotations

import os
from typing import Final

_MARKS: Final = {
    "AWS_LAMBDA_FUNCTION_NAME": "AWS Lambda",
    "K_SERVICE": "Cloud Run",
    "CLOUD_RUN_JOB": "Cloud Run",
    "VERCEL": "Vercel",
}
"""What each of them sets in the environment of whatever runs there."""


def platform() -> str | None:
    """Which one this is, and how it is known; None on a machine that keeps its disk."""
    return next((f"{name} ({mark} is set)" for mark, name in _MARKS.items() if os.environ.get(mark)), None)
