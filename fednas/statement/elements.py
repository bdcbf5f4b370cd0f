"""Pieces that the pages are made of: every word is escaped here, every number rounded to the safe side."""

from collections.abc import Collection, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from html import escape
from typing import Any, Final

from fednas.statement.style import STYLE

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
RELATION_NAMES: Final = {"add_remove": "add or remove", "replace_one": "replace one"}


def whole_page(title: str, sections: Sequence[str]) -> str:
    """A page that runs no script and fetches nothing.

    Args:
        title: words.
        sections: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def fact_list(facts: Sequence[tuple[str, str]], *, code: bool = False, bad: Collection[str] = ()) -> str:
    """A list of names and texts.

    Args:
        facts: pairs of words.
        code: whether the texts are digests and the like.
        bad: the names of those that are red.
    """
    items = []
    for name, text in facts:
        shown = f"<code>{escape(text)}</code>" if code else escape(text)
        style = ' class="bad"' if name in bad else ""
        items.append(f"<dt>{escape(name)}</dt><dd{style}>{shown}</dd>")
    return f'<dl class="facts">{"".join(items)}</dl>'


def table(columns: Sequence[str], rows: Sequence[str], *, left: int, style: str = "") -> str:
    """A table whose cells are right-aligned numbers from column `left` on; rows are HTML."""
    head = "".join(f"<th{_side(i, left)}>{escape(name)}</th>" for i, name in enumerate(columns))
    return f'<div class="wide"><table class="{style}"><tr>{head}</tr>{"".join(rows)}</table></div>'


def row_cells(texts: Sequence[str], *, left: int) -> str:
    """The cells of a row, escaped."""
    return "".join(f"<td{_side(i, left)}>{escape(text)}</td>" for i, text in enumerate(texts))


def _side(index: int, left: int) -> str:
    return "" if index < left else ' class="n"'


def is_finite(value: Any) -> bool:
    """Whether a stated value is a number."""
    return isinstance(value, int | float)


def rank(value: float | str) -> float:
    """A stated value as a float."""
    return value if isinstance(value, int | float) else float("inf")


def number_text(value: float | str | None) -> str:
    """An epsilon with four decimals, never less than it is."""
    if value is None:
        return "–"
    return round_up(value, 4) if isinstance(value, int | float) else value


def round_up(value: float, places: int) -> str:
    """A number with some places, never less than it is: for what is promised."""
    return _rounded(value, places, ROUND_CEILING)


def round_down(value: float, places: int) -> str:
    """A number with some places, never more than it is: for what an attacker has shown."""
    return _rounded(value, places, ROUND_FLOOR)


def delta_text(value: float) -> str:
    """A delta, short."""
    return f"{value:.3g}".replace("e-0", "e-")


def percent_text(value: float, rounding: str = ROUND_CEILING) -> str:
    """A rate in percent with one place."""
    return f"{_rounded(100.0 * value, 1, rounding)} %"


def _rounded(value: float, places: int, rounding: str) -> str:
    return str(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-places), rounding=rounding))


def short_text(text: str) -> str:
    """An exact number without its empty fraction."""
    return text.removesuffix(".0")
