"""What a person sees of a simulation: a progress bar while it works, tables at its end."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fednas.logs import Event
from fednas.wire import Refusal
from simulations.analysis import Summary
from simulations.runner import site_statements

console = Console(stderr=True)


class _Follow(logging.Handler):
    """Moves a bar along with the coordinator's records."""

    def __init__(self, bar: Progress) -> None:
        super().__init__(logging.INFO)
        self._bar = bar
        self._task = bar.add_task("meeting the sites", total=None)

    def emit(self, record: logging.LogRecord) -> None:
        event, fields = getattr(record, "event", None), getattr(record, "fields", {})
        if event is Event.ROUND_BEGINS:
            text, done = f"round {fields['round']}: {fields['kind']}", fields["round"] - 1
        elif event is Event.STUDY_COMPLETE:
            text, done = "done", fields["rounds"]
        else:
            return
        self._bar.update(self._task, total=fields["rounds"], completed=done, description=text)


@contextmanager
def site_logs(*, shown: bool) -> Iterator[None]:
    """Show or hide what the simulated sites write in their own logs; a server never sees it either way."""
    logger = logging.getLogger("fednas.client")
    level = logger.level
    logger.setLevel(level if shown else logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def progress(name: str, *, shown: bool) -> Iterator[None]:
    """A progress bar on the terminal over the rounds of the study that runs inside the block."""
    if not (shown and console.is_terminal):
        yield
        return
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    logger = logging.getLogger("fednas.coordinator")
    level, propagate = logger.level, logger.propagate
    with Progress(TextColumn(f"[bold]{name}"), *columns, console=console, transient=True) as bar:
        handler = _Follow(bar)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # the bar says it already
        try:
            yield
        finally:
            logger.propagate = propagate
            logger.removeHandler(handler)
            logger.setLevel(level)


def show(path: Path, outcome: Mapping[str, Any]) -> None:
    """Print the tables of a finished run on standard output."""
    out = Console()
    out.print(tier_table(outcome))
    out.print(site_table(path, outcome["result"]))
    for entry in outcome["refused"]:
        out.print(f"[yellow]refused[/] {entry['site']}: {entry['reason']}")
    out.print(f"run directory: {path}", highlight=False)


def tier_table(outcome: Mapping[str, Any]) -> Table:
    """One line a device tier: what it got, what it costs the device, and how good it is."""
    table = Table(title=f"{outcome['result']['study']}: one network per device tier")
    for name in ("tier", "architecture"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "MACs", "latency ms", "fitness (released)", "public test", "balanced"):
        table.add_column(name, justify="right")
    for tier in outcome["result"]["order"]:
        entry = outcome["result"]["tiers"][tier]
        oracle = outcome["oracle"]["tiers"][tier]
        choices = " ".join(f"{name}={value}" for name, value in entry["architecture"].items())
        table.add_row(
            tier,
            choices,
            f"{entry['cost']['parameters']:,}",
            f"{entry['cost']['macs']:,}",
            f"{entry['latency_ms']:.3g}",
            "-" if entry["fitness"] is None else f"{entry['fitness']:.3f} ± {entry['fitness_std']:.3f}",
            f"{oracle['accuracy']:.3f}",
            f"{oracle['balanced_accuracy']:.3f}",
        )
    table.caption = "public test accuracy is a simulation's oracle: reported, never selected on"
    return table


def site_table(path: Path, result: Mapping[str, Any]) -> Table:
    """One line a site: what its own ledger says it has spent, and whether the file holds together.

    Sites stand side by side, with their maximum: a record is at one site, so nothing is added up or averaged.
    """
    table = Table(title="privacy: add or remove one record, recomputed from each site's ledger")
    table.add_column("site")
    for name in ("this run", "epsilon claimed", "epsilon charged", "cap", "delta", "entries", "ledger"):
        table.add_column(name, justify="right")
    statements = site_statements(path)
    sites, left_out = result.get("sites", {}), result.get("left_out", {})
    worst = 0.0
    for site, statement in statements.items():
        planned = sites.get(site)
        code = left_out.get(site) or (planned or {}).get("refused")
        this_run = "-" if planned is None else f"{planned['epsilon']:.4f}"
        terms = (f"{statement.cap.epsilon:g}", f"{statement.delta:g}", str(statement.entries))
        if code == Refusal.LEDGER_ROLLED_BACK.value:
            # Its file holds together and leaves out what was spent since: no number of it may be believed.
            table.add_row(site, this_run, "unknown", "unknown", *terms, "[red]rolled back[/]")
            continue
        seeded = statement.non_private and statement.nominal_claimed_epsilon < float("inf")
        claimed = statement.nominal_claimed_epsilon if seeded else statement.claimed_epsilon
        worst = max(worst, claimed)
        charged = max(spend.nominal_charged_epsilon for spend in statement.streams)
        table.add_row(
            site,
            this_run,
            f"{claimed:.4f}" + (" (nominal)" if seeded else ""),
            f"{charged:.4f}",
            *terms,
            "[green]verified[/]",
        )
    table.caption = f"each site's records have its own epsilon; the largest that is known is {worst:.4f}"
    if any(statement.non_private for statement in statements.values()):
        table.caption = "[red]NOT PRIVATE: epsilon is infinite (seeded test noise, or none)[/]"
    return table


def comparison_table(name: str, summaries: Sequence[Summary]) -> Table:
    """One line per epsilon, tier and method."""
    table = Table(title=f"{name}: accuracy on the public test set, mean ± standard deviation over seeds")
    for column in ("epsilon", "tier", "method"):
        table.add_column(column)
    for column in ("accuracy", "balanced", "beats the median random one"):
        table.add_column(column, justify="right")
    last = None
    for entry in summaries:
        if last is not None and last != (entry.epsilon, entry.tier):
            table.add_section()
        last = (entry.epsilon, entry.tier)
        wins = "" if entry.wins is None else f"{entry.wins} of {len(entry.scores)} seeds"
        table.add_row(f"{entry.epsilon:g}", entry.tier, entry.method, entry.text, entry.balanced_text, wins)
    return table
