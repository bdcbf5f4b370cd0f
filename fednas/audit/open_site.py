"""A site without noise whose updates say of every step which records were in its sample."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Self, final

import numpy as np
from numpy.typing import NDArray

from fednas.audit.chosen import flat_weights, part_of
from fednas.audit.quiet_site import usual
from fednas.audit.rehearsal import Records, Rehearsal
from fednas.audit.subject import Subject
from fednas.config import DataSchema, PrivacySection, SearchSection, StudyConfig, TrainingSection, space_of
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.plan import PrivacyPlan, ReleaseSchedule
from fednas.search import Policy
from fednas.space import Architecture
from fednas.wire import TaskKind

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

STEPS: Final = 8
"""Of a round."""

BITS: Final = 12
"""Records of the architecture stream whose presence an architecture gradient tells."""

_WIDTH: Final = 32
_CHUNK: Final = 64  # records at once
_MOMENTUM: Final = (
    0.5  # step t of n counts (1 - m^(n - t)) / (1 - m): all sums of some of these are different
)
_HUGE: Final = 1e6  # the input of a record, in clip norms: all else of its gradient is nothing beside it
_SURE: Final = 40.0  # logit of the class that no record has: exp(-40) is no gradient
_NEAR: Final = 1e-3  # of an inclusion: an eighth of the least difference between two sums
_SMALL: Final = 1e-12  # of a learning rate, so that gradients stay as they are
_RATES: Final = (0.5, 0.9)  # of the sampling: the one instead of 1, and the most


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Which records were in the samples of a round.

    Args:
        weights: shape (steps, records), bool.
        architecture: shape (BITS,), bool; empty for a final.
        doubt: how far, in inclusions of a record, an update is from any sum of whole inclusions.
    """

    weights: Mask
    architecture: Mask
    doubt: float

    @property
    def exact(self) -> bool:
        """Whether each step added each record's clipped gradient once or not at all."""
        return self.doubt < _NEAR


@final
@dataclass(frozen=True, kw_only=True)
class SampleStudy:
    """What a server asks to see samples: the subject's sampling probability and clip norms, and no noise.

    As in `fednas.audit.attacks`, W1 = 0 and a huge feature give every record a coordinate of W1 for itself.
    Records of the architecture stream are told apart by the size of their gradients, which are powers of two
    below the clip norm: their feature 0 is the output of neuron 0, which no other record has a coordinate of.

    Args:
        subject: whose study it is like.
        everyone: whether every record is in every step.
    """

    subject: Subject
    everyone: bool = False

    @property
    def q(self) -> float:
        """The chance of a record to be in a step; a half where the subject does not sample."""
        q = self.subject.study.training.sampling_probability
        return 1.0 if self.everyone else q if q <= _RATES[1] else _RATES[0]

    @property
    def records(self) -> int:
        """So many that a step has about 120, which are two chunks."""
        return int(np.clip(120.0 / self.q, 480, 4000))

    @cached_property
    def study(self) -> StudyConfig:
        """With `STEPS` steps a round."""
        theirs = self.subject.study.training
        return StudyConfig(
            name="samples",
            seed=self.subject.study.seed,
            data=DataSchema(
                input_shape=(1 - (-self.records // (_WIDTH - 1)),),
                class_names=tuple(f"class-{i}" for i in range(_WIDTH + 1)),
            ),
            search=SearchSection(space="mlp", strategy="differentiable"),
            privacy=PrivacySection(
                epsilon=float("inf"), non_private=True, weights=0.5, architecture=0.25, fitness=0.25
            ),
            training=TrainingSection(
                sampling_probability=self.q,
                steps_per_round=STEPS,
                clip_norm=usual(theirs.clip_norm),
                learning_rate=self._learning_rate,
                momentum=_MOMENTUM,
                architecture_clip_norm=usual(theirs.architecture_clip_norm),
                micro_batch=_CHUNK,
            ),
        )

    @property
    def _learning_rate(self) -> float:
        return _SMALL / usual(self.subject.study.training.clip_norm)

    def plan(self, rounds: int) -> PrivacyPlan:
        """Without noise, for so many rounds of the search and so many finals."""
        training = self.study.training
        schedule = ReleaseSchedule(
            sampling_probability=self.q,
            search_steps=rounds * STEPS,
            final_steps=rounds * STEPS,
            architecture_steps=rounds,
            clip_norm=training.clip_norm,
            architecture_clip_norm=training.architecture_clip_norm,
        )
        return PrivacyPlan.calibrate(
            budget=PrivacyBudget.non_private(),
            proportions=self.study.privacy.proportions,
            schedule=schedule,
        )

    @cached_property
    def path(self) -> Architecture:
        """One layer."""
        return Architecture.of("mlp", {"activation": "relu", "depth": 1, "layers.0.width": _WIDTH})

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """See the class."""
        first = np.zeros((_WIDTH, *self.study.data.input_shape))
        first[0, 0] = 1.0
        values = {
            "layers.0.linear.weight": first,
            "layers.0.linear.bias": np.arange(_WIDTH) > 0,
            "outputs.1.weight": np.eye(_WIDTH + 1, _WIDTH, k=-1),
            "outputs.1.bias": _SURE * np.eye(_WIDTH + 1)[0],
        }
        return flat_weights(self.study, self.path, values)

    @cached_property
    def slope(self) -> Floats:
        """Of a gate of one: the derivative by the logits, NaN off the path."""
        policy = Policy(space_of(self.study))
        rows = policy.jacobian(self.path)
        return policy.spread(rows, np.concatenate([rows[name] for name in sorted(rows)]))

    def places(self, number: int) -> NDArray[np.int64]:
        """Coordinates of W1 for some records, in the order of the site's file: no two share one."""
        order = np.random.default_rng([*b"places", self.subject.seed]).permutation(self.records)
        return order[:number].astype(np.int64)

    @staticmethod
    def _coordinates(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Features and neurons: of W1."""
        return 1 + places // (_WIDTH - 1), 1 + places % (_WIDTH - 1)

    def one_hot(self, places: NDArray[np.int64]) -> Records:
        """Records with coordinates of their own."""
        x = np.zeros((len(places), *self.study.data.input_shape), np.float32)
        features, neurons = self._coordinates(places)
        x[np.arange(len(places)), features] = _HUGE * max(1.0, self.study.training.clip_norm)
        return x, 1 + neurons

    @property
    def powers(self) -> Records:
        """Records of the architecture stream: each has half of the gradient of the one before."""
        x = np.zeros((BITS, *self.study.data.input_shape), np.float32)
        x[:, 0] = self._largest * 0.5 ** np.arange(BITS)
        return x, np.ones(BITS, np.int64)

    @property
    def _largest(self) -> float:
        """Output of neuron 0 with which a gradient is just within its clip norm, and below all doubt."""
        length = float(np.sqrt(np.nansum(np.square(self.slope))))
        return min(0.9 * self.study.training.architecture_clip_norm / length, _SURE / 2.0)

    def read_weights(self, update: NDArray[np.float32], divisor: float, places: NDArray[np.int64]) -> Samples:
        """Which records were in which step.

        Args:
            update: of a round.
            divisor: what a step divides by.
            places: of the records, in the order of the file.
        """
        training = self.study.training
        unit = training.learning_rate * training.clip_norm / divisor
        part = part_of(self.study, self.path, update, "layers.0.linear.weight")
        features, neurons = self._coordinates(places)
        sums = part[neurons, features] / unit
        counted = (1.0 - _MOMENTUM ** (STEPS - np.arange(STEPS))) / (1.0 - _MOMENTUM)
        patterns = (np.arange(2**STEPS)[:, None] >> np.arange(STEPS)) & 1 == 1
        totals = patterns @ counted
        order = np.argsort(totals)
        middles = (totals[order][1:] + totals[order][:-1]) / 2.0
        found = order[np.searchsorted(middles, sums)]
        return Samples(
            weights=patterns[found].T,
            architecture=np.zeros(0, np.bool_),
            doubt=float(np.max(np.abs(sums - totals[found]))),
        )

    def read_architecture(self, alphas: Floats, divisor: float) -> tuple[Mask, float]:
        """Which of `powers` were in the sample of an architecture gradient, and how much is in doubt.

        Args:
            alphas: as released.
            divisor: what the sum is divided by.
        """
        known = np.isfinite(self.slope)
        slope = self.slope[known]
        along = float(alphas[known] @ slope / (slope @ slope))
        total = -along * divisor / self._largest * 2.0 ** (BITS - 1)
        number = int(np.clip(np.rint(total), 0, 2**BITS - 1))
        mask = (number >> np.arange(BITS)[::-1]) & 1 == 1
        # In units of the smallest record, of which a hundredth is not known for rounding.
        return mask, abs(total - number) / 100.0


@final
class OpenSite:
    """A rehearsed site without noise, asked about its samples.

    Args:
        folder: of its files; made.
        terms: what it is asked.
        rounds: that its plan has, of either kind.
        declared_size: public.
        records: how many have coordinates of their own, for each stream.
        powers: whether the architecture stream holds `SampleStudy.powers` instead.
    """

    def __init__(
        self,
        folder: Path,
        terms: SampleStudy,
        *,
        rounds: int,
        declared_size: int,
        records: Mapping[str, int],
        powers: bool = False,
    ) -> None:
        self._terms, self._size = terms, declared_size
        self._site = Rehearsal(
            folder, study=terms.study, plan=terms.plan(rounds), declared_size=declared_size
        )
        self._places = terms.places(sum(records.values()))
        streams = {}
        start = 0
        for stream, number in records.items():
            streams[stream] = terms.one_hot(self._places[start : start + number])
            start += number
        if powers:
            streams["architecture"] = terms.powers
        self._site.fill(streams)
        self._weights = records.get("weights", 0)

    def ask(self, round: int, *, kind: TaskKind = "train") -> Samples:  # noqa: A002
        """The samples of a round: of the weights stream in a search, of all streams in a final.

        Args:
            round: from 1.
            kind: `train` or `final`.

        Raises:
            FednasError: the site refuses.
        """
        terms, shares = self._terms, self._terms.study.privacy.proportions
        alphas = Policy(space_of(terms.study)).flat() if kind == "train" else None
        task = self._site.task(kind, round, [terms.path], [terms.weights], alphas=alphas)
        answer = self._site.ask(task).arrays
        if kind == "final":
            return terms.read_weights(answer["update"], terms.q * self._size, self._places)
        places = self._places[: self._weights]
        samples = terms.read_weights(answer["update"], terms.q * self._size * shares["weights"], places)
        divisor = terms.q * self._size * shares["architecture"]
        mask, doubt = terms.read_architecture(answer["alphas"], divisor)
        return replace(samples, architecture=mask, doubt=max(samples.doubt, doubt))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._site.close()
