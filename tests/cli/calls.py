"""How a test types a command."""

import json
import sys
from typing import Any

import pytest

from fednas import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["fednas", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def answer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0
) -> Any:
    """What a command prints for programs."""
    capfd.readouterr()
    assert call(monkeypatch, *arguments, "--json") == code
    return json.loads(capfd.readouterr().out)
