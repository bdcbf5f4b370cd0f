"""`fednas`: plans, ledgers and exports on a finished run; mistakes are one line; help is fast."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from client.site import open_site
from fednas import cli
from fednas.privacy.accounting import epsilon_pld, epsilon_rdp
from fednas.privacy.ledger import read_statement
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.verify import verify
from simulations import __main__ as simulations_cli
from simulations import runner
from tests.simulations import tiny

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run of the tiny scenario, with production noise."""
    open_site.cache_clear()
    path = tmp_path_factory.mktemp("cli") / "run"
    runner.start(tiny.scenario(), tiny.study(), path, runner.Options())
    open_site.cache_clear()
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["fednas", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_verify_recomputes_every_ledger_of_a_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "ledger", "verify", str(run), "--json") == 0
    rows = json.loads(capfd.readouterr().out)
    plan = PrivacyPlan.from_json(json.loads((run / "plan.json").read_text())["plans"][0]["canonical"])
    assert len(rows) == tiny.NUM_SITES
    for row in rows:
        claimed = {s["stream"]: s["claimed_epsilon"] for s in row["streams"]}
        assert row["claimed_epsilon"] == max(claimed.values()) == pytest.approx(plan.claim, abs=1e-9)
        for stream, epsilon in claimed.items():
            assert epsilon == pytest.approx(epsilon_pld(plan.events(stream), 1e-4), abs=1e-9)
            proved = epsilon_rdp(plan.events(stream), 1e-4)
            assert row["proved_by_stream"][stream] == pytest.approx(proved, abs=1e-9)
        assert row["claimed_epsilon"] <= row["cap"]
    assert call(monkeypatch, "ledger", "verify", str(run)) == 0
    assert "hold" in capfd.readouterr().out


def test_verify_finds_a_changed_entry_and_exits_with_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = run / "sites" / "site-0" / "ledger.sqlite"
    with sqlite3.connect(ledger) as connection:
        connection.execute("DROP TRIGGER entries_update")
        connection.execute(
            "UPDATE entries SET body = replace(body, 'search', 'fitnes') WHERE kind = 'RESERVE'"
        )
    assert call(monkeypatch, "ledger", "verify", str(run), "--json") == 1
    rows = json.loads(capfd.readouterr().out)
    assert [row["ok"] for row in rows] == [False, True, True]
    assert "\n" not in rows[0]["finding"]


def test_verify_with_a_head_finds_a_file_that_was_cut_back(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = str(run / "sites" / "site-0" / "ledger.sqlite")
    head = verify(Path(ledger)).head
    assert call(monkeypatch, "ledger", "verify", ledger, "--head", head) == 0
    assert call(monkeypatch, "ledger", "verify", ledger, "--head", "0" * 64) == 1
    capfd.readouterr()


def test_show_says_what_the_file_says(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = run / "sites" / "site-1" / "ledger.sqlite"
    assert call(monkeypatch, "ledger", "show", str(ledger), "--json") == 0
    (shown,) = json.loads(capfd.readouterr().out)
    statement = read_statement(ledger)
    assert (shown["dataset"], shown["head"]) == (statement.dataset, statement.head)
    assert shown["claimed_epsilon"] == statement.claimed_epsilon
    assert call(monkeypatch, "ledger", "show", str(run)) == 0
    assert "weights" in capfd.readouterr().out


def test_plan_shows_the_run_s_own_plan_or_another_epsilon(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "plan", str(run), "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["id"] == json.loads((run / "plan.json").read_text())["plans"][0]["id"]
    assert (
        call(monkeypatch, "plan", str(run / "study.toml"), "--epsilon", "1", "--sites", "60", "--json") == 0
    )
    smaller = json.loads(capfd.readouterr().out)
    assert smaller["claim"] <= 1.0
    assert smaller["claim"] == max(stream["epsilon"] for stream in smaller["streams"].values())
    assert call(monkeypatch, "plan", str(run)) == 0
    assert "noise" in capfd.readouterr().out


def test_export_writes_one_tier_or_all_elsewhere(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        call(monkeypatch, "export", str(run), "--tier", "small", "--out", str(tmp_path / "out"), "--json")
        == 0
    )
    written = json.loads(capfd.readouterr().out)
    assert set(written) == {"small"}
    assert all(Path(file).is_file() for file in written["small"].values())
    original = (run / "tiers" / "small" / "weights.safetensors").read_bytes()
    assert Path(written["small"]["weights"]).read_bytes() == original


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ledger", "verify", "nowhere"), "no file or folder"),
        (("ledger", "show", "nowhere"), "no file or folder"),
        (("ledger", "show", "."), "holds no sites"),
        (("export", "."), "not a finished run"),
        (("export", "RUN", "--tier", "huge"), "no tier 'huge'"),
        (("plan", "nowhere"), "nowhere"),
        (("plan", "RUN", "--epsilon", "-1"), "epsilon"),
        (("plan", "RUN", "--epsilon", "inf"), "epsilon"),
        (("plan", "RUN", "--delta", "2"), "delta"),
        (("plan", "RUN", "--sites", "1000000"), "delta"),
        (("plan", "RUN", "--colour", "red"), "--colour"),
        (("dance",), "dance"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    arguments: tuple[str, ...],
    word: str,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *(str(finished) if part == "RUN" else part for part in arguments)) == 2
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert word in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis.sqlite").write_text("mine")
    assert call(monkeypatch, "ledger", "verify", str(tmp_path / "thesis.sqlite")) == 1
    assert call(monkeypatch, "ledger", "show", str(tmp_path / "thesis.sqlite")) == 2
    assert "error: " in capfd.readouterr().err
    assert (tmp_path / "thesis.sqlite").read_text() == "mine"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, fednas.cli\n"
        "heavy = {'torch', 'flwr', 'opacus', 'optuna', 'dp_accounting', 'scipy', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def commands() -> list[str]:
    """Every command of both programs, as a user types it."""
    found = []
    for prefix, application in (("fednas", cli.app), ("python -m simulations", simulations_cli.cli)):
        group = typer.main.get_group(application)
        for name, command in group.commands.items():
            nested = getattr(command, "commands", {})
            found += [f"{prefix} {name} {inner}" for inner in nested] or [f"{prefix} {name}"]
    return found


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_the_readme(command: str) -> None:
    assert command in (ROOT / "README.md").read_text()
