"""A run directory: what a study has released so far, on disk, one whole round at a time."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from fednas.config import StudyConfig, load_study, save_study
from fednas.errors import RunDirectoryError
from fednas.space import SearchSpace
from fednas.supernet import Supernet

FORMAT = 2


@final
class RunDirectory:
    """Files of one run; nothing in it is private.

    Args:
        path: an existing folder with `study.toml` and `run.json`.

    Raises:
        RunDirectoryError: the folder is missing, corrupt, or not a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "study.toml").is_file() or not (path / "run.json").is_file():
            raise RunDirectoryError(f"{path} is not a run directory: study.toml or run.json is missing")
        self.study: StudyConfig = load_study(path / "study.toml")
        manifest = read_json(path / "run.json")
        if manifest.get("format") != FORMAT or not isinstance(manifest.get("run"), str):
            raise RunDirectoryError(
                f"{path}/run.json is not of format {FORMAT}; it belongs to another version"
            )
        self.run: str = manifest["run"]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other servers out: one that was taken for dead may wake up beside its successor.

        Raises:
            RunDirectoryError: another server is at work on it; a crash lets go.
        """
        descriptor = os.open(self.path / "run.json", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise RunDirectoryError(
                f"another server is at work on {self.path}; wait for its end, or end it, and resume"
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace one JSON file atomically."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, value)

    def settle(self, *names: str) -> None:
        """Put files, and folders with all that is in them, on the disk before another file announces them.

        Raises:
            RunDirectoryError: the disk refuses.
        """
        for name in names:
            for path in (self.path / name, *sorted((self.path / name).rglob("*"))):
                try:
                    _sync(path)
                except OSError as error:
                    raise _unwritable(path, error) from error

    def read(self, name: str) -> dict[str, Any]:
        """One JSON file.

        Raises:
            RunDirectoryError: when it is missing or corrupt.
        """
        return read_json(self.path / name)

    def save(self, round_number: int, supernet: Supernet, state: Mapping[str, Any]) -> None:
        """Write a checkpoint durably, then drop the ones before the previous: a crash leaves a whole one.

        Raises:
            RunDirectoryError: the disk refuses.
        """
        target = self.path / "checkpoints" / f"{round_number:05d}"
        try:
            self._save(target, supernet, state)
        except OSError as error:
            raise _unwritable(target, error) from error

    def _save(self, target: Path, supernet: Supernet, state: Mapping[str, Any]) -> None:
        draft = target.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _sync(self.path)  # the name of the folder of checkpoints
        supernet.save(draft / "supernet.safetensors")
        write_json(draft / "state.json", state)
        _sync(draft / "supernet.safetensors")
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        _sync(target.parent)
        for old in self._checkpoints()[:-2]:
            shutil.rmtree(old)

    def latest(self, space: SearchSpace) -> tuple[int, Supernet, dict[str, Any]] | None:
        """The last whole checkpoint: its round, supernet and state; None before the first."""
        found = self._checkpoints()
        if not found:
            return None
        last = found[-1]
        return (
            int(last.name),
            Supernet.load(space, last / "supernet.safetensors"),
            read_json(last / "state.json"),
        )

    def _checkpoints(self) -> list[Path]:
        folder = self.path / "checkpoints"
        return sorted(p for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []


def create_run(path: Path, study: StudyConfig, *, run: str, about: Mapping[str, Any]) -> None:
    """Make a run directory.

    Args:
        path: must not hold a run yet.
        study: written as `study.toml`.
        run: the run's identity at every site's ledger.
        about: what else a reader should know: scenario, versions, hardware.

    Raises:
        RunDirectoryError: when there is already one.
    """
    if (path / "run.json").exists():
        raise RunDirectoryError(f"{path} already holds a run; resume it or choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    save_study(study, path / "study.toml")
    _sync(path / "study.toml")
    _sync(path.parent)
    write_json(path / "run.json", {"format": FORMAT, "run": run} | dict(about))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON durably: a draft, a sync, a rename, and a sync of the folder that holds the name.

    Raises:
        RunDirectoryError: the disk refuses.
    """
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
        _sync(draft)
        draft.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunDirectoryError: when it is missing or corrupt.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} is missing or corrupt; the run cannot be read from here") from error
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path} is not a JSON object; the run cannot be read from here")
    return value


def _unwritable(path: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"cannot write {path}: {error.strerror}; make room, or give the disk back, and resume"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
