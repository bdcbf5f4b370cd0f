"""`fednas ledger serve` and `fednas ledger pull`, as an operator and an auditor type them."""

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fednas.ledger_service import client
from tests.cli.calls import answer, call
from tests.ledger_service.fleets import Authority, make_ledger, serving

ROOT = Path(__file__).parents[2]


def pulling(authority: Authority, out: Path, *sites: str) -> tuple[str, ...]:
    """The words of a pull."""
    certificate, key = authority.issue("auditor")
    options = ("--certificate", str(certificate), "--key", str(key), "--ca", str(authority.ca))
    return ("ledger", "pull", *sites, *options, "--out", str(out))


def test_a_pull_prints_one_table_and_its_files_verify_offline(
    ledger: Path,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "out"
    with serving(ledger, authority) as address:
        (tmp_path / "sites").write_text(f"# the ward\n{address}=ward  # in the cellar\n\n")
        words = (*pulling(authority, out), "--sites", str(tmp_path / "sites"))
        assert call(monkeypatch, *words) == 0
        shown = capfd.readouterr().out
        (row,) = answer(monkeypatch, capfd, *words)
    assert "1 of 1 hold" in shown
    assert address in shown
    assert (row["site"], row["dataset"], row["verdict"], row["cap"]) == (address, "ward", "holds", 3.0)
    assert 0 < row["epsilon"] <= row["cap"]
    pulled = str(out / "ward" / "ledger.sqlite")
    (found,) = answer(monkeypatch, capfd, "ledger", "verify", pulled, "--marks", str(out / "marks.json"))
    assert (found["head"], found["signer"]) == (row["head"], row["signer"])


def test_a_site_that_does_not_answer_makes_the_exit_code_one_and_its_own_verdict(
    ledger: Path,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = make_ledger(tmp_path / "other" / "ledger.sqlite", "clinic")
    with serving(other, authority) as gone:
        pass
    with serving(ledger, authority) as address:
        rows = answer(monkeypatch, capfd, *pulling(authority, tmp_path / "out", gone, address), code=1)
        assert call(monkeypatch, *pulling(authority, tmp_path / "out", gone, address)) == 1
    assert [row["verdict"] for row in rows] == [client.UNREACHABLE, "holds"]
    assert "1 of 2 hold" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("sites", "word"),
    [
        ((), "at least one site"),
        (("ward",), "HOST:PORT"),
        (("https://ward:1",), "HOST:PORT"),
        (("ward:1=../x",), "HOST:PORT=DATASET"),
        (("ward:1", "ward:1"), "given twice"),
        (("--sites", "nowhere"), "cannot read nowhere"),
        (("ward:1", "--marks", "nowhere"), "cannot read nowhere"),
        (("ward:1", "--ca", "nowhere"), "cannot read nowhere"),
        (("ward:1", "--out", "/dev/null/x"), "--out"),
    ],
)
def test_a_mistake_of_an_auditor_is_one_line(
    sites: tuple[str, ...],
    word: str,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *pulling(authority, tmp_path / "out"), *sites) == 2
    captured = capfd.readouterr().err
    assert captured.count("\n") == 1
    assert word in captured


def serving_words(authority: Authority, ledger: Path) -> list[str]:
    certificate, key = authority.issue("site")
    words = ["ledger", "serve", str(ledger), "--certificate", str(certificate), "--key", str(key)]
    return [*words, "--client-ca", str(authority.ca), "--listen", "127.0.0.1:0"]


def test_a_site_serves_until_it_is_told_to_end(ledger: Path, authority: Authority, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fednas.cli", *serving_words(authority, ledger)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = line.split()[-1]
            with client.Client(address, authority.identity(), client.Limits()) as asked:
                assert asked.head().dataset == "ward"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    assert line.startswith("serving ledger.sqlite on 127.0.0.1:")


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("--listen", "here"), "HOST:PORT"),
        (("--client-ca", "nowhere"), "cannot read nowhere"),
    ],
)
def test_a_mistake_of_an_operator_is_one_line(
    words: tuple[str, ...],
    word: str,
    ledger: Path,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *serving_words(authority, ledger), *words) == 2
    assert word in capfd.readouterr().err
    assert call(monkeypatch, *serving_words(authority, ledger.with_name("none"))) == 2
    assert "there is no ledger" in capfd.readouterr().err


def test_without_the_extra_both_commands_say_how_to_install_it(
    ledger: Path,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec

    def blind(name: str, package: str | None = None) -> Any:
        return None if name == "grpc_reflection" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", blind)
    for words in (serving_words(authority, ledger), pulling(authority, tmp_path, "ward:1")):
        assert call(monkeypatch, *words) == 2
        assert 'pip install "fednas[service]"' in capfd.readouterr().err


def test_a_mark_of_the_study_server_is_held_against_a_pulled_ledger(
    ledger: Path,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    marks = tmp_path / "server-marks.json"
    mark = {"signer": "0" * 64, "entries": 1, "head": "0" * 64}
    marks.write_text(json.dumps({"format": 1, "datasets": {"ward": mark}}))
    with serving(ledger, authority) as address:
        words = (*pulling(authority, tmp_path / "out", address), "--marks", str(marks))
        (row,) = answer(monkeypatch, capfd, *words, code=1)
    assert row["verdict"] == "tampered"
