"""What a server may ask so that each canary shows in a coordinate of its own, and how it reads the answers.

A server that is not honest chooses the study, the weights, the logits and the learning rate. It chooses them
so that the gradient of a canary is the clip norm times a direction that it knows, at right angles to that of
every other canary: then nothing is lost, and the attack is as strong as the noise allows any to be. The
sampling probability is 1 here: without amplification a Gaussian mechanism is told apart as its epsilon says,
no less (the sampling is another layer's business).

Every score is the best linear one: each release counts by what a canary adds to it over the variance of its
noise. That variance is measured, where no canary shows and so no coin does, and not taken from the promise:
where a release has less noise than it should, it speaks louder.

Source: Nasr et al. (2021), arXiv 2101.04535, for canaries with gradients of a chosen direction; Boenisch et
al. (2023), arXiv 2112.02918, for weights that a server chooses to read records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from fednas.audit.chosen import flat_weights, part_of, size_for
from fednas.audit.rehearsal import Records, Rehearsal
from fednas.audit.subject import Subject
from fednas.config import (
    DataSchema,
    PrivacySection,
    ScheduleSection,
    SearchSection,
    StudyConfig,
    TrainingSection,
    space_of,
)
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import agenda, plan_for, release_schedule
from fednas.search import Policy
from fednas.space import Architecture
from fednas.wire import Task

Floats = NDArray[np.float64]
Releases = Sequence[Sequence[Mapping[str, NDArray[Any]]]]
"""Of each run, the arrays of each answer."""

LEARNING_RATE = 1e-12
"""So small that weights, and with them the gradients of canaries, stay as they are."""

_HUGE = 1e6  # the input of a canary, in clip norms: all else of its gradient is nothing beside it
_FAR = 100.0  # where a float32 tanh is 1 and its slope 0
_LAYERS = 4
_SURE = 40.0  # logit of the class that canaries do not have: exp(-40) is no gradient
_SPARE = 512  # coordinates where no canary shows; the noise is measured to 3 %
_LEAST = 1e-6  # of the promised variance, and of 1: a release without noise is divided by that


def combined(values: Floats, gains: Floats, measured: Floats, *, promised: float) -> Floats:
    """The best linear score of several releases.

    Args:
        values: shape (releases, ...): of each canary.
        gains: shape (releases,): what a canary adds to each.
        measured: shape (releases,): variance of the noise.
        promised: variance that the plan says.

    Returns:
        Shape (...): with a variance of 1 under noise alone.
    """
    variances = np.maximum(measured, _LEAST * max(promised, _LEAST))
    weights = gains / variances
    scores: Floats = np.tensordot(weights, values, axes=1) / np.sqrt(np.sum(gains * weights))
    return scores


@final
@dataclass(frozen=True, kw_only=True)
class WeightsAttack:
    """Many canaries in one run of a whole study, read in the updates of its search and of its final.

    With W1 = 0 the first layer's output is the same for every record, and a record's gradient by W1 is b x^T,
    where b is what comes back to the layer. A canary's x is huge in one feature. Its class y decides b: the
    logits leave no doubt of class 0, and row y of W2 is the unit vector of neuron y - 1, so that b is that
    vector, negative. So each canary has a single coordinate of W1 for itself.

    Args:
        subject: its canaries, clip norms and delta are used.
        budget: what the site may lose: the claim; or without privacy, to see the attack itself.
    """

    subject: Subject
    budget: PrivacyBudget

    stream: ClassVar[str] = "weights"
    adversary: ClassVar[str] = (
        "a server that chooses study, weights and learning rate, knows every record but not which canaries "
        "are among them, and reads all updates of the search and of the final of one run"
    )

    @property
    def _width(self) -> int:
        """Of the first layer: the wider, the fewer features a record needs and the more W2 weighs."""
        return max((width for width in (16, 32, 64, 128) if width**2 <= self.subject.canaries), default=16)

    @property
    def _features(self) -> int:
        return -(-self.subject.canaries // self._width) + _SPARE // self._width

    @property
    def _path(self) -> Architecture:
        return Architecture.of("mlp", {"activation": "relu", "depth": 1, "layers.0.width": self._width})

    @cached_property
    def study(self) -> StudyConfig:
        """See `Attack.study`."""
        return _study(self.subject, self._features, classes=self._width + 1, steps=4, weights=0.9)

    @cached_property
    def plan(self) -> PrivacyPlan:
        """See `Attack.plan`."""
        return plan_for(self.study, 1, self.budget)

    @property
    def declared_size(self) -> int:
        """See `Attack.declared_size`."""
        return size_for(self.subject.canaries, self.budget.delta)

    @property
    def records(self) -> Records:
        """See `Attack.records`."""
        places = np.arange(self.subject.canaries)
        x = np.zeros((len(places), self._features), np.float32)
        x[places, places // self._width] = _HUGE * max(1.0, self.study.training.clip_norm)
        return x, 1 + places % self._width

    def tasks(self, site: Rehearsal) -> Sequence[Task]:
        """See `Attack.tasks`: every round of the study that trains, each with the same weights."""
        values = {
            "layers.0.linear.bias": np.ones(self._width),
            "outputs.1.weight": np.eye(self._width + 1, self._width, k=-1),
            "outputs.1.bias": _SURE * np.eye(self._width + 1)[0],
        }
        weights = flat_weights(self.study, self._path, values)
        alphas = Policy(space_of(self.study)).flat()
        return [
            site.task("train", step.round, [self._path], [weights], alphas=alphas)
            if step.kind == "search"
            else site.task("final", step.round, [self._path], [weights])
            for step in agenda(self.study)
            if step.kind in ("search", "final")
        ]

    def scores(self, runs: Releases) -> Floats:
        """See `Attack.scores`."""
        (answers,) = runs
        sums = np.array([self._sums(answer) for answer in answers])
        steps = self.study.training.steps_per_round
        promised = steps * self.plan.noise_multiplier("search") ** 2
        noise = np.mean(np.square(sums[:, -_SPARE:]), axis=1)
        gains = np.full(len(sums), float(steps))
        return combined(sums[:, : self.subject.canaries], gains, noise, promised=promised)

    def _sums(self, answer: Mapping[str, NDArray[Any]]) -> Floats:
        """What the steps added up to in each coordinate of W1, in clip norms, canary by canary."""
        training, privacy = self.study.training, self.study.privacy
        # The final reads all streams, and so is divided by all of the declared size.
        share = privacy.weights if "alphas" in answer else 1.0
        update = part_of(self.study, self._path, answer["update"], "layers.0.linear.weight")
        unit = training.learning_rate * training.clip_norm / (self.declared_size * share)
        sums: Floats = update.T.ravel() / unit
        return sums


@final
@dataclass(frozen=True, kw_only=True)
class ArchitectureAttack:
    """Four canaries a run, read in the gradients of the architecture.

    The path has four layers, whose gates show only the slope at their own output. Canary i sets neuron i of
    the first layer, through a tanh so far beyond its end that nothing comes back through it. Canary 0 is seen
    by the last layer at once. Another is seen by layer i alone, which sets neuron 4 + i, and the last layer
    sees that one. So canary i is in the slope of gate i, and in no other.

    Args:
        subject: its clip norms and delta are used.
        budget: what the site may lose: the claim; or without privacy, to see the attack itself.
    """

    subject: Subject
    budget: PrivacyBudget

    stream: ClassVar[str] = "architecture"
    adversary: ClassVar[str] = (
        "a server that chooses plan, weights and logits, knows every record but not which of four canaries "
        "are among them, and reads all gradients of the architecture of a run; many runs, each by a new site"
    )
    declared_size: ClassVar[int] = 4

    @cached_property
    def study(self) -> StudyConfig:
        """See `Attack.study`."""
        return _study(self.subject, _LAYERS, classes=2, steps=1, weights=0.4)

    @cached_property
    def plan(self) -> PrivacyPlan:
        """See `Attack.plan`."""
        return _plan(self.study, self.budget)

    @property
    def _path(self) -> Architecture:
        widths = {f"layers.{layer}.width": 16 for layer in range(_LAYERS)}
        return Architecture.of("mlp", {**widths, "activation": "tanh", "depth": _LAYERS, "residual": True})

    @property
    def records(self) -> Records:
        """See `Attack.records`."""
        return np.eye(_LAYERS, dtype=np.float32), np.ones(_LAYERS, np.int64)

    @cached_property
    def _weights(self) -> NDArray[np.float32]:
        values = {"layers.0.linear.weight": _FAR * np.eye(16, _LAYERS)}
        output = np.zeros((2, 16))
        output[0, 0] = _HUGE * max(1.0, self.study.training.architecture_clip_norm)
        for layer in range(1, _LAYERS):
            row = values[f"layers.{layer}.linear.weight"] = np.zeros((16, 16))
            row[_LAYERS + layer, layer] = _FAR
            output[0, _LAYERS + layer] = output[0, 0]
        return flat_weights(self.study, self._path, values | {f"outputs.{_LAYERS}.weight": output})

    @cached_property
    def directions(self) -> Floats:
        """Of the canaries' gradients: shape (4, logits), orthonormal; 0 where a choice is not on the path."""
        policy = Policy(space_of(self.study))
        rows = policy.jacobian(self._path)
        found = []
        for layer in range(_LAYERS):
            mine = {name for name in rows if name == f"layers.{layer}.width"}
            if layer == _LAYERS - 1:
                mine |= {name for name in rows if not name.startswith("layers.")}
            flat = policy.spread(mine, np.concatenate([rows[name] for name in sorted(mine)]))
            found.append(np.nan_to_num(flat) / np.sqrt(np.nansum(np.square(flat))))
        return np.array(found)

    def tasks(self, site: Rehearsal) -> Sequence[Task]:
        """See `Attack.tasks`."""
        alphas = Policy(space_of(self.study)).flat()
        rounds = range(1, self.study.schedule.search_rounds + 1)
        return [site.task("train", n, [self._path], [self._weights], alphas=alphas) for n in rounds]

    def scores(self, runs: Releases) -> Floats:
        """See `Attack.scores`."""
        size = self.declared_size * self.study.privacy.architecture
        released = np.array([[answer["alphas"] for answer in answers] for answers in runs]).swapaxes(0, 1)
        assert np.isfinite(released).all(), "every choice is on the path"
        released = released * (size / self.study.training.architecture_clip_norm)
        sums = released @ self.directions.T
        rest = released - sums @ self.directions
        freedom = rest.shape[1] * (rest.shape[2] - _LAYERS)
        noise = np.sum(np.square(rest), axis=(1, 2)) / freedom
        promised = self.plan.noise_multiplier("alphas") ** 2
        return combined(sums, np.ones(len(sums)), noise, promised=promised).ravel()


@final
@dataclass(frozen=True, kw_only=True)
class FitnessAttack:
    """One canary a run, which all candidates judge rightly, read in their counts.

    Args:
        subject: its delta is used.
        budget: what the site may lose: the claim; or without privacy, to see the attack itself.
    """

    subject: Subject
    budget: PrivacyBudget

    stream: ClassVar[str] = "fitness"
    adversary: ClassVar[str] = (
        "a server that chooses plan and candidates, knows every record but not whether the canary is among "
        "them, and reads all counts of a run; many runs, each by a new site"
    )
    declared_size: ClassVar[int] = 1

    @cached_property
    def study(self) -> StudyConfig:
        """See `Attack.study`."""
        return _study(self.subject, 1, classes=2, steps=1, weights=0.4)

    @cached_property
    def plan(self) -> PrivacyPlan:
        """See `Attack.plan`."""
        return _plan(self.study, self.budget)

    @property
    def records(self) -> Records:
        """See `Attack.records`."""
        return np.zeros((1, 1), np.float32), np.ones(1, np.int64)

    @cached_property
    def _candidates(self) -> dict[Architecture, NDArray[np.float32]]:
        """Their weights: whatever a record is, they see class 1."""
        acts = ("relu", "tanh", "selu")
        paths = [Architecture.of("mlp", {"activation": a, "depth": 1, "layers.0.width": 16}) for a in acts]
        return {path: flat_weights(self.study, path, {"outputs.1.bias": np.arange(2)}) for path in paths}

    def tasks(self, site: Rehearsal) -> Sequence[Task]:
        """See `Attack.tasks`."""
        return [site.task("evaluate", 1, list(self._candidates), list(self._candidates.values()))]

    def scores(self, runs: Releases) -> Floats:
        """See `Attack.scores`."""
        counts = np.array([answer["correct"] for (answer,) in runs]).T.astype(np.float64)
        # The canary adds as much to each count, so it is in no difference of two; and these tell the noise of
        # each of three (Grubbs 1948, "On estimating precision of measuring instruments").
        between = np.mean(np.square(counts[:, None] - counts[None]), axis=2)
        number = len(counts)
        noise = (between.sum(axis=1) - between.sum() / (2 * number - 2)) / (number - 2)
        promised = self.plan.noise_multiplier("fitness") ** 2
        return combined(counts, np.ones(number), noise, promised=promised)


def _study(subject: Subject, features: int, *, classes: int, steps: int, weights: float) -> StudyConfig:
    """A study with the subject's clip norms, in which every record takes part in every step."""
    theirs, rest = subject.study.training, (1.0 - weights) / 2.0
    return StudyConfig(
        name="canaries",
        data=DataSchema(input_shape=(features,), class_names=tuple(f"class-{i}" for i in range(classes))),
        search=SearchSection(space="mlp", strategy="differentiable"),
        privacy=PrivacySection(
            epsilon=subject.claim,
            delta=subject.study.privacy.delta,
            weights=weights,
            architecture=rest,
            fitness=rest,
        ),
        # Two candidates and the report's one: the three counts that a fitness canary is in.
        schedule=ScheduleSection(
            search_rounds=2, final_rounds=1, generations=1, candidates=2, spare_rounds=0
        ),
        training=TrainingSection(
            sampling_probability=1.0,
            steps_per_round=steps,
            clip_norm=theirs.clip_norm,
            learning_rate=LEARNING_RATE,
            architecture_clip_norm=theirs.architecture_clip_norm,
            micro_batch=theirs.micro_batch,
        ),
    )


def _plan(study: StudyConfig, budget: PrivacyBudget) -> PrivacyPlan:
    """A plan without a final, which reads all streams: so each spends the claim on its own mechanism."""
    schedule = replace(release_schedule(study, 1), final_steps=0)
    return PrivacyPlan.calibrate(budget=budget, proportions=study.privacy.proportions, schedule=schedule)
