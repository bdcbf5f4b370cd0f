"""A study that is disturbed while it runs, and all that must hold afterwards."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from fednas.config import StudyConfig, load_site, validated
from fednas.privacy.signing import TaskSigner
from fednas.site.datasets import load as load_records
from server.checkpoint import create_run
from server.kit import ServerKit
from simulations.runner import Options, about
from simulations.scenario import Scenario, prepare
from tests.integration import evidence
from tests.integration.chaos import Fleet, Operator, watch_marks

NUM_SITES: Final = 3
OPTIONS: Final = Options(runtime="deployment", sites=NUM_SITES, test_noise=True)


class Disturbance(Protocol):
    """What goes wrong."""

    @property
    def played(self) -> Sequence[str]:
        """What went wrong so far, a line each, for people."""

    def play(self, over: threading.Event) -> None:
        """Go wrong, from the end of the first round until all is played or the study is over."""


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
