"""`receiver sandbox`: Reader's API on this machine, for development and CI."""

import asyncio
import contextlib
import inspect
import json
import signal
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from receiver.errors import ReceiverError, UsageError
from receiver.sandbox import SWITCHES, FaultError, Happening, OptionError, Sandbox, Switch
from receiver.sandbox.console import line

_PANELS: Final = {
    "webhooks": "Faults of webhooks (default: 0, never)",
    "api": "Faults of the API (default: 0, never)",
    "streams": "Faults of streams (default: 0, never)",
    "choices": "What the vendor left undocumented",
}
_METAVARS: Final = {"rate": "RATE", "seconds": "SECONDS", "text": "TEXT", "choice": "CHOICE"}
_SERVER, _LIMITS, _JOBS = "The server", "Limits", "Jobs and their results"


def _about(switch: Switch) -> str:
    """Its help: what it does, and what holds when nothing is said."""
    text = switch.about
    if switch.kind == "choice":
        first, *others = switch.values
        return f"{_upper(text)}: {', '.join([f'{first} (default)', *others[:-1]])} or {others[-1]}."
    if switch.value is not None:
        text = text.replace("value: ", f"value, default {switch.value}: ")
    return f"{_upper(text)}."


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _flag(switch: Switch) -> inspect.Parameter:
    option = typer.Option(
        f"--{switch.name.replace('_', '-')}",
        envvar=f"SANDBOX_{switch.name.upper()}",
        help=_about(switch),
        metavar=_METAVARS[switch.kind],
        rich_help_panel=_PANELS[switch.group],
        show_default=False,
        show_envvar=False,
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(switch.name, kind, default=None, annotation=Annotated[str | None, option])


def _with_switches(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for every switch: one table makes flags, environment, API and keywords."""
    own = inspect.signature(command).parameters.values()
    fixed = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    signature = inspect.Signature([*fixed, *map(_flag, SWITCHES.values())])
    command.__signature__ = signature  # type: ignore[attr-defined]  # what inspect.signature looks for first
    command.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    return command


def _env(name: str, panel: str, text: str, *flags: str) -> Any:
    return typer.Option(*flags, envvar=f"SANDBOX_{name}", help=text, rich_help_panel=panel, show_envvar=False)


def _output(text: str, *flags: str) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=_SERVER)


@_with_switches
def sandbox(
    *,
    port: Annotated[int, _env("PORT", _SERVER, "The port; 0: any free one.")] = 9090,
    host: Annotated[str, _env("HOST", _SERVER, "Where to listen.")] = "127.0.0.1",
    api_key: Annotated[str | None, _env("API_KEY", _SERVER, "The key to accept; made from the seed otherwise.")] = None,
    secret: Annotated[
        str | None, _env("SECRET", _SERVER, "The secret to sign with, 16 to 256 characters; made from the seed otherwise.")
    ] = None,
    webhook_url: Annotated[str | None, _env("WEBHOOK_URL", _SERVER, "Register a webhook for ended jobs; none otherwise.")] = None,
    seed: Annotated[int, _env("SEED", _SERVER, "Same seed, same story.")] = 1,
    speed: Annotated[float, _env("SPEED", _SERVER, "60 runs an hour in a minute.")] = 1.0,
    gzip: Annotated[bool, _env("GZIP", _SERVER, "Compress answers for clients that accept it.", "--gzip")] = False,
    ping: Annotated[float, _env("PING", _SERVER, "Seconds between pings.")] = 30.0,
    as_json: Annotated[bool, _output("Print a JSON object per line.", "--json")] = False,
    quiet: Annotated[bool, _output("Print no line per request, delivery and fault.", "--quiet", "-q")] = False,
    tier: Annotated[str, _env("TIER", _LIMITS, "free, pro, business or enterprise.")] = "enterprise",
    rpm: Annotated[int | None, _env("RPM", _LIMITS, "Requests per minute; the tier's otherwise.")] = None,
    active_jobs: Annotated[int | None, _env("ACTIVE_JOBS", _LIMITS, "Active jobs; the tier's otherwise.")] = None,
    credits: Annotated[int, _env("CREDITS", _LIMITS, "Credits to spend.")] = 1_000_000,  # noqa: A002 - the flag's name
    seconds_per_url: Annotated[float, _env("SECONDS_PER_URL", _JOBS, "How long a page takes.")] = 0.4,
    job_seconds: Annotated[
        str | None, _env("JOB_SECONDS", _JOBS, "How long a job takes, whatever its size: 5 or 2..30; by its pages otherwise.")
    ] = None,
    queue_seconds: Annotated[float, _env("QUEUE_SECONDS", _JOBS, "How long a job is queued.")] = 0.3,
    page_size: Annotated[str, _env("PAGE_SIZE", _JOBS, "Bytes per result: 200KB or 2KB..1MB.")] = "2KB",
    page_errors: Annotated[float, _env("PAGE_ERRORS", _JOBS, "Share of URLs that fail.")] = 0.0,
    retry_errors: Annotated[float, _env("RETRY_ERRORS", _JOBS, "Share that fails again.")] = 0.0,
    job_failures: Annotated[float, _env("JOB_FAILURES", _JOBS, "Share of jobs that fail.")] = 0.0,
    huge_pages: Annotated[float, _env("HUGE_PAGES", _JOBS, "Share of huge results.")] = 0.0,
    huge_size: Annotated[str, _env("HUGE_SIZE", _JOBS, "How large those are.")] = "64MB",
    text: Annotated[str, _env("TEXT", _JOBS, "plain, or odd: NUL, lone surrogates and the like.")] = "plain",
    fetch: Annotated[str, _env("FETCH", _JOBS, "Really GET each URL: off, public, loopback or both.")] = "off",
    **switched: str | None,
) -> None:
    """Reader's API, emulated: faithful by default, as cruel as you ask.

    The same seed tells the same story. Each flag may be set in the environment, --page-errors as SANDBOX_PAGE_ERRORS;
    faults and choices also at run time: POST /sandbox/faults.

    A RATE goes from 0 to 1, or is JSON, and so are SECONDS:
    '{"rate": 1, "times": 2, "after": 1, "match": "/v1/jobs", "value": 3}'.
    """
    settings: dict[str, Any] = {
        "seed": seed, "tier": tier, "rpm": rpm, "active_jobs": active_jobs, "credits": credits,
        "speed": speed, "seconds_per_url": seconds_per_url, "job_seconds": job_seconds,
        "queue_seconds": queue_seconds, "page_size": page_size, "page_errors": page_errors, "retry_errors": retry_errors,
        "job_failures": job_failures, "huge_pages": huge_pages, "huge_size": huge_size, "text": text,
        "fetch": fetch, "ping": ping, "gzip": gzip,
    }  # fmt: skip
    settings |= {name: given for name, given in switched.items() if given is not None}
    try:
        reader = Sandbox(
            port=port,
            host=host,
            api_key=api_key,
            secret=secret,
            webhook_url=webhook_url,
            **settings,
        )
    except (OptionError, FaultError) as exc:
        raise UsageError(str(exc)) from None
    try:
        asyncio.run(_serve(reader, as_json=as_json, quiet=quiet))
    except OSError as exc:
        raise ReceiverError(f"can't listen on {host}:{port}: {exc.strerror}; choose another --port") from None


async def _serve(reader: Sandbox, *, as_json: bool, quiet: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    console = Console(soft_wrap=True, highlight=False)
    async with reader:
        _greet(reader, console, as_json=as_json)
        if not quiet:
            reader.listen(_json_line if as_json else lambda happening: console.print(line(happening)))
        await stop.wait()


def _greet(reader: Sandbox, console: Console, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": reader.url, "apiKey": reader.api_key, "secret": reader.secret}), flush=True)
        return
    request = """-H 'content-type: application/json' -d '{"urls": ["https://example.com/1"]}'"""
    console.print(f"[bold]Reader sandbox[/] at [bold cyan]{reader.url}[/]  (Ctrl+C ends it)")
    console.print(f"  key     {reader.api_key}\n  secret  {reader.secret}\n  try     ", end="")
    console.print(f"curl -s {reader.url}/v1/read -H 'x-api-key: {reader.api_key}' {request}", markup=False)
    console.print(f"  truth   {reader.url}/sandbox/ledger   switches  {reader.url}/sandbox/faults\n")


def _json_line(happening: Happening) -> None:
    print(json.dumps({"kind": happening.kind, "at": happening.at, **happening.row}), flush=True)
