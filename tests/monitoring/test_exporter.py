"""Metrics as a Prometheus reads them: a real scrape over HTTP, parsed by Prometheus' own library."""

import importlib.util
import json
import math
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fednas.config import save_site
from fednas.errors import ConfigurationError
from fednas.monitoring import exporter
from fednas.monitoring.exporter import MonitoringCollector, serve
from fednas.monitoring.progress import RunReader
from fednas.schedule import agenda
from tests.cli.calls import call
from tests.monitoring.conftest import only
from tests.monitoring.test_ledgers import site
from tests.privacy.ledgers import fill
from tests.simulations import tiny

ROOT = Path(__file__).parents[2]

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@contextmanager
def exporting(collector: MonitoringCollector) -> Iterator[str]:
    port, stop = serve(collector, 0)
    try:
        yield f"http://127.0.0.1:{port}/metrics"
    finally:
        stop()


def text_of(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as response:
        assert response.status == 200
        return str(response.read().decode())


def scrape(address: str) -> Samples:
    """Every sample by its name and its labels without the run; no sample is there twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text_of(address)):
        assert family.documentation
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "run"))
            assert (sample.name, labels) not in found
            found[sample.name, labels] = sample.value
    return found


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"fednas_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "site" / "ledger.sqlite"
    path.parent.mkdir()
    fill(path)
    return path


def test_a_scrape_holds_what_the_files_hold(conducted: Path, ledger: Path) -> None:
    with exporting(MonitoringCollector([conducted], [site(ledger)])) as address:
        samples = scrape(address)
    steps = [step.kind for step in agenda(tiny.study())]
    for kind in set(steps):
        assert of(samples, "rounds_total", study="tiny", kind=kind) == steps.count(kind)
        assert of(samples, "rounds_planned", study="tiny", kind=kind) == steps.count(kind)
    progress = RunReader(conducted).read()
    for one in progress.sites:
        names = {"study": "tiny", "site": one.site}
        assert of(samples, "replies_total", **names) == one.replies
        assert of(samples, "bytes_total", direction="sent", **names) == one.sent_bytes
        assert of(samples, "bytes_total", direction="received", **names) == one.received_bytes
        assert of(samples, "plan_epsilon", **names) == one.epsilon_planned
    assert of(samples, "rejects_total", study="tiny", site="bravo", code="SITE_FAILURE") == 2
    assert of(samples, "run_complete", study="tiny") == 0
    assert of(samples, "run_healthy") == 1
    assert of(samples, "last_round_timestamp_seconds", study="tiny") == progress.last_s
    assert of(samples, "ledger_healthy", dataset="ward") == 1
    assert of(samples, "epsilon_cap", dataset="ward") == 3
    spent = of(samples, "epsilon_spent", dataset="ward", stream="weights")
    assert 0.0 < spent < 3.0
    assert of(samples, "epsilon_left", dataset="ward", stream="weights") == pytest.approx(3.0 - spent)


def test_every_metric_is_named_as_prometheus_wants(conducted: Path, ledger: Path) -> None:
    with exporting(MonitoringCollector([conducted], [site(ledger)])) as address:
        families = list(text_string_to_metric_families(text_of(address)))
    for family in families:
        assert re.fullmatch(r"fednas_[a-z]+(_[a-z]+)*", family.name)
        names = {sample.name for sample in family.samples}
        assert names == {family.name + ("_total" if family.type == "counter" else "")}
    assert {family.type for family in families} == {"counter", "gauge"}


def test_counters_go_on_where_they_were_when_exporter_and_server_start_again(conducted: Path) -> None:
    aside = {path: path.read_bytes() for path in sorted((conducted / "rounds").glob("*.json"))[3:]}
    only(conducted, 1, 2, 3)
    seen = []
    for path, content in [(None, b""), *aside.items()]:
        if path is not None:
            path.write_bytes(content)
        with exporting(MonitoringCollector([conducted], [])) as address:
            seen.append(of(scrape(address), "replies_total", study="tiny", site="alpha"))
    assert seen == sorted(seen)
    assert seen[0] == 3


def test_a_scrape_follows_the_files(conducted: Path) -> None:
    last = sorted((conducted / "rounds").glob("*.json"))[-1]
    content = last.read_bytes()
    last.unlink()
    with exporting(MonitoringCollector([conducted], [])) as address:
        assert of(scrape(address), "rounds_total", study="tiny", kind="report") == 0
        last.write_bytes(content)
        (conducted / "result.json").write_text("{}")
        assert of(scrape(address), "rounds_total", study="tiny", kind="report") == 1
        assert of(scrape(address), "run_complete", study="tiny") == 1


def test_a_folder_of_runs_shows_all_of_them_and_new_ones_when_they_come(
    conducted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    with exporting(MonitoringCollector([folder, folder], [])) as address:
        assert "fednas_run_healthy{" not in text_of(address)
        conducted.rename(folder / "first")
        (folder / "second").mkdir()
        (folder / "second" / "run.json").write_text("{")
        text = text_of(address)
    assert f'fednas_run_healthy{{run="{folder.resolve()}/first"}} 1.0' in text
    assert f'fednas_run_healthy{{run="{folder.resolve()}/second"}} 0.0' in text


@pytest.mark.parametrize("name", ["run.json", "plan.json", "rounds/00001.json", "study.toml"])
def test_a_damaged_run_is_a_metric_and_others_are_still_shown(
    name: str, conducted: Path, ledger: Path
) -> None:
    with exporting(MonitoringCollector([conducted], [site(ledger)])) as address:
        assert of(scrape(address), "run_healthy") == 1
        (conducted / name).write_bytes(b"\xff{")
        samples = scrape(address)
    assert of(samples, "run_healthy") == 0
    assert ("fednas_replies_total", (("site", "alpha"), ("study", "tiny"))) not in samples
    assert of(samples, "ledger_healthy", dataset="ward") == 1


def test_a_corrupt_ledger_is_a_metric_and_never_a_traceback(
    ledger: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with exporting(MonitoringCollector([], [site(ledger)])) as address:
        ledger.write_bytes(b"nothing of a ledger")
        samples = scrape(address)
    assert samples == {("fednas_ledger_healthy", (("dataset", "ward"),)): 0.0}
    assert capfd.readouterr().err == ""


def test_an_infinite_epsilon_is_infinite(conducted: Path) -> None:
    manifest = json.loads((conducted / "run.json").read_text())
    (conducted / "run.json").write_text(json.dumps(manifest | {"test_noise": True}))
    with exporting(MonitoringCollector([conducted], [])) as address:
        assert math.isinf(of(scrape(address), "plan_epsilon", study="tiny", site="alpha"))
        assert "+Inf" in text_of(address)


def test_names_that_prometheus_would_misread_are_escaped(conducted: Path, tmp_path: Path) -> None:
    text = (conducted / "plan.json").read_text()
    (conducted / "plan.json").write_text(text.replace('"alpha"', r'"a\"} 9\\"'))
    odd = conducted.rename(tmp_path / 'r"}\n\udcff')
    with exporting(MonitoringCollector([odd], [])) as address:
        samples = scrape(address)
    assert of(samples, "replies_total", study="tiny", site='a"} 9\\') == 0


def test_scrapes_at_once_are_all_answered(conducted: Path, ledger: Path) -> None:
    with (
        exporting(MonitoringCollector([conducted], [site(ledger)])) as address,
        ThreadPoolExecutor(8) as pool,
    ):
        texts = list(pool.map(text_of, [address] * 24))
    assert len(set(texts)) == 1


def test_it_listens_on_the_loopback_interface_and_nowhere_else(conducted: Path) -> None:
    with exporting(MonitoringCollector([conducted], [])) as address:
        port = int(re.findall(r":(\d+)/", address)[0])
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        sockets = re.findall(rf": ([0-9A-F]+):{port:04X} [0-9A-F]+:0000 0A", listening)
        assert sockets == ["0100007F"]  # 127.0.0.1, as the kernel writes it
    assert not any("host" in name or "address" in name for name in options())


def options() -> list[str]:
    import typer.main

    from fednas import cli

    command = typer.main.get_group(cli.app).commands["metrics"]
    return [str(parameter.name) for parameter in command.params]


def test_two_sites_of_one_dataset_are_refused(ledger: Path) -> None:
    with pytest.raises(ConfigurationError, match="same dataset"):
        MonitoringCollector([], [site(ledger), site(ledger)])


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind((exporter.ADDRESS, 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="choose another --port"):
            serve(MonitoringCollector([], []), taken.getsockname()[1])


def test_the_command_serves_until_it_is_told_to_end(conducted: Path, ledger: Path) -> None:
    save_site(site(ledger), ledger.with_name("site.toml"))
    words = ["metrics", "--run", str(conducted), "--site", str(ledger.with_name("site.toml")), "--port", "0"]
    command = [sys.executable, "-m", "fednas.cli", *words]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            samples = scrape(line.split()[-1])
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
    assert line.startswith("serving metrics on http://127.0.0.1:")
    assert of(samples, "ledger_healthy", dataset="ward") == 1


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ((), "--run"),
        (("--run", "nowhere"), "there is no folder nowhere"),
        (("--site", "nowhere.toml"), "cannot read nowhere.toml"),
        (("--run", ".", "--port", "-1"), "expected a port"),
        (("--run", ".", "--port", "70000"), "expected a port"),
        (("--run", ".", "--host", "0.0.0.0"), "--host"),
    ],
)
def test_a_mistake_is_one_line(
    words: tuple[str, ...], word: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "metrics", *words) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert word in error


def test_without_the_extra_the_command_says_how_to_install_it(
    conducted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def blind(name: str, package: str | None = None) -> Any:
        return None if name == "prometheus_client" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", blind)
    assert call(monkeypatch, "metrics", "--run", str(conducted)) == 2
    assert 'pip install "fednas[metrics]"' in capfd.readouterr().err
