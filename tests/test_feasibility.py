"""What a study can hope for: the noise share is what noise does, the thresholds what was measured, and the
upload what really travels."""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from fednas.errors import ConfigurationError
from fednas.feasibility import (
    CLEAR,
    DROWNED,
    OVERHEAD_BYTES,
    NetworkSizes,
    PlannedSite,
    expected_upload,
    network_sizes,
    noise_share,
    prospect,
)
from fednas.privacy.budget import PrivacyBudget
from fednas.schedule import plan_for
from fednas.site import open_site
from fednas.space import create
from fednas.space.cost import cost_of
from fednas.wire import Task
from server.app import conduct
from simulations.scenarios import SCENARIOS, digits, hospitals, watches
from tests.flower_bytes import posts
from tests.integration.spy import SpyGrid
from tests.simulations import tiny

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "hospitals": [size for _, size, _ in hospitals.SOURCES.values() if size >= 50],
    "watches": [size for size, _ in watches.SUBJECTS.values()],
    "digits": [size for _, size, _ in digits.OFFICES],
}
EPSILONS = (1, 3, 8)
Weighed = dict[int, list[tuple[str, int, int]]]
STUDY = SCENARIOS["digits"]().study  # its plans are calibrated once for all tests here


def shares(name: str, epsilon: float) -> tuple[float, set[str]]:
    """The noise share of all sites of a scenario together, and their verdicts."""
    study = SCENARIOS[name]().study
    plan = plan_for(study, 3, PrivacyBudget(epsilon=epsilon, delta=1e-5))
    sites = [(PlannedSite(name=str(i), declared_size=n), plan) for i, n in enumerate(SIZES[name])]
    found = prospect(study, sites, network_sizes(study))
    return found.sites[0].together, {site.verdict for site in found.sites}


def learned(name: str, epsilon: int) -> float:
    """How far random architectures came from guessing to the best private accuracy, by RESULTS.md."""
    rows = re.findall(
        rf"^\| {name} \| (\d+) \| \w+ \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \| ([\d.]+)",
        (ROOT / "simulations" / "RESULTS.md").read_text(),
        re.MULTILINE,
    )
    random = [float(row[2]) for row in rows if int(row[0]) == epsilon]
    best = max(float(value) for row in rows for value in row[1:])
    guess = 1.0 / SCENARIOS[name]().schema.num_classes
    assert len(random) == 3
    return (sum(random) / len(random) - guess) / (best - guess)


def test_the_noise_share_is_what_noise_does_to_an_averaged_update() -> None:
    generator = np.random.default_rng(1)
    sigma, q, n, d, steps, clip = 1.7, 0.2, 300.0, 4000, 25, 0.5
    noise = generator.normal(scale=sigma * clip, size=(steps, d)) / (q * n)
    measured = float(np.linalg.norm(noise.mean(axis=0))) / clip  # q n records of norm at most C, over q n
    expected = noise_share(
        noise_multiplier=sigma, sampling_probability=q, records=n, parameters=d, steps=steps
    )
    assert measured == pytest.approx(expected, rel=0.05)


def test_the_share_of_all_sites_is_that_of_their_inverse_variance_average() -> None:
    study, d = STUDY, 5000
    sites = [
        (
            PlannedSite(name=str(size), declared_size=size),
            plan_for(study, 3, PrivacyBudget(epsilon=e, delta=1e-5)),
        )
        for size, e in ((4000, 3.0), (900, 1.0), (2500, 8.0))
    ]
    found = prospect(study, sites, NetworkSizes(smallest=d, typical=d, largest=d))
    generator = np.random.default_rng(2)
    alone = np.array([site.alone for site in found.sites])
    noise = generator.normal(size=(3, d)) * (alone / math.sqrt(d))[:, None]
    weights = np.array([site.weight for site in found.sites])
    assert float(np.linalg.norm(weights @ noise)) == pytest.approx(found.sites[0].together, rel=0.05)
    assert found.sites[0].together < alone.min()


def test_the_thresholds_are_those_of_what_was_measured() -> None:
    """RESULTS.md and the scenarios' sizes reproduce the table in the docstring of `prospect`."""
    points = {(name, e): (shares(name, e), learned(name, e)) for name in SIZES for e in EPSILONS}
    table = re.search(r"noise share((?:\s+\.\d+)+)\s+learned((?:\s+\.\d+)+)", prospect.__doc__ or "")
    assert table is not None
    written = sorted(zip(map(float, table[1].split()), map(float, table[2].split()), strict=True))
    found = sorted((share, part) for (share, _), part in points.values())
    for (share, part), (written_share, written_part) in zip(found, written, strict=True):
        assert share == pytest.approx(written_share, abs=0.006)
        assert part == pytest.approx(written_part, abs=0.006)
    for (share, verdicts), part in points.values():
        if share <= CLEAR:
            assert part >= 0.7
            assert verdicts <= {"learns alone", "learns with the others"}
        if share > DROWNED:
            assert part <= 1.0 / 3.0
            assert verdicts == {"too small"}
    assert points["digits", 1][0][1] == {"too small"}


def test_more_records_more_epsilon_or_fewer_parameters_never_make_it_worse() -> None:
    study = STUDY

    def share(size: int, epsilon: float, parameters: int) -> float:
        plan = plan_for(study, 3, PrivacyBudget(epsilon=epsilon, delta=1e-5))
        sizes = NetworkSizes(smallest=parameters, typical=parameters, largest=parameters)
        return prospect(study, [(PlannedSite(name="a", declared_size=size), plan)], sizes).sites[0].alone

    base = share(1000, 1.0, 3000)
    assert share(2000, 1.0, 3000) == pytest.approx(base / 2.0)
    assert share(1000, 1.0, 750) == pytest.approx(base / 2.0)
    assert share(1000, 3.0, 3000) < base


def test_without_noise_everybody_learns_alone() -> None:
    study = tiny.study(privacy={"epsilon": math.inf, "non_private": True})
    plan = plan_for(study, 3, PrivacyBudget.non_private(delta=1e-4))
    found = prospect(study, [(PlannedSite(name="a", declared_size=60), plan)], network_sizes(study))
    assert (found.sites[0].alone, found.sites[0].verdict) == (0.0, "learns alone")


def test_a_site_whose_weight_is_faint_is_told_so_though_it_can_take_from_the_others() -> None:
    study = STUDY
    plan = plan_for(study, 3, PrivacyBudget(epsilon=3.0, delta=1e-5))
    sites = [(PlannedSite(name=str(n), declared_size=n), plan) for n in (50_000, 500)]
    large, small = prospect(study, sites, network_sizes(study)).sites
    assert (large.warning, small.verdict) == ("", "learns with the others")
    assert "next to nothing" in small.warning


def test_fixed_architectures_stand_for_themselves_and_release_no_fitness() -> None:
    fixed = {"activation": "tanh", "depth": 1, "layers.0.width": 32}
    study = tiny.study(search={"fixed": {"small": fixed}})
    sizes = network_sizes(study)
    assert sizes.smallest == sizes.typical == sizes.largest
    plan = plan_for(study, 1, PrivacyBudget(epsilon=3.0, delta=1e-4))
    found = prospect(study, [(PlannedSite(name="a", declared_size=600), plan)], sizes)
    assert found.fitness_std is found.sites[0].fitness_std is None


def test_a_robust_rule_is_told_apart_from_the_mean_whose_noise_is_shown() -> None:
    robust = {"aggregation": "median", "max_hostile": 1}
    study = tiny.study(federation=robust)
    plan = plan_for(study, 3, PrivacyBudget(epsilon=3.0, delta=1e-4))
    sites = [(PlannedSite(name=str(n), declared_size=n), plan) for n in (600, 300, 60)]
    mean, median = (prospect(s, sites, network_sizes(s)) for s in (tiny.study(), study))
    assert median.sites == mean.sites
    assert mean.fitness_std is not None
    assert median.fitness_std is not None
    assert median.fitness_std > 1.5 * mean.fitness_std
    assert any("median with max_hostile = 1 has more noise" in words for words in median.warnings)
    few = prospect(study, sites[:2], network_sizes(study))
    assert few.fitness_std is None
    assert (
        "median with max_hostile = 1 needs at least 3 sites, here are 2: the study is refused" in few.warnings
    )


def test_network_sizes_are_those_that_devices_are_told() -> None:
    study = tiny.study()
    space = create("mlp", (4,), 3)
    sizes = network_sizes(study)
    assert sizes.smallest == cost_of(space, space.smallest(), micro_batch=1).parameters
    assert sizes.largest == cost_of(space, space.largest(), micro_batch=1).parameters
    assert sizes.smallest < sizes.typical < sizes.largest


@pytest.mark.parametrize(
    ("size", "epsilon"), [(0, None), (10, 0.0), (10, -1.0), (10, math.inf), (10, math.nan)]
)
def test_a_site_without_a_size_or_a_sound_cap_is_refused(size: int, epsilon: float | None) -> None:
    with pytest.raises(ConfigurationError, match="site a"):
        PlannedSite(name="a", declared_size=size, epsilon=epsilon)


def weigh(replies: list[Message], tasks: list[tuple[int, Task]], kept: Weighed) -> None:
    """Weigh replies as a SuperNode would send them: (kind, bytes of values, bytes of everything) by site."""
    for reply in replies:
        if "data" in reply.content:
            push, objects = posts(reply)
            site = reply.metadata.src_node_id - 1
            task = [task for node, task in tasks if node == site][-1]
            values = sum(array.nbytes for array in task.arrays.values())
            if task.kind == "evaluate":
                values = 8 * len(task.architectures)
            total = len(push) + sum(len(item) for item in objects)
            kept.setdefault(site, []).append((task.kind, values, total))


@pytest.mark.parametrize("strategy", ["evolution", "differentiable"])
def test_the_expected_upload_holds_what_real_replies_weigh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    study = tiny.study(search={"strategy": strategy})
    open_site.cache_clear()
    grid = SpyGrid(tiny.make_run(tmp_path / "run", study))
    pull, weighed = grid.pull_messages, Weighed()

    def pull_and_weigh(message_ids: Iterable[str]) -> list[Message]:
        replies = pull(message_ids)
        weigh(replies, grid.tasks, weighed)
        return replies

    monkeypatch.setattr(grid, "pull_messages", pull_and_weigh)
    conduct(grid, tmp_path / "run", resume=False)
    open_site.cache_clear()
    upload = expected_upload(study, 3, network_sizes(study))
    assert len(weighed) == tiny.NUM_SITES
    for replies in weighed.values():
        assert len(replies) == upload.num_messages
        for kind, values, total in replies:
            assert values < total <= values + OVERHEAD_BYTES
            assert total >= values + 0.7 * OVERHEAD_BYTES, "the overhead is stated far too high"
            assert total <= (upload.counts if kind == "evaluate" else upload.update[1])
        assert 0.7 * upload.total[0] <= sum(total for _, _, total in replies) <= upload.total[1]
