"""`fednas audit`: what it shows, what it writes, and how it refuses."""

import json
from pathlib import Path

import pytest

from fednas.audit.mutation import load_mutants
from fednas.audit.subject import reference
from fednas.config import save_study
from simulations import __main__ as simulations_cli
from tests.cli.calls import answer, call
from tests.simulations import tiny


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    save_study(reference().study, path)
    return path


def test_an_audit_of_a_run_is_written_beside_it_and_accuses_nobody(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = answer(monkeypatch, capfd, "audit", "run", str(run), "--layer", "L0", "--layer", "L1")
    assert shown == json.loads((run / "audit.json").read_text())
    assert shown["accused"] is False
    assert {check["layer"] for check in shown["checks"]} == {"L0", "L1"}
    assert all(check["holds"] for check in shown["checks"])
    # And the statements of the run repeat it, and a stranger finds that all of it holds.
    assert call(monkeypatch, "ledger", "statement", str(run)) == 0
    assert call(monkeypatch, "audit", "verify", str(run)) == 0
    rows = answer(monkeypatch, capfd, "audit", "verify", str(run))
    assert {row["ok"] for row in rows} == {True, None}
    assert {"ledger", "statement", "page", "overview"} <= {row["what"] for row in rows}


def test_canaries_are_a_table_of_bounds_against_the_claim_and_few_of_them_a_note(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--layer", "L3", "--canaries", "100", "--claim", "3", "--out", str(tmp_path / "a.json"))
    assert call(monkeypatch, "audit", "run", str(study), *arguments) == 0
    shown = capfd.readouterr().out
    games = json.loads((tmp_path / "a.json").read_text())["games"]
    assert {game["mechanism"] for game in games} == {"weights", "architecture", "fitness"}
    assert "would pass" in " ".join(shown.split())
    assert "at most" in shown


def test_one_layer_of_a_study_that_never_ran_is_a_table_and_leaves_no_file(
    study: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "audit", "run", str(study), "--layer", "L1") == 0
    shown = capfd.readouterr().out
    assert "record-play" in shown
    assert "all hold" in shown
    assert "conformance" not in shown
    assert [path.name for path in study.parent.iterdir()] == ["study.toml"]


def test_a_ledger_that_was_cut_is_accused_with_exit_code_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = sorted(run.glob("sites/*/ledger.sqlite"))[0]
    ledger.with_name("ledger.sqlite-wal").unlink(missing_ok=True)
    ledger.write_bytes(ledger.read_bytes()[: ledger.stat().st_size // 2])
    assert call(monkeypatch, "audit", "run", str(run), "--layer", "L0") == 1
    assert "accused" in capfd.readouterr().out
    assert json.loads((run / "audit.json").read_text())["accused"] is True


def test_a_mutant_by_name_is_found_and_the_matrix_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = next(m.name for m in load_mutants() if m.layer == "L1")
    matrix = answer(
        monkeypatch, capfd, "audit", "mutants", "--name", name, "--out", str(tmp_path / "mutants.json")
    )
    assert (matrix["killed"], matrix["of"]) == (1, 1)
    assert matrix["rows"][0]["name"] == name
    assert json.loads((tmp_path / "mutants.json").read_text()) == matrix


def test_a_gradient_is_inverted_without_noise_and_not_with_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = answer(monkeypatch, capfd, "audit", "invert")
    assert shown["correlation_without_noise"] > 0.999
    assert abs(shown["correlation_with_noise"]) < 0.6
    assert call(monkeypatch, "audit", "invert") == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("run", "hospitals"), "python -m simulations audit"),
        (("run", "FOLDER"), "no study.toml"),
        (("run", "STUDY", "--layer", "L9"), "unknown layer 'L9'"),
        (("run", "STUDY", "--claim", "20"), "--claim"),
        (("run", "STUDY", "--canaries", "5"), "--canaries"),
        (("run", "BARE"), "no claim to audit"),
        (("run", "STUDY", "--layer", "L1", "--out", "/dev/null/x"), "/dev/null/x"),
        (("mutants", "--name", "nobody"), "no mutant 'nobody'"),
        (("mutants", "--layer", "L4"), "unknown layer"),
        (("verify", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    arguments: tuple[str, ...],
    word: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    save_study(tiny.study(privacy={"epsilon": float("inf"), "non_private": True}), tmp_path / "bare.toml")
    places = {"FOLDER": tmp_path / "empty", "STUDY": study, "BARE": tmp_path / "bare.toml"}
    assert call(monkeypatch, "audit", *[str(places.get(a, a)) for a in arguments]) == 2
    shown = capfd.readouterr()
    assert word in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert "Traceback" not in shown.err + shown.out


def test_a_scenario_is_audited_without_its_records(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["simulations", "audit", "digits", "--layer", "L2", "--json"])
    simulations_cli.main()  # ends with another code than 0 by an exception
    assert json.loads(capfd.readouterr().out)["accused"] is False
