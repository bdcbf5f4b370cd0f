"""Files that programs are started by: secrets, whole files, units in which no path means anything else."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from fednas.errors import ConfigurationError
from fednas.operations import unit, write_secret, write_whole


def test_a_secret_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_secret(path, b"one")
    with pytest.raises(FileExistsError):
        write_secret(path, b"two")
    assert path.read_bytes() == b"one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_whole_file_replaces_the_one_before_and_leaves_no_draft(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_line_break_in_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="line break"):
        unit("x", ("python", "a\nExecStartPre=/bin/false"), user="root", folders=(tmp_path,))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize(
    "word", ["plain", "two words", 'a "quoted" one', "100%", "$HOME", "back\\slash", "it's"]
)
def test_systemd_reads_a_word_as_it_was_written(tmp_path: Path, word: str) -> None:
    """As `systemd-analyze` takes it apart, with specifiers and variables as it would put them in."""
    path = tmp_path / "word.service"
    path.write_text(unit("a word", ("python", word), user="root", folders=(tmp_path / word,)))
    done = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("ExecStart=")]
    escaped = word.replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    assert line.endswith(f' "{escaped}"')
