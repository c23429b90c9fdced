"""A webhook's secret on its way from here to where the server finds it: made, kept in a file, shown once."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from receiver.clock import Clock
from receiver.errors import UsageError
from receiver.settings import Settings

# Of each place, how a value gets there without standing in a shell's history.
_PLACES = (
    ("a file", "keep it in one that only the server may read, and set READER_WEBHOOK_SECRET_FILE=/path/to/it"),
    ("systemd", "a line of the unit's EnvironmentFile (/etc/receiver/receiver.env), which root alone may read"),
    ("Docker Compose", "a line of the .env file beside the compose file"),
    (
        "Kubernetes",
        "kubectl -n receiver create secret generic receiver --from-env-file=/dev/stdin   (edit secret receiver, if it exists)",
    ),
    ("AWS", "aws secretsmanager put-secret-value --secret-id … --secret-string file:///dev/stdin"),
    ("Google Cloud", "gcloud secrets versions add … --data-file=-"),
    ("Fly.io", "fly secrets import   (reads NAME=VALUE)"),
    ("Vercel", "vercel env add READER_WEBHOOK_SECRET production   (asks for the value), then deploy anew"),
)


def new(clock: Clock) -> str:
    """256 random bits, as 64 hexadecimal digits: no comma, which would part two secrets."""
    return clock.token(256)


def read(file: Path) -> str | None:
    """The secret in a file; None if there is no file. Raises `UsageError` for what is no secret."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file} ({getattr(error, 'strerror', None) or 'not text in UTF-8'})") from error
    try:
        (secret,) = Settings(reader_webhook_secret=text).secrets  # type: ignore[arg-type]  # as the environment would have it
    except (ValidationError, ValueError):
        raise UsageError(f"{file} does not hold one secret of 16 to 256 characters: remove it, or name another file") from None
    return secret


def keep(secret: str, file: Path) -> None:
    """Write it to a new file that nobody else may read. Raises `UsageError`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
            opened.write(secret + "\n")
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        raise UsageError(f"cannot write {file} ({error.strerror}): name another with --secret-file") from error


def where_to_store(secret: str | None, *, beside: bool, file: Path | None) -> str:
    """What to store and where. `secret` None: it is not shown, but lies in `file`. `beside`: others are accepted, and are to stay."""
    value = (secret or f"<what is in {file}>") + (",<its present value>" if beside else "")
    lines = [
        "",
        "The secret, shown this once: whoever has it can sign what your server takes for Reader's."
        if secret
        else f"The secret is in {file}, which nobody but you may read.",
        "",
        f"  READER_WEBHOOK_SECRET={value}",
        "",
        *(("The new one comes first, and the present one stays, after a comma, so that both are accepted.",) if beside else ()),
        "Store it where the server runs, and (re)start that:",
    ]
    width = max(len(name) for name, _ in _PLACES)
    return "\n".join([*lines, *(f"  {name:{width}}  {how}" for name, how in _PLACES)])
