"""The page is one file: no script, nothing fetched, every word of the ledger escaped, every section there."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from fednas.statement import compose, read_account, render, state
from fednas.statement.chart import HEIGHT, spend_chart
from tests.statement.made import made, untouched


class Outline(HTMLParser):
    """Every element and attribute of a page, and whether each element that opens also closes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return state(made(tmp_path_factory.mktemp("page") / "ledger.sqlite")).page.decode()


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_it_has_no_script_and_fetches_nothing(page: str) -> None:
    found = outline(page)
    assert not {"script", "link", "img", "iframe", "object", "form", "a"} & set(found.tags)
    assert not any(name.startswith("on") or name in ("src", "href") for name, _ in found.attributes)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_words_of_the_ledger_are_escaped(page: str) -> None:
    assert "<Hospital>" not in page
    assert "&lt;Hospital&gt; &amp; Co" in page
    assert "<script" not in page


def test_every_section_is_there_in_its_order(page: str) -> None:
    assert outline(page).headings == [
        "What is promised",
        "What was spent",
        "Epsilon at three deltas",
        "What that means for a record",
        "What an attack found",
        "What was released",
        "Refusals and crashes",
        "Software",
        "Check it yourself",
        "What is not covered",
    ]


def test_dark_screens_paper_and_phones_are_styled(page: str) -> None:
    for media in ("prefers-color-scheme:dark", "max-width:560px", "@media print"):
        assert media in page
    assert 'name="viewport"' in page


def test_the_page_depends_on_the_document_alone(tmp_path: Path) -> None:
    ledger = made(tmp_path / "ledger.sqlite")
    assert render(compose(read_account(ledger))) == state(ledger).page.decode()


def test_a_dataset_that_nothing_was_charged_to_has_no_drawing(tmp_path: Path) -> None:
    page = state(untouched(tmp_path / "ledger.sqlite")).page.decode()
    assert "<svg" not in page
    assert "Nothing has been charged" in page
    assert "No plan was opened" in page


def drawn(charged: dict[str, float], cap: float) -> str:
    return spend_chart(
        {
            "history": [{"entries": 5, "charged": charged}],
            "claim": {"cap": cap},
            "ledger": {"entries": 9},
        }
    )


@pytest.mark.parametrize("cap", [0.01, 0.3, 1.0, 3.0, 8.0, 137.0])
def test_a_drawing_stays_inside_its_frame_and_its_labels_apart(cap: float) -> None:
    svg = drawn({"weights": cap, "architecture": cap * 0.999, "fitness": 0.0}, cap)
    labels = [float(y) for y in re.findall(r'<text class="(?:label|cap)[^"]*" x="[\d.]+" y="([\d.]+)"', svg)]
    assert len(labels) == 4
    assert all(b - a >= 14.9 for a, b in pairwise(labels))
    heights = [float(y) for y in re.findall(r'y1?="([\d.]+)"', svg)]
    assert all(0.0 <= y <= HEIGHT for y in heights)
    assert 2 <= svg.count('class="grid"') <= 7
