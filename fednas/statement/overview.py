"""One page for a whole run: every site's epsilon beside its cap, its incidents, and what an attack found."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote, unquote

from fednas.statement.audit_page import alarm, audit_section
from fednas.statement.chart import largest_epsilon, spend_chart
from fednas.statement.elements import (
    delta_text,
    fact_list,
    is_finite,
    number_text,
    rank,
    row_cells,
    table,
    whole_page,
)

TITLE: Final = "Privacy overview"
_CHART: Final = (360, 190)  # px
_LINK: Final = re.compile(
    r'<a href="([^"]*)" data-head="([0-9a-f]{64})" data-audit="([0-9a-f]{64}|none)">([^<]*)</a>'
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site's line on the overview.

    Args:
        document: its statement, as `fednas.statement.document.compose` makes it.
        page: where its page is, relative to the overview.
    """

    document: Mapping[str, Any]
    page: PurePosixPath


@dataclass(frozen=True, kw_only=True)
class Link:
    """What an overview says of a site, for whoever makes the overview again.

    Args:
        dataset: the site's.
        head: of its ledger.
        audit: sha256 of the audit in its statement; None where there was none.
        page: where its page was, relative to the overview.
    """

    dataset: str
    head: str
    audit: str | None
    page: PurePosixPath


def overview(sites: Sequence[Site]) -> bytes:
    """Lay several statements out on one page.

    Args:
        sites: at least one, in the order of the page.

    Returns:
        HTML in UTF-8, whose bytes depend on the statements and the places of their pages alone.
    """
    documents = [site.document for site in sites]
    audits = list({a["sha256"]: a for d in documents if (a := d["audit"]) is not None}.values())
    name = _name([document["dataset"] for document in documents])
    sections = [
        f'<header><p class="eyebrow">{TITLE}</p><h1>{escape(name)}</h1></header>',
        *[alarm(audit) for audit in audits],
        _claim(documents),
        _sites(sites),
        _charts(documents),
        _incidents(documents),
        *[audit_section(audit, rows=False, facts=False) for audit in audits],
        _covered(documents),
        _verify(documents),
    ]
    return whole_page(f"{TITLE}: {name}", sections).encode("utf-8", "xmlcharrefreplace")


def links(page: bytes) -> tuple[Link, ...]:
    """The sites that an overview names, in its order; empty where it is none."""
    found = _LINK.findall(page.decode("utf-8", "replace"))
    return tuple(
        Link(
            dataset=unescape(dataset),
            head=head,
            audit=None if audit == "none" else audit,
            page=PurePosixPath(unquote(unescape(href))),
        )
        for href, head, audit, dataset in found
    )


def _name(datasets: Sequence[str]) -> str:
    """What all names begin with, up to a slash; else how many they are."""
    first = datasets[0].split("/")[0]
    if all(dataset.startswith(f"{first}/") for dataset in datasets):
        return first
    return f"{len(datasets)} sites"


def _claim(documents: Sequence[Mapping[str, Any]]) -> str:
    worst = max(documents, key=lambda d: rank(d["claim"]["epsilon"]))
    open_sites = [d["dataset"] for d in documents if not d["private"]]
    if open_sites:
        names = ", ".join(open_sites)
        return (
            '<section class="claim infinite"><p class="number">ε = INFINITE <small>for some records</small>'
            f"</p><p>Nothing is protected at {len(open_sites)} of {len(documents)} sites: "
            f"{escape(names)}.</p></section>"
        )
    deltas = sorted({d["claim"]["delta"] for d in documents})
    at = " or ".join(delta_text(delta) for delta in deltas)
    return (
        f'<section class="claim"><p class="number">ε ≤ {number_text(worst["claim"]["epsilon"])} '
        f"<small>at δ = {at}, for any record of any site</small></p>"
        f"<p>The largest of {len(documents)} sites. Each record is at one site and in one stream there, so "
        "it loses what its own site claims: epsilons of sites are compared, never added up.</p></section>"
    )


def _sites(sites: Sequence[Site]) -> str:
    finite = [d["claim"][key] for d in (s.document for s in sites) for key in ("epsilon", "cap")]
    widest = max([value for value in finite if is_finite(value)], default=1.0) or 1.0
    rows = []
    for site in sites:
        document, claim = site.document, site.document["claim"]
        share = 100.0 * min(1.0, rank(claim["epsilon"]) / widest)
        size = document["declared_size"]
        numbers = [
            f"{size:,}" if size else "–",
            "INFINITE" if not is_finite(claim["epsilon"]) else number_text(claim["epsilon"]),
            number_text(claim["cap"]) if is_finite(claim["cap"]) else "none",
        ]
        href = escape(quote(site.page.as_posix()))
        style = "" if document["private"] else ' class="infinite"'
        audit = "none" if document["audit"] is None else document["audit"]["sha256"]
        rows.append(
            f'<tr{style}><td><a href="{href}" data-head="{document["ledger"]["head"]}" '
            f'data-audit="{audit}">{escape(document["dataset"])}</a></td>'
            f'<td class="share"><span class="bar"><i style="width:{share:.2f}%"></i></span></td>'
            + row_cells(numbers, left=0)
            + "</tr>"
        )
    return (
        "<section><h2>What each site claims</h2><p>Each name leads to the site’s own statement.</p>"
        + table(["site", "epsilon", "declared size", "claimed", "cap"], rows, left=2, style="sites")
        + "</section>"
    )


def _charts(documents: Sequence[Mapping[str, Any]]) -> str:
    top = max((largest_epsilon(d) for d in documents if d["private"]), default=0.0)
    width, height = _CHART
    figures = []
    for document in documents:
        if document["private"]:
            drawing = spend_chart(document, width=width, height=height, top=top)
            words = f"<figcaption>{escape(document['dataset'])}</figcaption>"
            figures += [f"<figure>{words}{drawing}</figure>"] if drawing else []
    if not figures:
        return ""
    return (
        "<section><h2>What was spent over time</h2><p>Epsilon charged to each stream over the entries of "
        f'each site’s ledger, all on one scale.</p><div class="multiples">{"".join(figures)}</div></section>'
    )


def _incidents(documents: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for document in documents:
        incidents = document["incidents"]
        refusals = ", ".join(f"{code} {n}" for code, n in incidents["refusals"].items()) or "none"
        numbers = [f"{incidents['open_reservations']:,}", f"{incidents['retries']:,}"]
        cells = row_cells([document["dataset"], refusals, *numbers], left=2)
        rows.append(f"<tr>{cells}</tr>")
    columns = ["site", "requests refused", "charged without a release", "charged again"]
    return (
        "<section><h2>Refusals and crashes</h2>"
        + table(columns, rows, left=2)
        + '<p class="note">Charged without a release: crashes and failures; what was charged stays charged. '
        "Charged again: a repeat for which no reply had been stored.</p></section>"
    )


def _covered(documents: Sequence[Mapping[str, Any]]) -> str:
    """Sites for which the audit says less than it seems to; all of them where there is none."""
    lines = []
    for document in documents:
        audit, name = document["audit"], document["dataset"]
        if audit is None:
            lines.append(f"{name}: no audit was given")
            continue
        if audit["code"]["covered"] != "all":
            lines.append(f"{name}: its ledger declares other code than was audited")
        if audit["ledger"] is not None and not audit["ledger"]["contained"]:
            lines.append(f"{name}: its ledger is not the one that the audit read")
    if all(document["audit"] is None for document in documents):
        return audit_section(None)
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f'<section><h3 class="bad">Where the audit does not speak for a site</h3><ul>{items}</ul></section>'
    )


def _verify(documents: Sequence[Mapping[str, Any]]) -> str:
    kept = [(d["dataset"], f"{d['ledger']['head']} {d['ledger']['signer']}") for d in documents]
    return (
        "<section><h2>Check it yourself</h2><p>Ledgers, statements, this page and the audit’s figures, with "
        "no private data, in one go:</p><pre>fednas audit verify .</pre>"
        "<p>Head and public key of each ledger, to be kept where no site’s operator can reach them:</p>"
        f"{fact_list(kept, code=True)}</section>"
    )
