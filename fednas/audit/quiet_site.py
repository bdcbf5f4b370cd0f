"""A site that releases nothing but noise: it has no records, or only such as add nothing to any sum."""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self, final

import numpy as np
import torch
from numpy.typing import NDArray

from fednas.audit.chosen import flat_weights, size_for
from fednas.audit.rehearsal import Records, Rehearsal
from fednas.audit.subject import Subject
from fednas.config import (
    DataSchema,
    PrivacySection,
    SearchSection,
    StudyConfig,
    TrainingSection,
    dump_study,
    space_of,
)
from fednas.errors import ExchangeError
from fednas.privacy.plan import PrivacyPlan, ReleaseSchedule
from fednas.search import Policy
from fednas.space import Architecture
from fednas.supernet.slices import trunk_parameters
from fednas.wire import Task, TaskKind

Floats = NDArray[np.float64]

ROUNDS: Final = 96
"""Of the search, with one step each."""

FINALS: Final = 16
STEPS: Final = 3  # of a round with several
COUNTS: Final = 200
"""Candidates of an evaluation."""

_EVALUATIONS: Final = 4
_SPARE: Final = 32  # search steps beyond ROUNDS
_FEATURES, _WIDTH, _LAYERS, _CLASSES = 32, 64, 4, 8  # 15,000 weights
_LOUD: Final = 1e3  # standard deviation of an update: far beyond the weights that it starts from
_BEYOND: Final = 1e38  # a feature that makes all gradients of a record infinite, and so nothing
_GRID: Final = 1e-6  # of a clip norm
_SECONDS: Final = 100  # that a forked process may take


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """What a training task released, in standard deviations of what was promised.

    Args:
        weights: shape (d,).
        alphas: shape (p,), of the choices on the path; empty for a final.
        off_grid: the largest distance of an architecture gradient from the integer grid, in grid units.
    """

    weights: Floats
    alphas: Floats
    off_grid: float


@final
@dataclass(frozen=True, kw_only=True)
class NoiseStudy:
    """What a server asks to see noise: the subject's epsilon, sampling probability and clip norms.

    The path is as deep as a path of the space for tables can be, so that all logits get a gradient.

    Args:
        subject: whose study it is like.
    """

    subject: Subject

    @cached_property
    def study(self) -> StudyConfig:
        """With one step a round."""
        theirs = self.subject.study
        return StudyConfig(
            name="noise",
            seed=theirs.seed,
            data=DataSchema(
                input_shape=(_FEATURES,), class_names=tuple(f"class-{i}" for i in range(_CLASSES))
            ),
            search=SearchSection(space="mlp", strategy="differentiable"),
            privacy=PrivacySection(
                epsilon=theirs.privacy.epsilon,
                delta=theirs.privacy.delta,
                weights=0.5,
                architecture=0.25,
                fitness=0.25,
            ),
            training=TrainingSection(
                sampling_probability=theirs.training.sampling_probability,
                steps_per_round=1,
                clip_norm=usual(theirs.training.clip_norm),
                architecture_clip_norm=usual(theirs.training.architecture_clip_norm),
                micro_batch=theirs.training.micro_batch,
            ),
        )

    @cached_property
    def plan(self) -> PrivacyPlan:
        """Of the study's epsilon, for all that a site is asked here."""
        training = self.study.training
        schedule = ReleaseSchedule(
            sampling_probability=training.sampling_probability,
            search_steps=ROUNDS + _SPARE,
            final_steps=FINALS,
            architecture_steps=ROUNDS + _SPARE,
            fitness_releases=_EVALUATIONS * COUNTS,
            clip_norm=training.clip_norm,
            architecture_clip_norm=training.architecture_clip_norm,
        )
        return PrivacyPlan.calibrate(
            budget=self.subject.budget, proportions=self.study.privacy.proportions, schedule=schedule
        )

    def declared_size(self, wanted: int) -> int:
        """A size that the study's delta allows."""
        return size_for(wanted, self.study.privacy.delta)

    @cached_property
    def path(self) -> Architecture:
        """The deepest."""
        widths = {f"layers.{layer}.width": _WIDTH for layer in range(_LAYERS)}
        return Architecture.of("mlp", {**widths, "activation": "relu", "depth": _LAYERS, "residual": True})

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """Zeros, but for a weight with which a feature that is nearly infinite becomes infinite."""
        first = np.zeros((_WIDTH, _FEATURES))
        first[0, 0] = 100.0
        return flat_weights(self.study, self.path, {"layers.0.linear.weight": first})

    @cached_property
    def parameters(self) -> dict[str, slice]:
        """Where each parameter of the path is in an update."""
        found, start = {}, 0
        for name, parameter in trunk_parameters(space_of(self.study).build(self.path)):
            found[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
        return found

    @cached_property
    def candidate(self) -> tuple[Architecture, NDArray[np.float32]]:
        """A small architecture whose weights see class 0 in every record."""
        path = Architecture.of("mlp", {"activation": "relu", "depth": 1, "layers.0.width": 16})
        return path, flat_weights(self.study, path, {"outputs.1.bias": np.eye(_CLASSES)[0]})

    @property
    def records(self) -> dict[str, Records]:
        """Whose gradients are not finite, and whose class no candidate sees: they add nothing."""
        x = np.zeros((40, _FEATURES), np.float32)
        x[:, 0] = _BEYOND
        return {stream: (x, np.ones(len(x), np.int64)) for stream in self.study.privacy.proportions}


@final
class QuietSite:
    """A rehearsed site of which everything that it releases is noise.

    All such sites have one name and are asked in the same words, so that nothing public tells them apart.

    Args:
        folder: of its files; made.
        terms: what it is asked.
        declared_size: public.
        records: as in `NoiseStudy.records`; none by default.
    """

    def __init__(
        self,
        folder: Path,
        terms: NoiseStudy,
        *,
        declared_size: int,
        records: Mapping[str, Records] | None = None,
    ) -> None:
        self._terms, self._size = terms, declared_size
        self._site = Rehearsal(folder, study=terms.study, plan=terms.plan, declared_size=declared_size)
        self._site.fill(records or {})

    def train(self, round: int, *, kind: TaskKind = "train", steps: int = 1) -> Noise:  # noqa: A002
        """The noise of a round.

        Args:
            round: from 1.
            kind: `train` or `final`.
            steps: of the round.

        Raises:
            FednasError: the site refuses.
        """
        terms, training = self._terms, self._terms.study.training
        allowance = terms.plan.allowance("search" if kind == "train" else "final")
        shares = terms.study.privacy.proportions
        size = self._size * sum(shares[stream] for stream in allowance.streams)
        deviation = _deviation(len(terms.weights), allowance.noise_multiplier) * allowance.clip_norm
        average = deviation * np.sqrt(steps) / (allowance.sampling_probability * size)
        study = terms.study.model_copy(
            update={
                "training": training.model_copy(
                    update={"learning_rate": _LOUD / average, "steps_per_round": steps}
                )
            }
        )
        policy = Policy(space_of(study))
        task = self._site.task(
            kind, round, [terms.path], [terms.weights], alphas=policy.flat() if kind == "train" else None
        )
        answer = self._ask(replace(task, study=dump_study(study)))
        weights = answer["update"].astype(np.float64) / -_LOUD
        if kind == "final":
            return Noise(weights=weights, alphas=np.zeros(0), off_grid=0.0)
        allowance = terms.plan.allowance("alphas")
        average = allowance.clip_norm / (
            allowance.sampling_probability * self._size * shares[allowance.streams[0]]
        )
        alphas = answer["alphas"]
        alphas = alphas[np.isfinite(alphas)] / average
        units = alphas / _GRID
        off_grid = float(np.max(np.abs(units - np.rint(units)), initial=0.0))
        return Noise(
            weights=weights,
            alphas=alphas / _deviation(len(alphas), allowance.noise_multiplier),
            off_grid=off_grid,
        )

    def counts(self, round: int, number: int = COUNTS) -> Floats:  # noqa: A002
        """The noise of counts of correct predictions, shape (number,), in standard deviations.

        Args:
            round: from 1, one that nothing else was asked in.
            number: of candidates, all alike.

        Raises:
            FednasError: the site refuses.
        """
        path, weights = self._terms.candidate
        answer = self._ask(self._site.task("evaluate", round, [path] * number, [weights] * number))
        counts: Floats = answer["correct"] / self._terms.plan.noise_multiplier("fitness")
        return counts

    def _ask(self, task: Task) -> dict[str, NDArray[np.float64]]:
        return dict(self._site.ask(task).arrays)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._site.close()


def usual(clip_norm: float) -> float:
    """A clip norm with which floats and the grid tell all that is read here, near the study's."""
    return min(10.0, max(1e-3, clip_norm))


def _deviation(size: int, noise_multiplier: float) -> float:
    """The promise: the noise of so many coordinates, in clip norms.

    The sensitivity is that of a clipped vector on the grid: one step for arithmetic, and one for each root of
    a coordinate's rounding.
    """
    return noise_multiplier * (1.0 + _GRID + _GRID * float(np.sqrt(size)))


def draw_in_children(
    folder: Path, draw: Callable[[Path], Mapping[str, Floats]], *, number: int
) -> list[dict[str, Floats]]:
    """Let forked processes draw, each in a folder of its own, and read what they drew.

    Args:
        folder: for their folders.
        draw: what each does.
        number: of processes.

    Raises:
        ExchangeError: a process did not answer.
    """
    children = []
    for index in range(number):
        place = folder / str(index)
        place.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(_SECONDS)
                torch.set_num_threads(1)  # threads do not outlive a fork
                np.savez(place / "drawn.npz", **dict[str, Any](draw(place)))
                status = 0
            finally:
                os._exit(status)  # nothing else that the parent began is ended here
        children.append((child, place))
    statuses = [os.waitpid(child, 0)[1] for child, _ in children]
    if any(statuses):
        raise ExchangeError("a forked process of a site did not answer")
    found = []
    for _, place in children:
        with np.load(place / "drawn.npz", allow_pickle=False) as archive:
            found.append({name: archive[name] for name in archive.files})
    return found
