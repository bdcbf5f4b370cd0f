"""What the commands print: tables for people, JSON for programs."""

import json
import math
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def epsilon_text(value: float, nominal: float) -> str:
    """An epsilon as a table shows it; what test noise makes infinite is said in so many words."""
    if math.isinf(value) and math.isfinite(nominal):
        return f"[red]infinite[/] (test noise; nominal {nominal:.4f})"
    return f"{value:.4f}"


def table(title: str, columns: list[str], rows: list[list[str]], *, caption: str | None = None) -> None:
    """Print a table; cells may hold markup of Rich."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


def print_json(value: Any) -> None:
    """Print a value for programs: infinity is written `Infinity`, as Python reads it."""
    print(json.dumps(value, indent=1, sort_keys=True))  # noqa: T201


def print_line(text: str) -> None:
    """Print one line for people; it may hold markup of Rich."""
    from rich.console import Console

    Console().print(text, highlight=False)


def number_text(value: float | None) -> str:
    """An epsilon with four decimals, "infinite" in red, or a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.4f}" if math.isfinite(value) else "[red]infinite[/]"
