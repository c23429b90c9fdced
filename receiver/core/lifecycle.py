"""A job's life as we see it: one table.

    watching ──ended──► hydrating ──whole──► settled
     │ ▲  ▲                │ │ ▲                │
     │ │  └────live────────┘ │ └──ended anew────┤
     │ └────live─────────────┼──────────────────┘
     └───────────────────────┴──missing, unusable──► parked ──cue──► watching, hydrating

Reader may end a job more than once: `retry` takes it back to `queued`. Each time it ends is a **generation**: a new one opens
when a terminal state is seen after a non-terminal one, or with another mark (status, completedAt, creditsUsed). What we saw
decides, not what we were told: a webhook only says when to look.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a job stands with us."""

    WATCHING = "watching"
    """Not ended when last seen, or never seen. The reconciler looks when it falls due."""
    HYDRATING = "hydrating"
    """Ended; its results are being read. The reconciler goes on until they are whole."""
    SETTLED = "settled"
    """The newest generation is stored and its event is in the outbox. A few late looks remain, or a retry (see `retrying`)."""
    PARKED = "parked"
    """Nothing more can be done by ourselves. A new cue, or `track`, takes it out; it goes on as what it was."""


class Seen(StrEnum):
    """What one look at the API showed."""

    LIVE = "live"
    SAME_END = "same end"
    """Terminal, with the mark of the generation at hand."""
    NEW_END = "new end"
    """Terminal, with another mark."""
    MISSING = "missing"
    """No such job (404), and that for some time."""
    UNUSABLE = "unusable"
    """Answers that no reading can be made of, for some time."""


@dataclass(frozen=True, slots=True)
class Move:
    """What follows. `opens` a generation; `abandons` the pages read so far of the one at hand."""

    to: State
    opens: bool = False
    abandons: bool = False


W, H, S, P = State.WATCHING, State.HYDRATING, State.SETTLED, State.PARKED  # a parked job is not looked at: no row begins with it

MOVES: Final[dict[tuple[State, Seen], Move]] = {
    (W, Seen.LIVE): Move(W),
    (W, Seen.SAME_END): Move(H, opens=True),  # it ran in between: the same mark is a coincidence
    (W, Seen.NEW_END): Move(H, opens=True),
    (W, Seen.MISSING): Move(P),
    (W, Seen.UNUSABLE): Move(P),
    (H, Seen.LIVE): Move(W, abandons=True),  # overtaken by a retry before it was whole: this generation gives no event
    (H, Seen.SAME_END): Move(H),
    (H, Seen.NEW_END): Move(H, opens=True, abandons=True),
    (H, Seen.MISSING): Move(P),
    (H, Seen.UNUSABLE): Move(P),
    (S, Seen.LIVE): Move(W),
    (S, Seen.SAME_END): Move(S),
    (S, Seen.NEW_END): Move(H, opens=True),
    (S, Seen.MISSING): Move(S),  # Reader forgets old jobs; we keep what we have
    (S, Seen.UNUSABLE): Move(S),
}


def mark(status: str, completed_at: str | None, credits_used: float) -> str:
    """What tells one end of a job from another."""
    return f"{status} {completed_at or '-'} {credits_used:.15g}"


def compare(known_mark: str | None, status_is_terminal: bool, seen_mark: str) -> Seen:  # noqa: FBT001 - reads as a sentence
    """Name what a readable answer shows, against the generation at hand."""
    if not status_is_terminal:
        return Seen.LIVE
    return Seen.SAME_END if seen_mark == known_mark else Seen.NEW_END
