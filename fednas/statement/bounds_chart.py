"""A drawing of what an attacker has shown against what is claimed: SVG, without a script."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from fednas.statement.chart import round_step
from fednas.statement.elements import round_down

WIDTH: Final = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 100, 104, 26, 30
_BAR: Final = 11
_ROW: Final = 19
_GAP: Final = 13


def bounds_chart(games: Sequence[Mapping[str, Any]]) -> str:
    """Draw each lower bound as a bar from 0, and the claim that it must stay below as a line.

    Args:
        games: of a statement's audit.

    Returns:
        An `svg` element that takes its colours from the page's style; empty without games.
    """
    if not games:
        return ""
    epsilons = [bound["epsilon"] for game in games for bound in game["bounds"]]
    top = 1.06 * max([*epsilons, *(game["claim"] for game in games)])
    height = _TOP + sum(len(game["bounds"]) * _ROW + _GAP for game in games) + _BOTTOM
    parts = [_axis(top, height)]
    y: float = _TOP
    claim_before = None
    for game in games:
        bottom = y + len(game["bounds"]) * _ROW + _GAP
        x = _x(game["claim"], top)
        bars, labels = _bars(game, y + _GAP / 2, top)
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
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Lower bounds on epsilon against the '
        f'claim. {escape(words)}">{"".join(parts)}</svg>'
    )


def _bars(game: Mapping[str, Any], top_y: float, top: float) -> tuple[list[str], list[str]]:
    """The bars of a game, and its words, which lie above the line of the claim."""
    middle = top_y + len(game["bounds"]) * _ROW / 2
    bars, labels = [], [_text(_LEFT - 12, middle + 4, game["mechanism"], "name", "end")]
    for number, bound in enumerate(game["bounds"]):
        style = "shown over" if bound["above_claim"] else f"shown b{number % 3}"
        width = max(1.5, _x(bound["epsilon"], top) - _LEFT)
        middle = top_y + (number + 0.5) * _ROW
        bars.append(
            f'<rect class="{style}" x="{_LEFT}" y="{middle - _BAR / 2:g}" width="{width:.1f}" '
            f'height="{_BAR}" rx="2"/>'
        )
        label = f"{bound['estimator']} {round_down(bound['epsilon'], 2)}"
        labels.append(_text(_LEFT + width + 7, middle + 4.5, label, "on-bar", "start"))
    return bars, labels


def _axis(top: float, height: float) -> str:
    parts, step, base = [], round_step(top), height - _BOTTOM
    for number in range(int(top / step) + 1):
        mark = number * step
        x = _x(mark, top)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{base:g}"/>')
        parts.append(_text(x, base + 19, f"{mark:g}", "tick", "middle"))
    parts.append(_text(WIDTH - _RIGHT + 14, base + 19, "epsilon", "tick", "start"))
    return "".join(parts)


def _x(epsilon: float, top: float) -> float:
    return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * epsilon / top, 1)


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return f'<text class="{style}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
