"""Files that programs are started by: secrets, whole files, units in which no path means anything else."""

import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

from fednas.errors import ConfigurationError
from fednas.operations import (
    hand_over,
    is_loopback,
    join_address,
    parse_address,
    unit,
    write_secret,
    write_whole,
)


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


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("fl.example.org:443", "fl.example.org", 443),
        ("ledger_service:9443", "ledger_service", 9443),  # as containers are named
        ("10.0.0.7:1", "10.0.0.7", 1),
        ("[2001:db8::7]:65535", "2001:db8::7", 65535),
        ("[::]:9443", "::", 9443),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert parse_address(text, "--to") == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "x:", ":1", "x:0", "x:65536", "x:99999", "x:-1", "a b:1", "x:1;y", "x:1\n", "-x:1"),
        *("::1:5", "[::1]", "[x]:1", "[1.2.3.4]:1", "[::1%lo]:1", "x/y:1", "https://x:1", "x:１"),
        "a" * 254 + ":1",
    ],
)
def test_what_is_no_address_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT after --to"):
        parse_address(text, "--to")


def test_a_port_that_the_system_chooses_is_only_for_who_listens() -> None:
    assert parse_address("127.0.0.1:0", "--listen", least_port=0) == ("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("127.0.0.9", True), ("::1", True), ("::", False), ("local.host", False)],
)
def test_a_loopback_address_is_this_machines_own(host: str, own: bool) -> None:
    assert is_loopback(host) == own


@pytest.mark.parametrize("name", ["flower-superexec", *TASK_TYPE_TO_COMMAND.values()])
def test_what_flower_starts_by_its_name_is_found_where_a_unit_runs(tmp_path: Path, name: str) -> None:
    """A SuperNode starts the program that starts apps, and that one starts each app: all by their names."""
    text = unit("x", ("flower-supernode",), user="root", folders=(tmp_path,))
    (path,) = re.findall(r'^Environment="PATH=(.*)"$', text, re.MULTILINE)
    assert shutil.which(name, path=path) == str(Path(sys.executable).parent / name)


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_prepares_belongs_to_the_user_whose_services_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "kit"
    (folder / "secrets").mkdir(parents=True)
    write_secret(folder / "secrets" / "key", b"secret")
    (folder / "link").symlink_to("/")
    hand_over(folder, "nobody")
    owner = pwd.getpwnam("nobody").pw_uid
    assert {path.lstat().st_uid for path in (folder, *folder.rglob("*"))} == {owner}
    assert Path("/").stat().st_uid == 0, "what a link points at is somebody else's"
    hand_over(folder, "no such user")
    assert folder.stat().st_uid == owner
