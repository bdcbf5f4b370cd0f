"""The page is one file: no script, nothing fetched, every word of the ledger escaped, every section there."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from fednas.statement import compose, read_account, render, state
from fednas.statement.chart import HEIGHT, spend_chart
from tests.statement.made import made, untouched
from tests.statement.outline import assert_inert, outline


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return state(made(tmp_path_factory.mktemp("page") / "ledger.sqlite")).page.decode()


def test_it_has_no_script_and_fetches_nothing(page: str) -> None:
    assert_inert(page)
    assert "a" not in outline(page).tags
    assert not any(name == "href" for name, _ in outline(page).attributes)


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
    assert render(json.loads(state(ledger).document)) == state(ledger).page.decode()


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
