"""A small drawing of what a ledger's streams were charged over its entries: SVG, without a script."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from fednas.privacy.plan import STREAMS

WIDTH: Final = 720
HEIGHT: Final = 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 132, 16, 34
_APART: Final = 15  # px between two labels


def spend_chart(
    document: Mapping[str, Any], *, width: int = WIDTH, height: int = HEIGHT, top: float | None = None
) -> str:
    """Draw the epsilon charged to each stream and the cap; empty where nothing was charged.

    Args:
        document: as `fednas.statement.document.compose` makes it.
        width: of the drawing, px.
        height: likewise.
        top: epsilon that the height stands for, where several drawings are compared; by default what fits.

    Returns:
        An `svg` element that takes its colours from the page's style.
    """
    history, cap = document["history"], document["claim"]["cap"]
    largest = largest_epsilon(document)
    if largest == 0.0:
        return ""
    entries = document["ledger"]["entries"]
    plot = _Plot(entries=entries, top=largest if top is None else top, width=width, height=height)
    parts = [_axes(plot)]
    ends: list[tuple[float, str, str]] = []
    if isinstance(cap, int | float):
        y = plot.y(cap)
        parts.append(f'<line class="cap" x1="{_LEFT}" x2="{plot.right}" y1="{y}" y2="{y}"/>')
        ends.append((y, "cap-text", f"cap {cap:.4g}"))
    for number, stream in enumerate(STREAMS):  # in one order, whatever that of the document is
        points = [(0, 0.0)] + [(point["entries"], point["charged"][stream]) for point in history]
        points = [(x, e) for x, e in points if isinstance(e, int | float)]
        parts.append(f'<path class="line s{number}" d="{_steps(plot, points)}"/>')
        ends.append((plot.y(points[-1][1]), f"label s{number}", f"{stream} {points[-1][1]:.2f}"))
    parts += [
        f'<text class="{style}" x="{plot.right + 8}" y="{y:.1f}">{escape(text)}</text>'
        for y, style, text in _spread(ends, plot.base)
    ]
    words = ", ".join(f"{stream} {history[-1]['charged'][stream]}" for stream in STREAMS)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Epsilon charged over the ledger\'s '
        f'entries; at the end {escape(words)}; cap {cap}">{"".join(parts)}</svg>'
    )


def largest_epsilon(document: Mapping[str, Any]) -> float:
    """The height that a drawing needs, cap included; 0 where nothing was charged.

    Args:
        document: as `fednas.statement.document.compose` makes it.
    """
    history, cap = document["history"], document["claim"]["cap"]
    charged = [e for point in history for e in point["charged"].values() if isinstance(e, int | float)]
    if not charged or max(charged) == 0.0:
        return 0.0
    return max([*charged, cap if isinstance(cap, int | float) else 0.0]) * 1.06


class _Plot:
    """Where an entry and an epsilon lie on the drawing, in px."""

    def __init__(self, *, entries: int, top: float, width: int, height: int) -> None:
        self.entries, self.top = max(1, entries), top
        self.right, self.base = width - _RIGHT, height - _BOTTOM

    def x(self, entry: float) -> float:
        return round(_LEFT + (self.right - _LEFT) * entry / self.entries, 1)

    def y(self, epsilon: float) -> float:
        return round(self.base - (self.base - _TOP) * epsilon / self.top, 1)


def _axes(plot: _Plot) -> str:
    parts, step = [], round_step(plot.top)
    for number in range(int(plot.top / step) + 1):
        mark = number * step
        y = plot.y(mark)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{plot.right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{mark:g}</text>')
    base = plot.base + 20
    parts.append(f'<text class="tick" x="{_LEFT}" y="{base}">0</text>')
    parts.append(
        f'<text class="tick" text-anchor="end" x="{plot.right}" y="{base}">{plot.entries} entries</text>'
    )
    return "".join(parts)


def round_step(top: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that divides a length into at most five parts."""
    steps = (factor * 10.0**power for power in range(-9, 7) for factor in (1.0, 2.0, 5.0))
    return next((step for step in steps if top / step <= 5.0), top)


def _steps(plot: _Plot, points: Sequence[tuple[int, float]]) -> str:
    path = f"M{plot.x(points[0][0])} {plot.y(points[0][1])}"
    for entry, epsilon in points[1:]:
        path += f"L{plot.x(entry)} {plot.y(epsilon)}"
    return path + f"H{plot.x(plot.entries)}"


def _spread(labels: Sequence[tuple[float, str, str]], base: float) -> list[tuple[float, str, str]]:
    """Labels from the top down, pushed apart so that none lies on another."""
    placed: list[tuple[float, str, str]] = []
    for y, style, text in sorted(labels):
        low = placed[-1][0] + _APART if placed else float(_TOP)
        placed.append((max(y + 4.0, low), style, text))
    limit = base + 4.0
    if placed[-1][0] > limit:  # the last ones ran out at the bottom: push back from below
        for index in range(len(placed) - 1, -1, -1):
            y, style, text = placed[index]
            placed[index] = (min(y, limit), style, text)
            limit = placed[index][0] - _APART
    return placed
