"""`python -m server`: a kit by one command, and a mistake in one line."""

import json
import subprocess
import sys
from pathlib import Path


def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_kit_is_made_and_told(tmp_path: Path) -> None:
    done = call("prepare", str(tmp_path / "kit"), "--host", "fl.example.org", "--user", "root", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["folder"] == str(tmp_path / "kit")
    assert all((tmp_path / "kit" / name).exists() for name in told["files"])
    assert "PRIVATE" not in done.stdout
    assert "nginx.conf" in call("prepare", str(tmp_path / "kit"), "--host", "fl.example.org").stdout


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    for arguments in (["--host", "a b"], ["--host", "x", "--port", "0"], []):
        done = call("prepare", str(tmp_path / "kit"), *arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "kit").exists()
    (tmp_path / "file").write_text("")
    assert "choose another folder" in call("prepare", str(tmp_path / "file"), "--host", "x").stderr
