"""High-water marks: what counts as going back, and that the file remembers through crashes."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import LedgerRolledBackError, RunDirectoryError
from fednas.privacy.marks import Mark
from server import checkpoint
from server.marks import Marks, check_answered, check_shown
from tests.server.stubs import digest

KEY, OTHER_KEY = "a" * 64, "b" * 64


def mark(entries: int, *, history: str = "one", signer: str = KEY) -> Mark:
    """The state of a ledger after so many entries of a history."""
    return Mark(signer=signer, entries=entries, head=digest(history, entries))


# What counts as going back


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_ledger_that_only_grew_may_show_itself_and_answer(entries: int, more: int) -> None:
    check_shown(None, mark(entries))
    check_shown(mark(entries), mark(entries + more))
    check_answered(None, mark(entries))
    check_answered(mark(entries), mark(entries + more + 1))


@given(st.integers(1, 10**9))
def test_an_answer_is_taken_once_unless_its_round_is_repeated(entries: int) -> None:
    check_answered(mark(entries), mark(entries), repeats_after=0)
    with pytest.raises(LedgerRolledBackError):
        check_answered(mark(entries), mark(entries))


@given(st.integers(2, 10**9), st.data())
def test_a_shorter_ledger_went_back(entries: int, data: st.DataObject) -> None:
    fewer = data.draw(st.integers(1, entries - 1))
    with pytest.raises(LedgerRolledBackError, match=f"has {fewer} entries and once had {entries}"):
        check_shown(mark(entries), mark(fewer))
    with pytest.raises(LedgerRolledBackError, match=f"{fewer} entries that once had {entries}"):
        check_answered(mark(entries), mark(fewer))


@pytest.mark.parametrize("check", [check_shown, check_answered])
def test_another_history_of_the_same_length_went_back(check: Callable[[Mark, Mark], None]) -> None:
    with pytest.raises(LedgerRolledBackError):
        check(mark(7), mark(7, history="two"))


@pytest.mark.parametrize("check", [check_shown, check_answered])
@pytest.mark.parametrize("entries", [6, 7, 8])
def test_another_key_is_another_ledger_however_long(
    check: Callable[[Mark, Mark], None], entries: int
) -> None:
    with pytest.raises(LedgerRolledBackError, match="another key"):
        check(mark(7), mark(entries, signer=OTHER_KEY))


@pytest.mark.parametrize("check", [check_shown, check_answered])
def test_a_message_says_nothing_of_digests_or_keys(check: Callable[[Mark, Mark], None]) -> None:
    for shown in (mark(6), mark(7, history="two"), mark(8, signer=OTHER_KEY)):
        with pytest.raises(LedgerRolledBackError) as caught:
            check(mark(7), shown)
        assert "\n" not in str(caught.value)
        assert shown.head not in str(caught.value)


def test_a_repeated_round_may_be_answered_from_before_the_mark_but_not_from_before_the_round() -> None:
    """Another study went on to 80 entries while this one, last answered at 46, had stopped."""
    check_answered(mark(80), mark(50), repeats_after=46)
    for entries in (46, 45):
        with pytest.raises(LedgerRolledBackError):
            check_answered(mark(80), mark(entries), repeats_after=46)
    with pytest.raises(LedgerRolledBackError):
        check_answered(mark(80), mark(50), repeats_after=None)
    with pytest.raises(LedgerRolledBackError):
        check_answered(mark(80), mark(80, history="two"), repeats_after=46)
    with pytest.raises(LedgerRolledBackError):
        check_answered(mark(80), mark(50, signer=OTHER_KEY), repeats_after=46)


# The file


def test_what_was_kept_is_there_in_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "below" / "marks.json"
    marks = Marks(path)
    assert marks.of("ward/1") is None
    marks.keep({})
    assert not path.exists()
    marks.keep({"ward/1": mark(5), "ward/2": mark(9, signer=OTHER_KEY)})
    for found in (marks, Marks(path)):
        assert found.of("ward/1") == mark(5)
        assert found.of("ward/2") == mark(9, signer=OTHER_KEY)
        assert found.of("ward/3") is None
    assert json.loads(path.read_text()) == {
        "format": 1,
        "datasets": {
            "ward/1": {"signer": KEY, "entries": 5, "head": mark(5).head},
            "ward/2": {"signer": OTHER_KEY, "entries": 9, "head": mark(9).head},
        },
    }


@given(st.lists(st.integers(1, 100), min_size=1, max_size=10))
@settings(max_examples=25, deadline=None)
def test_a_mark_never_goes_back(tmp_path_factory: pytest.TempPathFactory, states: list[int]) -> None:
    path = tmp_path_factory.mktemp("marks") / "marks.json"
    marks = Marks(path)
    for number, entries in enumerate(states, start=1):
        marks.keep({"ward/1": mark(entries)})
        assert marks.of("ward/1") == Marks(path).of("ward/1") == mark(max(states[:number]))


def test_studies_that_run_at_once_overtake_each_other_and_the_file_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "marks.json"
    one, two = Marks(path), Marks(path)
    two.keep({"ward/1": mark(80), "ward/2": mark(3)})
    one.keep({"ward/1": mark(79)})
    assert one.of("ward/1") == mark(79), "what this study saw, not what the other did"
    assert Marks(path).of("ward/1") == mark(80)
    assert Marks(path).of("ward/2") == mark(3)


def test_servers_that_disagree_about_whose_a_dataset_is_are_told(tmp_path: Path) -> None:
    path = tmp_path / "marks.json"
    one, two = Marks(path), Marks(path)
    one.keep({"ward/1": mark(5)})
    with pytest.raises(RunDirectoryError, match="another ledger of ward/1"):
        two.keep({"ward/1": mark(50, signer=OTHER_KEY)})
    assert two.of("ward/1") is None
    assert Marks(path).of("ward/1") == mark(5)


def _keep(path: Path, name: str, count: int) -> None:
    marks = Marks(path)
    for entries in range(1, count + 1):
        marks.keep({name: mark(entries), "shared": mark(entries)})


def test_servers_that_write_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "marks.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_keep, args=(path, f"ward/{n}", 20)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    marks = Marks(path)
    assert [marks.of(name) for name in ("shared", "ward/0", "ward/1", "ward/2", "ward/3")] == [mark(20)] * 5


class Killed(BaseException):
    """Ends a write at once, as a power cut would."""


def test_a_mark_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "marks.json"
    Marks(path).keep({"ward/1": mark(5)})
    done: list[str] = []
    sync, replace = checkpoint._sync, Path.replace

    def syncing(file: Path) -> None:
        sync(file)
        done.append("the folder" if file.is_dir() else "the draft")

    def replacing(file: Path, target: Path) -> Path:
        done.append("the name")
        return replace(file, target)

    monkeypatch.setattr(checkpoint, "_sync", syncing)
    monkeypatch.setattr(Path, "replace", replacing)
    Marks(path).keep({"ward/1": mark(6)})
    assert done == ["the draft", "the name", "the folder"]


def test_a_server_that_dies_at_any_write_has_the_old_marks_or_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "marks.json"
    Marks(path).keep({"ward/1": mark(5)})
    sync = checkpoint._sync
    for number in range(2):
        calls: list[Path] = []

        def dying(file: Path, number: int = number, calls: list[Path] = calls) -> None:
            calls.append(file)
            if len(calls) > number:
                raise Killed
            sync(file)

        marks = Marks(path)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_sync", dying)
            with pytest.raises(Killed):
                marks.keep({"ward/1": mark(6 + number)})
        assert marks.of("ward/1") == mark(5), "it does not count yet"
        assert Marks(path).of("ward/1") == mark(5 if number == 0 else 7)
    Marks(path).keep({"ward/1": mark(9)})
    assert Marks(path).of("ward/1") == mark(9), "the lock of the dead was let go"


def test_a_disk_that_refuses_is_one_line_and_the_mark_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    marks = Marks(tmp_path / "marks.json")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunDirectoryError, match="No space left on device") as caught:
            marks.keep({"ward/1": mark(5)})
    assert "\n" not in str(caught.value)
    assert marks.of("ward/1") is None


def test_a_place_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunDirectoryError) as caught:
        Marks(tmp_path / "file" / "marks.json").keep({"ward/1": mark(5)})
    assert "\n" not in str(caught.value)


GOOD = {"signer": KEY, "entries": 5, "head": mark(5).head}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1}',
        json.dumps({"format": 2, "datasets": {}}),
        json.dumps({"format": 1, "datasets": []}),
        json.dumps({"format": 1, "datasets": {}, "more": 1}),
        json.dumps({"format": 1, "datasets": {"ward/1": None}}),
        *(
            json.dumps({"format": 1, "datasets": {"ward/1": GOOD | {key: value}}})
            for key, value in (
                ("entries", 0),
                ("entries", "5"),
                ("entries", True),
                ("entries", 5.0),
                ("head", ""),
                ("head", "A" * 64),
                ("signer", KEY[1:]),
                ("more", 1),
            )
        ),
        *(
            json.dumps({"format": 1, "datasets": {"ward/1": {k: v for k, v in GOOD.items() if k != key}}})
            for key in GOOD
        ),
    ],
)
def test_a_corrupt_file_is_one_line_and_never_an_empty_memory(tmp_path: Path, content: str) -> None:
    path = tmp_path / "marks.json"
    path.write_text(content)
    with pytest.raises(RunDirectoryError) as caught:
        Marks(path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == content
