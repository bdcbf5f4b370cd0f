"""Neighbouring sites: the same key and the same records but one, and all that a server sees of each.

A play is one task at a real site. Without noise, a plan of `NonPrivate` events at a sampling probability of
one, the answer says what was summed: the server knows the learning rate, the declared size and the clip norm.

What decoding may be off by: a site keeps weights as float32. The server chooses a learning rate at which one
clipped gradient moves the weights by a thousand times and more of their own size, so that they round it to
2^-24 of itself, four times over (gradient, product, step, difference): 2.4e-7 of the sum's length, less than
`ROUNDING`. Architecture gradients and counts leave as float64 and int64, which are exact here.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, final

import numpy as np
from numpy.typing import NDArray

from fednas.audit.chosen import flat_weights, size_for
from fednas.audit.quiet_site import usual
from fednas.audit.rehearsal import Rehearsal
from fednas.audit.subject import Subject
from fednas.config import StudyConfig, dump_study, validated
from fednas.errors import FednasError
from fednas.privacy.allowance import STREAMS
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.grid import GRID_STEP, sensitivity
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.store import read_entries
from fednas.schedule import plan_for
from fednas.search import Policy
from fednas.space import Architecture
from fednas.supernet import Supernet
from fednas.wire import TaskKind

ROUNDING: Final = {"update": 1e-6, "alphas": 1e-9, "correct": 0.0}
"""What is read off each answer may be off by so much of its length."""

ROWS: Final = 8
"""Records of a chunk."""

_LOUD: Final = 1e6  # an update for each clip norm of a sum, times the divisor
_SIZE: Final = 24  # declared; sites of plays hold fewer records or more
_SPARE: Final = 64  # records of each stream that have names

Features = NDArray[np.float32]
Record = tuple[Features, int, bytes]
Data = tuple[Features, NDArray[np.int64], list[bytes]]
"""Features, labels and names of records."""

# What the client sends as a refusal: whether it does may not hang on a record.
_FAILURES: Final = (
    FednasError,
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@final
@dataclass(frozen=True, kw_only=True)
class Play:
    """What a site let out, and all else that anybody could see.

    Args:
        sums: by name, what was released in units of what one record may add: clip norms, or counts. Empty if
            the site refused.
        seen: everything else, comparable.
        refusal: why it refused, for people; "" if it did not.
    """

    sums: Mapping[str, NDArray[np.float64]] = field(repr=False)
    seen: tuple[object, ...] = field(repr=False)
    refusal: str = ""


@final
class Stage:
    """One site, again and again with other records under the same key.

    Args:
        subject: whose space and seed are played.
        folder: for the sites' files.
        study: what the server sends.
        plan: what the site agrees to.
    """

    def __init__(self, subject: Subject, folder: Path, study: StudyConfig, plan: PrivacyPlan) -> None:
        self.subject, self.study, self.plan, self.space = subject, study, plan, subject.space
        self._folder, self._count = folder, 0
        self._size = size_for(_SIZE, study.privacy.delta)
        self._supernet = Supernet.initialise(self.space, seed=subject.seed)
        self._alphas = np.random.default_rng([5, subject.seed]).standard_normal(Policy(self.space).size)
        self._known: dict[tuple[object, ...], Play] = {}
        self._template = folder / "template"
        with self._site(self._template) as site:
            shares = dict(plan.proportions)
            self.names = {s: site.identifiers(s, _SPARE) if shares[s] else [] for s in STREAMS}

    @classmethod
    def without_noise(cls, subject: Subject, folder: Path) -> Self:
        """A stage whose releases are sums, of every record in one step, clipped to half the study's norms.

        Gradients of usual records are longer than such norms, and no code has one of them as a constant.
        """
        values = subject.study.model_dump()
        training = values["training"]
        values["privacy"] |= {"epsilon": np.inf, "non_private": True}
        values["privacy"] |= {"weights": 0.6, "architecture": 0.2, "fitness": 0.2}
        values["search"] |= {"strategy": "differentiable", "fixed": None}
        values["schedule"] = {"search_rounds": 2, "final_rounds": 4, "generations": 1}
        training |= {"sampling_probability": 1.0, "steps_per_round": 1, "momentum": 0.0, "micro_batch": ROWS}
        for name in ("clip_norm", "architecture_clip_norm"):
            training[name] = min(0.5, usual(training[name]) / 2.0)
        training["learning_rate"] = _LOUD / training["clip_norm"]
        study = validated(StudyConfig, values, "study")
        budget = PrivacyBudget.non_private(delta=study.privacy.delta)
        return cls(subject, folder, study, plan_for(study, subject.num_tiers, budget))

    @classmethod
    def as_agreed(cls, subject: Subject, folder: Path) -> Self:
        """A stage of the study's own plan, with its noise, its samples and its steps."""
        own = subject.study.training
        norms = {name: usual(getattr(own, name)) for name in ("clip_norm", "architecture_clip_norm")}
        training = own.model_copy(update=norms | {"learning_rate": _LOUD / norms["clip_norm"]})
        study = subject.study.model_copy(update={"training": training})
        return cls(subject, folder, study, plan_for(study, subject.num_tiers, subject.budget))

    def _site(self, folder: Path) -> Rehearsal:
        return Rehearsal(folder, study=self.study, plan=self.plan, declared_size=self._size)

    @property
    def kinds(self) -> Mapping[TaskKind, tuple[str, ...]]:
        """What the plan allows a server to ask, and the streams that it reads."""
        reads = {a.name: a.streams for a in self.plan.allowances}
        kinds: dict[TaskKind, tuple[str, ...]] = {}
        if "search" in reads:
            kinds["train"] = reads["search"] + reads.get("alphas", ())
        if "final" in reads:
            kinds["final"] = reads["final"]
        if "fitness" in reads:
            kinds["evaluate"] = reads["fitness"]
        return kinds

    def records(self, streams: Mapping[str, int]) -> Data:
        """So many usual records of each stream; the first ones of a stream are always the same."""
        shape = self.study.data.input_shape
        x, y, names = [np.zeros((0, *shape), np.float32)], np.zeros(0, np.int64), list[bytes]()
        for stream, count in streams.items():
            g = np.random.default_rng([1, STREAMS.index(stream), self.subject.seed])
            x.append(g.standard_normal((_SPARE, *shape)).astype(np.float32)[:count])
            y = np.append(y, g.integers(0, self.space.num_classes, _SPARE)[:count])
            names += self.names[stream][:count]
        return np.concatenate(x), y, names

    def record(self, kind: str, stream: str, label: int = 0) -> Record:
        """A record that is none of `records`.

        Args:
            kind: usual, outlier, tiny or zero.
            stream: that it belongs to.
            label: its class.
        """
        g = np.random.default_rng([4, *kind.encode(), self.subject.seed])
        scale = {"usual": 1.0, "outlier": 1e4, "tiny": 1e-42, "zero": 0.0}[kind]
        x = np.clip(g.standard_normal(self.study.data.input_shape), -3.0, 3.0) * scale
        return x.astype(np.float32), label, self.names[stream][-1]

    def play(self, kind: TaskKind, data: Data, paths: Sequence[Architecture], **training: float) -> Play:
        """What a site with these records lets out, and what else is seen.

        Args:
            kind: of the task.
            data: all records of the site.
            paths: one to train, or candidates.
            training: other values of the study's section than the plan was made for.
        """
        x, y, names = data
        key = (kind, x.tobytes(), y.tobytes(), *names, *(p.id for p in paths), *sorted(training.items()))
        if key not in self._known:
            weights = [self._supernet.gather(path) for path in paths]
            self._known[key] = self._play(kind, data, paths, weights, training)
        return self._known[key]

    def crawl(self, data: Data, path: Architecture, steps: int) -> NDArray[np.float64] | None:
        """What all steps of a final summed up, with steps so small that the weights stay at zero, or nearly.

        Args:
            data: all records of the site.
            path: to train.
            steps: how many.

        Returns:
            Shape (d,), in clip norms; None if the site refused.
        """
        allowance = self.plan.allowance("final")
        slow = {
            "learning_rate": 1e-3 * self._divisor("final") / allowance.clip_norm,
            "steps_per_round": steps,
        }
        play = self._play("final", data, [path], [flat_weights(self.study, path, {})], slow)
        return play.sums.get("update")

    def _play(
        self,
        kind: TaskKind,
        data: Data,
        paths: Sequence[Architecture],
        weights: Sequence[NDArray[np.float32]],
        training: Mapping[str, float],
    ) -> Play:
        self._count += 1
        folder = self._folder / str(self._count)
        shutil.copytree(self._template, folder)
        section = self.study.training.model_copy(update=dict(training))
        learns = kind == "train" and "architecture" in self.kinds["train"]
        try:
            with self._site(folder) as site:
                site.write(*data)
                task = site.task(kind, 1, paths, weights, alphas=self._alphas if learns else None)
                study = dump_study(self.study.model_copy(update={"training": section}))
                before = site.facts
                answer = site.ask(replace(task, study=study))
                after = site.facts
            written = _written(folder)
        except _FAILURES as error:
            return Play(sums={}, seen=("refused",), refusal=f"{type(error).__name__}: {str(error)[:120]}")
        finally:
            shutil.rmtree(folder)
        arrays = {name: np.asarray(array) for name, array in sorted(answer.arrays.items())}
        forms = [(n, a.shape, a.dtype, np.isfinite(a).tobytes()) for n, a in arrays.items()]
        facts = [asdict(f) | {"head": ""} for f in (before, after)]
        seen = (forms, facts, answer.entries, answer.operation_id, written)
        rate = section.learning_rate
        return Play(sums={n: self._sum(kind, n, a, rate) for n, a in arrays.items()}, seen=seen)

    def _sum(self, kind: str, name: str, array: NDArray[Any], rate: float) -> NDArray[np.float64]:
        """What was added up over the records, in units of what one record may add."""
        values = array.astype(np.float64)
        if name == "correct":
            return values
        if name == "alphas":  # NaN for choices that the path has not
            return np.nan_to_num(values) * (self._divisor("alphas") / self.plan.allowance("alphas").clip_norm)
        allowance = "search" if kind == "train" else "final"
        return values * (-self._divisor(allowance) / (rate * self.plan.allowance(allowance).clip_norm))

    def _divisor(self, allowance: str) -> float:
        """What a step divides by: public numbers alone."""
        terms, shares = self.plan.allowance(allowance), dict(self.plan.proportions)
        return terms.sampling_probability * self._size * sum(shares[stream] for stream in terms.streams)


def bound(name: str, size: int) -> float:
    """The most that a record may move a sum of `size` coordinates, as it is read off an answer."""
    if name == "correct":
        return 1.0
    return sensitivity(size) * GRID_STEP * (1.0 + ROUNDING[name])


def inserted(data: Data, record: Record) -> Data:
    """Some records with one more in their midst."""
    (x, y, names), (own, label, name), place = data, record, len(data[1]) // 2
    return (
        np.insert(x, place, own, axis=0),
        np.insert(y, place, label),
        [*names[:place], name, *names[place:]],
    )


def _written(folder: Path) -> list[tuple[str, object]]:
    """A ledger's entries without what hangs on the reply that they name."""
    entries = read_entries(folder / "ledger.sqlite")
    private = {"reply", "signature"}
    return [(e.kind, {k: v for k, v in e.body.items() if k not in private}) for e in entries]
