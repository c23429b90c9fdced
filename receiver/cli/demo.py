"""`demo`: the main job, on this machine, with the webhooks going wrong."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Annotated

import typer

from receiver.cli.common import Json, emit, err, out
from receiver.cli.demo_run import Place, Plan, Report, run
from receiver.cli.demo_show import Show, kept, ledger
from receiver.logs import configure


def demo(
    jobs: Annotated[int, typer.Option(min=1, max=500, help="Jobs to submit.")] = 12,
    pages: Annotated[int, typer.Option(min=1, max=1000, help="Pages of each job.")] = 150,
    loss: Annotated[float, typer.Option(min=0, max=1, help="The share of webhooks that never arrive.")] = 0.4,
    seed: Annotated[int, typer.Option(help="Chooses which; the same seed tells the same story.")] = 7,
    keep: Annotated[bool, typer.Option("--keep", help="Keep it running afterwards, to look at it in the dashboard.")] = False,
    as_json: Json = False,
) -> None:
    """Run a sandbox Reader and a receiver on this machine, lose webhooks, and see everything recovered.

    Needs no account, no key and no network. Exits 0 only if every page of every job was stored exactly once, and each job gave
    exactly one downstream event.
    """
    configure("console", level=40)
    plan = Plan(jobs=jobs, pages=pages, loss=loss, seed=seed)
    console = err if as_json else out
    show = Show(plan, console, live=not as_json)

    def tell(report: Report) -> None:
        emit(report.as_json()) if as_json else ledger(report, out, last=not keep)

    async def stay(report: Report, place: Place) -> None:
        show.stop()
        tell(report)
        kept(place, console)
        await _interrupted()

    with show:
        report = asyncio.run(run(plan, show, stay=stay if keep else None))
    if not keep:
        tell(report)
    raise typer.Exit(0 if report.ok else 1)


async def _interrupted() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
