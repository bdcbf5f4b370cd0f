"""Many mutants at once: each lives in a process of its own, and only the layer that must find it looks at it.

A process that has imported what the library needs forks a child for every mutant, see
`fednas.audit.children`; where processes cannot fork, every mutant has an interpreter of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, final

from fednas.audit.children import exit_words, hang_words, kill
from fednas.audit.mutation import Edit, Mutant
from fednas.audit.scratch import scratch
from fednas.errors import AuditError

LIMIT_S: Final = 120.0
"""A layer that has found nothing by then hangs; the slowest takes a tenth of it."""

_ROOT = Path(__file__).resolve().parents[2]
_SLOWEST_FIRST: Final = ("L3", "L2", "L1", "L0")


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a mutant ended.

    Args:
        name: of the mutant, or `the correct code` for a control.
        layer: which was run on it.
        group: of the mutant, or `control`.
        mechanisms: whose releases it breaks.
        killed: whether its layer accused it, and accused nothing of the correct code.
        found_by: the first check that did not hold, with its figures; empty if none did.
        error: why there was no verdict: an exception, a hang, or a layer that accuses the correct code. A
            crash kills no mutant, because it would not accuse anybody.
        seconds: from its birth to its end.
    """

    name: str
    layer: str
    group: str
    mechanisms: tuple[str, ...]
    killed: bool
    found_by: str
    error: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A layer to run on edited code; a control has no edits."""

    layer: str
    name: str = "the correct code"
    group: str = "control"
    mechanisms: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()

    @classmethod
    def of(cls, mutant: Mutant) -> "_Job":
        return cls(
            layer=mutant.layer,
            name=mutant.name,
            group=mutant.group,
            mechanisms=mutant.mechanisms,
            edits=mutant.edits,
        )

    def ended(self, end: Mapping[str, Any]) -> Outcome:
        found_by, error = str(end["found_by"]), str(end["error"])
        if self.group == "control" and not error:
            if found_by:
                error = f"accuses the correct code: {found_by}"
            elif not end["checks"]:
                error = "checks nothing"
        return Outcome(
            name=self.name,
            layer=self.layer,
            group=self.group,
            mechanisms=self.mechanisms,
            killed=bool(self.group != "control" and found_by and not error),
            found_by=found_by,
            error=error,
            seconds=float(end["seconds"]),
        )


def run_mutants(
    mutants: Sequence[Mutant],
    *,
    controls: bool = True,
    workers: int | None = None,
    limit_s: float = LIMIT_S,
    errors: Path | None = None,
    fork: bool | None = None,
) -> Iterator[Outcome]:
    """Run each mutant's own layer on it, and every layer used on the correct code.

    Args:
        mutants: what is run; see `fednas.audit.mutation.load_mutants`.
        controls: whether the layers are run on the correct code; without, whoever calls has seen them silent.
        workers: children at the same time; one for each core by default.
        limit_s: after which a child is ended.
        errors: a file for what children write to standard error; None forgets it.
        fork: whether children are forked; where that is possible by default.

    Yields:
        One outcome for each mutant, as they come. It waits for the control of its layer: a layer that accuses
        the correct code, or checks nothing there, kills nothing.

    Raises:
        AuditError: the process that forks them died.
    """
    jobs = [_Job.of(mutant) for mutant in mutants]
    if controls:
        jobs += _controls(mutant.layer for mutant in mutants)
    heard: dict[str, Outcome] = {}
    waiting: list[Outcome] = []
    for outcome in _run(jobs, workers=workers, limit_s=limit_s, errors=errors, fork=fork):
        if outcome.group == "control":
            heard[outcome.layer] = outcome
        else:
            waiting.append(outcome)
        ready = [w for w in waiting if w.layer in heard or not controls]
        waiting = [w for w in waiting if w not in ready]
        yield from (_judged(w, heard.get(w.layer)) for w in ready)


def run_controls(
    layers: Iterable[str],
    *,
    workers: int | None = None,
    limit_s: float = LIMIT_S,
    errors: Path | None = None,
    fork: bool | None = None,
) -> Iterator[Outcome]:
    """Run some layers on the correct code: each outcome has no error if its layer checked and was silent.

    Args:
        layers: by name.
        workers: see `run_mutants`, as for all others.
        limit_s: likewise.
        errors: likewise.
        fork: likewise.

    Raises:
        AuditError: the process that forks them died.
    """
    return _run(_controls(layers), workers=workers, limit_s=limit_s, errors=errors, fork=fork)


def _controls(layers: Iterable[str]) -> list[_Job]:
    return [_Job(layer=layer) for layer in dict.fromkeys(layers)]


def _judged(outcome: Outcome, control: Outcome | None) -> Outcome:
    if control is None or not control.error:
        return outcome
    return replace(outcome, killed=False, error=f"{outcome.layer} {control.error}")


def _run(
    jobs: Sequence[_Job], *, workers: int | None, limit_s: float, errors: Path | None, fork: bool | None
) -> Iterator[Outcome]:
    # Controls first, as others wait for them, and long ones before short ones, so that no core waits long.
    ordered = sorted(jobs, key=lambda job: (job.group != "control", _SLOWEST_FIRST.index(job.layer)))
    number = workers or _cores()
    run = _forked if (hasattr(os, "fork") if fork is None else fork) else _fresh
    with scratch("fednas-mutants-") as folder:
        log = Path(folder) / "errors" if errors is None else errors.resolve()
        with (
            log.open("w", encoding="utf-8") as file,
            closing(run(ordered, Path(folder), number, limit_s, file)) as ends,
        ):
            for index, end in ends:
                yield ordered[index].ended(end)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _command() -> tuple[list[str], dict[str, str]]:
    """An interpreter that runs `fednas.audit.children` of this very library in one thread."""
    paths = [str(_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    return [sys.executable, "-P", "-m", "fednas.audit.children"], environment


def _forked(
    jobs: Sequence[_Job], folder: Path, workers: int, limit_s: float, errors: IO[str]
) -> Generator[tuple[int, Mapping[str, Any]], None, None]:
    """Ends of jobs, by index, from a process that forks; it and its children go when nobody listens."""
    request = {
        "jobs": [asdict(job) for job in jobs],
        "folder": str(folder),
        "workers": workers,
        "limit_s": limit_s,
    }
    command, environment = _command()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request))
                process.stdin.close()
            left = len(jobs)
            while left:
                line = process.stdout.readline()
                if not line:
                    ended = exit_words(process.wait())
                    raise AuditError(
                        f"the process that forks {ended}, with {left} of {len(jobs)} mutants left; run "
                        "those again, with --name"
                    )
                end = json.loads(line)
                left -= 1
                yield end["index"], end
        finally:
            process.terminate()


def _fresh(
    jobs: Sequence[_Job], folder: Path, workers: int, limit_s: float, errors: IO[str]
) -> Generator[tuple[int, Mapping[str, Any]], None, None]:
    """Ends of jobs, by index, each from an interpreter of its own."""
    command, environment = _command()
    alive: set[subprocess.Popen[str]] = set()

    def run(index: int) -> tuple[int, Mapping[str, Any]]:
        own, start = folder / str(index), time.monotonic()
        own.mkdir()
        request = json.dumps({"job": asdict(jobs[index]), "folder": str(own)})
        late = threading.Event()
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        ) as process:
            alive.add(process)
            timer = threading.Timer(limit_s, _expire, (late, process))
            timer.start()
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.write(request)
                process.stdin.close()
            said = process.stdout.readline()
            timer.cancel()
            if said:
                _end(process)  # with all that it started
            status = process.wait()
            alive.discard(process)
        shutil.rmtree(own, ignore_errors=True)
        end: dict[str, Any] = {"found_by": "", "checks": 0, "error": ""}
        if said:
            end |= json.loads(said)
        else:
            end["error"] = hang_words(limit_s) if late.is_set() else exit_words(status)
        return index, end | {"seconds": time.monotonic() - start}

    pool = ThreadPoolExecutor(workers)
    try:
        for future in as_completed([pool.submit(run, index) for index in range(len(jobs))]):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(alive):
            _end(process)
        pool.shutdown()


def _expire(late: threading.Event, process: "subprocess.Popen[str]") -> None:
    late.set()
    _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """End an interpreter, and where there are groups of processes, all that it started."""
    if hasattr(os, "killpg"):
        kill(process.pid)
    else:
        process.kill()
