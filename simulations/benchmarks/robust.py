"""What robust aggregation bears and what it costs: three rules beside the mean, under attack and under noise.

`python -m simulations.benchmarks.robust [--seeds N] [--rounds N] [--workers N]` prints two tables.

The first is public test accuracy of real studies, apps and ledgers included: handwritten digits at seven
offices of the same size and three device tiers, a search and its final training, at epsilon 3 and without
privacy. One office may be hostile. It answers last, knows what all others sent, and its own words are well
formed, signed and plausible:

- `largest`: against the direction of the honest mean, as long as `server.plausibility` lets pass;
- `mirror`: the honest mean with its sign changed, which lies between the others when their noise is larger.

The second is the variance of a coordinate under noise alone, beside that of the weighted mean.
"""

import argparse
import tempfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final, Literal, final
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fednas.aggregation import robust_rule, update_weight
from fednas.config import StudyConfig, space_of, validated
from fednas.errors import ExchangeError
from fednas.evaluation import public_accuracy
from fednas.site import Site, open_site
from fednas.site import site as site_module
from fednas.supernet import Contribution, Supernet
from fednas.training import train_weights
from fednas.wire import Answer, SiteFacts, Task
from server.checkpoint import create_run
from server.plausibility import check_plausible
from simulations.loopback import InProcessGrid, node_configs
from simulations.partition import dirichlet
from simulations.scenario import ScenarioData, SiteData, prepare
from simulations.scenarios import SCENARIOS, digits, hospitals

Rule = Literal["mean", "trimmed_mean", "median", "krum"]
Attack = Literal["none", "largest", "mirror"]
RULES: Final[tuple[Rule, ...]] = ("mean", "trimmed_mean", "median", "krum")
ATTACKS: Final[tuple[Attack, ...]] = ("none", "largest", "mirror")
EPSILONS: Final = (3.0, inf)
TIERS: Final = ("scanner", "counter", "counter", "counter", "hall", "hall", "hall")
SIZE: Final = 192
"""Of each office: seven times as many are the scenario's private digits, but for a few."""
SHOWN: Final = "counter"
HOSTILE: Final = f"office-{len(TIERS)}"
"""Last by name, so asked last: only a simulation lets it know what the others answered."""
_COORDINATES: Final = 1000
_REPEATS: Final = 40


@dataclass(frozen=True, kw_only=True)
class Job:
    """One study."""

    rule: Rule
    attack: Attack
    epsilon: float
    seed: int
    rounds: int


@final
class Conspiracy:
    """A hostile site among honest ones: it reads what they trained in this round, and sends what it likes.

    Args:
        attack: what it sends.
        study: of all of them.
    """

    def __init__(self, attack: Attack, study: StudyConfig) -> None:
        self._attack = attack
        supernet = Supernet.initialise(space_of(study), seed=0)
        zeros = {name: torch.zeros_like(weight) for name, weight in supernet.weights.items()}
        self._nothing = replace(supernet, weights=zeros)
        self._honest: list[Contribution] = []
        self._asked: tuple[Site, Task] | None = None

    def performing(self, perform: Callable[[Site, Task], Any]) -> Callable[[Site, Task], Any]:
        """`Site.perform`, with a look at who is asked what."""

        def performed(site: Site, task: Task) -> Any:
            if self._asked is None or self._asked[1].round != task.round:
                self._honest = []
            self._asked = site, task
            return perform(site, task)

        return performed

    def training(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """The mechanism of the weights: the hostile site's gives what its attack says."""

        def trained(*arguments: Any, **options: Any) -> Any:
            assert self._asked is not None, "a site trains when it is asked to"
            (site, task), update = self._asked, train(*arguments, **options)
            path = task.architectures[0]
            if self._attack == "none" or site.facts().site != HOSTILE:
                self._honest.append(Contribution(architecture=path, update=update, weight=1.0))
                return update
            against = -self._nothing.merge(self._honest).gather(path)
            return against if self._attack == "mirror" else longest(against, task, site.facts())

        return trained


def longest(direction: NDArray[np.float32], task: Task, facts: SiteFacts) -> NDArray[np.float32]:
    """The longest vector of a direction that the server takes for an honest site's."""
    norm = float(np.linalg.norm(direction))
    if norm == 0.0:  # a network that an attack has spoilt may have no gradient left
        return direction
    unit = direction / norm

    def passes(length: float) -> bool:
        arrays = {"update": (length * unit).astype(np.float32)}
        answer = Answer(operation_id="", head="", entries=1, signature="", arrays=arrays)
        try:
            check_plausible(answer, task, facts)
        except ExchangeError:
            return False
        return True

    low, high = 0.0, 1.0
    while passes(high):
        high *= 2.0
    for _ in range(30):
        low, high = (middle, high) if passes(middle := (low + high) / 2.0) else (low, middle)
    return (low * unit).astype(np.float32)


def offices() -> ScenarioData:
    """The digits of the scenario, dealt anew to seven offices of the same size, with its own label skew."""
    data = SCENARIOS["digits"]().load()
    x, y = (np.concatenate([getattr(site, name) for site in data.sites]) for name in ("x", "y"))
    identifiers = [identifier for site in data.sites for identifier in site.identifiers]
    generator = np.random.default_rng(digits.SEED)
    shares = dirichlet(y, [SIZE] * len(TIERS), alpha=digits.ALPHA, generator=generator)
    sites = tuple(
        SiteData(
            name=f"office-{number}",
            x=x[rows],
            y=y[rows],
            identifiers=[identifiers[row] for row in rows],
            declared_size=SIZE,
            device=digits.DEVICES[tier],
        )
        for number, (tier, rows) in enumerate(zip(TIERS, shares, strict=True), start=1)
    )
    return replace(data, sites=sites)


def study_of(job: Job) -> StudyConfig:
    """The scenario's study with a shorter schedule: a third of the rounds search, the others train."""
    values = SCENARIOS["digits"]().study.model_dump()
    values["seed"] = job.seed
    values["privacy"] |= {"epsilon": job.epsilon, "non_private": job.epsilon == inf}
    search = max(1, job.rounds // 3)
    values["schedule"] |= {
        "search_rounds": search,
        "final_rounds": max(1, job.rounds - search),
        "generations": 1,
        "candidates": 8,
    }
    values["federation"] |= {"aggregation": job.rule, "max_hostile": int(job.rule != "mean")}
    return validated(StudyConfig, values, "digits")


def accuracy(job: Job) -> float:
    """Conduct one study, and ask the public test set what it made."""
    from client.app import app as client_app
    from server.app import conduct

    torch.set_num_threads(1)
    data, study = offices(), study_of(job)
    plot = Conspiracy(job.attack, study)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(Site, "perform", plot.performing(Site.perform)),
        patch.object(site_module, "train_weights", plot.training(train_weights)),
    ):
        path = Path(folder) / "run"
        create_run(path, study, run=uuid.uuid4().hex, about={})
        prepare(data, path, cap=study.privacy.budget)
        grid = InProcessGrid(client_app, node_configs(len(data.sites)), {"sites-dir": str(path / "sites")})
        coordinator = conduct(grid, path, resume=False).coordinator
        open_site.cache_clear()
    network = coordinator.supernet.extract(coordinator.chosen[SHOWN])
    return public_accuracy(network, data.test_x, data.test_y).accuracy


def excess(rule: Rule, stds: Sequence[float]) -> float:
    """The variance of a coordinate under noise alone, as a multiple of the inverse-variance mean's.

    Args:
        rule: what combines; the mean gives 1.
        stds: deviation of the noise of each site.
    """
    weights = np.array([update_weight(declared_size=1, noise_multiplier=std) for std in stds])
    combine = robust_rule(rule, int(rule != "mean")) or (lambda votes: weights @ votes / weights.sum())
    generator = np.random.default_rng(0)
    drawn = (
        combine(generator.normal(size=(len(stds), _COORDINATES)) * np.array(stds)[:, None])
        for _ in range(_REPEATS)
    )
    return mean(float(np.mean(np.square(values))) for values in drawn) * float(weights.sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.robust", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="studies of each kind")
    parser.add_argument("--rounds", type=int, default=24, help="of training in a study")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args()
    console = Console()
    kinds = list(product(EPSILONS, ATTACKS, RULES))
    jobs = [
        Job(rule=rule, attack=attack, epsilon=epsilon, seed=seed, rounds=options.rounds)
        for epsilon, attack, rule in kinds
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(accuracy, jobs), strict=True))
    table = Table("epsilon", "hostile office", *RULES, title=f"test accuracy in the tier {SHOWN}")
    for epsilon, attack in product(EPSILONS, ATTACKS):
        cells = [
            [found[job] for job in jobs if (job.epsilon, job.attack, job.rule) == (epsilon, attack, rule)]
            for rule in RULES
        ]
        table.add_row(f"{epsilon:g}", attack, *map(_spread, cells))
    console.print(table)
    equal = [1.0] * len(TIERS)
    sizes = [size for _, size, _ in hospitals.SOURCES.values() if size >= 50]
    noise = Table("noise alone", *RULES, title="variance of a coordinate beside the weighted mean's")
    for name, stds in (
        (f"{len(TIERS)} sites of one size", equal),
        (f"the hospitals ({', '.join(map(str, sizes))})", [1.0 / size for size in sizes]),
    ):
        noise.add_row(name, *(f"{excess(rule, stds):.2f}" for rule in RULES))
    console.print(noise)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
