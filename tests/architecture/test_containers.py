"""The container files, which no engine builds here: what can be held against the code is."""

import ast
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.kit import SiteKit
from fednas.operations import unit
from server.kit import ServerKit

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"client": Path("/var/lib/fednas"), "server": Path("/srv/fednas")}
COPIED = {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "fednas", "server", "client"}
EXTRAS = {"client": "", "server": "[export]"}


@dataclass(frozen=True, kw_only=True)
class ContainerFile:
    """A container file, taken apart.

    Args:
        lines: (instruction, its argument), continued lines joined, comments left out.
        comments: what it says to people.
    """

    lines: tuple[tuple[str, str], ...]
    comments: str

    @classmethod
    def read(cls, room: str) -> "ContainerFile":
        """The file of a room."""
        text = (ROOT / room / "Containerfile").read_text()
        comments = [line for line in text.splitlines() if line.startswith("#")]
        code = "\n".join(line for line in text.splitlines() if line and not line.startswith("#"))
        joined = re.sub(r"\s*\\\n\s*", " ", code)
        pairs = [line.split(None, 1) for line in joined.splitlines()]
        words = " ".join(line.lstrip("# ").rstrip("\\ ") for line in comments)
        return cls(lines=tuple((name, rest) for name, rest in pairs), comments=" ".join(words.split()))

    def of(self, instruction: str) -> list[str]:
        """The arguments of all instructions of a kind."""
        return [argument for name, argument in self.lines if name == instruction]

    def last_stage(self) -> "ContainerFile":
        """What the image is made of in the end."""
        start = max(index for index, (name, _) in enumerate(self.lines) if name == "FROM")
        return ContainerFile(lines=self.lines[start:], comments=self.comments)

    def command(self) -> list[str]:
        """What the image runs by itself."""
        (argument,) = self.of("CMD")
        return list(json.loads(argument))

    def environment(self) -> dict[str, str]:
        """The variables of the image."""
        return dict(pair.split("=", 1) for line in self.last_stage().of("ENV") for pair in line.split())


@pytest.fixture(params=sorted(ROOMS))
def room(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(room: str) -> ContainerFile:
    return ContainerFile.read(room)


def test_it_says_that_no_engine_has_built_it(file: ContainerFile) -> None:
    assert "UNTESTED as an image" in file.comments


def test_it_runs_under_a_number_that_is_not_root(file: ContainerFile) -> None:
    assert file.of("USER") == ["10001:10001"]
    after = [name for name, _ in file.lines[file.lines.index(("USER", "10001:10001")) :]]
    assert "RUN" not in after
    assert "CMD" in after


def test_it_is_made_in_two_stages_of_one_base(file: ContainerFile) -> None:
    first, second = file.of("FROM")
    assert first == f"{second} AS build"
    assert not any("pip" in command for command in file.last_stage().of("RUN"))


def test_every_source_is_there_and_none_is_secret(room: str, file: ContainerFile) -> None:
    assert not file.of("ADD")
    copies = [line.split() for line in file.of("COPY")]
    assert [words for words in copies if words[0].startswith("--")] == [
        ["--from=build", "/opt/fednas", "/opt/fednas"]
    ]
    sources = {source for words in copies if not words[0].startswith("--") for source in words[:-1]}
    assert sources <= COPIED
    assert all((ROOT / source).exists() for source in sources)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == COPIED


def test_only_pinned_packages_are_installed_and_no_simulation(room: str, file: ContainerFile) -> None:
    installs = [command for command in file.of("RUN") if "pip install" in command]
    assert all("-c constraints.txt" in command for command in installs)
    assert [command.split()[-1] for command in installs] == ["torch", '".${EXTRAS}"']
    arguments = dict(line.split("=", 1) for line in file.of("ARG"))
    assert arguments == {"EXTRAS": f'"{EXTRAS[room]}"', "TORCH_INDEX": '""'}


def test_its_variables_are_those_of_a_unit(room: str, file: ContainerFile) -> None:
    text = unit("x", ("python",), user="x", folders=())
    quiet = dict(re.findall(r'^Environment="(\w+)=(.*)"$', text, re.MULTILINE))
    found = file.environment()
    assert found.pop("PATH") == "/opt/fednas/bin:/usr/local/bin:/usr/bin:/bin"
    del quiet["PATH"]
    assert quiet.items() <= found.items()
    assert found["HOME"] == file.of("WORKDIR")[-1] == str(ROOMS[room])
    assert file.of("VOLUME") == [json.dumps([str(ROOMS[room])])]


def test_a_device_runs_what_its_kit_says(tmp_path: Path) -> None:
    program = tmp_path / "flower-supernode"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    program.chmod(0o755)
    command = ContainerFile.read("client").command()
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(
        command, env={"PATH": path, "FEDNAS_SUPERLINK": "fl.example.org:443"}, capture_output=True
    )
    folder = ROOMS["client"]
    kit = SiteKit(folder=folder, site=folder / "site.toml", superlink="fl.example.org:443")
    assert done.stdout.decode().splitlines() == [str(program), *kit.supernode[1:]]
    refused = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "HOST:PORT" in refused.stderr


def test_a_server_runs_what_its_kit_says() -> None:
    file, kit = ContainerFile.read("server"), ServerKit(folder=ROOMS["server"])
    assert file.command() == list(kit.superlink)
    assert " ".join(kit.superexec) in file.comments
    assert str(kit.signing_key) in file.comments


def test_its_health_is_asked_at_the_port_of_the_kit(room: str, file: ContainerFile) -> None:
    (line,) = file.of("HEALTHCHECK")
    name, option, code = json.loads(line[line.index("[") :])
    assert (name, option) == ("python", "-c")
    ast.parse(code)
    folder = ROOMS[room]
    address = {
        "client": f"http://127.0.0.1:{SiteKit(folder=folder, site=folder, superlink='').port}/health",
        "server": f"https://127.0.0.1:{ServerKit(folder=folder).port}/health",
    }[room]
    assert f"'{address}'" in code
    assert room == "client" or f"'{ServerKit(folder=folder).authority}'" in code
