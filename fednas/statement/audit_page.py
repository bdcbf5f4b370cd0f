"""What a page says of an audit: bounds against the claim, risks, checks, and mistakes that it would see."""

from collections.abc import Mapping, Sequence
from decimal import ROUND_FLOOR
from html import escape
from typing import Any, Final

from fednas.statement.bounds_chart import bounds_chart
from fednas.statement.elements import (
    delta_text,
    fact_list,
    number_text,
    percent_text,
    round_down,
    round_up,
    row_cells,
    table,
)

NONE: Final = (
    "No audit was given with this ledger. Every number on this page assumes that the code does what the "
    "ledger charges for; <code>fednas audit run</code> attacks that code."
)
_SHOWN: Final = 5  # failing checks in the alarm


def alarm(audit: Mapping[str, Any] | None) -> str:
    """A red box if an audit accuses; empty else.

    Args:
        audit: of a statement.
    """
    if audit is None or not audit["accused"]:
        return ""
    failing = audit["failing"]
    items = "".join(_failure(check) for check in failing[:_SHOWN])
    more = f"<li>and {len(failing) - _SHOWN} more, below</li>" if len(failing) > _SHOWN else ""
    if not failing:
        items = "<li>L3: no attacker extracted more than was claimed</li>"
    return (
        '<section class="claim infinite"><p class="number">ACCUSED <small>the audit found the code broken'
        "</small></p><p>What is claimed below is what the ledger charged for. The audit found that the code "
        f"does not keep it. This should be true, and was not:</p><ul>{items}{more}</ul></section>"
    )


def audit_section(audit: Mapping[str, Any] | None, *, rows: bool = True, facts: bool = True) -> str:
    """Everything that an audit found.

    Args:
        audit: of a statement; None where none was given.
        rows: whether every mutant is named, or only those that were not found.
        facts: whether it is said how the audit relates to this ledger.
    """
    if audit is None:
        return f'<section><h2>What an attack found</h2><p class="bad">Not audited.</p><p>{NONE}</p></section>'
    checks = sum(layer["checks"] for layer in audit["layers"])
    failing = len(audit["failing"])
    verdict = (
        f'<span class="bad">{failing} of {checks} checks do not hold.</span>'
        if failing
        else f"All {checks} checks hold."
    )
    parts = [
        "<section><h2>What an attack found</h2><p>The code that a site runs was attacked by a server that is "
        f"not honest, on made-up records: no record of a site took part. {verdict}</p>",
        _relation(audit) if facts else "",
        _bounds(audit),
        _risks(audit),
        _layers(audit),
        _mutants(audit["mutants"], rows=rows),
        "</section>",
    ]
    return "".join(parts)


def _relation(audit: Mapping[str, Any]) -> str:
    covered, seen = audit["code"]["covered"], audit["ledger"]
    code = {
        "all": "the code that this ledger declares",
        "some": "the code of a part of this ledger, which declares others too",
        "none": "not the code that this ledger declares: what follows is true of another version",
    }[covered]
    bad = {"Audited code"} if covered != "all" else set()
    if seen is None:
        ledger = "not read by the audit"
    elif seen["contained"]:
        ledger = f"its first {seen['entries']:,} entries were read by the audit, and are unchanged"
    else:
        ledger = f"not the one that the audit read: entry {seen['entries']:,} was another"
        bad.add("This ledger")
    facts = [("Audited study", audit["study"]["name"]), ("Audited code", code), ("This ledger", ledger)]
    digest = f'<p class="note after">sha256 of the audit <code>{audit["sha256"]}</code></p>'
    return fact_list(facts, bad=bad) + digest


def _bounds(audit: Mapping[str, Any]) -> str:
    games = audit["games"]
    if not games:
        return "<h3>What was extracted</h3><p>No canaries were played: there is no lower bound.</p>"
    rows = []
    for game in games:
        for number, bound in enumerate(game["bounds"]):
            cells = [
                game["mechanism"] if number == 0 else "",
                bound["estimator"],
                round_down(bound["epsilon"], 4),
                number_text(game["claim"]),
                f"{game['canaries']:,}" if number == 0 else "",
                f"{game['runs']:,}" if number == 0 else "",
            ]
            style = ' class="begin"' if number == 0 else ""
            rows.append(f"<tr{style}>" + row_cells(cells, left=2) + "</tr>")
    confidence = _confidence(games)
    caption = f"Epsilon that an attacker has shown, at least ({confidence}), and that is claimed, at most"
    return (
        f"<h3>What was extracted, against the claim</h3><p>Canaries are records that a fair coin put into a "
        "made-up site or left out; who tells from everything that the site sent how the coins fell has shown "
        f"how large epsilon is at least, at δ = {delta_text(games[0]['delta'])}. Each made-up site is "
        f"promised an epsilon of its own, {_claims(games)}, and spends all of it.</p>"
        f'<figure><div class="on-screens">{bounds_chart(games)}</div>'
        f'<div class="on-phones">{bounds_chart(games, narrow=True)}</div>'
        f'<figcaption class="caption">{caption}</figcaption></figure>'
        + table(["releases of", "estimator", "at least", "claimed", "canaries", "runs"], rows, left=2)
        + _chance(audit)
        + _assumptions(games)
    )


def _chance(audit: Mapping[str, Any]) -> str:
    above = any(bound["above_claim"] for game in audit["games"] for bound in game["bounds"])
    if not above or audit["accused"]:
        return ""
    return (
        '<p class="note">At this confidence a bound of a correct system is above its claim in at most one '
        "game of twenty. It would be accused where chance explains it less than once in a million.</p>"
    )


def _assumptions(games: Sequence[Mapping[str, Any]]) -> str:
    facts = {f"Attacker of the {game['mechanism']}": game["adversary"] for game in games}
    facts |= {f"{b['estimator']} assumes": b["assumption"] for game in games for b in game["bounds"]}
    return fact_list(list(facts.items()))


def _risks(audit: Mapping[str, Any]) -> str:
    if not audit["games"]:
        return ""
    rows = []
    for game in audit["games"]:
        best = max(game["bounds"], key=lambda bound: float(bound["epsilon"]))
        shown, claimed = best["risk"], game["claim_risk"]
        name = f"epsilon {round_down(best['epsilon'], 2)}, shown by {best['estimator']}"
        cells = [
            game["mechanism"],
            name,
            round_down(shown["advantage"], 3),
            percent_text(shown["tpr_at_1_percent"], ROUND_FLOOR),
            percent_text(shown["tpr_at_01_percent"], ROUND_FLOOR),
        ]
        rows.append('<tr class="begin">' + row_cells(cells, left=2) + "</tr>")
        cells = [
            "",
            f"epsilon {game['claim']:.4g}, claimed",
            round_up(claimed["advantage"], 3),
            percent_text(claimed["tpr_at_1_percent"]),
            percent_text(claimed["tpr_at_01_percent"]),
        ]
        rows.append("<tr>" + row_cells(cells, left=2) + "</tr>")
    columns = ["releases of", "if epsilon were", "advantage", "found at 1 % false alarms", "at 0.1 %"]
    return f"<h3>As a risk</h3><p>{escape(audit['risk'])}</p>" + table(columns, rows, left=2)


def _layers(audit: Mapping[str, Any]) -> str:
    rows = []
    for layer in audit["layers"]:
        bad = layer["failing"]
        cells = [layer["layer"], layer["what"], f"{layer['checks']:,}", f"{bad:,}" if bad else "none"]
        style = ' class="fails"' if bad else ""
        rows.append(f"<tr{style}>" + row_cells(cells, left=2) + "</tr>")
    failing = "".join(_failure(check) for check in audit["failing"])
    return (
        "<h3>What was checked</h3>"
        + table(["layer", "what it looks at", "checks", "failed"], rows, left=2)
        + (f'<p class="bad after">Should be true, and was not:</p><ul>{failing}</ul>' if failing else "")
    )


def _failure(check: Mapping[str, Any]) -> str:
    detail = f" ({escape(check['detail'])})" if check["detail"] else ""
    return f"<li>{check['layer']}: {escape(check['name'])}{detail}</li>"


def _mutants(mutants: Mapping[str, Any] | None, *, rows: bool) -> str:
    title = "<h3>Would the audit have noticed?</h3>"
    if mutants is None:
        return f"{title}<p>It is not known: the audit was not tried on broken versions of the code.</p>"
    alive = [row for row in mutants["rows"] if not row["killed"]]
    count = f"{mutants['killed']} of {mutants['of']}"
    parts = [
        f"{title}<p>The code was broken on purpose in {mutants['of']} ways that somebody could break it by "
        f"mistake, or has. <b>{count}</b> were found, each by the layer that must find it.",
        "" if mutants["same_code"] else " They were versions of other code than was audited.",
        "</p>",
        _matrix(mutants["matrix"]),
    ]
    if alive:
        items = "".join(
            f"<li>{row['layer']}: {escape(row['name'])}"
            + (f" ({escape(row['error'])})" if row["error"] else "")
            + "</li>"
            for row in alive
        )
        parts.append(f'<p class="bad after">Not found: an audit would miss</p><ul>{items}</ul>')
    if rows and mutants["rows"]:
        parts.append(_every(mutants["rows"]))
    return "".join(parts)


def _matrix(matrix: Sequence[Mapping[str, Any]]) -> str:
    """Groups down, layers across: found of all."""
    found = {(cell["group"], cell["layer"]): cell for cell in matrix}
    layers = sorted({cell["layer"] for cell in matrix})
    rows = []
    for group in dict.fromkeys(cell["group"] for cell in matrix):
        cells = [f"<td>{escape(group)}</td>"]
        for layer in layers:
            cell = found.get((group, layer))
            if cell is None:
                cells.append('<td class="n none">–</td>')
                continue
            style = "n" if cell["killed"] == cell["of"] else "n bad"
            cells.append(f'<td class="{style}">{cell["killed"]} of {cell["of"]}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return table(["broken", *layers], rows, left=1, style="small matrix")


def _every(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        cells = [row["layer"], row["group"], row["name"], row["found_by"] if row["killed"] else "not found"]
        style = "" if row["killed"] else ' class="fails"'
        lines.append(f"<tr{style}>" + row_cells(cells, left=4) + "</tr>")
    columns = ["layer", "group", "what the broken code does", "found because this was not true"]
    return (
        f"<details><summary>Every broken version, and what found it</summary>"
        f"{table(columns, lines, left=4, style='every')}</details>"
    )


def _claims(games: Sequence[Mapping[str, Any]]) -> str:
    return " or ".join(f"{claim:.4g}" for claim in sorted({float(game["claim"]) for game in games}))


def _confidence(games: Sequence[Mapping[str, Any]]) -> str:
    levels = sorted({bound["confidence"] for game in games for bound in game["bounds"]})
    return " or ".join(f"{100 * level:g} %" for level in levels) + " confidence each"
