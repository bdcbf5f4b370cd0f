"""A study that is disturbed while it runs, its operator, and all that must hold afterwards."""

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, final

from fednas.config import StudyConfig, load_site, validated
from fednas.errors import ExchangeError
from fednas.privacy.signing import TaskSigner
from fednas.site.datasets import load as load_records
from server.checkpoint import create_run
from server.kit import ServerKit
from simulations.runner import Options, about
from simulations.scenario import Scenario, prepare
from tests.integration import evidence
from tests.integration.chaos import Fleet

NUM_SITES: Final = 3
OPTIONS: Final = Options(runtime="deployment", sites=NUM_SITES, test_noise=True)
_ASK_S: Final = 2.0
_LOOK_S: Final = 0.1


class Disturbance(Protocol):
    """What goes wrong."""

    @property
    def played(self) -> Sequence[str]:
        """What went wrong so far, a line each, for people."""

    def play(self, over: threading.Event) -> None:
        """Go wrong, from the end of the first round until all is played or the study is over."""


@final
class Operator:
    """Starts the study once its sites are there, and again whenever its run has failed, until it is complete.

    Args:
        fleet: running.
        keys: the public key of each site, by name.
        logs: folder for what the server app of each failed run printed.
        impatient: end a run whose server app is gone at once, not after Flower's 40 s.
    """

    def __init__(
        self, fleet: Fleet, keys: Mapping[str, Path], logs: Path, *, impatient: bool = False
    ) -> None:
        self._fleet = fleet
        self._keys = keys
        self._logs = logs
        self._impatient = impatient
        self._lived = False
        self.ends: Counter[str] = Counter()

    def conduct(self) -> None:
        """Return when a run ended well.

        Raises:
            ExchangeError: the time was up before.
        """
        known: set[str] = set()
        while time.monotonic() < self._fleet.flower.deadline:
            runs = self._fleet.runs()
            if runs is None:
                time.sleep(_ASK_S)
                continue
            ended = {run for run, status in runs.items() if status.startswith("finished")}
            for run in sorted(ended - known):
                self._note(run, runs[run])
            known |= ended
            if "finished:completed" in self.ends:
                return
            unfinished = set(runs) - ended
            if not unfinished:
                self._lived = False
                with suppress(ExchangeError):  # the SuperLink may have died meanwhile
                    self._fleet.flower.start_run()
            elif self._impatient and self._is_orphaned():
                for run in unfinished:
                    self._fleet.flower.ask(["stop", run, "fednas", "--format", "json"])
            time.sleep(_ASK_S)
        raise ExchangeError(f"the study did not end in time: {dict(self.ends)}; read {self._logs}")

    def register(self) -> None:
        """Make the sites known to the SuperLink and wait until all are there."""
        flower = self._fleet.flower
        while self._fleet.runs() is None and time.monotonic() < flower.deadline:
            time.sleep(_ASK_S)
        for name, key in self._keys.items():
            flower.register(key, name)
        while self._fleet.online() < len(self._keys):
            assert time.monotonic() < flower.deadline, "the SuperNodes did not come online"
            time.sleep(_ASK_S)

    def _is_orphaned(self) -> bool:
        """Whether no server app lives, though one did: it takes a moment to start."""
        lives = bool(self._fleet.living("server app"))
        self._lived |= lives
        return self._lived and not lives

    def _note(self, run: str, status: str) -> None:
        self.ends[status] += 1
        log = self._fleet.flower.log(run)
        (self._logs / f"run-{sum(self.ends.values()):02d}.log").write_text(f"{status}\n{log}")


def watch_marks(file: Path, over: threading.Event) -> list[str]:
    """What was wrong with the server's marks while they were looked at: a mark that went back or was lost."""
    wrong: list[str] = []
    newest: dict[str, int] = {}
    while not over.wait(_LOOK_S):
        if not file.exists():
            wrong += ["the marks are gone"] if newest else []
            continue
        for dataset, mark in json.loads(file.read_text())["datasets"].items():
            if mark["entries"] < newest.get(dataset, 0):
                wrong.append(f"{dataset} went back from {newest[dataset]} to {mark['entries']}")
            newest[dataset] = mark["entries"]
    return wrong


def make_run(path: Path, scenario: Scenario, study: StudyConfig, server: ServerKit) -> list[Path]:
    """A run directory of seeded sites, nothing asked of them yet; their files."""
    data = scenario.load()
    data = replace(data, sites=data.sites[:NUM_SITES])
    create_run(path, study, run=f"test-{study.name}", about=about(scenario, data, OPTIONS))
    sites = prepare(
        data,
        path,
        cap=study.privacy.budget,
        test_seed=study.seed,
        server_key=TaskSigner.read(server.signing_key).public_key,
    )
    for site in sites:
        load_records(load_site(site), study.data)
    return sites


def hurried(study: StudyConfig, deadline_s: float) -> StudyConfig:
    """A study that does not wait long for the dead, with spare rounds for answers that get lost."""
    values = study.model_dump()
    values["federation"] |= {"deadline_s": deadline_s}
    values["schedule"] |= {"spare_rounds": 40}
    return validated(StudyConfig, values, "study")


def disturb(
    fleet: Fleet, disturbance: Disturbance, operator: Operator, run: Path, signer: TaskSigner
) -> None:
    """Conduct a study to its end under a disturbance, look at what is left, print what happened."""
    over = threading.Event()
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool, fleet.running():
        watch = pool.submit(watch_marks, run / "marks.json", over)
        try:
            operator.register()
            play = pool.submit(disturbance.play, over)
            operator.conduct()
        finally:
            over.set()
        play.result()
    assert watch.result() == []
    minutes = (time.monotonic() - begin) / 60.0
    evidence.assert_complete(run)
    evidence.assert_ledgers_verify(run)
    merged = evidence.assert_all_that_was_merged_was_charged_and_used_once(run)
    evidence.assert_budgets_hold(run)
    evidence.assert_marks_are_the_newest_answers(run)
    evidence.assert_one_process_makes_the_same(run, run.with_name("twin"), signer)
    lines = [
        *disturbance.played,
        f"starts: {dict(fleet.starts)}; runs: {dict(operator.ends)}",
        f"{len(evidence.rounds_of(run))} rounds, {merged} answers merged, {minutes:.1f} minutes",
    ]
    table = "\n".join(lines)
    print("\n" + table)  # noqa: T201
