"""The accepted secrets, by their fingerprints, and which of them the newest delivery of each of our webhooks was signed with.

Whoever changes a secret at Reader sees here when it is safe to go on: a server must accept the new one before Reader signs with it,
and must have seen it before the old one is dropped. A process tells of itself alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from receiver.core.fingerprint import FORM, fingerprint

_MOST: Final = 32
"""Webhooks remembered. Their header is not signed: somebody who replays a delivery may write into it what they like."""


class Keyring:
    """`secrets`: in the clear, in the order of the setting."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = tuple(secrets)
        self._fingerprints: list[str] | None = None
        self._signed: dict[str, int] = {}

    def signed(self, webhook: str, which: int) -> None:
        """A delivery came whose header says `webhook`, and whose signature is by the secret of this number."""
        known = self._fingerprints
        sensible = FORM.fullmatch(webhook) if known is None else webhook in known
        if sensible and (webhook in self._signed or len(self._signed) < _MOST):
            self._signed[webhook] = which

    async def told(self) -> dict[str, Any]:
        """`secrets`: the fingerprints, in order. `webhooks`: what each carries → the secret its newest delivery was signed with."""
        if self._fingerprints is None:
            self._fingerprints = await asyncio.to_thread(lambda: [fingerprint(secret) for secret in self._secrets])
        known = self._fingerprints
        self._signed = {webhook: which for webhook, which in self._signed.items() if webhook in known}
        return {"secrets": known, "webhooks": {webhook: known[which] for webhook, which in self._signed.items()}}
