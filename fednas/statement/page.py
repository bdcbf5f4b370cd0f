"""The statement as one page that people read: no script, nothing fetched, every word escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any

from fednas.statement.audit_page import alarm, audit_section
from fednas.statement.chart import spend_chart
from fednas.statement.elements import (
    RELATION_NAMES,
    delta_text,
    fact_list,
    is_finite,
    number_text,
    percent_text,
    rank,
    round_up,
    row_cells,
    short_text,
    table,
    whole_page,
)


def render(document: Mapping[str, Any]) -> str:
    """Lay a statement out.

    Args:
        document: as `fednas.statement.document.compose` makes it.

    Returns:
        HTML, whose bytes depend on the document alone.
    """
    title = f"Privacy statement: {document['dataset']}"
    sections = [
        _head(document),
        alarm(document["audit"]),
        _claim(document),
        _promise(document),
        _spent(document),
        _epsilons(document),
        _risk(document),
        audit_section(document["audit"]),
        _releases(document),
        _incidents(document),
        _software(document),
        _verify(document),
        _limits(document),
    ]
    return whole_page(title, sections)


def _head(document: Mapping[str, Any]) -> str:
    size = document["declared_size"]
    facts = [
        ("Controller", document["controller"] or "not declared"),
        ("Purpose", document["purpose"] or "not declared"),
        ("Declared size", f"{size:,} records" if size else "not declared"),
    ]
    name = escape(document["dataset"])
    return f'<header><p class="eyebrow">Privacy statement</p><h1>{name}</h1>{fact_list(facts)}</header>'


def _claim(document: Mapping[str, Any]) -> str:
    claim = document["claim"]
    epsilon, delta, cap = claim["epsilon"], claim["delta"], claim["cap"]
    if not document["private"]:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in document["not_private_because"])
        nominal = ""
        if is_finite(claim["nominal_epsilon"]):
            nominal = (
                f'<p class="note">Had the noise been secret, epsilon would have been '
                f"{number_text(claim['nominal_epsilon'])} at delta {delta_text(delta)}. It was not.</p>"
            )
        return (
            '<section class="claim infinite"><p class="number">ε = INFINITE <small>nothing is protected'
            f"</small></p><ul>{reasons}</ul>{nominal}</section>"
        )
    add = document["risk"]["relations"][0]
    share = 100.0 * epsilon / cap if is_finite(cap) else 0.0
    meaning = "Nothing has been charged to this dataset yet."
    if epsilon > 0.0:
        meaning = (
            "Whoever sees everything that ever left this site, and suspects that one certain record was "
            "used, can test for it. If the test may be wrong about 1 record in 100 that was not used, it "
            f"finds at most {percent_text(add['tpr_at_1_percent'])} of those that were."
        )
    return (
        f'<section class="claim"><p class="number">ε ≤ {number_text(epsilon)} '
        f"<small>at δ = {delta_text(delta)}, add or remove one record</small></p>"
        f'<div class="bar"><i style="width:{min(100.0, share):.2f}%"></i></div>'
        f'<p class="note" style="margin:0">{share:.1f} % of the cap of {number_text(cap)} that the '
        f"owner set for everything that may ever leave</p><p>{meaning}</p></section>"
    )


def _promise(document: Mapping[str, Any]) -> str:
    unit = document["unit"]
    facts = [
        ("Unit", f"{unit['protects']}: what is promised holds for each"),
        (
            "Relation",
            "neighbouring datasets differ in one record: "
            + "; or ".join(f"{words} ({RELATION_NAMES[r]})" for r, words in unit["relations"].items()),
        ),
        ("Adversary", document["adversary"]),
        ("Trust", document["trust"]),
        ("Disjointness", unit["disjoint"]),
        ("Theorem", document["claim"]["theorem"]),
        ("What is charged", document["claim"]["t_max"]),
    ]
    nothing = ""
    if not document["private"]:
        nothing = (
            '<p class="bad">Nothing. What follows is what the numbers of this page would mean if the noise '
            "had been secret and everywhere.</p>"
        )
    return f"<section><h2>What is promised</h2>{nothing}{fact_list(facts)}</section>"


def _spent(document: Mapping[str, Any]) -> str:
    claim, streams = document["claim"], document["streams"]
    mode = "plan mode" if claim["order"] is None else f"adaptive mode, order {claim['order']}"
    most = max(streams, key=lambda s: rank(s["claimed"]))["stream"]
    rows = []
    for s in streams:
        share = "–" if s["share"] is None else f"{100 * s['share']:g} %"
        style = ' class="most"' if s["stream"] == most else ""
        cells = [
            s["stream"],
            share,
            number_text(s["charged"]),
            number_text(s["claimed"]),
            number_text(s["proved"]),
        ]
        rows.append(f"<tr{style}>" + row_cells(cells, left=1) + "</tr>")
    figure = ""
    drawing = spend_chart(document) if document["private"] else ""  # a curve that looks private is no news
    if drawing:
        by = (
            "privacy loss distributions"
            if claim["order"] is None
            else f"divergence at order {claim['order']}"
        )
        caption = f"Epsilon charged to each stream over the entries of the ledger, by {by}"
        words = f'<figcaption class="caption">{caption}</figcaption>'
        figure = f'<figure><div class="wide">{drawing}</div>{words}</figure>'
    columns = ["stream", "share of records", "charged", "claimed", "claimed, proved"]
    return (
        "<section><h2>What was spent</h2>"
        f"<p>Per stream at δ = {delta_text(claim['delta'])}, {mode}. A record is in one stream, "
        "so the dataset’s epsilon is the largest claim, not their sum.</p>"
        + table(columns, rows, left=1)
        + figure
        + "</section>"
    )


def _epsilons(document: Mapping[str, Any]) -> str:
    deltas = list(dict.fromkeys(b["delta"] for b in document["streams"][0]["bounds"]))
    relations = list(document["unit"]["relations"])
    over = "".join(f'<th class="over" colspan="2">{RELATION_NAMES[relation]}</th>' for relation in relations)
    head = (
        f'<tr><th class="none" colspan="2"></th>{over}</tr><tr><th>stream</th><th class="n">δ</th>'
        + '<th class="n">PLD</th><th class="n">proved</th>' * len(relations)
        + "</tr>"
    )
    rows = []
    parts = [(s["stream"], s["bounds"]) for s in document["streams"]]
    for name, bounds in [*parts, ("any record", document["claim"]["bounds"])]:
        found = {(b["relation"], b["delta"]): b for b in bounds}
        for number, delta in enumerate(deltas):
            cells = [name if number == 0 else "", delta_text(delta)]
            for relation in relations:
                bound = found[relation, delta]
                cells += [number_text(bound["pld"]), number_text(bound["proved"])]
            style = ' class="begin"' if number == 0 else ""
            rows.append(f"<tr{style}>" + row_cells(cells, left=1) + "</tr>")
    return (
        "<section><h2>Epsilon at three deltas</h2><p>The claim of each stream by privacy loss distributions "
        "(PLD, tighter) and by Rényi divergences of integer order (proved). Any record: a record that is "
        "replaced may leave one stream while its successor enters another, and both streams show it."
        f'</p><div class="wide"><table>{head}{"".join(rows)}</table></div></section>'
    )


def _risk(document: Mapping[str, Any]) -> str:
    rows = [
        "<tr>"
        + row_cells(
            [
                RELATION_NAMES[r["relation"]],
                round_up(r["advantage"], 3),
                percent_text(r["tpr_at_1_percent"]),
                percent_text(r["tpr_at_01_percent"]),
            ],
            left=1,
        )
        + "</tr>"
        for r in document["risk"]["relations"]
    ]
    groups = []
    for g in document["unit"]["groups"]:
        known = is_finite(g["epsilon"])
        cells = [
            str(g["records"]),
            number_text(g["epsilon"]) if known else "no bound",
            delta_text(g["delta"]) if known else "–",
        ]
        groups.append("<tr>" + row_cells(cells, left=0) + "</tr>")
    columns = ["relation", "advantage", "found at 1 % false alarms", "found at 0.1 % false alarms"]
    return (
        "<section><h2>What that means for a record</h2><p>The best that any membership test can do with "
        "everything that was sent: its advantage (true less false positive rate), and its true positive rate."
        "</p>"
        + table(columns, rows, left=1)
        + f'<p class="note">By {escape(document["risk"]["source"])}.</p><h3>Several records together</h3>'
        "<p>If one person has k records here, they are protected together by k ε at k e<sup>(k−1) ε</sup> δ:"
        "</p>" + table(["k", "ε", "δ"], groups, left=0, style="small") + "</section>"
    )


def _releases(document: Mapping[str, Any]) -> str:
    releases = document["releases"]
    facts = [
        ("Mechanism", releases["mechanism"]),
        ("Noise source", releases["noise_source"]),
        ("Sampling", releases["sampling"]),
    ]
    parts = [f"<section><h2>What was released</h2>{fact_list(facts)}"]
    if not releases["plans"]:
        parts.append("<p>No plan was opened: nothing was released.</p>")
    for plan in releases["plans"]:
        rows = []
        for a in plan["allowances"]:
            event = a["event"]
            q = event.get("sampling_probability", "1.0")
            noise = event.get("noise_multiplier", "none")
            cells = [a["name"], a["what"], ", ".join(a["streams"])]
            numbers = [
                short_text(q),
                short_text(noise),
                f"{a['clip_norm']:g}",
                f"{a['t_max']:,}",
                f"{a['charged']:,}",
            ]
            rows.append("<tr>" + row_cells([*cells, *numbers], left=3) + "</tr>")
        runs = plan["runs"]
        names = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
        columns = ["release", "what", "streams", "q", "noise", "clip", "at most", "charged"]
        parts.append(
            f"<h3>Plan of {'run' if len(runs) == 1 else f'{len(runs)} runs:'} {escape(names)}</h3>"
            f'<p class="note">sha256 <code>{plan["id"]}</code></p>'
            + table(columns, rows, left=3, style="plan")
        )
    parts.append(
        '<p class="note">q: chance of a record to be in a step. noise: standard deviation over the '
        "sensitivity. clip: L2 bound of one record. at most (T_max) and charged: steps or counts"
        + (", over all runs of the plan" if any(len(p["runs"]) > 1 for p in releases["plans"]) else "")
        + ".</p></section>"
    )
    return "".join(parts)


def _incidents(document: Mapping[str, Any]) -> str:
    incidents = document["incidents"]
    refusals = ", ".join(f"{code} {n}" for code, n in incidents["refusals"].items()) or "none"
    facts = [
        ("Refused requests", refusals),
        (
            "Open reservations",
            f"{incidents['open_reservations']} charged without a release: crashes, failures",
        ),
        ("Repeats", f"{incidents['retries']} charged again because no reply had been stored"),
    ]
    return f"<section><h2>Refusals and crashes</h2>{fact_list(facts)}</section>"


def _software(document: Mapping[str, Any]) -> str:
    parts = ["<section><h2>Software</h2>"]
    if not document["software"]:
        parts.append("<p>Not declared.</p>")
    for software in document["software"]:
        packages = ", ".join(f"{name} {version}" for name, version in sorted(software["packages"].items()))
        parts.append(fact_list([("Code, sha256", software["code"]), ("Packages", packages)]))
    return "".join(parts) + "</section>"


def _verify(document: Mapping[str, Any]) -> str:
    ledger = document["ledger"]
    facts = [
        ("Entries", f"{ledger['entries']:,}"),
        ("Head", ledger["head"]),
        ("Signed under", ledger["signer"]),
    ]
    first, second = document["verify"]
    source = "Every number above follows from the ledger file alone."
    if document["audit"] is not None:
        source = "Every number above follows from the ledger file and from the audit’s alone."
    return (
        f"<section><h2>Check it yourself</h2>{fact_list(facts, code=True)}"
        f'<p class="after">{source} With the program:</p>'
        f"<pre>{escape(first)}</pre>"
        "<p>With nothing but Python, by one file that can be read in a sitting:</p>"
        f"<pre>{escape(second)}</pre>"
        "<p>Ledger, statement, this page and an audit together, in the folder where they are:</p>"
        "<pre>fednas audit verify .</pre>"
        "<p>Keep head and key where the site’s operator cannot reach them: a later copy of the ledger must "
        "still contain this head, under this key.</p></section>"
    )


def _limits(document: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in document["not_covered"])
    return f"<section><h2>What is not covered</h2><ul>{items}</ul></section>"
