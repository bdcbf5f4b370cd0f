"""`fednas watch`: a run as it goes, on a terminal of any width."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednas.cli.tables import Json, number_text, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fednas.monitoring import Progress, SiteProgress

REFRESH_S = 1.0
_WIDE = 110
"""Columns of a terminal from which the table of sites has all of its own."""
_NOTE = "ε planned is what to state; ε so far includes the round under way"


def watch_run(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once, as it is now.")] = False,
    as_json: Json = False,
) -> None:
    """Show how the run in RUN is doing, every second until its results are written, or until Ctrl-C.

    It reads files only: run it beside the server, or on a copy. With --json it shows the run once.
    """
    from fednas.monitoring import RunReader

    reader = RunReader(run)
    progress = reader.read()
    if as_json:
        print_json(_document(progress, time.time()))
        return
    from rich.console import Console

    console = Console()
    if once or progress.complete:
        console.print(_view(progress, time.time(), console.width))
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_view(progress, time.time(), console.width), refresh=True)
            if progress.complete:
                return
            time.sleep(REFRESH_S)
            progress = reader.read()


def _view(progress: "Progress", now_s: float, width: int) -> "RenderableType":
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    done, total = len(progress.rounds), len(progress.agenda)
    lines: list[RenderableType] = [
        _header(progress, now_s),
        Padding(ProgressBar(total=total, completed=done, width=min(width, 60)), 0),  # a bar ends no line
    ]
    if progress.is_late(now_s):
        ago = _duration(now_s - progress.last_s)
        lines.append(
            Text(
                f"nothing was completed for {ago}: if its server has stopped, resume the run", style="yellow"
            )
        )
    if any(math.isinf(site.epsilon_planned) for site in progress.sites):
        lines.append(Text("NOT PRIVATE: epsilon is infinite (seeded test noise, or none)", style="red"))
    if progress.fitness:
        lines += [Text(""), _fitness_table(progress)]
    if progress.sites:  # last: on a low terminal a long table is cut
        lines += [Text(""), _site_table(progress.sites, wide=width >= _WIDE), Text(_NOTE, style="dim")]
    return Group(*lines)


def _header(progress: "Progress", now_s: float) -> "RenderableType":
    from rich.text import Text

    step, total = progress.next_step, len(progress.agenda)
    text = Text(progress.study, style="bold")
    if progress.complete:
        took = _duration(progress.last_s - progress.started_s)
        return text.append(f": complete, {total} rounds in {took}", style="not bold green")
    if step is None:
        state = f": all {total} rounds done, results are being written"
    elif not progress.sites:
        state = ": meeting the sites"
    else:
        state = f": round {step.round} of {total}, {step.kind}, for {_duration(now_s - progress.last_s)}"
    left = progress.remaining_s(now_s)
    state += f"\nbegun {_duration(now_s - progress.started_s)} ago"
    state += "" if left is None else f", about {_duration(left)} left"
    return text.append(state, style="not bold")


def _site_table(sites: "Sequence[SiteProgress]", *, wide: bool) -> "RenderableType":
    """One line a site; a narrow terminal has no room for bytes and codes."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("site", "tier", "last asked") if wide else ("site", "last asked"):
        table.add_column(name, overflow="fold", max_width=30)
    columns = ["replies", "rejects", "ε planned", "ε so far"]
    for name in [*columns, "sent", "received"] if wide else columns:
        table.add_column(name, justify="right", no_wrap=name != "rejects")
    for site in sites:
        last = f"round {site.last_round}: {site.last}" if site.last else "–"
        colour = "green" if site.last == "ok" else "yellow" if site.last else "dim"
        codes = ", ".join(f"{number} {code}" for code, number in sorted(site.rejects.items()))
        rejects = codes if wide else str(sum(site.rejects.values()) or "")
        row = [escape(site.site), *([escape(site.tier)] if wide else []), f"[{colour}]{last}[/]"]
        row += [
            str(site.replies),
            rejects or "–",
            number_text(site.epsilon_planned),
            number_text(site.epsilon_so_far),
        ]
        table.add_row(*row, *([_bytes(site.sent_bytes), _bytes(site.received_bytes)] if wide else []))
    return table


def _fitness_table(progress: "Progress") -> "RenderableType":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tier", overflow="fold", max_width=30)
    table.add_column("fitness of its best (released)", justify="right")
    for tier, (fitness, std) in sorted(progress.fitness.items()):
        table.add_row(escape(tier), f"{fitness:.3f} ± {std:.3f}")
    return table


def _bytes(number: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B" if number else "–"


def _duration(seconds: float) -> str:
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _document(progress: "Progress", now_s: float) -> dict[str, Any]:
    step = progress.next_step
    return {
        "study": progress.study,
        "complete": progress.complete,
        "rounds_done": len(progress.rounds),
        "rounds": len(progress.agenda),
        "round": None if step is None else step.round,
        "kind": None if step is None else step.kind,
        "seconds_since_start": now_s - progress.started_s,
        "seconds_since_last_round": now_s - progress.last_s,
        "seconds_left": progress.remaining_s(now_s),
        "late": progress.is_late(now_s),
        "sites": {
            site.site: {
                "tier": site.tier,
                "last": site.last or None,
                "last_round": site.last_round,
                "replies": site.replies,
                "rejects": dict(site.rejects),
                "sent_bytes": site.sent_bytes,
                "received_bytes": site.received_bytes,
                "epsilon_planned": site.epsilon_planned,
                "epsilon_so_far": site.epsilon_so_far,
            }
            for site in progress.sites
        },
        "fitness": {
            tier: {"fitness": fitness, "std": std} for tier, (fitness, std) in progress.fitness.items()
        },
    }
