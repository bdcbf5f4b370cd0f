"""`python -m simulations run` with sites of different caps, and with ledgers that outlive a run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fednas.config import load_sites
from fednas.errors import ConfigurationError, FednasError
from fednas.privacy.ledger import read_statement
from fednas.site import open_site
from simulations import runner
from simulations.__main__ import main, parse_caps
from simulations.scenarios import SCENARIOS
from tests.integration.spy import charged
from tests.simulations import tiny


@pytest.fixture(autouse=True)
def _tiny_scenario(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command line knows the tiny scenario, and exports nothing: that takes most of a run."""
    monkeypatch.setitem(SCENARIOS, "tiny", tiny.scenario)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("server.report.export", lambda *_, **__: None)
    monkeypatch.setattr(runner, "oracle", lambda path: {"tiers": {}})
    open_site.cache_clear()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["simulations", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def ran(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Any]:
    assert call(monkeypatch, "run", "tiny", *arguments, "--json") == 0
    value: dict[str, Any] = json.loads(capfd.readouterr().out)
    return value


@pytest.mark.parametrize(
    ("texts", "everyone", "caps"),
    [
        ([], None, {}),
        (["3"], 3.0, {}),
        (["hospital-2=1"], None, {"hospital-2": 1.0}),
        (["a=0.5", "2.5", "b=1e1"], 2.5, {"a": 0.5, "b": 10.0}),
    ],
)
def test_caps_are_for_everyone_or_by_name(
    texts: list[str], everyone: float | None, caps: dict[str, float]
) -> None:
    assert parse_caps(texts) == (everyone, caps)


@pytest.mark.parametrize("text", ["", "=", "a=", "=1", "a=b", "a=0", "a=-1", "nan", "inf", "1,5", "0x1"])
def test_a_cap_that_is_no_epsilon_is_one_line_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--cap 3 --cap hospital-2=1$") as caught:
        parse_caps([text])
    assert "\n" not in str(caught.value)


def test_every_site_spends_at_most_its_own_cap_and_the_table_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outcome = ran(monkeypatch, capfd, "--cap", "2.5", "--cap", "bravo=1", "--out", "run")
    caps = {"alpha": 2.5, "bravo": 1.0, "cobra": 2.5}
    for site in load_sites(tmp_path / "run"):
        assert site.epsilon == caps[site.name]
        statement = read_statement(site.ledger)
        assert 0.98 * caps[site.name] < statement.claimed_epsilon <= caps[site.name]
        entry = outcome["result"]["sites"][site.name]
        assert entry["epsilon"] == pytest.approx(statement.claimed_epsilon, abs=1e-9)
    assert outcome["result"]["epsilon"] == outcome["result"]["sites"]["alpha"]["epsilon"]
    assert outcome["refused"] == []
    monkeypatch.setattr("simulations.console.tier_table", lambda outcome: "")
    assert call(monkeypatch, "run", "tiny", "--out", "run", "--resume") == 0
    shown = capfd.readouterr().out
    assert f"the largest that is known is {outcome['result']['epsilon']:.4f}" in shown
    assert "verified" in shown


CHANGED = [
    (("--cap", "2"), "began with a cap of 3 at alpha, which --cap cannot change"),
    (("--cap", "bravo=2"), "began with a cap of 3 at bravo"),
    (("--cap", "nobody=2"), "the sites are alpha, bravo, cobra"),
    (("--test-noise",), "began without --test-noise"),
    (("--sites", "2"), "began with 3 sites, which --sites cannot change"),
    (("--state", "elsewhere"), "keeps the ledger of alpha at"),
]


def test_a_resumed_run_honours_what_it_began_with_and_refuses_the_rest_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran(monkeypatch, capfd, "--out", "run", "--state", "kept")
    same = ("--out", "run", "--resume", "--state", "kept", "--cap", "3", "--cap", "bravo=3")
    assert ran(monkeypatch, capfd, *same)["result"]["epsilon"] <= 3.0
    for options, words in CHANGED:
        assert call(monkeypatch, "run", "tiny", "--out", "run", "--resume", *options) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert words in line
    assert not (tmp_path / "elsewhere").exists()


def test_a_site_with_a_cap_is_left_out_of_a_run_without_noise(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outcome = ran(monkeypatch, capfd, "--non-private", "--cap", "bravo=3", "--out", "run")
    assert outcome["refused"] == [{"site": "bravo", "reason": "BUDGET_EXHAUSTED"}]
    assert charged(tiny.ledger_files(tmp_path / "run")["bravo"])[0] == {}


def test_a_ledger_deleted_between_two_runs_is_noticed_by_the_marks_beside_it(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    common = ("--state", "kept", "--cap", "9", "--epsilon", "1")
    assert ran(monkeypatch, capfd, *common, "--out", "first")["refused"] == []
    assert set(json.loads((tmp_path / "kept" / "marks.json").read_text())["datasets"]) == {
        f"tiny/{name}" for name in tiny.TIERS
    }
    for file in (tmp_path / "kept" / "tiny").glob("bravo.*"):
        file.unlink()
    second = ran(monkeypatch, capfd, *common, "--out", "second")
    assert second["refused"] == [{"site": "bravo", "reason": "LEDGER_ROLLED_BACK"}]
    assert set(second["result"]["sites"]) == {"alpha", "cobra"}
    (line,) = [r.getMessage() for r in caplog.records if "LEDGER_ROLLED_BACK" in r.getMessage()]
    assert line.startswith("bravo: ")
    assert charged(tmp_path / "kept" / "tiny" / "bravo.sqlite")[0] == {}
    monkeypatch.setattr("simulations.console.tier_table", lambda outcome: "")
    monkeypatch.setenv("COLUMNS", "120")
    assert call(monkeypatch, "run", "tiny", "--out", "second", "--resume") == 0
    shown = capfd.readouterr().out
    (row,) = [line for line in shown.splitlines() if "bravo" in line and "│" in line]
    assert "rolled back" in row
    assert "verified" not in row
    assert "0.0000" not in row, "its file does not say what was spent before"


def test_seeded_runs_of_one_seed_repeat_each_other_on_the_same_ledgers(tmp_path: Path) -> None:
    """Their ledgers give stored replies, which are no sign of an older copy."""
    options = runner.Options(test_noise=True, state=tmp_path / "state")
    first = runner.start(tiny.scenario(), tiny.study(), tmp_path / "first", options)
    paid = {f.name: charged(f) for f in (tmp_path / "state" / "tiny").glob("*.sqlite")}
    second = runner.start(tiny.scenario(), tiny.study(), tmp_path / "second", options)
    assert second["result"] == first["result"]
    assert second["refused"] == []
    assert {f.name: charged(f) for f in (tmp_path / "state" / "tiny").glob("*.sqlite")} == paid


def test_a_cap_without_any_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    options = runner.Options(caps={"bravo": 1e-12})
    study = tiny.study(privacy={"delta": 1e-30})
    with pytest.raises(FednasError, match="no plan for bravo"):
        runner.start(tiny.scenario(), study, tmp_path / "run", options)
    assert list(tmp_path.iterdir()) == []
