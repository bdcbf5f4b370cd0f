"""One page for a run: a vector and its maximum, never a sum; plain when something protects nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from fednas.statement import Link, Site, links, overview, state
from tests.audit.reports import audit_of
from tests.statement.made import ADAPTIVE, MODEST, made, unprotected
from tests.statement.outline import assert_inert, outline


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    folder = tmp_path_factory.mktemp("overview")
    made(folder / "a.sqlite", dataset="hospitals/clinic")
    made(folder / "b.sqlite", dataset="hospitals/ward <&> 2", plan=MODEST, cap=ADAPTIVE)
    return [site(folder / "a.sqlite", "one"), site(folder / "b.sqlite", "two & 3")]


def site(ledger: Path, folder: str, audit: dict[str, Any] | None = None) -> Site:
    document = json.loads(state(ledger, audit).document)
    return Site(document=document, page=PurePosixPath("sites") / folder / "statement.html")


def text(sites: list[Site]) -> str:
    return overview(sites).decode()


def test_it_shows_the_vector_of_epsilons_and_their_maximum_never_a_sum(sites: list[Site]) -> None:
    page = text(sites)
    epsilons = [one.document["claim"]["epsilon"] for one in sites]
    (headline,) = re.findall(r"ε ≤ ([\d.]+)", page)
    assert float(headline) == pytest.approx(max(epsilons), abs=1.01e-4)
    for epsilon in epsilons:
        assert f"{epsilon:.4f}"[:5] in page
    assert f"{sum(epsilons):.2f}"[:4] not in page
    assert "hospitals</h1>" in page


def test_it_is_inert_and_its_only_links_lead_to_the_sites_own_statements(sites: list[Site]) -> None:
    page = text(sites)
    assert_inert(page)
    found = outline(page)
    hrefs = [value for name, value in found.attributes if name == "href"]
    assert hrefs == ["sites/one/statement.html", "sites/two%20%26%203/statement.html"]
    assert found.tags.count("a") == 2


def test_a_folder_s_name_cannot_make_a_link_that_runs(sites: list[Site]) -> None:
    odd = replace(sites[0], page=PurePosixPath('javascript:alert("1")/<b>.html'))
    page = text([odd, sites[1]])
    href = next(value for name, value in outline(page).attributes if name == "href")
    assert ":" not in href
    assert "<b>" not in page
    assert links(overview([odd, sites[1]]))[0].page == odd.page


def test_words_of_ledgers_are_escaped(sites: list[Site]) -> None:
    assert "ward <&>" not in text(sites)
    assert text(sites).count("hospitals/ward &lt;&amp;&gt; 2") >= 4


def test_what_it_is_made_of_can_be_read_from_it(sites: list[Site]) -> None:
    assert links(overview(sites)) == tuple(
        Link(
            dataset=one.document["dataset"],
            head=one.document["ledger"]["head"],
            audit=None,
            page=one.page,
        )
        for one in sites
    )
    assert links(b"<html></html>") == ()


def test_equal_statements_give_equal_bytes(sites: list[Site]) -> None:
    assert overview(sites) == overview(list(sites))
    assert overview(sites) != overview(sites[::-1])


def test_spends_are_drawn_on_one_scale(sites: list[Site]) -> None:
    page = text(sites)
    assert page.count("<svg") == 2
    tops = {re.findall(r'y1="([\d.]+)"', svg)[0] for svg in page.split("<svg")[1:]}
    assert len(tops) == 1  # zero lies at one height
    caps = re.findall(r'class="cap" x1="\d+" x2="\d+" y1="([\d.]+)"', page)
    values = [one.document["claim"]["cap"] for one in sites]
    assert (float(caps[0]) < float(caps[1])) == (values[0] > values[1])


def test_incidents_of_each_site_are_listed(sites: list[Site]) -> None:
    page = text(sites)
    section = page[page.index("Refusals and crashes") :]
    for one in sites:
        for code, number in one.document["incidents"]["refusals"].items():
            assert f"{code} {number}" in section


def test_a_site_that_protects_nothing_is_red_first_and_not_drawn(sites: list[Site], tmp_path: Path) -> None:
    bare = site(unprotected(tmp_path / "c.sqlite"), "three")
    page = text([*sites, bare])
    assert "INFINITE" in page
    assert page.index('class="claim infinite"') < page.index("What each site claims")
    assert "ε ≤" not in page
    assert page.count("<svg") == 2
    assert '<tr class="infinite">' in page
    assert "nan" not in text([bare, bare]).lower()


def test_without_an_audit_it_says_so_once(sites: list[Site]) -> None:
    assert text(sites).count("Not audited.") == 1


def test_an_audit_is_shown_once_and_what_it_does_not_cover_is_said(tmp_path: Path) -> None:
    ledger = made(tmp_path / "a.sqlite", dataset="a")
    audit, other = audit_of(), audit_of() | {"code": "0" * 64}
    page = text([site(ledger, "one", audit), site(ledger, "two", audit)])
    assert outline(page).headings.count("What an attack found") == 1
    assert "does not speak for a site" not in page
    mixed = text([site(ledger, "one", audit), site(ledger, "two", other), site(ledger, "three")])
    assert outline(mixed).headings.count("What an attack found") == 2
    assert "its ledger declares other code than was audited" in mixed
    assert "no audit was given" in mixed


def test_an_accusation_is_red_and_first(tmp_path: Path) -> None:
    ledger = made(tmp_path / "a.sqlite", dataset="a")
    page = text([site(ledger, "one", audit_of(leak=6.0))])
    assert page.index("ACCUSED") < page.index("ε ≤")
