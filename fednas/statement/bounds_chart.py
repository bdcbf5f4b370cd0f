"""A drawing of what an attacker has shown against what is claimed: SVG, without a script."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from fednas.statement.chart import round_step
from fednas.statement.elements import round_down

WIDTH: Final = 720
NARROW: Final = 360
_RIGHT, _TOP, _BOTTOM = 104, 26, 30
_BAR: Final = 11
_ROW: Final = 19
_GAP: Final = 13


def bounds_chart(games: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> str:
    """Draw each lower bound as a bar from 0, and the claim that it must stay below as a line.

    Args:
        games: of a statement's audit.
        narrow: for a phone: 360 px wide in place of 720, and names above their bars.

    Returns:
        An `svg` element that takes its colours from the page's style; empty without games.
    """
    if not games:
        return ""
    epsilons = [bound["epsilon"] for game in games for bound in game["bounds"]]
    plot = _Plot(top=1.06 * max([*epsilons, *(game["claim"] for game in games)]), narrow=narrow)
    height = _TOP + sum(plot.tall(game) for game in games) + _BOTTOM
    parts = [_axis(plot, height - _BOTTOM)]
    y: float = _TOP
    claim_before = None
    for game in games:
        bottom = y + plot.tall(game)
        x = plot.x(game["claim"])
        bars, labels = _bars(game, y + _GAP / 2, plot)
        line = f'<line class="cap" x1="{x}" x2="{x}" y1="{y:g}" y2="{bottom:g}"/>'
        parts += [*bars, line, *labels]
        if game["claim"] != claim_before:  # a label where the line begins or moves
            parts.append(_text(x, y - 8, f"claim {game['claim']:.4g}", "cap-text", "middle"))
        claim_before = game["claim"]
        y = bottom
    words = "; ".join(
        f"{game['mechanism']}: "
        + ", ".join(f"{b['estimator']} at least {round_down(b['epsilon'], 2)}" for b in game["bounds"])
        + f", claimed {game['claim']:.4g}"
        for game in games
    )
    return (
        f'<svg viewBox="0 0 {plot.width} {height}" role="img" aria-label="Lower bounds on epsilon against '
        f'the claim. {escape(words)}">{"".join(parts)}</svg>'
    )


class _Plot:
    """Where an epsilon lies on the drawing, and how tall a game is, in px."""

    def __init__(self, *, top: float, narrow: bool) -> None:
        self.top, self.narrow = top, narrow
        self.width, self.left = (NARROW, 6) if narrow else (WIDTH, 100)
        self.name = _ROW if narrow else 0  # of a line for the name

    def x(self, epsilon: float) -> float:
        return round(self.left + (self.width - self.left - _RIGHT) * epsilon / self.top, 1)

    def tall(self, game: Mapping[str, Any]) -> int:
        return self.name + len(game["bounds"]) * _ROW + _GAP


def _bars(game: Mapping[str, Any], top_y: float, plot: _Plot) -> tuple[list[str], list[str]]:
    """The bars of a game, and its words, which lie above the line of the claim."""
    middle = top_y + len(game["bounds"]) * _ROW / 2
    name = (plot.left - 12, middle + 4, "end")
    if plot.narrow:
        name = (plot.left, top_y + 13, "start")
    bars, labels = [], [_text(name[0], name[1], game["mechanism"], "name", name[2])]
    for number, bound in enumerate(game["bounds"]):
        style = "shown over" if bound["above_claim"] else f"shown b{number % 3}"
        width = max(1.5, plot.x(bound["epsilon"]) - plot.left)
        middle = top_y + plot.name + (number + 0.5) * _ROW
        bars.append(
            f'<rect class="{style}" x="{plot.left}" y="{middle - _BAR / 2:g}" width="{width:.1f}" '
            f'height="{_BAR}" rx="2"/>'
        )
        label = f"{bound['estimator']} {round_down(bound['epsilon'], 2)}"
        labels.append(_text(plot.left + width + 7, middle + 4.5, label, "on-bar", "start"))
    return bars, labels


def _axis(plot: _Plot, base: float) -> str:
    parts, step = [], round_step(plot.top)
    for number in range(int(plot.top / step) + 1):
        mark = number * step
        x = plot.x(mark)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{base:g}"/>')
        parts.append(_text(x, base + 19, f"{mark:g}", "tick", "middle"))
    parts.append(_text(plot.width - _RIGHT + 14, base + 19, "epsilon", "tick", "start"))
    return "".join(parts)


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return f'<text class="{style}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
