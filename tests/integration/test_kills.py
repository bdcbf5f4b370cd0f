"""Kills: a study over real processes that die at random moments ends well, each answer paid for once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from fednas.config import StudyConfig
from fednas.privacy.signing import TaskSigner
from fednas.schedule import agenda
from server.kit import ServerKit
from simulations.__main__ import adjust
from simulations.flower_command import free_port
from simulations.scenario import Scenario
from simulations.scenarios import SCENARIOS
from tests.integration.chaos import Card, Killer, Kind, local_fleet, make_folder, shuffled
from tests.integration.disturbed import Operator, disturb, hurried, make_run
from tests.simulations import tiny

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
    disturb(fleet, killer, operator, run, TaskSigner.read(server.signing_key))
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
    study = hurried(adjust(scenario.study, rounds=24), 60.0)
    deck = shuffled(KILLS, PAUSES, seed=seed)
    killer = soak(tmp_path, scenario, study, deck, seed=seed, longest_s=40.0, timeout_s=5400.0)
    assert killer.kills == KILLS, "the study was over before the deck"
