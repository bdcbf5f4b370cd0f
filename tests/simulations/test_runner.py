"""A run directory is whole or not there, a resumed run is the same, and so is every runtime."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fednas.errors import ConfigurationError, FednasError, InfeasibleDeviceError, RunDirectoryError
from fednas.site import open_site
from simulations import runner
from tests.integration.spy import charged
from tests.simulations import tiny

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study with test noise, to its end."""
    path = tmp_path_factory.mktemp("original") / "run"
    runner.start(tiny.scenario(), tiny.study(), path, tiny.TEST_NOISE)
    return path


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """A finished run to be spoilt."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def start(path: Path, **options: Any) -> dict[str, Any]:
    return runner.start(tiny.scenario(), tiny.study(), path, runner.Options(test_noise=True, **options))


def resume(path: Path) -> dict[str, Any]:
    return runner.resume(path, tiny.TEST_NOISE, scenario="tiny")


def test_a_run_says_where_it_came_from(original: Path) -> None:
    manifest = json.loads((original / "run.json").read_text())
    assert manifest["scenario"] == "tiny"
    assert manifest["test_noise"] is True
    assert manifest["num_sites"] == tiny.NUM_SITES
    assert {"versions", "python", "machine", "commit", "started"} <= manifest.keys()
    assert "hostname" not in json.dumps(manifest)


def test_a_start_that_dies_before_the_run_directory_is_whole_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez", dying)
        with pytest.raises(Killed):
            start(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_a_power_cut_left_of_a_start_is_no_obstacle(tmp_path: Path, original: Path) -> None:
    left = tmp_path / ".run.draft" / "sites"
    left.mkdir(parents=True)
    (left / "half").write_text("written")
    assert start(tmp_path / "run")["result"]["tiers"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for name in ("supernet.safetensors", "result.json", "oracle.json"):
        assert (tmp_path / "run" / name).read_bytes() == (original / name).read_bytes(), "the same seed"


def test_an_empty_folder_may_become_a_run_and_stays_when_the_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    earlier = tiny.make_run(tmp_path / "earlier", tiny.study(), state=tmp_path / "state")
    tiny.exhaust(earlier, tiny.study())
    with pytest.raises(FednasError, match="every site refused"):
        start(tmp_path / "run", state=tmp_path / "state")
    assert list((tmp_path / "run").iterdir()) == []
    for ledger in (tmp_path / "state").rglob("*.sqlite"):
        assert charged(ledger)[0] == {}


@pytest.mark.parametrize("place", ["run", "run/below"])
def test_a_file_in_the_way_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunDirectoryError) as caught:
        start(tmp_path / place)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_finished_run_only_reports_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing is run")

    monkeypatch.setattr(runner, "_run_here", forbidden)
    assert resume(finished)["result"] == json.loads((finished / "result.json").read_text())


def test_a_run_that_died_between_its_last_files_is_completed_by_a_resume(
    finished: Path, original: Path
) -> None:
    (finished / "oracle.json").unlink()
    resume(finished)
    assert (finished / "oracle.json").read_bytes() == (original / "oracle.json").read_bytes()
    for name in ("result.json", "oracle.json", "supernet.safetensors"):
        (finished / name).unlink()
    shutil.rmtree(finished / "tiers")
    resume(finished)
    for name in ("result.json", "oracle.json", "supernet.safetensors"):
        assert (finished / name).read_bytes() == (original / name).read_bytes()
    for ledger in tiny.ledger_files(finished).values():
        assert not charged(ledger)[1]


def test_a_run_of_another_scenario_is_not_resumed(finished: Path) -> None:
    with pytest.raises(RunDirectoryError, match="a run of 'tiny', not of 'digits'"):
        runner.resume(finished, tiny.TEST_NOISE, scenario="digits")


@pytest.mark.parametrize("key", ["num_sites", "refused", "scenario", "run", "format"])
def test_a_manifest_that_lacks_a_part_is_one_line(finished: Path, key: str) -> None:
    manifest = json.loads((finished / "run.json").read_text())
    del manifest[key]
    (finished / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(RunDirectoryError) as caught:
        resume(finished)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
@pytest.mark.parametrize("name", ["result.json", "oracle.json"])
def test_a_corrupt_result_is_one_line(finished: Path, name: str, content: str) -> None:
    (finished / name).write_text(content)
    with pytest.raises(RunDirectoryError) as caught:
        resume(finished)
    assert "\n" not in str(caught.value)


def test_a_study_of_too_few_sites_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    study = tiny.study(federation={"min_sites": 4})
    with pytest.raises(ConfigurationError, match="3 sites answered, the study needs at least 4"):
        runner.start(tiny.scenario(), study, tmp_path / "run", tiny.TEST_NOISE)
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_nothing_fits_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny.BYTES, "small", (100, 100))
    with pytest.raises(InfeasibleDeviceError, match="fits the device of cobra"):
        start(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_sites_keep_nothing_open_after_a_run(original: Path) -> None:
    assert open_site.cache_info().currsize == 0
    for ledger in tiny.ledger_files(original).values():
        assert not ledger.with_name(ledger.name + "-wal").exists(), "closed properly"


@pytest.mark.slow
def test_ray_and_loopback_end_in_the_same_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations", "run", "digits", "--test-noise", "--rounds", "4"]
    for runtime in ("ray", "loopback"):
        out = ["--runtime", runtime, "--out", str(tmp_path / runtime)]
        subprocess.run([*command, *out], cwd=ROOT, check=True, capture_output=True)
    for name in ("supernet.safetensors", "result.json", "oracle.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "loopback" / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_that_every_site_refuses_is_the_same_line_on_ray(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations", "run", "digits", "--rounds", "4"]
    first = [*command, "--state", str(tmp_path / "first"), "--out", str(tmp_path / "spends")]
    subprocess.run(first, cwd=ROOT, check=True, capture_output=True, timeout=300)
    lines = []
    for runtime in ("loopback", "workers", "ray"):
        shutil.copytree(tmp_path / "first", tmp_path / runtime)
        places = ["--out", str(tmp_path / "run"), "--state", str(tmp_path / runtime), "--runtime", runtime]
        done = subprocess.run(
            [*command, *places], cwd=ROOT, check=False, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 2
        assert not (tmp_path / "run").exists()
        lines.append(done.stderr.strip())
    assert lines[0].startswith("error: every site refused")
    assert lines == [lines[0]] * 3
