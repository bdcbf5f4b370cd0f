"""Layer L1: one record more, with the noise taken away; what moves, and what else does.

Every play is a real site with the same key, a plan without noise, and every record in every step. The server
chooses a learning rate at which the update dwarfs the weights, so that float32 keeps the clipped sum to about
1e-7 of the clip norm for each of its coordinates' own size.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from fednas.audit.findings import Check, Finding
from fednas.audit.rehearsal import Rehearsal
from fednas.audit.subject import Subject
from fednas.config import StudyConfig, validated
from fednas.errors import FednasError
from fednas.privacy.allowance import STREAMS
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.grid import GRID_STEP, sensitivity
from fednas.privacy.store import Entry, LedgerStore
from fednas.schedule import plan_for
from fednas.search import Policy
from fednas.space import Architecture
from fednas.supernet import Supernet

_RATE: Final = 1e6
_SIZE: Final = 64  # declared; the sites of plays hold fewer records or more
_TOLERANCE: Final = 1e-6  # of a clip norm: what float32 leaves of an update, see the module
_KINDS: Final = ("outlier", "usual", "tiny")
_ROWS: Final = 8  # of a chunk of records

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Data = tuple[Features, Labels, list[bytes]]


@final
@dataclass(frozen=True, kw_only=True)
class Play:
    """What a site let out, and all else that anybody could see.

    Args:
        sums: by name, what was released in units of what one record may add: clip norms, or counts.
        seen: everything else, comparable.
    """

    sums: Mapping[str, NDArray[np.float64]] = field(repr=False)
    seen: tuple[object, ...] = field(repr=False)


@final
class Stage:
    """One site, again and again with other records under the same key.

    Args:
        subject: whose study is played, with its own clip norms and paths.
        folder: for the sites' files.
    """

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.folder, self.count = subject, folder, 0
        self.study = _bare(subject.study)
        self.space = subject.space
        budget = PrivacyBudget.non_private(delta=self.study.privacy.delta)
        self.plan = plan_for(self.study, subject.num_tiers, budget)
        self.supernet = Supernet.initialise(self.space, seed=subject.seed)
        self._template = folder / "template"
        with self._site(self._template) as site:
            self.names = {s: site.identifiers(s, 64) for s in ("weights", "architecture", "fitness")}

    def _site(self, folder: Path) -> Rehearsal:
        return Rehearsal(folder, study=self.study, plan=self.plan, declared_size=_SIZE)

    def records(self, streams: Mapping[str, int]) -> Data:
        """So many usual records of each stream; the first ones of a stream are always the same."""
        shape = self.study.data.input_shape
        x, y, names = [np.zeros((0, *shape), np.float32)], [], []
        for number, (stream, count) in enumerate(streams.items()):
            g = np.random.default_rng([1, number, self.subject.seed])
            x.append(g.standard_normal((64, *shape)).astype(np.float32)[:count])
            y += g.integers(0, self.space.num_classes, 64).tolist()[:count]
            names += self.names[stream][:count]
        return np.concatenate(x), np.array(y, np.int64), names

    def record(self, kind: str, stream: str) -> tuple[Features, int, bytes]:
        """A record that is none of `records`.

        Args:
            kind: usual, outlier or tiny.
            stream: that it belongs to.
        """
        g = np.random.default_rng([4, *kind.encode(), self.subject.seed])
        scale = {"usual": 1.0, "outlier": 1e4, "tiny": 1e-42}[kind]
        x = np.clip(g.standard_normal(self.study.data.input_shape), -3.0, 3.0) * scale
        return x.astype(np.float32), int(g.integers(self.space.num_classes)), self.names[stream][-1]

    def play(self, kind: str, data: Data, paths: list[Architecture]) -> Play:
        """What a site with these records lets out, and what else is seen."""
        self.count += 1
        folder = self.folder / str(self.count)
        shutil.copytree(self._template, folder)
        weights = [self.supernet.gather(path) for path in paths]
        alphas = Policy(self.space).flat() if kind == "train" else None
        with self._site(folder) as site:
            site.write(*data)
            facts = site.facts
            try:
                answer = site.ask(site.task(kind, 1, paths, weights, alphas=alphas))  # type: ignore[arg-type]
            except FednasError as error:
                return Play(sums={}, seen=("refused", type(error).__name__))
            after = site.facts
        arrays = {name: np.asarray(array) for name, array in answer.arrays.items()}
        forms = {n: (a.shape, a.dtype, np.isfinite(a).tobytes()) for n, a in sorted(arrays.items())}
        seen = (forms, facts.entries, after.entries, answer.entries, answer.operation_id, _written(folder))
        shutil.rmtree(folder)
        return Play(sums={n: self._sum(kind, n, a) for n, a in arrays.items()}, seen=seen)

    def _sum(self, kind: str, name: str, array: NDArray[Any]) -> NDArray[np.float64]:
        """What was added up over the records, in units of what one record may add."""
        if name == "correct":
            return array.astype(np.float64)
        training, privacy = self.study.training, self.study.privacy
        if name == "alphas":
            scale = _SIZE * privacy.architecture / training.architecture_clip_norm
            return np.nan_to_num(array.astype(np.float64)) * scale
        share = privacy.weights if kind == "train" else 1.0
        return array.astype(np.float64) * (-_SIZE * share / (training.learning_rate * training.clip_norm))

    def bound(self, name: str, size: int) -> float:
        """The most that a record may move a sum, with what a decoded sum may be off by itself."""
        if name == "correct":
            return 1.0
        return sensitivity(size) * GRID_STEP + _TOLERANCE


def check_neighbours(subject: Subject, folder: Path) -> Iterator[Finding]:
    """Yield what this layer finds.

    Args:
        subject: what is audited: plays use its own space, clip norms and chunks.
        folder: empty, for the files of rehearsals.
    """
    stage = Stage(subject, folder)
    generator = np.random.default_rng([2, subject.seed])
    paths = [stage.space.sample(generator) for _ in range(2)]
    yield from _check_counts(stage, paths)
    yield from _check_sums(stage, paths)
    yield from _check_others(stage, paths[0])
    yield from _check_monsters(stage, paths[0])


def _check_sums(stage: Stage, paths: list[Architecture]) -> Iterator[Check]:
    """Updates and architecture gradients: each record's own share, whatever the others are."""
    for number, (kind, path) in enumerate((k, p) for p in paths for k in ("train", "final")):
        numbers = (0, 1, _ROWS - 1, _ROWS, _ROWS + 1, 20) if number == 0 else (_ROWS + 1,)
        streams = ("weights", "architecture") if kind == "train" else STREAMS
        for stream, many, which in ((s, n, w) for s in streams for n in numbers for w in _KINDS):
            if which != "outlier" and many != _ROWS + 1:
                continue
            name = "alphas" if stream == "architecture" and kind == "train" else "update"
            record = stage.record(which, stream)
            base = stage.records({"weights": many, "architecture": many, "fitness": 2})
            without, with_it = (
                stage.play(kind, base, [path]),
                stage.play(kind, inserted(base, record), [path]),
            )
            alone = stage.play(kind, inserted(stage.records({}), record), [path])
            where = f"{name} of a {kind} round, {many} records of a stream, one {which} one more in {stream}"
            yield _answers(where, without, with_it, alone)
            if not alone.sums or not with_it.sums or not without.sums:
                return
            own = alone.sums[name]
            length = float(np.linalg.norm(own))
            yield Check(
                layer="L1",
                name="a record moves a sum by no more than the clip norm",
                holds=length <= stage.bound(name, own.size),
                detail=f"by {length:.7f} of it: {where}",
            )
            off = float(np.linalg.norm(with_it.sums[name] - without.sums[name] - own))
            yield Check(
                layer="L1",
                name="a record moves a sum by its own share, whatever the other records are and how many",
                holds=off <= _TOLERANCE * (many + 4),
                detail=f"off by {off:.1e} clip norms: {where}",
            )
            others = [other for other in without.sums if other != name]
            still = all(np.array_equal(without.sums[o], with_it.sums[o]) for o in others)
            yield Check(
                layer="L1",
                name="a record of one stream moves nothing that another stream pays for",
                holds=still,
                detail=where,
            )
            yield _unseen(where, without, with_it)


def _check_counts(stage: Stage, paths: list[Architecture]) -> Iterator[Check]:
    """Fitness: every class in turn, so that some network is right about some record."""
    x, _, name = stage.record("usual", "fitness")
    candidates = [*paths, stage.space.smallest()]
    right = np.zeros(len(candidates))
    for label, many in enumerate((33, 0, *[1] * (stage.space.num_classes - 2))):
        base, record = stage.records({"weights": 3, "architecture": 3, "fitness": many}), (x, label, name)
        without, with_it = (stage.play("evaluate", d, candidates) for d in (base, inserted(base, record)))
        alone = stage.play("evaluate", inserted(stage.records({}), record), candidates)
        where = f"counts of {len(candidates)} candidates over {many} records, one more of class {label}"
        yield _answers(where, without, with_it, alone)
        if not (alone.sums and with_it.sums and without.sums):
            return
        own = alone.sums["correct"]
        moved = with_it.sums["correct"] - without.sums["correct"]
        right = right + own
        yield Check(
            layer="L1",
            name="a record moves a count by itself: by nothing, or by one",
            holds=bool(np.isin(own, (0.0, 1.0)).all() and np.array_equal(moved, own)),
            detail=f"alone {own.tolist()}, among others {moved.tolist()}: {where}",
        )
        yield _unseen(where, without, with_it)
    yield Check(
        layer="L1",
        name="a candidate is right about a record for one of all classes",
        holds=bool(np.all(right == 1.0)),
        detail=f"{stage.space.num_classes} classes, right for {right}",
    )


def _check_others(stage: Stage, path: Architecture) -> Iterator[Check]:
    """The same records in another order, and one that is there twice."""
    base = stage.records({"weights": 11, "architecture": 11, "fitness": 11})
    order = np.random.default_rng([3, stage.subject.seed]).permutation(len(base[1]))
    turned = base[0][order], base[1][order], [base[2][i] for i in order]
    for kind, paths in (("train", [path]), ("final", [path]), ("evaluate", [path])):
        plays = stage.play(kind, base, paths), stage.play(kind, turned, paths)
        yield _answers(f"{kind}: the same records in another order", *plays)
        off = _distance(*plays)
        yield Check(
            layer="L1",
            name="the order of the records changes nothing, so their streams hang on no position",
            holds=off <= 20 * _TOLERANCE,
            detail=f"{kind}: off by {off:.1e}",
        )
    first = base[0][0], int(base[1][0]), base[2][0]
    plays = stage.play("train", base, [path]), stage.play("train", inserted(base, first), [path])
    alone = stage.play("train", inserted(stage.records({}), first), [path])
    yield _answers("train: a record that is there twice", *plays, alone)
    if alone.sums and all(play.sums for play in plays):
        off = float(np.linalg.norm(plays[1].sums["update"] - plays[0].sums["update"] - alone.sums["update"]))
        yield Check(
            layer="L1",
            name="a record that is there twice counts twice: none decides whether another is kept",
            holds=off <= 20 * _TOLERANCE,
            detail=f"off by {off:.1e} clip norms",
        )


def _check_monsters(stage: Stage, path: Architecture) -> Iterator[Check]:
    """Records that break arithmetic: what they have no gradient for, they do not move."""
    base = stage.records({"weights": 9, "architecture": 9, "fitness": 9})
    for value in (1e38, 3e38, np.nan, np.inf):
        for kind, stream in (("train", "weights"), ("train", "architecture"), ("evaluate", "fitness")):
            x, y, name = stage.record("usual", stream)
            record = np.full_like(x, value), y, name
            plays = stage.play(kind, base, [path]), stage.play(kind, inserted(base, record), [path])
            where = f"{kind}, one record of {value:g} more in {stream}"
            yield _answers(where, *plays)
            finite = all(np.isfinite(total).all() for total in plays[1].sums.values())
            yield Check(
                layer="L1", name="whatever a record holds, what leaves is finite", holds=finite, detail=where
            )
            yield _unseen(where, *plays)
            bounds = {name: stage.bound(name, total.size) for name, total in plays[0].sums.items()}
            off = {name: np.linalg.norm(plays[1].sums[name] - plays[0].sums[name]) for name in bounds}
            yield Check(
                layer="L1",
                name="a record moves a sum by no more than the clip norm",
                holds=all(length <= bounds[name] + 20 * _TOLERANCE for name, length in off.items()),
                detail=f"{where}: by {max(off.values(), default=0.0):.6f}",
            )
            if not np.isfinite(value):
                yield Check(
                    layer="L1",
                    name="a record that breaks the schema is left out and moves nothing",
                    holds=_distance(*plays) == 0.0,
                    detail=where,
                )


def _answers(where: str, *plays: Play) -> Check:
    return Check(
        layer="L1",
        name="a site answers whatever its records are",
        holds=all(play.sums for play in plays),
        detail=where
        if all(play.sums for play in plays)
        else f"{where}: {[p.seen for p in plays if not p.sums]}",
    )


def _unseen(where: str, without: Play, with_it: Play) -> Check:
    return Check(
        layer="L1",
        name="all but the released values is the same with one record more",
        holds=without.seen == with_it.seen,
        detail=where,
    )


def _distance(one: Play, other: Play) -> float:
    """The longest difference of two sums; infinite where they have not the same ones."""
    if one.sums.keys() != other.sums.keys():
        return np.inf
    return max(float(np.linalg.norm(one.sums[name] - other.sums[name])) for name in one.sums)


def inserted(data: Data, record: tuple[Features, int, bytes]) -> Data:
    """Some records with one more in their midst."""
    (x, y, names), (own, label, name), place = data, record, len(data[1]) // 2
    return (
        np.insert(x, place, own, axis=0),
        np.insert(y, place, label),
        [*names[:place], name, *names[place:]],
    )


def _bare(study: StudyConfig) -> StudyConfig:
    """The study without noise, in which every record is in the one step of every round."""
    values = study.model_dump(exclude_unset=False)
    values["privacy"] |= {
        "epsilon": np.inf,
        "non_private": True,
        "weights": 0.6,
        "architecture": 0.2,
        "fitness": 0.2,
    }
    values["search"] |= {"strategy": "differentiable", "fixed": None}
    values["training"] |= {
        "sampling_probability": 1.0,
        "steps_per_round": 1,
        "learning_rate": _RATE,
        "momentum": 0.0,
        "micro_batch": _ROWS,
    }
    return validated(StudyConfig, values, "study")


def _written(folder: Path) -> list[tuple[str, object]]:
    """A ledger's entries without what hangs on the reply that they name."""
    entries: list[Entry] = []
    with LedgerStore(folder / "ledger.sqlite", read_only=True) as store:
        store.replay(entries.append)
    private = {"reply", "signature"}
    return [(e.kind, {k: v for k, v in e.body.items() if k not in private}) for e in entries]
