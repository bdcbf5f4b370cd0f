"""Real ledgers that are restored, deleted or begun anew: noticed by the server, or by the site itself."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednas.errors import LedgerRolledBackError
from fednas.privacy.verify import verify
from fednas.site import open_site
from server.app import conduct
from server.report import Completed
from tests.integration.spy import Killed, SpyGrid, charged, weights, whole
from tests.simulations import tiny

SHORT = {"search_rounds": 1, "final_rounds": 1}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    close()
    yield
    close()


def close() -> None:
    """Let go of every ledger, as the processes of sites do when they end."""
    open_site.cache_clear()
    gc.collect()


def run(tmp_path: Path, name: str) -> Completed:
    """One of several studies on the same ledgers, by servers with the same memory."""
    study = tiny.study(privacy={"epsilon": 1.0}, schedule=SHORT)
    path = tiny.make_run(tmp_path / name, study, seed=0, cap=9.0, run=name, state=tmp_path / "state")
    try:
        return conduct(SpyGrid(path), path, resume=False, marks_file=tmp_path / "state" / "marks.json")
    finally:
        close()


def bravo(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tiny" / "bravo.sqlite"


def snapshot(ledger: Path, folder: Path) -> None:
    """Copy a closed ledger with everything that belongs to it."""
    folder.mkdir(exist_ok=True)
    for file in ledger.parent.glob(ledger.name + "*"):
        shutil.copy(file, folder / file.name)


def restore(ledger: Path, folder: Path) -> None:
    for file in ledger.parent.glob(ledger.name + "*"):
        file.unlink()
    for file in folder.glob(ledger.name + "*"):
        shutil.copy(file, ledger.parent / file.name)


def test_a_restored_copy_takes_no_part_in_the_next_study_and_spends_nothing(tmp_path: Path) -> None:
    run(tmp_path, "first")
    snapshot(bravo(tmp_path), tmp_path / "copy")
    run(tmp_path, "second")
    newest = tmp_path / "newest"
    snapshot(bravo(tmp_path), newest)
    restore(bravo(tmp_path), tmp_path / "copy")
    before = charged(bravo(tmp_path))
    third = run(tmp_path, "third")
    assert third.left_out == {"bravo": "LEDGER_ROLLED_BACK"}
    assert charged(bravo(tmp_path)) == before
    restore(bravo(tmp_path), newest)
    assert run(tmp_path, "fourth").left_out == {}, "the newest copy is welcome"


@pytest.mark.parametrize("left", ["nothing", "the key"])
def test_a_deleted_ledger_takes_no_part_in_the_next_study(tmp_path: Path, left: str) -> None:
    run(tmp_path, "first")
    ledger = bravo(tmp_path)
    for file in ledger.parent.glob(ledger.name + "*"):
        if left == "nothing" or not file.name.endswith(".key"):
            file.unlink()
    second = run(tmp_path, "second")
    assert "bravo" not in second.agreement.plans
    if ledger.exists():
        assert charged(ledger)[0] == {}


def test_when_all_ledgers_were_deleted_the_study_ends_in_one_line(tmp_path: Path) -> None:
    study = tiny.study(privacy={"epsilon": 1.0}, schedule=SHORT)

    def secure(name: str) -> None:
        # Test noise derives a ledger's key from its seed, so only secure ledgers are begun anew with another.
        path = tiny.make_run(tmp_path / name, study, seed=None, cap=9.0, run=name, state=tmp_path / "state")
        try:
            conduct(SpyGrid(path), path, resume=False, marks_file=tmp_path / "marks.json")
        finally:
            close()

    secure("first")
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(LedgerRolledBackError, match="every site refused") as caught:
        secure("second")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "second" / "checkpoints").exists()


def test_a_copy_restored_within_a_run_is_refused_by_the_site_itself(tmp_path: Path) -> None:
    """The old copy has grown past the mark by another server's study, so only the site can tell."""
    study = tiny.study()
    reference = tiny.make_run(tmp_path / "run", study)
    ledger = tiny.ledger_files(reference)["bravo"]
    with pytest.raises(Killed):  # in the midst of the first round
        conduct(SpyGrid(reference, die_after=4), reference, resume=False)
    close()
    snapshot(ledger, tmp_path / "copy")
    with pytest.raises(Killed):  # after two rounds
        conduct(SpyGrid(reference, die_after=10), reference, resume=True)
    close()
    entries = verify(ledger).entries
    restore(ledger, tmp_path / "copy")
    grow(reference, ledger, entries)
    completed = whole(reference, resume=True)
    assert completed.coordinator.refused == {"bravo": "LEDGER_ROLLED_BACK"}


def grow(path: Path, ledger: Path, entries: int) -> None:
    """Open and close a ledger under caps that change until it is longer than it was."""
    file = path / "sites" / "site-1" / "site.toml"
    text = file.read_text()
    number = 0
    while verify(ledger).entries <= entries:
        number += 1
        file.write_text(text.replace("epsilon = 3.0", f"epsilon = {3.0 + number % 2}"))
        open_site(file).facts()
        close()
    file.write_text(text)


def test_an_interrupted_run_is_resumed_after_another_one_on_the_same_ledgers(tmp_path: Path) -> None:
    study = tiny.study(privacy={"epsilon": 1.0}, schedule=SHORT)
    marks = tmp_path / "state" / "marks.json"

    def begin(name: str, state: Path) -> Path:
        return tiny.make_run(tmp_path / name, study, cap=9.0, run="interrupted", state=state)

    alone = begin("alone", tmp_path / "other")
    expected = conduct(SpyGrid(alone), alone, resume=False)
    close()

    path = begin("interrupted", tmp_path / "state")
    with pytest.raises(Killed):  # sites have answered the second round, the server has not merged it
        conduct(SpyGrid(path, die_after=8), path, resume=False, marks_file=marks)
    close()
    run(tmp_path, "between")
    completed = conduct(SpyGrid(path), path, resume=True, marks_file=marks)
    assert completed.coordinator.refused == {}
    assert weights(completed) == weights(expected)
