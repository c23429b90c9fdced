"""What somebody sees of the demo: bars while it runs, then the ledger."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from receiver.cli.demo_run import Place, Plan, Report
from receiver.sandbox import Happening
from receiver.views import JobView

_SHOWN = 16
"""Jobs with a line of their own; more than fit on a screen tell nobody anything."""


_NOTHING = "[dim]–[/]"


class Show:
    """Live on a terminal; elsewhere only what the ledger says in the end."""

    def __init__(self, plan: Plan, console: Console, *, live: bool) -> None:
        self._plan = plan
        self._jobs: list[JobView] = []
        self._events: Counter[str] = Counter()
        self._progress: dict[str, tuple[int, int]] = {}
        self._arrived: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True)
        self._on = live and console.is_terminal

    def __enter__(self) -> Self:
        if self._on:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bars away, to say something else."""
        if self._on:
            self._live.stop()

    def happened(self, happening: Happening) -> None:
        """Count what became of the webhooks."""
        if happening.kind == "delivery":
            (self._lost if happening.row["status"] is None else self._arrived)[happening.row["job"]] += 1

    def jobs(self, jobs: list[JobView], events: Counter[str], progress: dict[str, tuple[int, int]]) -> None:
        """How the receiver sees its jobs now, and how far they truly are."""
        self._jobs, self._events, self._progress = sorted(jobs, key=lambda job: job.tracked_at), events, progress

    def _render(self) -> RenderableType:
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for column in ("job at Reader", "", "pages", "webhook", "stored here", "event"):
            table.add_column(column)
        for job in self._jobs[:_SHOWN]:
            completed, total = self._progress.get(job.id, (0, 1))
            table.add_row(
                f"{job.id[:12]}…",
                ProgressBar(total=total, completed=completed, width=24, complete_style="cyan", finished_style="green"),
                f"[dim]{completed:>5,}[/]",
                self._webhook(job.id),
                _stored(job),
                "[green]✓ fired[/]" if self._events[job.id] else _NOTHING,
            )
        more = len(self._jobs) - _SHOWN
        done = sum(job.state == "settled" for job in self._jobs)
        foot = Text(f"{done} of {self._plan.jobs} jobs settled" + (f"; {more} more than shown" if more > 0 else ""), style="dim")
        title = f"{self._plan.jobs} jobs × {self._plan.pages} pages, {self._plan.loss:.0%} of the webhooks lost"
        return Panel(Group(table, Text(), foot), title=title, border_style="dim", expand=False)

    def _webhook(self, job_id: str) -> str:
        arrived, lost = self._arrived[job_id], self._lost[job_id]
        if arrived:
            return "[green]arrived[/]" + (f" ×{arrived}" if arrived > 1 else "")
        return ("[red]lost[/]" + (f" ×{lost}" if lost > 1 else "")) if lost else _NOTHING


def _stored(job: JobView) -> str:
    if job.state == "settled":
        found = "[dim]told by webhook[/]" if job.discovered_by == "webhook" else "[cyan]found by poller[/]"
        return f"[green]{job.results:,}[/] {found}"
    return "[yellow]reading[/]" if job.state == "hydrating" else _NOTHING


def ledger(report: Report, console: Console, *, last: bool = True) -> None:
    """What was sent, lost, duplicated, refused, recovered; what it cost. `last`: nothing comes after it but what to do next."""
    w, r, plan = report.webhooks, report.requests, report.plan
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="bold")
    table.add_column()
    rows: list[tuple[str, str]] = [
        (f"{plan.jobs:,}", f"jobs of {plan.pages:,} pages ran at Reader"),
        (f"{w['sent']:,}", "attempts to deliver their webhooks, up to 3 for each;"),
        (f"[red]{w['lost']:,}[/]", "of these attempts were lost on the way,"),
        (f"[yellow]{w['duplicated']:,}[/]", "copies of attempts came on top, and some came late or out of order;"),
        (f"{w['accepted']:,} + {w['duplicates']:,}", "arrived, and were accepted or known as duplicates"),
        (f"[yellow]{report.forged:,}[/]", f"forged ones were tried; {report.refused} refused"),
        ("", ""),
        (f"[cyan]{report.recovered:,}[/]", "jobs lost every attempt of their webhook: [cyan]recovered[/] by the poller"),
        (f"[green]{report.results:,}[/]", "results stored, each exactly once, compared with Reader's own account"),
        (f"[green]{report.events:,}[/]", "downstream events, one for each job"),
        ("", ""),
        (f"{r['total']:,}", f"requests spent: {r['hydrate']:,} to read results (the least possible: {report.lower_bound:,}),"),
        ("", f"{r['probe']:,} to look at jobs, {r['submit']:,} to submit them, {r['other']:,} other"),
        (f"{report.seconds:.1f} s", "in all"),
    ]
    for number, text in rows:
        table.add_row(number, text)
    verdict = "[bold green]Nothing was lost, nothing was done twice.[/]" if report.ok else "[bold red]Something is wrong:[/]"
    extra = [Text(f"  {line}", style="red") for line in report.wrong[:20]]
    console.print(
        Panel(
            Group(table, Text(), Text.from_markup(verdict), *extra),
            title="The ledger",
            border_style="green" if report.ok else "red",
            expand=False,
        )
    )
    if report.ok and last:
        console.print(
            "Next: [bold]receiver serve[/] with READER_WEBHOOK_SECRET and READER_API_KEY set; the README tells the rest.",
            highlight=False,
        )


def kept(place: Place, console: Console) -> None:
    """Where to look at it, and what else to try."""
    lines = (
        f"[bold]Dashboard[/]  [bold cyan]{place.url}/dashboard[/]  (Ctrl+C ends it, and takes everything away)",
        "[bold]Commands[/]   from another shell, after this:",
        f"           export RECEIVER_DATABASE_URL={place.database}",
        "           receiver jobs, receiver job JOB_ID, receiver submit https://example.com/1 --watch, …",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
