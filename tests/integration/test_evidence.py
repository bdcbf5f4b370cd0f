"""What is held against disturbed runs finds what a disturbance could do: each thing, done on purpose."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.app import app
from fednas.privacy.signing import TaskSigner
from fednas.site import open_site
from server.app import run_study
from simulations.loopback import InProcessGrid
from tests.integration import evidence
from tests.simulations import tiny

SIGNER = TaskSigner(bytes(32))
Record = dict[str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny study that nothing disturbed."""
    path = tiny.make_run(tmp_path_factory.mktemp("evidence") / "run", tiny.study())
    nodes = {i + 1: {"partition-id": i} for i in range(tiny.NUM_SITES)}
    open_site.cache_clear()
    run_study(InProcessGrid(app, nodes, {"sites-dir": str(path / "sites")}), path, resume=True)
    open_site.cache_clear()
    return path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Iterator[Path]:
    """The run, to be put back: its sites name their ledgers by absolute paths."""
    kept = tmp_path / "kept"
    shutil.copytree(original, kept)
    yield original
    shutil.rmtree(original)
    shutil.copytree(kept, original)


def change(run: Path, number: int, how: Callable[[Record], None]) -> None:
    """Write another record of a round."""
    file = run / "rounds" / f"{number:05d}.json"
    record = json.loads(file.read_text())
    how(record)
    file.write_text(json.dumps(record))


def test_a_run_that_nothing_disturbed_holds(run: Path) -> None:
    evidence.assert_complete(run)
    evidence.assert_ledgers_verify(run)
    assert evidence.assert_all_that_was_merged_was_charged_and_used_once(run) == 6 * tiny.NUM_SITES
    evidence.assert_budgets_hold(run)
    evidence.assert_marks_are_the_newest_answers(run)


def test_an_answer_that_was_used_twice_is_found(run: Path) -> None:
    before = evidence.rounds_of(run)[3]["sites"]["alpha"]
    change(run, 5, lambda record: record["sites"]["alpha"].update(before))
    with pytest.raises(AssertionError):
        evidence.assert_all_that_was_merged_was_charged_and_used_once(run)


def test_an_answer_that_no_ledger_released_is_found(run: Path) -> None:
    change(run, 5, lambda record: record["sites"]["alpha"].update(head="0" * 64))
    with pytest.raises(AssertionError):
        evidence.assert_all_that_was_merged_was_charged_and_used_once(run)


def test_a_round_that_is_missing_is_found(run: Path) -> None:
    (run / "rounds" / "00003.json").unlink()
    with pytest.raises(AssertionError):
        evidence.assert_complete(run)


def test_a_mark_that_went_back_is_found(run: Path) -> None:
    marks = json.loads((run / "marks.json").read_text())
    marks["datasets"]["tiny/alpha"]["entries"] -= 4
    (run / "marks.json").write_text(json.dumps(marks))
    with pytest.raises(AssertionError):
        evidence.assert_marks_are_the_newest_answers(run)


def test_an_answer_that_was_merged_and_is_said_to_be_lost_is_found(run: Path, tmp_path: Path) -> None:
    change(run, 4, lambda record: record["sites"]["bravo"].update(outcome="LATE"))
    with pytest.raises(AssertionError):
        evidence.assert_one_process_makes_the_same(run, tmp_path / "twin", SIGNER)
