"""`webhook rotate`: another secret in the present one's place, with no genuine delivery refused.

A server's environment cannot be changed from here. So this makes the secret, waits until the server shows that it accepts it beside
the present one, has Reader sign with it, and watches for a delivery that proves it. The new secret is kept in a file until then;
all else is read off Reader and the server, so that whoever interrupts it runs it again, and it goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from sqlalchemy import func, select

from receiver.cli import secrets
from receiver.cli.asking import base, endpoint, reader
from receiver.cli.common import Json, emit, reading
from receiver.clock import Clock, SystemClock
from receiver.core.audit import carries, find_ours
from receiver.core.fingerprint import HEADER, fingerprint
from receiver.errors import ReaderRefusedError, ReaderUnavailableError, ReceiverError, UsageError
from receiver.reader.client import ReaderClient
from receiver.settings import Settings, load
from receiver.store.tables import jobs

_SURE: Final = 5
"""Answers in a row, each over a connection of its own: behind one address there may be several servers, restarted one by one."""
_EVERY: Final = 1.0
_READY_WITHIN: Final = 10.0


def rotate(
    url: Annotated[
        str | None, typer.Option("--url", help="Our endpoint, as Reader knows it; by default that at RECEIVER_PUBLIC_URL.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Where the server answers /readyz, if not at the URL's own place.", show_default=False)
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            help="Holds the new secret. If it is not there, a secret is made, written to it, and not shown.", show_default=False
        ),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the server to accept the new secret.")] = 900.0,
    lag: Annotated[
        float, typer.Option(min=0, help="Seconds in which deliveries signed with the old one may still be under way.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Put a new secret in the present one's place, with no genuine delivery refused. Interrupted, it goes on when run again."""
    settings = load()
    target = endpoint(settings, url)
    rotation = _Rotation(
        settings,
        target,
        endpoint(settings, server).removesuffix("/hooks/reader") if server else base(target),
        secret_file,
        wait,
        lag,
        as_json,
    )
    asyncio.run(rotation.run())


@dataclass
class _Rotation:
    """One run. `url`: our endpoint; `server`: where its /readyz is; `given`: the file that somebody named."""

    settings: Settings
    url: str
    server: str
    given: Path | None
    wait: float
    lag: float
    as_json: bool
    clock: Clock = field(default_factory=SystemClock)
    secret: str = ""
    new: str = ""
    """The fingerprint of `secret`."""

    async def run(self) -> None:
        async with reader(self.settings, self.clock) as client:
            there = await self._webhooks(client)
            self._take_secret()
            done = [row for row in there if carries(row) == self.new]
            pending = [row for row in there if carries(row) != self.new]
            if pending:
                await self._wait_until_accepted(pending)
            outdated = [row for row in pending if await self._switch(client, row, done)]
            proved = await self._watch(until_proved=not pending)
            if proved is False and not outdated:
                # Reader took the change and signs with the old one all the same.
                self._say("ignored", "Reader took the new secret and goes on signing with the old one: making the webhook anew.")
                outdated = await self._webhooks(client)
                for row in outdated:
                    # It must not look as if it were signed with the new one: neither to us, run again, nor to the server.
                    await client.change_webhook(str(row["id"]), {"headers": _without_mark(row)})
                    await self._create(client, row)
                proved = await self._watch(until_proved=False)
            for row in outdated:
                await client.delete_webhook(str(row["id"]))
                self._say("deleted", f"The webhook with the old secret, {row['id']}, is deleted.", webhook=row["id"])
            self._end(proved=bool(proved), waited=bool(pending or outdated))

    async def _webhooks(self, client: ReaderClient) -> list[Mapping[str, Any]]:
        there = [row for row in find_ours(await client.webhooks(), self.url) if row.get("active") is not False]
        if not there:
            raise ReceiverError(f"no active webhook at Reader points to {self.url}: `receiver webhook register` makes one")
        return there

    # The secret

    @property
    def _file(self) -> Path:
        if self.given is not None:
            return self.given
        try:
            home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        except RuntimeError:  # a user without a home, as in some containers
            raise UsageError(
                "there is no home directory to keep the new secret in: name a file for it with --secret-file"
            ) from None
        return home / "receiver" / f"rotating-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}.secret"

    def _take_secret(self) -> None:
        known = secrets.read(self._file)
        self.secret = known or secrets.new(self.clock)
        self.new = fingerprint(self.secret)
        if known is not None:
            self._say("resumed", f"Going on with the secret in {self._file}, fingerprint {self.new}.", file=str(self._file))
            return
        if self.given is None and len(self.settings.secrets) > 1:
            # Two are set only while one takes the other's place: somebody has begun that, here or elsewhere.
            self.secret = self.settings.secrets[0]
            self.new = fingerprint(self.secret)
            self._say(
                "resumed", f"Going on with the first READER_WEBHOOK_SECRET, as it is set here, fingerprint {self.new}.", file=None
            )
            return
        secrets.keep(self.secret, self._file)
        shown = self.secret if self.given is None else None
        text = secrets.where_to_store(shown, beside=True, file=self._file)
        if self.given is None:
            text += f"\n\nUntil it is in use the secret is also in {self._file}, which nobody but you may read."
        self._say("secret", text, secret=shown, file=str(self._file))

    # The server

    async def _wait_until_accepted(self, pending: Sequence[Mapping[str, Any]]) -> None:
        until = self.clock.monotonic() + self.wait
        self._say(
            "waiting",
            f"Waiting until {self.server}/readyz shows {self.new}. Nothing is changed at Reader before; Ctrl-C is safe at any time, "
            "and the same command goes on.",
        )
        accepted: list[str] = []
        streak, told = 0, ""
        while streak < _SURE:
            accepted, why = await self._accepted()
            streak = streak + 1 if self.new in accepted else 0
            if streak == 0 and why != told:
                self._say("not_yet", f"Not yet: {why}.", secrets=accepted)
                told = why
            if streak == 0 and self.clock.monotonic() >= until:
                raise ReceiverError(
                    f"the server does not accept the new secret yet ({why}); nothing was changed at Reader: "
                    "give it the secret, restart it, and run the same command again"
                )
            if streak < _SURE:
                await self.clock.sleep(_EVERY / _SURE if streak else _EVERY)
        self._say("accepted", f"The server accepts {self.new}.", secrets=accepted)
        olds = {carries(each) for each in pending} - {None}
        if len(accepted) == 1 or (olds and not olds & set(accepted)):
            self._say(
                "old_missing",
                "It no longer accepts the present one: what Reader sends until it signs with the new one is refused.",
            )
        if accepted[0] != self.new:
            self._say("not_first", "Put the new one first: jobs submitted from here have theirs signed with the first.")

    async def _accepted(self) -> tuple[list[str], str]:
        """The fingerprints that a server shows, and what stands in the way of the new one."""
        told = await self._readyz()
        if isinstance(told, str):
            return [], told
        shown = told.get("secrets")
        if not isinstance(shown, list):
            return [], f"{self.server}/readyz shows no fingerprints: is that a receiver, of this release?"
        return [str(each) for each in shown], f"it accepts {', '.join(map(str, shown)) or 'none'}"

    async def _readyz(self) -> dict[str, Any] | str:
        """What the server tells, or why it does not."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=_READY_WITHIN) as client:
                told = (await client.get(f"{self.server}/readyz")).json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return f"{self.server}/readyz does not answer as a receiver does ({type(error).__name__})"
        return told if isinstance(told, dict) else f"{self.server}/readyz does not answer as a receiver does"

    # Reader

    async def _switch(self, client: ReaderClient, row: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> bool:
        """Have Reader sign with the new secret; True if that was by another webhook, so that this one is to go."""
        if any(_alike(row, twin) for twin in done):
            return True  # made before we were interrupted
        headers = {**_without_mark(row), HEADER: self.new}
        try:
            await client.change_webhook(str(row["id"]), {"secret": self.secret, "headers": headers})
        except ReaderRefusedError as error:
            if error.code == "not_found":
                raise
            await self._create(client, row)
            return True
        self._say("switched", f"Reader has the new secret for {row['id']}.", webhook=row["id"], by="change")
        return False

    async def _create(self, client: ReaderClient, row: Mapping[str, Any]) -> None:
        """A second webhook like this one, with the new secret. Until the first one goes, everything comes twice, and counts once."""
        fields = {
            "url": row["url"],
            "name": row.get("name") or "receiver",
            "events": list(row.get("events") or []),
            "headers": {**_without_mark(row), HEADER: self.new},
            "secret": self.secret,
        }
        before = {each.get("id") for each in await client.webhooks() if isinstance(each, dict)}
        try:
            made = await client.create_webhook(fields)
        except ReaderUnavailableError:
            # It may be there although no answer came.
            fresh = [each for each in find_ours(await client.webhooks(), self.url) if each.get("id") not in before]
            if not fresh:
                raise
            made = dict(fresh[0])
        except ReaderRefusedError as error:
            if error.code != "conflict":
                raise
            raise ReceiverError(
                "Reader does not change a secret, and keeps no more webhooks than there are: delete one that is not needed "
                "(`receiver webhook list`), and run the same command again"
            ) from error
        self._say(
            "switched",
            f"Reader does not change a secret, so {made.get('id')} takes the place of {row['id']}. For {self.lag:g} s both send.",
            webhook=made.get("id"),
            by="create",
        )

    # The proof

    async def _watch(self, *, until_proved: bool) -> bool | None:
        """For the lag, or until it is proved: whether the webhook's newest delivery was signed with the new one; None: none came."""
        until = self.clock.monotonic() + self.lag
        proved: bool | None = None
        while True:
            told = await self._readyz()
            if isinstance(told, dict) and isinstance(seen := told.get("webhooks"), dict) and self.new in seen:
                proved = bool(proved) or seen[self.new] == self.new
            if (proved and until_proved) or self.clock.monotonic() >= until:
                return proved
            await self.clock.sleep(min(_EVERY, self.lag))

    def _end(self, *, proved: bool, waited: bool) -> None:
        """`waited`: nothing that was signed with the old one is under way any more."""
        drop_at = datetime.fromtimestamp(self.clock.wall() + (0 if waited else self.lag), UTC).isoformat(timespec="seconds")
        under_way = self._under_way()
        there = self._file.exists()
        kept = there and (not proved or self.given is not None)
        if there and not kept:
            self._file.unlink(missing_ok=True)
        if proved:
            first = f"Done: a delivery came that was signed with {self.new}."
        else:
            first = (
                f"Reader has the new secret, {self.new}. No delivery came meanwhile to prove that it signs with it: keep both secrets "
                "on the server, and run the same command again after the next job has ended."
            )
        when = ("from now on" if waited else f"after {drop_at}") if proved else "once that is proved"
        drop = f"The old secret may be dropped from READER_WEBHOOK_SECRET {when}"
        if under_way is None:
            drop += ", and once the jobs have ended that were submitted before: their own webhooks are signed with it"
        elif under_way:
            drop += f", and once the {under_way} jobs have ended that are under way: their own webhooks are signed with it"
        file = f"\n{self._file} {'is kept' if kept else 'is removed: the server and Reader have it now'}." if there else ""
        self._say(
            "done",
            f"{first}\n{drop}.{file}",
            proved=proved,
            fingerprint=self.new,
            dropOldAfter=drop_at,
            jobsUnderWay=under_way,
            file=str(self._file) if kept else None,
        )

    def _under_way(self) -> int | None:
        """Jobs submitted from here that have not ended; None where the database is not to be had."""
        running = select(func.count()).where(jobs.c.source == "submit", jobs.c.state.in_(("watching", "hydrating")))
        try:
            with reading(self.settings) as database:
                return database.read_now(lambda tx: int(tx.execute(running).scalar_one()))
        except ReceiverError:
            return None

    def _say(self, step: str, text: str, **fields: Any) -> None:
        if self.as_json:
            emit({"step": step, **fields})
        else:
            print(text)
        sys.stdout.flush()  # somebody may read along through a pipe


def _without_mark(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (row.get("headers") or {}).items() if name.lower() != HEADER.lower()}


def _alike(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one was made to take the other's place."""
    return all(row.get(name) == other.get(name) for name in ("url", "name")) and set(row.get("events") or []) == set(
        other.get("events") or []
    )
