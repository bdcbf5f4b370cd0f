"""Compare a search with random, fixed and lonely baselines, at the same epsilon and over several seeds."""

import dataclasses
import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Literal

import numpy as np
import torch

from fednas.config import StudyConfig, space_of, validated
from fednas.errors import ConfigurationError, InfeasibleDeviceError
from fednas.evaluation import public_accuracy
from fednas.space import Architecture
from server.checkpoint import create_run
from server.cohort import Costs
from simulations.loopback import InProcessGrid, node_configs
from simulations.scenario import Scenario, ScenarioData, prepare
from simulations.scenarios import SCENARIOS

Method = Literal["search", "random", "fixed", "alone"]
"""`search` is the scenario's study. `random` and `fixed` train given architectures in all rounds, without a
search, at the same epsilon; `alone` is the search among the sites of one tier."""

ATTEMPTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a comparison; `variant` counts random draws or names the tier that is alone."""

    scenario: str
    method: Method
    epsilon: float
    seed: int
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one run gave one tier; accuracies are on the public test set, which no run has seen."""

    job: Job
    tier: str
    accuracy: float
    balanced_accuracy: float
    architecture: str
    parameters: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One method at one epsilon in one tier, over the seeds.

    Args:
        scores: per seed the accuracy, the median over draws where there are several.
        wins: how many seeds beat the median random architecture of the same seed; None for `random` itself.
    """

    epsilon: float
    tier: str
    method: Method
    scores: tuple[float, ...]
    balanced: tuple[float, ...]
    wins: int | None

    @property
    def text(self) -> str:
        """Mean and standard deviation over the seeds."""
        return _spread(self.scores)

    @property
    def balanced_text(self) -> str:
        """The same for balanced accuracy."""
        return _spread(self.balanced)


def plan_jobs(scenario: Scenario, *, epsilons: Sequence[float], seeds: int, draws: int) -> list[Job]:
    """Every run of a comparison, in the order they are done.

    Raises:
        ConfigurationError: an epsilon is out of its bounds.
    """
    for epsilon in epsilons:
        adjusted(scenario.study, seed=0, epsilon=epsilon)
    tiers = sorted({site.device.tier for site in load(scenario.name).sites})
    jobs = []
    for epsilon, seed in product(epsilons, range(seeds)):
        base = {"scenario": scenario.name, "epsilon": epsilon, "seed": seed}
        jobs.append(Job(method="search", **base))  # type: ignore[arg-type]
        jobs += [Job(method="random", variant=str(draw), **base) for draw in range(draws)]  # type: ignore[arg-type]
        jobs.append(Job(method="fixed", **base))  # type: ignore[arg-type]
        jobs += [Job(method="alone", variant=tier, **base) for tier in tiers]  # type: ignore[arg-type]
    return jobs


def compare(jobs: Sequence[Job], path: Path, *, workers: int) -> Iterator[tuple[int, int]]:
    """Do the jobs whose rows are not in the file yet, append their rows, and count along.

    Args:
        jobs: from `plan_jobs`.
        path: JSON lines; an interrupted comparison continues from it.
        workers: processes of one thread each.

    Yields:
        Jobs done and jobs in all.
    """
    done = {row.job for row in read_rows(path)}
    left = [job for job in jobs if job not in done]
    yield len(jobs) - len(left), len(jobs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a") as file,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        for count, rows in enumerate(pool.map(do, left), start=len(jobs) - len(left) + 1):
            for row in rows:
                file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            yield count, len(jobs)


def do(job: Job) -> list[Row]:
    """Run one job in a temporary folder: real apps, ledgers and noise; only the exports are left out."""
    from client.app import app as client_app
    from fednas.site import open_site
    from server.app import conduct

    torch.set_num_threads(1)
    scenario, data = SCENARIOS[job.scenario](), load(job.scenario)
    if job.method == "alone":
        sites = tuple(site for site in data.sites if site.device.tier == job.variant)
        data = dataclasses.replace(data, sites=sites)
    study = _study(scenario, data, job)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        create_run(path, study, run=uuid.uuid4().hex, about={})
        prepare(data, path, cap=study.privacy.budget)
        nodes = node_configs(len(data.sites))
        grid = InProcessGrid(client_app, nodes, {"sites-dir": str(path / "sites")})
        completed = conduct(grid, path, resume=False)
        open_site.cache_clear()
    seconds = time.perf_counter() - began
    rows = []
    for tier, architecture in completed.coordinator.chosen.items():
        network = completed.coordinator.supernet.extract(architecture)
        found = public_accuracy(network, data.test_x, data.test_y)
        rows.append(
            Row(
                job=job,
                tier=tier,
                accuracy=found.accuracy,
                balanced_accuracy=found.balanced_accuracy,
                architecture=architecture.to_json(),
                parameters=completed.cohort.costs(architecture).parameters,
                seconds=round(seconds, 2),
            )
        )
    return rows


@lru_cache(maxsize=4)
def load(name: str) -> ScenarioData:
    """The records of a scenario, read once a process."""
    return SCENARIOS[name]().load()


def read_rows(path: Path) -> list[Row]:
    """The rows of a comparison so far.

    Raises:
        ConfigurationError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        values = [json.loads(line) for line in path.read_text().splitlines()]
        return [Row(**(value | {"job": Job(**value["job"])})) for value in values]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(f"{path} does not hold rows of a comparison; choose another file") from error


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Per epsilon, tier and method: accuracy over the seeds, and how often it beats the median random one."""
    summaries = []
    methods: tuple[Method, ...] = ("search", "random", "fixed", "alone")
    groups = sorted({(row.job.epsilon, row.tier) for row in rows})
    for (epsilon, tier), method in product(groups, methods):
        scores = _scores(rows, epsilon, tier, method, "accuracy")
        if not scores:
            continue
        chance = _scores(rows, epsilon, tier, "random", "accuracy")
        both = scores.keys() & chance.keys()
        summaries.append(
            Summary(
                epsilon=epsilon,
                tier=tier,
                method=method,
                scores=tuple(scores.values()),
                balanced=tuple(_scores(rows, epsilon, tier, method, "balanced_accuracy").values()),
                wins=None if method == "random" else sum(scores[s] > chance[s] for s in both),
            )
        )
    return summaries


def _scores(rows: Sequence[Row], epsilon: float, tier: str, method: Method, field: str) -> dict[int, float]:
    """By seed; the median over the draws of a seed."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (row.job.epsilon, row.tier, row.job.method) == (epsilon, tier, method):
            found.setdefault(row.job.seed, []).append(getattr(row, field))
    return {seed: median(values) for seed, values in sorted(found.items())}


def adjusted(
    study: StudyConfig,
    *,
    seed: int,
    epsilon: float,
    fixed: Mapping[str, Mapping[str, Any]] | None = None,
) -> StudyConfig:
    """A scenario's study at another epsilon and seed, also for a single site, or with given architectures."""
    values = study.model_dump()
    values["seed"] = seed
    values["privacy"]["epsilon"] = epsilon
    values["federation"]["min_sites"] = 1
    values["search"]["fixed"] = fixed
    return validated(StudyConfig, values, study.name)


def _study(scenario: Scenario, data: ScenarioData, job: Job) -> StudyConfig:
    fixed: Mapping[str, Mapping[str, Any]] | None = None
    if job.method == "fixed":
        fixed = {site.device.tier: scenario.baseline for site in data.sites}
    if job.method == "random":
        fixed = _random_choices(scenario.study, data, job)
    return adjusted(scenario.study, seed=job.seed, epsilon=job.epsilon, fixed=fixed)


def _random_choices(study: StudyConfig, data: ScenarioData, job: Job) -> Mapping[str, Mapping[str, Any]]:
    """One uniformly drawn architecture for each tier, among those that fit all its devices."""
    space = space_of(study)
    costs = Costs(space, micro_batch=study.training.micro_batch)
    chosen = {}
    for index, tier in enumerate(sorted({site.device.tier for site in data.sites})):
        generator = np.random.default_rng([job.seed, int(job.variant), index])
        fits = costs.fits([site.device for site in data.sites if site.device.tier == tier])
        chosen[tier] = _draw(space.sample, fits, generator, tier).as_dict()
    return chosen


def _draw(sample: Any, fits: Any, generator: np.random.Generator, tier: str) -> Architecture:
    for _ in range(ATTEMPTS):
        architecture: Architecture = sample(generator)
        if fits(architecture):
            return architecture
    raise InfeasibleDeviceError(f"{ATTEMPTS} random architectures did not fit tier {tier}; widen its limits")


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"
