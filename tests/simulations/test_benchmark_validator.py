"""The benchmark of the validator runs, and examines what it says."""

import sys

import pytest

from simulations.benchmarks import validator


def test_it_takes_the_honest_answer_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["validator", "--repeats", "2"])
    monkeypatch.setattr(validator, "SIZES", (1000, 5000))
    monkeypatch.setenv("COLUMNS", "160")
    validator.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if "taken" in line or "rejected" in line]
    assert len(rows) == 2 * len(validator.CHANGES)
    assert all(("taken" in row) == ("as released" in row) for row in rows)
