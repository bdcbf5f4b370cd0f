"""What a study can hope for before it starts: how loud its noise is beside its sites, and what they upload.

Everything here is a function of public facts: the study, the declared sizes, the plans.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch

from fednas.aggregation import NoisyCount, RobustRule, combine_counts, robust_rule, update_weight
from fednas.config import StudyConfig, space_of
from fednas.errors import ConfigurationError
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import agenda, candidates_per_tier
from fednas.search import Policy
from fednas.space import Architecture, SearchSpace, create
from fednas.supernet.slices import trunk_parameters

Verdict = Literal["learns alone", "learns with the others", "learns in part", "too small"]

CLEAR: Final = 0.1
"""Noise share up to which a network learns about three quarters of what there is to learn, or more."""

DROWNED: Final = 0.3
"""Noise share above which it learns about a third, or less."""

FAINT: Final = 0.01
"""Share of the weight of an aggregation below which a site's records pay for next to nothing."""

COARSE: Final = 0.1
"""Standard deviation of a released fitness above which a search hardly tells architectures apart."""

OVERHEAD_BYTES: Final = 2560
"""Of one reply: manifest, signature, array headers and Flower's own envelope, rounded up."""

_SAMPLES: Final = 31  # architectures whose median size stands for the space


@dataclass(frozen=True, kw_only=True)
class NetworkSizes:
    """Trained parameters of the smallest, a typical and the largest network that a study may train."""

    smallest: int
    typical: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What one site sends, in bytes; the range is that of the networks it may be asked to train.

    Args:
        update: (smallest, largest) reply to a training round, its overhead included.
        counts: the largest reply with noised counts.
        total: (smallest, largest) of a whole study without repeats.
        num_messages: replies of a whole study.
    """

    update: tuple[int, int]
    counts: int
    total: tuple[int, int]
    num_messages: int


@dataclass(frozen=True, kw_only=True)
class PlannedSite:
    """A site as its owner declares it, before there is any ledger.

    Args:
        name: for tables.
        declared_size: public size in records, at least 1.
        epsilon: its own cap; None takes the study's epsilon.

    Raises:
        ConfigurationError: the size or the cap is not positive.
    """

    name: str
    declared_size: int
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.declared_size < 1:
            raise ConfigurationError(
                f"site {self.name}: expected at least 1 record, got {self.declared_size}"
            )
        if self.epsilon is not None and not 0.0 < self.epsilon < math.inf:
            raise ConfigurationError(
                f"site {self.name}: expected a positive and finite epsilon, got {self.epsilon:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What one site can expect.

    Args:
        site: which.
        epsilon: what its plan claims: the lesser of the study's epsilon and its own cap.
        noise_multiplier: of its training steps; 0 without privacy.
        round_share: noise share of one search round's update, for a typical network.
        alone: noise share over all rounds if it trained alone.
        together: the same with all sites.
        weight: its share of the weight of an aggregation, 0 to 1.
        fitness_std: standard deviation of its released fitness; None where the study releases none.
        verdict: what the shares mean.
        warning: what to do about it, or empty.
    """

    site: PlannedSite
    epsilon: float
    noise_multiplier: float
    round_share: float
    alone: float
    together: float
    weight: float
    fitness_std: float | None
    verdict: Verdict
    warning: str


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """What all sites can expect together.

    Args:
        sites: each of them.
        fitness_std: standard deviation of a candidate's fitness over all sites; None without a search.
        warnings: one sentence each, about the study as a whole.
    """

    sites: tuple[Outlook, ...]
    fitness_std: float | None
    warnings: tuple[str, ...]


def default_study(space: str, input_shape: tuple[int, ...], num_classes: int) -> StudyConfig:
    """A study of all defaults, for a question that has no `study.toml` yet.

    Raises:
        ConfigurationError: the space is unknown, or the shape or the number of classes does not suit it.
    """
    create(space, input_shape, num_classes)
    return StudyConfig.model_validate(
        {
            "name": "default",
            "data": {"input_shape": input_shape, "class_names": [f"class-{i}" for i in range(num_classes)]},
            "search": {"space": space},
        }
    )


def network_sizes(study: StudyConfig) -> NetworkSizes:
    """Sizes of a study's fixed networks, or of those of its space, where the median of a draw is typical."""
    space = space_of(study)
    if study.search.fixed is not None:
        sizes = [
            _num_parameters(space, Architecture.of(space.name, choices))
            for choices in study.search.fixed.values()
        ]
    else:
        generator = np.random.default_rng(0)
        sizes = [_num_parameters(space, space.sample(generator)) for _ in range(_SAMPLES)]
        sizes += [_num_parameters(space, space.smallest()), _num_parameters(space, space.largest())]
    return NetworkSizes(smallest=min(sizes), typical=sorted(sizes)[len(sizes) // 2], largest=max(sizes))


def expected_upload(study: StudyConfig, num_tiers: int, sizes: NetworkSizes) -> Upload:
    """Bytes that one site sends over a whole study that nothing interrupts.

    Args:
        study: the configuration.
        num_tiers: distinct device tiers among the sites.
        sizes: of the networks in question.
    """
    kinds = Counter(step.kind for step in agenda(study))
    alphas = 0
    if study.search.strategy == "differentiable" and study.search.fixed is None:
        space = space_of(study)
        alphas = 8 * Policy(space).size
    extremes = (sizes.smallest, sizes.largest)
    update = tuple(4 * size + OVERHEAD_BYTES for size in extremes)
    generation = 8 * candidates_per_tier(study, num_tiers) * num_tiers + OVERHEAD_BYTES
    report = 8 * num_tiers + OVERHEAD_BYTES
    trained = kinds["search"] + kinds["final"]
    fixed = kinds["search"] * alphas + kinds["generation"] * generation + kinds["report"] * report
    low, high = (trained * bytes_ + fixed for bytes_ in update)
    return Upload(
        update=(update[0], update[1] + alphas),
        counts=generation if kinds["generation"] else 0,
        total=(low, high),
        num_messages=sum(kinds.values()),
    )


def noise_share(
    *, noise_multiplier: float, sampling_probability: float, records: float, parameters: int, steps: int
) -> float:
    """Norm of the noise in an averaged update over the most that all records together could put there.

    One step divides the sum of clipped gradients, each of norm at most C, by q n: what q n records can put
    into it has norm at most C, while the noise has norm sigma C sqrt(d) / (q n). Over `steps` steps that pull
    the same way the signal adds up and the noise averages out, so the share falls with their square root:

        sigma sqrt(d) / (q n sqrt(steps))

    which is, up to a constant, the excess risk of differentially private gradient descent on a convex problem
    (Bassily et al. (2014), arXiv 1405.7085). Momentum scales signal and noise alike; so does the clip norm.

    Args:
        noise_multiplier: sigma.
        sampling_probability: q.
        records: n, the public size of the streams that are read.
        parameters: d, of the network that is trained.
        steps: over how many steps the update is averaged.
    """
    return noise_multiplier * math.sqrt(parameters / steps) / (sampling_probability * records)


def prospect(
    study: StudyConfig, sites: Sequence[tuple[PlannedSite, PrivacyPlan]], sizes: NetworkSizes
) -> Prospect:
    """Judge whether sites can learn anything at their budgets.

    The judgement is by the noise share of a typical network over all training steps that the agenda holds,
    alone, and together with the other sites when each is weighted by its inverse noise variance: the best
    case of cooperation, in which every site trains the same network.

    `CLEAR` and `DROWNED` are set by what was measured: simulations/RESULTS.md of 2026-11-24, the random
    architectures, the mean over a scenario's tiers, at epsilon 1, 3 and 8; as the share of the way from
    guessing among the classes to the best private accuracy of the scenario:

        noise share   .513  .201  .198  .100  .078  .078  .039  .031  .015
        learned        .29   .53   .39   .73   .73   .73   .84   .91   .95
        scenario      d 1   d 3   w 1   d 8   w 3   h 1   w 8   h 3   h 8     (digits, watches, hospitals)

    Args:
        study: the configuration.
        sites: each with the plan that it would be given.
        sizes: of the study's networks.

    Raises:
        ConfigurationError: there is no site.
    """
    if not sites:
        raise ConfigurationError("expected at least one site")
    shares = [_share(study, site.declared_size, plan, sizes.typical) for site, plan in sites]
    noisy = all(share > 0.0 for share in shares)
    together = sum(share**-2 for share in shares) ** -0.5 if noisy else 0.0
    weights = [
        update_weight(declared_size=site.declared_size, noise_multiplier=_sigma(plan)) for site, plan in sites
    ]
    counts = [_count(study, site.declared_size, plan) for site, plan in sites]
    outlooks = []
    for (site, plan), alone, weight, count in zip(sites, shares, weights, counts, strict=True):
        verdict = _verdict(alone, together)
        part = weight / sum(weights)
        outlooks.append(
            Outlook(
                site=site,
                epsilon=plan.claim,
                noise_multiplier=_sigma(plan),
                round_share=_round_share(study, site.declared_size, plan, sizes.typical),
                alone=alone,
                together=together,
                weight=part,
                fitness_std=None if count is None else combine_counts([count]).std,
                verdict=verdict,
                warning=_warning(verdict, part, len(sites)),
            )
        )
    known = [count for count in counts if count is not None]
    rule = robust_rule(study.federation.aggregation, study.federation.max_hostile)
    enough = rule is None or len(known) >= rule.least_sites
    fitness = combine_counts(known, rule).std if known and enough else None
    warnings = [*_warnings(together, fitness, len(sites)), *_cost(rule, len(sites))]
    return Prospect(sites=tuple(outlooks), fitness_std=fitness, warnings=tuple(warnings))


def _num_parameters(space: SearchSpace, architecture: Architecture) -> int:
    with torch.device("meta"):  # shapes only: nothing is allocated or drawn
        network = space.build(architecture)
    return sum(parameter.numel() for _, parameter in trunk_parameters(network))


def _sigma(plan: PrivacyPlan) -> float:
    return plan.noise_multiplier("final")


def _steps(study: StudyConfig, kind: str) -> int:
    rounds = sum(step.kind == kind for step in agenda(study))
    return rounds * study.training.steps_per_round


def _share(study: StudyConfig, declared_size: int, plan: PrivacyPlan, parameters: int) -> float:
    """Noise share over all training steps: those of the search read fewer records than those of the final."""
    steps = {name: _steps(study, name) for name in ("search", "final")}
    total = sum(steps.values())
    variance = 0.0
    for name, number in steps.items():
        if number:
            one = _step_share(declared_size, plan, name, parameters)
            variance += number * (one / total) ** 2
    return math.sqrt(variance)


def _round_share(study: StudyConfig, declared_size: int, plan: PrivacyPlan, parameters: int) -> float:
    name = "search" if _steps(study, "search") else "final"
    steps = study.training.steps_per_round
    return _step_share(declared_size, plan, name, parameters) / math.sqrt(steps)


def _step_share(declared_size: int, plan: PrivacyPlan, name: str, parameters: int) -> float:
    terms = plan.allowance(name)
    return noise_share(
        noise_multiplier=terms.noise_multiplier,
        sampling_probability=terms.sampling_probability,
        records=declared_size * plan.share(name),
        parameters=parameters,
        steps=1,
    )


def _count(study: StudyConfig, declared_size: int, plan: PrivacyPlan) -> NoisyCount | None:
    """What one candidate's released count would be worth; None where the study releases none."""
    if study.search.fixed is not None:
        return None
    size = declared_size * dict(plan.proportions)["fitness"]
    return NoisyCount(correct=0.0, size=size, noise_std=plan.noise_multiplier("fitness"))


def _verdict(alone: float, together: float) -> Verdict:
    if alone <= CLEAR:
        return "learns alone"
    if together <= CLEAR:
        return "learns with the others"
    return "learns in part" if together <= DROWNED else "too small"


def _warning(verdict: Verdict, weight: float, num_sites: int) -> str:
    if verdict == "too small":
        return (
            "at this epsilon noise leaves little to learn: raise epsilon, add records or sites, or train a "
            "smaller network in more rounds"
        )
    if num_sites > 1 and weight < FAINT:
        return (
            f"less than {FAINT:.0%} of every aggregation: its records pay for next to nothing; leave it out, "
            "or raise its epsilon"
        )
    return ""


def _warnings(together: float, fitness_std: float | None, num_sites: int) -> list[str]:
    found = []
    whole = "the site is" if num_sites == 1 else f"all {num_sites} sites together are"
    if together > DROWNED:
        found.append(
            f"{whole} too small at this epsilon: the noise share of a typical network is {together:.2f}, and "
            f"above {DROWNED:g} little is learned"
        )
    elif together > CLEAR:
        found.append(
            f"{whole} small for this epsilon: the noise share of a typical network is {together:.2f}; expect "
            f"less than the full accuracy above {CLEAR:g}"
        )
    if fitness_std is not None and fitness_std > COARSE:
        found.append(
            f"a candidate's fitness is known to ±{fitness_std:.2f} only: the search can hardly choose; give "
            "the fitness stream more records, compare fewer candidates, or fix the architecture"
        )
    return found


def _cost(rule: RobustRule | None, num_sites: int) -> list[str]:
    """What a robust rule takes, in words: the noise shares are those of a weighted mean."""
    if rule is None:
        return []
    chosen = f"{rule.name} with max_hostile = {rule.max_hostile}"
    if num_sites < rule.least_sites:
        return [
            f"{chosen} needs at least {rule.least_sites} sites, here are {num_sites}: the study is refused"
        ]
    return [
        f"the noise shares are those of a weighted mean: {chosen} has more noise, by far where sites differ "
        "in size"
    ]
