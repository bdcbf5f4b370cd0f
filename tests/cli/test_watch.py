"""`fednas watch`: what a person sees of a run, and what a program reads of it."""

import io
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fednas.cli import watch
from fednas.monitoring import RunReader
from fednas.privacy.ledger import read_statement
from tests.cli.calls import answer, call
from tests.monitoring.conftest import only
from tests.simulations import tiny

ROOT = Path(__file__).parents[2]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_epsilon_so_far_is_what_ledgers_were_charged_and_never_more_than_planned(run: Path) -> None:
    """A run with production noise: the server's schedule agrees with the sites' ledgers."""
    progress = RunReader(run).read()
    assert progress.complete
    for site in progress.sites:
        statement = read_statement(tiny.ledger_files(run)[site.site])
        charged = max(spend.charged_epsilon for spend in statement.streams)
        assert site.epsilon_planned == pytest.approx(statement.claimed_epsilon)
        # Candidates that do not fit a device are not asked of it: the schedule counts them.
        assert charged <= site.epsilon_so_far <= site.epsilon_planned
    (run / "result.json").unlink()
    only(run, 1, 2)
    for early, late in zip(RunReader(run).read().sites, progress.sites, strict=True):
        assert early.epsilon_so_far < late.epsilon_so_far


def test_a_complete_run_is_shown_once_and_the_command_ends(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert call(monkeypatch, "watch", str(run)) == 0
    shown = capfd.readouterr().out
    assert "tiny: complete, 6 rounds" in shown
    for word in (
        *tiny.TIERS,
        *tiny.TIERS.values(),
        "round 6: ok",
        "ε planned",
        "ε so far",
        "sent",
        "received",
    ):
        assert word in shown
    assert re.search(r"large +-?\d\.\d{3} ± \d\.\d{3}", shown)


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 109, 110, 200])
def test_it_fits_a_terminal_of_any_width(
    columns: int, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    only(run, 1, 2, 3)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert call(monkeypatch, "watch", str(run), "--once") == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert any("round" in line for line in lines)


def test_names_are_shown_as_they_are_and_no_markup_of_theirs_is_obeyed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (run / "plan.json").read_text()
    (run / "plan.json").write_text(text.replace('"large"', '"[red]big[/]"'))
    monkeypatch.setenv("COLUMNS", "140")
    assert call(monkeypatch, "watch", str(run), "--once") == 0
    assert "[red]big[/]" in capfd.readouterr().out


def test_a_run_without_privacy_and_one_that_stands_still_say_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    only(run, 1, 2, 3)
    edit(run / "run.json", test_noise=True)
    for file in (run / "rounds").glob("*.json"):
        os.utime(file, (1000.0, 1000.0))
    monkeypatch.setenv("COLUMNS", "100")
    assert call(monkeypatch, "watch", str(run), "--once") == 0
    shown = capfd.readouterr().out
    assert "NOT PRIVATE: epsilon is infinite" in shown
    assert "if its server has stopped, resume the run" in shown
    assert re.search(r"round 4 of 6, final, for \d+ d \d+ h\nbegun", shown)


def test_programs_read_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    only(run, 1, 2, 3)
    found = answer(monkeypatch, capfd, "watch", str(run))
    progress = RunReader(run).read()
    assert (found["study"], found["complete"], found["rounds_done"], found["round"]) == ("tiny", False, 3, 4)
    for site in progress.sites:
        shown = found["sites"][site.site]
        assert shown["replies"] == site.replies == 3
        assert shown["sent_bytes"] == site.sent_bytes > 0
        assert shown["epsilon_planned"] == site.epsilon_planned
        assert math.isfinite(shown["epsilon_so_far"])
    assert found["fitness"].keys() == set(tiny.TIERS.values())


@pytest.mark.parametrize(("name", "word"), [("nowhere", "not a run directory"), ("RUN", "malformed")])
def test_a_mistake_is_one_line(
    name: str, word: str, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "plan.json").write_text("{")
    assert call(monkeypatch, "watch", str(run) if name == "RUN" else name) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert word in error


class Terminal:
    """A person's terminal with a command on it."""

    def __init__(self, *words: str) -> None:
        self._end, inner = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fednas.cli", *words],
            cwd=ROOT,
            env=environment,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            # Tests in the background ignore Ctrl-C, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(inner)
        self.seen = io.StringIO()

    def wait_for(self, word: str) -> None:
        end = time.monotonic() + 60.0
        while word not in self.seen.getvalue():
            assert time.monotonic() < end, self.seen.getvalue()
            self.read()

    def read(self) -> bool:
        if not select.select([self._end], [], [], 60.0)[0]:
            raise TimeoutError(f"the program says nothing any more:\n{self.seen.getvalue()}")
        try:
            data = os.read(self._end, 65536)
        except OSError:  # the program ended
            return False
        self.seen.write(data.decode(errors="replace"))
        return bool(data)

    def close(self) -> int:
        while self.read():
            pass
        os.close(self._end)
        return self.process.wait(timeout=60)


def test_on_a_terminal_it_follows_the_run_to_its_end(run: Path, tmp_path: Path) -> None:
    """The run goes on round by round beside it, as a server would write it."""
    aside = tmp_path / "aside"
    aside.mkdir()
    later = [run / "result.json", *sorted((run / "rounds").glob("*.json"))[3:]]
    for file in later:
        file.rename(aside / file.name)
    edit(run / "run.json", test_noise=True)  # accountants take seconds to start
    terminal = Terminal("watch", str(run))
    try:
        terminal.wait_for("round 4 of 6, final")
        for file in later[1:]:
            (aside / file.name).rename(file)
        terminal.wait_for("all 6 rounds done, results are being written")
        (aside / "result.json").rename(later[0])
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
    assert ": complete, 6 rounds" in terminal.seen.getvalue()
    assert "Traceback" not in terminal.seen.getvalue()


def test_ctrl_c_ends_it_without_a_traceback(run: Path) -> None:
    only(run, 1, 2)
    edit(run / "run.json", test_noise=True)  # accountants take seconds to start
    terminal = Terminal("watch", str(run))
    try:
        terminal.wait_for("round 3 of 6")
        os.killpg(terminal.process.pid, 2)
        assert terminal.close() == 130
    finally:
        terminal.process.kill()
    assert "Traceback" not in terminal.seen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (7261, "2 h 1 min"), (180_000, "2 d 2 h"), (-5, "0 s")],
)
def test_durations_are_words(seconds: float, text: str) -> None:
    assert watch._duration(seconds) == text
