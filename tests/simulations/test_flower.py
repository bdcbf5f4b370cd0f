"""Flower's own engine on Ray: a trivial app, run from its folder to its end."""

import importlib.util
import json
from pathlib import Path

import pytest

from fednas.errors import ConfigurationError, ExchangeError, MissingExtraError
from simulations import flower

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "trivial"
version = "0.1.0"
description = "Sums the partitions"
license = {file = "LICENSE"}
dependencies = ["flwr>=1.41"]

[tool.flwr.app]
publisher = "fednas"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["fednas/**", "server/**", "client/**", "/README.md", "/LICENSE"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
run-dir = ""
sites-dir = ""
resume = false
"""

SERVER = """
import json
import time
from pathlib import Path
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from fednas import FACTOR

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    if context.run_config["sites-dir"] == "fail":
        raise ValueError("on purpose")
    while len(nodes := list(grid.get_node_ids())) < 3:
        time.sleep(0.1)
    replies = grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes])
    values = [reply.content["facts"]["partition"] for reply in replies]
    result = {"sum": FACTOR * sum(values), "where": str(Path.cwd()), "resume": context.run_config["resume"]}
    (Path(context.run_config["run-dir"]) / "result.json").write_text(json.dumps(result))
"""

CLIENT = """
from flwr.app import Context, MetricRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    facts = MetricRecord({"partition": int(context.node_config["partition-id"])})
    return Message(RecordDict({"facts": facts}), reply_to=message)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder_whose name flwr build would refuse"
    for name, text in {
        "pyproject.toml": PROJECT,
        "README.md": "# Trivial\n",
        "LICENSE": "Free.\n",
        "fednas/__init__.py": "FACTOR = 10\n",
        "server/__init__.py": "",
        "server/app.py": SERVER,
        "client/__init__.py": "",
        "client/app.py": CLIENT,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def processes() -> set[str]:
    """Return the ids of the processes that bear any mark of a run on Ray."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"FEDNAS_RUN_ON_RAY=" in entry.read_bytes():
                found.add(entry.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_an_app_runs_to_its_end_on_ray_and_leaves_no_process(project: Path, tmp_path: Path) -> None:
    before = processes()
    run_dir = tmp_path / "results with 'quotes'"
    run_dir.mkdir()
    flower.run_on_ray(
        project, {"run-dir": str(run_dir), "resume": True}, 3, home=tmp_path / "home", timeout_s=240.0
    )

    result = json.loads((run_dir / "result.json").read_text())
    assert result["sum"] == 30
    assert result["resume"] is True
    assert processes() <= before


@pytest.mark.slow
def test_a_run_that_fails_is_one_line(project: Path, tmp_path: Path) -> None:
    before = processes()
    with pytest.raises(ExchangeError, match="finished:failed") as caught:
        flower.run_on_ray(project, {"sites-dir": "fail"}, 2, home=tmp_path / "home", timeout_s=240.0)
    assert "\n" not in str(caught.value)
    assert "on purpose" not in str(caught.value)
    assert "on purpose" in (tmp_path / "home" / "run.log").read_text()
    assert processes() <= before


def test_a_folder_without_an_app_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no pyproject\.toml"):
        flower.run_on_ray(tmp_path, {}, 2, home=tmp_path / "home", timeout_s=1.0)


def test_no_node_at_all_is_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least one node"):
        flower.run_on_ray(project, {}, 0, home=tmp_path / "home", timeout_s=1.0)


def test_a_missing_ray_is_named_with_its_extra(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"fednas\[simulation\]"):
        flower.run_on_ray(project, {}, 2, home=tmp_path / "home", timeout_s=1.0)


def test_a_superlink_that_is_not_ready_in_time_is_one_line_and_leaves_no_process(
    project: Path, tmp_path: Path
) -> None:
    before = processes()
    with pytest.raises(ExchangeError, match="did not start"):
        flower.run_on_ray(project, {}, 2, home=tmp_path / "home", timeout_s=0.0)
    assert processes() <= before
