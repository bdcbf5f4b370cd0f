"""Kills: a study over real processes that die at random moments ends well, each answer paid for once."""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fednas.config import StudyConfig, load_site, validated
from fednas.privacy.signing import TaskSigner
from fednas.schedule import agenda
from fednas.site.datasets import load as load_records
from server.checkpoint import create_run
from server.kit import ServerKit
from simulations.__main__ import adjust
from simulations.flower_command import free_port
from simulations.runner import Options, about
from simulations.scenario import Scenario, prepare
from simulations.scenarios import SCENARIOS
from tests.integration import evidence
from tests.integration.chaos import (
    Card,
    Fleet,
    Killer,
    Kind,
    Operator,
    local_fleet,
    make_folder,
    shuffled,
    watch_marks,
)
from tests.simulations import tiny

NUM_SITES = 3
OPTIONS = Options(runtime="deployment", sites=NUM_SITES, test_noise=True)

KILLS: Mapping[Kind, int] = {"server app": 12, "SuperLink": 12, "SuperNode": 14, "client task": 26}
# Not dead but silent, for shorter and longer than a lease: what wakes up must do no harm.
PAUSES: Sequence[Card] = (
    Card(kind="server app", pause_s=70.0),
    Card(kind="server app", pause_s=20.0),
    Card(kind="SuperLink", pause_s=15.0),
    Card(kind="SuperNode", pause_s=75.0),
    Card(kind="SuperNode", pause_s=25.0),
    Card(kind="client task", pause_s=50.0),
    Card(kind="client task", pause_s=10.0),
    Card(kind="client task", pause_s=5.0),
)


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


def disturb(fleet: Fleet, killer: Killer, operator: Operator, run: Path, signer: TaskSigner) -> str:
    """Conduct a study to its end while the killer plays, look at what is left, say what happened."""
    over = threading.Event()
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool, fleet.running():
        watch = pool.submit(watch_marks, run / "marks.json", over)
        try:
            operator.register()
            play = pool.submit(killer.play, over)
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
        *killer.played,
        f"kills {sum(killer.kills.values())}: {dict(killer.kills)}; stopped: {dict(killer.pauses)}",
        f"starts: {dict(fleet.starts)}; runs: {dict(operator.ends)}",
        f"{len(evidence.rounds_of(run))} rounds, {merged} answers merged, {minutes:.1f} minutes",
    ]
    return "\n".join(lines)


def soak(
    folder: Path,
    scenario: Scenario,
    study: StudyConfig,
    deck: Sequence[Card],
    *,
    seed: int,
    longest_s: float,
    timeout_s: float,
    impatient: bool = False,
) -> Killer:
    """Make a run, disturb it with a deck, and print what happened."""
    run = folder / "run"
    server = ServerKit.prepare(folder / "fleet" / "server", [], port=free_port())
    sites = make_run(run, scenario, study, server)
    fleet, kits = local_fleet(folder / "fleet", run, sites, server, seed=seed, timeout_s=timeout_s)
    num_rounds = len(agenda(study))
    killer = Killer(fleet, deck, run, num_rounds=num_rounds, seed=seed, longest_s=longest_s)
    operator = Operator(
        fleet,
        {name: kit.public_key for name, kit in kits.items()},
        make_folder(folder / "fleet" / "logs"),
        impatient=impatient,
    )
    table = disturb(fleet, killer, operator, run, TaskSigner.read(server.signing_key))
    print("\n" + table)  # noqa: T201
    (folder / "table.txt").write_text(table + "\n")
    return killer


def test_a_study_ends_well_though_each_kind_of_process_is_killed(tmp_path: Path) -> None:
    """The small one: each kind once, the server app last, since it takes the longest to come back."""
    study = hurried(tiny.study(schedule={"search_rounds": 1, "final_rounds": 1}), 30.0)
    order: Sequence[Kind] = ("client task", "SuperLink", "SuperNode", "server app")
    deck = [Card(kind=kind) for kind in order]
    killer = soak(
        tmp_path, tiny.scenario(), study, deck, seed=0, longest_s=4.0, timeout_s=600.0, impatient=True
    )
    assert sum(killer.kills.values()) == len(order)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_study_ends_well_after_64_kills_at_random_moments(tmp_path: Path, seed: int) -> None:
    scenario = SCENARIOS["hospitals"]()
    study = hurried(adjust(scenario.study, rounds=40), 60.0)
    deck = shuffled(KILLS, PAUSES, seed=seed)
    killer = soak(tmp_path, scenario, study, deck, seed=seed, longest_s=40.0, timeout_s=5400.0)
    assert killer.kills == KILLS, "the study was over before the deck"
