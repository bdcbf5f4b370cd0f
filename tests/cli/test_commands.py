"""All commands: exports, mistakes in one line, fast help, and each of them in the README."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from fednas import cli
from simulations import __main__ as simulations_cli
from tests.cli.calls import call

ROOT = Path(__file__).resolve().parents[2]


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


def test_wire_prints_every_field_that_leaves_a_site(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from fednas.wire_schema import schema_rows

    assert call(monkeypatch, "wire", "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert [(row["message"], row["name"]) for row in shown] == [(r.message, r.name) for r in schema_rows()]
    assert call(monkeypatch, "wire") == 0
    assert "not covered" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ledger", "verify", "nowhere"), "no file or folder"),
        (("ledger", "statement", "nowhere"), "no file or folder"),
        (("ledger", "statement", "RUN", "--out", "/dev/null/x"), "--out"),
        (("ledger", "verifier", "--out", "/dev/null/x"), "--out"),
        (("ledger", "verify", "RUN", "--head", "abc"), "64 hexadecimal digits"),
        (("ledger", "verify", "RUN", "--signer", "A" * 64), "64 hexadecimal digits"),
        (("ledger", "verify", "RUN", "--marks", "nowhere"), "cannot read nowhere"),
        (("ledger", "verify", "RUN", "--marks", "RUN/study.toml"), "not a server's marks.json"),
        (("ledger", "show", "nowhere"), "no file or folder"),
        (("ledger", "show", "."), "holds no sites"),
        (("export", "."), "not a finished run"),
        (("export", "RUN", "--tier", "huge"), "no tier 'huge'"),
        (("plan", "nowhere"), "nowhere"),
        (("plan", "RUN", "--epsilon", "-1"), "epsilon"),
        (("plan", "RUN", "--epsilon", "inf"), "epsilon"),
        (("plan", "RUN", "--delta", "2"), "delta"),
        (("plan", "RUN", "--sites", "1000000"), "delta"),
        (("plan", "RUN", "--sites", "big"), "NAME=SIZE@EPSILON"),
        (("plan", "RUN", "--sites", "a=100", "--sites", "a=90"), "two sites"),
        (("plan", "RUN", "--sites", "100@inf"), "epsilon"),
        (("plan", "RUN", "--sites", "0"), "at least 1"),
        (("plan", "RUN", "--order", "1"), "order"),
        (("plan", "RUN", "--order", "2", "--epsilon", "0.5"), "order"),
        (("plan", "RUN", "--space", "mlp"), "no file"),
        (("plan", "--space", "maze"), "maze"),
        (("plan", "--features", "many"), "--features"),
        (("plan", "--features", "0"), "shape"),
        (("plan", "--classes", "1"), "classes"),
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
    assert call(monkeypatch, *(part.replace("RUN", str(finished)) for part in arguments)) == 2
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert word in captured.err
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, fednas.cli\n"
        "heavy = {'torch', 'flwr', 'opacus', 'optuna', 'dp_accounting', 'scipy', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def parameters() -> list[tuple[str, str, bool]]:
    """(command and parameter, the help that a user sees of it, whether it has to name the parameter)."""
    found = []
    group = typer.main.get_group(cli.app)
    for name, command in group.commands.items():
        for inner in getattr(command, "commands", {name: command}).values():
            for parameter in inner.params:
                option = parameter.param_type_name == "option"
                text = getattr(parameter, "help", "") if option else inner.help
                found.append((f"{inner.name} {parameter.name}", text or "", not option))
    return found


@pytest.mark.parametrize(("parameter", "text", "by_name"), parameters())
def test_every_parameter_says_what_it_is(parameter: str, text: str, by_name: bool) -> None:
    """Arguments in the text of their command: not every version of click shows their own."""
    assert text
    assert not by_name or parameter.split()[1].upper() in text


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
