"""Mutants live and die in processes of their own; only a verdict counts as one, and no trace is left."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import cast

import pytest

import fednas.privacy.grid
from fednas.audit import nursery
from fednas.audit.mutation import Edit, Mutant, Rewriter, load_mutants
from fednas.audit.nursery import Outcome, _Job, _run, run_mutants
from fednas.errors import AuditError, ConfigurationError

CHECK = "__import__('fednas.audit.findings', fromlist=['Check']).Check"
GRID = "__import__('fednas.privacy.grid', fromlist=['GRID_STEP']).GRID_STEP"
ENTROPY = "__import__('fednas.privacy.entropy', fromlist=['SecureEntropy']).SecureEntropy()"
ACCUSES = f"[{CHECK}(layer='L0', name='all is well', holds=False, detail='z = 9')]"
FINE = f"[{CHECK}(layer='L0', name='all is well', holds=True)]"
OUTSIDE = Path(tempfile.gettempdir()) / "a mutant was here"

# What stands in the place of layer L0, and how that ends.
PLANTED: Mapping[str, tuple[str, bool, str, str]] = {
    "accuses": (ACCUSES, True, "all is well (z = 9)", ""),
    "is silent": (FINE, False, "", ""),
    "raises": ("[1 / 0]", False, "", "ZeroDivisionError: division by zero"),
    "leaves": ("__import__('sys').exit(3)", False, "", "SystemExit: 3"),
    "vanishes": ("__import__('os')._exit(0)", False, "", "ended with code 0 and no verdict"),
    "crashes": ("__import__('ctypes').string_at(0)", False, "", "died of SIGSEGV"),
    "hangs": ("__import__('time').sleep(600)", False, "", "hung: ended after 5 s"),
    "leaves somebody behind": (
        f"__import__('os').fork() and {ACCUSES} or __import__('time').sleep(600)",
        True,
        "all is well (z = 9)",
        "",
    ),
    "writes elsewhere": (
        f"open({str(OUTSIDE)!r}, 'w')",
        False,
        "",
        "PermissionError: a mutant writes nothing outside its own folder",
    ),
    "opens a ledger elsewhere": (
        f"__import__('sqlite3').connect({str(OUTSIDE)!r})",
        False,
        "",
        "PermissionError: a mutant writes nothing outside its own folder",
    ),
    "writes in its folder": (f"(f / 'a').write_text('a') and {FINE}", False, "", ""),
    "calls out": (
        "__import__('socket').create_connection(('127.0.0.1', 9))",
        False,
        "",
        "PermissionError: a mutant has no network",
    ),
}
GRID_EDIT = Edit(
    module="fednas.privacy.grid", before="GRID_STEP: Final = 1e-6", after="GRID_STEP: Final = 2e-6"
)
BROKEN_EDIT = Edit(module="fednas.privacy.grid", before="GRID_STEP: Final = 1e-6", after="GRID_STEP = 1 / 0")
STALE_EDIT = Edit(module="fednas.privacy.grid", before="no such line", after="")
WORDS_EDIT = Edit(module="fednas.privacy.grid", before="noised_sum(\n", after="noised_sum(  # words\n")
UNSEEN_EDIT = Edit(module="fednas.cli.tables", before="a", after="b")
SEES_GRID = f"[{CHECK}(layer='L0', name='step', holds={GRID} == 1e-6, detail=str({GRID}))]"
DRAWS = f"[{CHECK}(layer='L0', name='noise', holds=False, detail=str({ENTROPY}.noise(1e6, 4)))]"


LAYERS = {"L0": "check_conformance", "L1": "check_neighbours", "L2": "check_statistics", "L3": "play_games"}


def layer(code: str, name: str = "L0") -> Edit:
    """Something else in the place of a layer; `s` is the subject and `f` the folder."""
    return Edit(
        module="fednas.audit.layers",
        before=f'"{name}": {LAYERS[name]}',
        after=f'"{name}": lambda s, f: iter({code})',
    )


def job(name: str, code: str, *edits: Edit, group: str = "clip") -> _Job:
    return _Job(layer="L0", name=name, group=group, edits=(layer(code), *edits))


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Outcome], str]:
    """All that forked children do here, at once, and what they wrote to standard error."""
    jobs = [
        *(job(name, planted[0]) for name, planted in PLANTED.items()),
        job("edited", SEES_GRID, GRID_EDIT),
        *(job(f"draws {i}", DRAWS) for i in range(2)),
        job("after the edited", SEES_GRID),
        job("only words are changed", SEES_GRID, WORDS_EDIT),
        job("broken", SEES_GRID, BROKEN_EDIT),
        job("unseen", FINE, UNSEEN_EDIT),
        job("stale", SEES_GRID, STALE_EDIT),
    ]
    errors = tmp_path_factory.mktemp("mutants") / "errors"
    outcomes = {o.name: o for o in _run(jobs, workers=2, limit_s=5.0, errors=errors, fork=None)}
    assert len(outcomes) == len(jobs)
    return outcomes, errors.read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
@pytest.mark.parametrize("name", PLANTED)
def test_only_a_check_that_does_not_hold_kills_a_mutant(
    ends: tuple[dict[str, Outcome], str], name: str
) -> None:
    _, killed, found_by, error = PLANTED[name]
    outcome = ends[0][name]
    assert (outcome.killed, outcome.found_by, outcome.error) == (killed, found_by, error)
    assert outcome.seconds < 20.0
    assert not OUTSIDE.exists()


def test_an_edit_is_seen_by_its_own_child_and_by_nobody_else(ends: tuple[dict[str, Outcome], str]) -> None:
    assert ends[0]["edited"].found_by == "step (2e-06)"
    for name in ("after the edited", "only words are changed"):
        assert not ends[0][name].killed
        assert ends[0][name].found_by == ends[0][name].error == "", "it survives"
    assert fednas.privacy.grid.GRID_STEP == 1e-6
    assert not any(isinstance(finder, Rewriter) for finder in sys.meta_path)


def test_code_that_does_not_even_run_is_no_mutant_that_was_killed(
    ends: tuple[dict[str, Outcome], str],
) -> None:
    outcomes, errors = ends
    assert not outcomes["broken"].killed
    assert outcomes["broken"].error == "ZeroDivisionError: division by zero"
    assert not outcomes["stale"].killed
    assert outcomes["stale"].error.startswith("ValueError: fednas.privacy.grid holds 'no such line' 0 times")
    assert not outcomes["unseen"].killed
    assert outcomes["unseen"].error == "L0 never imports fednas.cli.tables"
    assert "--- broken (L0)" in errors, "its traceback is kept for whoever mends it"


def test_no_two_children_draw_the_same_noise(ends: tuple[dict[str, Outcome], str]) -> None:
    first, second = (ends[0][f"draws {i}"].found_by for i in range(2))
    assert first.startswith("noise ([")
    assert first != second


def test_where_nobody_forks_every_mutant_has_an_interpreter_of_its_own() -> None:
    for names, limit_s in ((("accuses", "leaves somebody behind"), 60.0), (("hangs",), 1.0)):
        jobs = [job(name, PLANTED[name][0]) for name in names]
        for outcome in _run(jobs, workers=3, limit_s=limit_s, errors=None, fork=False):
            _, killed, found_by, error = PLANTED[outcome.name]
            assert (outcome.killed, outcome.found_by) == (killed, found_by)
            assert outcome.error == error.replace("5 s", "1 s")


def waits_and_says(*, fork: bool) -> Generator[Outcome, None, None]:
    """One child writes down its parent and itself, and stays; the other one speaks when it sees that."""
    waits = (
        "[(f.parent / 'p').write_text(f\"{__import__('os').getppid()} {__import__('os').getpid()}\"),"
        " (f.parent / 'p').rename(f.parent / 'pids'), __import__('time').sleep(600)]"
    )
    seen = "iter(lambda: any(f.parent.parent.rglob('pids')), True)"
    says = f"[__import__('time').sleep(0.01) for _ in {seen}] * 0 + {ACCUSES}"
    jobs = [job("waits", waits), job("says", says)]
    return cast(Generator[Outcome, None, None], _run(jobs, workers=2, limit_s=60.0, errors=None, fork=fork))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all files of mutants are."""
    monkeypatch.setattr(
        nursery, "scratch", lambda prefix: tempfile.TemporaryDirectory(prefix=prefix, dir=tmp_path)
    )
    return tmp_path


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("fork", [True, False])
def test_nothing_is_left_when_nobody_listens_any_more(fork: bool, place: Path) -> None:
    if fork and not hasattr(os, "fork"):
        pytest.skip("processes cannot fork here")
    outcomes = waits_and_says(fork=fork)
    try:
        assert next(outcomes).name == "says"
        (written,) = place.rglob("pids")
        child = int(written.read_text().split()[1])
        assert not gone(child)
    finally:
        outcomes.close()
    assert gone(child)
    assert list(place.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_a_parent_that_is_ended_takes_its_children_along_and_says_so(place: Path) -> None:
    outcomes = waits_and_says(fork=True)
    try:
        assert next(outcomes).name == "says"
        (written,) = place.rglob("pids")
        parent, child = map(int, written.read_text().split())
        os.kill(parent, signal.SIGTERM)
        with pytest.raises(AuditError, match=r"ended with code 143 .*, with 1 of 2 mutants left"):
            next(outcomes)
    finally:
        outcomes.close()
    assert gone(child)
    assert gone(parent)
    assert list(place.iterdir()) == []


def test_a_layer_kills_nothing_unless_it_checks_the_correct_code_and_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controls = {
        "L0": (FINE, ""),
        "L1": (ACCUSES, "L1 accuses the correct code: all is well (z = 9)"),
        "L2": ("[]", "L2 checks nothing"),
        "L3": ("[1 / 0]", "L3 ZeroDivisionError: division by zero"),
    }
    mutants = [
        Mutant(
            name=f"planted in {name}",
            layer=name,
            group="clip",
            mechanisms=("weights",),
            why="to see it found",
            edits=(layer(ACCUSES, name),),
        )
        for name in controls
    ]

    def planted(layers: Iterable[str]) -> list[_Job]:
        return [_Job(layer=name, edits=(layer(controls[name][0], name),)) for name in dict.fromkeys(layers)]

    monkeypatch.setattr(nursery, "_controls", planted)
    outcomes = {outcome.layer: outcome for outcome in run_mutants(mutants)}
    assert {name: outcome.error for name, outcome in outcomes.items()} == {
        name: error for name, (_, error) in controls.items()
    }
    assert [name for name, outcome in outcomes.items() if outcome.killed] == ["L0"]
    assert all(outcome.found_by == "all is well (z = 9)" for outcome in outcomes.values())
    assert all(outcome.mechanisms == ("weights",) for outcome in outcomes.values())


def test_mutants_are_text_until_a_child_is_born() -> None:
    known = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "fednas"}
    load_mutants()
    assert {name: sys.modules[name] for name in known} == known
    assert not any(isinstance(finder, Rewriter) for finder in sys.meta_path)


def test_an_edit_is_refused_unless_its_text_occurs_exactly_once() -> None:
    edit = Edit(module="fednas.x", before="a", after="b")
    assert edit.apply("xay") == "xby"
    for source, times in (("xyz", 0), ("aa", 2)):
        with pytest.raises(ValueError, match=f"{times} times, expected once"):
            edit.apply(source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer": "L9"}, "has layer 'L9'"),
        ({"group": "luck"}, "has group 'luck'"),
        ({"mechanisms": ()}, r"breaks \(\)"),
        ({"mechanisms": ("weights", "luck")}, "breaks"),
        ({"why": ""}, "no reason"),
        ({"edits": ()}, "no edit"),
    ],
)
def test_a_mutant_of_unknown_words_is_refused(changes: dict[str, object], words: str) -> None:
    values: dict[str, object] = {
        "name": "a", "layer": "L0", "group": "clip", "mechanisms": ("weights",), "why": "b",
        "edits": (GRID_EDIT,),
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=words):
        Mutant(**(values | changes))  # type: ignore[arg-type]


ENTRY = """
[[mutant]]
name = "{name}"
layer = "L0"
group = "clip"
mechanisms = ["weights"]
why = "because"
[[mutant.edit]]
module = "fednas.privacy.grid"
before = "a"
after = "b"
"""


def test_mutants_are_read_in_the_order_of_their_lines(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(ENTRY.format(name="third"))
    (tmp_path / "a.toml").write_text(ENTRY.format(name="first") + ENTRY.format(name="second"))
    assert [mutant.name for mutant in load_mutants(tmp_path)] == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ENTRY.format(name="one") + ENTRY.format(name="one"), "two mutants 'one'"),
        (ENTRY.format(name="one").replace("why", "because"), "no file of mutants"),
        (ENTRY.format(name="one").replace("before", "text"), "no file of mutants"),
        ("mutants = 3", "no file of mutants"),
        ("[[", "no file of mutants"),
    ],
)
def test_a_file_that_holds_anything_else_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        load_mutants(tmp_path)


def test_the_command_line_runs_one_layer_or_one_mutant_and_knows_no_others() -> None:
    command = [sys.executable, "-m", "fednas.audit.mutation", "no such mutant"]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert ended.returncode == 1
    assert "there is no mutant or layer 'no such mutant'" in ended.stderr
