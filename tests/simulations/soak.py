"""`python -m tests.simulations.soak FOLDER`: eight sites in one process for many rounds, and its memory.

The study, the apps, the grid, the ledgers and their noise are those of any other run; only the records are
made up. Memory and descriptors are read between rounds, where the round loop says which one comes next.
"""

import argparse
import ctypes
import json
import logging
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal, final

import torch
from scipy.stats import theilslopes

from client.app import app as client_app
from fednas.config import ScheduleSection, StudyConfig, load_sites
from fednas.logs import Event
from fednas.privacy.signing import TaskSigner
from fednas.privacy.verify import verify
from fednas.schedule import agenda
from fednas.site import open_site
from server.app import conduct
from server.checkpoint import create_run
from simulations.loopback import InProcessGrid, node_configs
from simulations.scenario import ScenarioData, SiteData, prepare
from tests.simulations import tiny

NUM_SITES: Final = 8
EVERY: Final = 2
"""Rounds between two readings."""

Memory = Literal["resident_bytes", "own_bytes", "unique_bytes"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the kernel says of this process before a round.

    Args:
        round: the one that comes next.
        resident_bytes: pages in memory (RSS).
        own_bytes: those that no file holds: what this process wrote, whoever else runs.
        unique_bytes: those that no other process has (USS); it moves when others start and end.
        descriptors: open files, sockets and pipes.
        seconds: since the first round.
    """

    round: int
    resident_bytes: int
    own_bytes: int
    unique_bytes: int
    descriptors: int
    seconds: float


def read_process(round_number: int, seconds: float) -> Reading:
    """Read this process's memory and descriptors."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    size = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return Reading(
        round=round_number,
        resident_bytes=size["Rss"],
        own_bytes=size["Anonymous"],
        unique_bytes=size["Private_Clean"] + size["Private_Dirty"],
        descriptors=len(os.listdir("/proc/self/fd")),
        seconds=seconds,
    )


@dataclass(frozen=True, kw_only=True)
class Slope:
    """How memory grows.

    Args:
        percent: of the level, in 100 rounds.
        low, high: the 95 % interval of `percent`.
        level_bytes: the median.
    """

    percent: float
    low: float
    high: float
    level_bytes: float

    @property
    def bytes_per_round(self) -> float:
        """The estimate in bytes a round, of all sites and the server together."""
        return self.percent * self.level_bytes / 1e4


def slope(readings: Sequence[Reading], memory: Memory) -> Slope:
    """Fit a line that single steps do not move.

    Source: Sen (1968), "Estimates of the regression coefficient based on Kendall's tau".
    """
    values = [float(getattr(reading, memory)) for reading in readings]
    level = sorted(values)[len(values) // 2]
    found = theilslopes(values, [float(reading.round) for reading in readings], alpha=0.95)
    estimate, low, high = (1e4 / level * float(v) for v in (found.slope, found.low_slope, found.high_slope))
    return Slope(percent=estimate, low=low, high=high, level_bytes=level)


@dataclass(frozen=True, kw_only=True)
class Soak:
    """One run.

    Args:
        rounds: how many were completed.
        readings: in order, one every `EVERY` rounds.
        entries: of all ledgers together, each verified at the end.
    """

    rounds: int
    readings: tuple[Reading, ...]
    entries: int

    @classmethod
    def load(cls, path: Path) -> "Soak":
        """Read what `main` wrote."""
        document = json.loads(path.read_text())
        readings = tuple(Reading(**reading) for reading in document.pop("readings"))
        return cls(readings=readings, **document)

    def between(self, first: int, last: int) -> list[Reading]:
        """The readings of these rounds."""
        return [reading for reading in self.readings if first <= reading.round <= last]

    def table(self, windows: Sequence[tuple[int, int]]) -> str:
        """What was found, for people: a line for each kind of memory in each window of rounds."""
        lines = [f"{self.rounds} rounds, {NUM_SITES} sites, {self.readings[-1].seconds:.0f} s"]
        for first, last in windows:
            readings = self.between(first, last)
            seen = sorted({reading.descriptors for reading in readings})
            lines.append(f"rounds {first} to {last}: descriptors {', '.join(map(str, seen))}")
            kinds: tuple[Memory, ...] = ("resident_bytes", "own_bytes", "unique_bytes")
            for memory in kinds:
                found = slope(readings, memory)
                lines.append(
                    f"  {memory:14} {found.level_bytes / 2**20:6.1f} MiB"
                    f"  {found.percent:+.3f} % in 100 rounds ({found.low:+.3f} to {found.high:+.3f})"
                    f"  {found.bytes_per_round / 1024:+.1f} KiB a round"
                )
        return "\n".join(lines)

    def curve(self, points: int = 50) -> str:
        """A line for each of some readings: round, seconds, RSS, own memory and USS in MiB, descriptors."""
        lines = []
        for r in self.readings[:: max(1, len(self.readings) // points)]:
            sizes = (r.resident_bytes, r.own_bytes, r.unique_bytes)
            mebibytes = "  ".join(f"{size / 2**20:6.1f}" for size in sizes)
            lines.append(f"{r.round:5} {r.seconds:7.1f}  {mebibytes}  {r.descriptors}")
        return "\n".join(lines)


def problems(readings: Sequence[Reading], *, bound_percent: float) -> list[str]:
    """What grows in a row of readings: memory beyond a bound, in percent of its level in 100 rounds, files.

    USS is left out: other processes that end make it grow.
    """
    kinds: tuple[Memory, ...] = ("resident_bytes", "own_bytes")
    found = [kind for kind in kinds if slope(readings, kind).percent > bound_percent]
    return found + ["descriptors"] * (len({reading.descriptors for reading in readings}) > 1)


def study(rounds: int) -> StudyConfig:
    """A study of exactly so many rounds: five of ten search, one compares candidates, the rest are final.

    The differentiable strategy, because its sites release all there is: weights, architecture gradients and
    fitness.
    """
    generations = rounds // 10
    searched = 5 * generations
    schedule = ScheduleSection(
        search_rounds=searched,
        generations=generations,
        final_rounds=rounds - searched - generations - 1,
        candidates=9,
    )
    config = tiny.study(schedule=schedule.model_dump(), search={"strategy": "differentiable", "pool": 6})
    assert len(agenda(config)) == rounds
    return config


def federation() -> ScenarioData:
    """Eight sites on three tiers of devices."""
    sites = []
    for number in range(NUM_SITES):
        size = 60 + 10 * number
        x, y = tiny.records(size, number)
        sites.append(
            SiteData(
                name=f"site-{number}",
                x=x,
                y=y,
                identifiers=[f"{number}-{row}".encode() for row in range(size)],
                declared_size=size,
                device=tiny.device(list(tiny.BYTES)[number % len(tiny.BYTES)]),
            )
        )
    return replace(tiny.data(), sites=tuple(sites))


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What is lost on purpose.

    Args:
        bytes: of memory, kept for ever at each round.
        descriptors: opened and never closed at each round.
        first: the round at which it begins.
    """

    bytes: int = 0
    descriptors: int = 0
    first: int = 1


@final
class Watch(logging.Handler):
    """Reads the process whenever a round begins.

    Args:
        leak: what is lost on purpose.
        tidy: give free memory back to the kernel before each reading: what is held then shows in a few
            rounds. Without it the allocator keeps some megabytes more or less, as it does in production.
    """

    def __init__(self, leak: Leak, *, tidy: bool) -> None:
        super().__init__()
        self._libc = ctypes.CDLL(None) if tidy else None
        self.readings: list[Reading] = []
        self._leak = leak
        self._kept: list[object] = []
        self._start = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of the round loop."""
        if getattr(record, "event", None) is not Event.ROUND_BEGINS:
            return
        number = int(getattr(record, "fields", {})["round"])
        if number >= self._leak.first:
            self._kept.append(b"\1" * self._leak.bytes)
            self._kept += [os.open("/dev/null", os.O_RDONLY) for _ in range(self._leak.descriptors)]
        if number % EVERY == 0:
            if self._libc is not None:
                self._libc.malloc_trim(0)
            self.readings.append(read_process(number, time.monotonic() - self._start))


def soak(folder: Path, rounds: int, watch: Watch) -> Soak:
    """Run a study of so many rounds in this process, and verify every ledger at its end."""
    config = study(rounds)
    run = folder / "run"
    create_run(run, config, run="soak", about={"scenario": "soak", "num_sites": NUM_SITES, "refused": []})
    signer = TaskSigner(secrets.token_bytes(32))
    prepare(federation(), run, cap=config.privacy.budget, server_key=signer.public_key)
    nodes = node_configs(NUM_SITES)
    grid = InProcessGrid(client_app, nodes, {"sites-dir": str((run / "sites").resolve())})
    log = logging.getLogger("fednas.coordinator")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(watch)
    try:
        conduct(grid, run, resume=False, signer=signer)
    finally:
        log.removeHandler(watch)
        open_site.cache_clear()
    entries = [verify(site.ledger).entries for site in load_sites(run)]
    done = len(list((run / "rounds").glob("*.json")))
    return Soak(rounds=done, readings=tuple(watch.readings), entries=sum(entries))


def main() -> None:
    """Run a soak and write its readings to `soak.json` in its folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--lost-bytes", type=int, default=0)
    parser.add_argument("--lost-descriptors", type=int, default=0)
    parser.add_argument("--lost-from", type=int, default=1)
    parser.add_argument("--tidy", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    leak = Leak(bytes=options.lost_bytes, descriptors=options.lost_descriptors, first=options.lost_from)
    found = soak(options.folder, options.rounds, Watch(leak, tidy=options.tidy))
    (options.folder / "soak.json").write_text(json.dumps(asdict(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
