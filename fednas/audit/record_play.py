"""Layer L1: one record more, with the noise taken away; what moves, and what else does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from fednas.audit.findings import Check, Finding
from fednas.audit.neighbours import ROUNDING, ROWS, Data, Play, Record, Stage, bound, inserted
from fednas.audit.subject import Subject
from fednas.privacy.allowance import STREAMS
from fednas.space import Architecture
from fednas.wire import TaskKind

_USUAL: Final = ROWS + 1  # records that a sum is of
_NUMBERS: Final = (0, 1, ROWS - 1, ROWS, 5 * ROWS + 1)
_STEPS: Final = 3  # of a final whose sums may not pile up
_READS: Final[tuple[tuple[TaskKind, str, str], ...]] = (
    ("train", "weights", "update"),
    ("train", "architecture", "alphas"),
    ("final", "weights", "update"),
    ("final", "architecture", "update"),
    ("final", "fitness", "update"),
    ("evaluate", "fitness", "correct"),
)
"""Tasks, the streams that they may read, and what is released of each."""
_FOREIGN: Final[tuple[tuple[TaskKind, str], ...]] = (
    ("train", "fitness"),
    ("evaluate", "weights"),
    ("evaluate", "architecture"),
)
"""Tasks, and streams that they may not read."""


@final
@dataclass(frozen=True, kw_only=True)
class _Trio:
    """A task without a record, with it, and of it alone.

    Args:
        where: what was played, for people.
        without, with_it, alone: the plays.
    """

    where: str
    without: Play
    with_it: Play
    alone: Play

    @property
    def answered(self) -> bool:
        return bool(self.without.sums and self.with_it.sums and self.alone.sums)

    def length(self, name: str) -> float:
        """What the record adds to a sum by itself."""
        return _length(self.alone.sums[name])

    def off(self, name: str) -> float:
        """How far what it adds among others is from that."""
        moved = self.with_it.sums[name] - self.without.sums[name]
        return _length(moved - self.alone.sums[name])

    def rounding(self, name: str) -> float:
        """How far that may seem to be, because an answer is rounded."""
        plays = (self.without, self.with_it, self.alone)
        return ROUNDING[name] * (1.0 + sum(_length(play.sums[name]) for play in plays))


def check_neighbours(subject: Subject, folder: Path) -> Iterator[Finding]:
    """Yield what this layer finds.

    Args:
        subject: what is audited: plays use its own space, paths and, for what is seen beside the released
            values, its own plan.
        folder: empty, for the files of rehearsals.
    """
    stage = Stage.without_noise(subject, folder / "bare")
    generator = np.random.default_rng([2, subject.seed])
    paths = [stage.space.sample(generator) for _ in range(2)]
    yield from _check_counts(stage, paths)
    yield from _check_streams(stage, paths[0])
    yield from _check_sums(stage, paths)
    yield from _check_terms(stage, paths[0])
    yield from _check_monsters(stage, paths[0])
    yield from _check_others(stage, paths[0])
    yield from _check_forms(Stage.as_agreed(subject, folder / "noisy"), paths[0])


def _trio(stage: Stage, kind: TaskKind, base: Data, record: Record, paths: Sequence[Architecture]) -> _Trio:
    what = {"train": "a round", "final": "a final round", "evaluate": f"{len(paths)} counts"}[kind]
    return _Trio(
        where=f"{what} over {len(base[1])} records",
        without=stage.play(kind, base, paths),
        with_it=stage.play(kind, inserted(base, record), paths),
        alone=stage.play(kind, inserted(stage.records({}), record), paths),
    )


def _check_trio(trio: _Trio, name: str, where: str) -> Iterator[Check]:
    """What is true of any record, any others and any mechanism; the first alone if a site refused."""
    where = f"{where}, {trio.where}"
    yield _answers(where, trio.without, trio.with_it, trio.alone)
    if not trio.answered:
        return
    length, off = trio.length(name), trio.off(name)
    limit = bound(name, trio.alone.sums[name].size)
    yield _check(
        "a record moves a sum by no more than the clip norm, and a count by one",
        length <= limit,
        f"by {length:.7g}; at most {limit:.7f}: {where}",
    )
    yield _check(
        "a record moves a sum by its own share, whatever the other records are and how many",
        off <= trio.rounding(name),
        f"off by {off:.1e} clip norms: {where}",
    )
    yield _unseen(where, trio.without, trio.with_it)


def _cases() -> Iterator[tuple[int, int, int, str, int]]:
    """Which path, which of `_READS`, over how many records, which record and of which class.

    An outlier of two classes, since a network may be right about one, and then adds nothing.
    """
    for read in (0, 1):
        for which, label in (("outlier", 0), ("outlier", 1), ("usual", 0), ("tiny", 0), ("zero", 0)):
            yield 0, read, _USUAL, which, label
    for many in _NUMBERS:
        yield from ((0, read, many, "usual", 1) for read in (0, 1))
    yield from ((0, read, _USUAL, "usual", 0) for read in (2, 3, 4))
    yield from ((1, read, _USUAL, "outlier", label) for read in (0, 1) for label in (0, 1))
    yield 1, 2, _USUAL, "usual", 0


def _check_sums(stage: Stage, paths: list[Architecture]) -> Iterator[Check]:
    """Updates and architecture gradients: each record's own share, whatever the others are."""
    longest = {"update": 0.0, "alphas": 0.0}
    for path, read, many, which, label in _cases():
        kind, stream, name = _READS[read]
        base = stage.records({"weights": many, "architecture": many, "fitness": 2})
        trio = _trio(stage, kind, base, stage.record(which, stream, label), [paths[path]])
        yield from _check_trio(trio, name, f"one {which} more in {stream}")
        if not trio.answered:
            return
        longest[name] = max(longest[name], trio.length(name))
    for name, length in longest.items():
        yield _check(
            "an outlier moves a sum by all of the clip norm: no smaller one would be seen to be broken",
            length >= 0.99,
            f"{name}: by {length:.7f} of it",
        )


def _check_counts(stage: Stage, paths: list[Architecture]) -> Iterator[Check]:
    """Fitness: every class in turn, so that each network is right about one of the records."""
    candidates = [*paths, stage.space.smallest()]
    right = np.zeros((stage.space.num_classes, len(candidates)))
    for label, many in enumerate((33, 0, *[1] * (stage.space.num_classes - 2))):
        base = stage.records({"weights": 3, "architecture": 3, "fitness": many})
        trio = _trio(stage, "evaluate", base, stage.record("usual", "fitness", label), candidates)
        yield from _check_count(trio, f"one more of class {label}")
        if not trio.answered:
            return
        right[label] = trio.alone.sums["correct"]
    yield _check(
        "a candidate is right about a record for one of all classes",
        bool(np.all(right.sum(axis=0) == 1.0)),
        f"{stage.space.num_classes} classes, right for {right.sum(axis=0).tolist()}",
    )
    # Where the first candidate is right about all, one that it is wrong about may not lower its count.
    known = int(right[:, 0].argmax())
    x, _, name = stage.record("usual", "fitness")
    names = stage.names["fitness"][:33]
    base = np.repeat(x[None], len(names), axis=0), np.full(len(names), known), names
    for label in (known, (known + 1) % stage.space.num_classes):
        trio = _trio(stage, "evaluate", base, (x, label, name), candidates)
        yield from _check_count(trio, f"one more of class {label} among such of class {known}")


def _check_count(trio: _Trio, where: str) -> Iterator[Check]:
    """That a record moves counts by itself; the first check alone if a site refused."""
    where = f"{where}, {trio.where}"
    yield _answers(where, trio.without, trio.with_it, trio.alone)
    if not trio.answered:
        return
    own = trio.alone.sums["correct"]
    moved = trio.with_it.sums["correct"] - trio.without.sums["correct"]
    yield _check(
        "a record moves a count by itself: by nothing, or by one",
        bool(np.isin(own, (0.0, 1.0)).all() and np.array_equal(moved, own)),
        f"alone {own.tolist()}, among others {moved.tolist()}: {where}",
    )
    yield _unseen(where, trio.without, trio.with_it)


def _check_monsters(stage: Stage, path: Architecture) -> Iterator[Check]:
    """Records that break arithmetic or the schema."""
    base = stage.records(dict.fromkeys(STREAMS, _USUAL))
    for kind, stream, name in (_READS[0], _READS[1], _READS[5]):
        usual = stage.record("usual", stream)
        for value in (1e38, np.nan, np.inf):
            record = np.full_like(usual[0], value), *usual[1:]
            yield from _check_monster(stage, kind, base, record, path, name, f"{value:g} in {stream}")
        for label in (-1, stage.space.num_classes) if stream == "weights" else ():
            wrong = usual[0], label, usual[2]
            yield from _check_monster(stage, kind, base, wrong, path, name, f"class {label} in {stream}")


def _check_monster(
    stage: Stage, kind: TaskKind, base: Data, record: Record, path: Architecture, name: str, where: str
) -> Iterator[Check]:
    trio = _trio(stage, kind, base, record, [path])
    yield from _check_trio(trio, name, f"one of {where} more")
    if not trio.answered:
        return
    yield _check(
        "whatever a record holds, what leaves is finite",
        all(np.isfinite(total).all() for total in trio.with_it.sums.values()),
        f"one of {where}",
    )
    if not (np.isfinite(record[0]).all() and 0 <= record[1] < stage.space.num_classes):
        yield _check(
            "a record that breaks the schema is left out and moves nothing",
            _distance(trio.without, trio.with_it) == 0.0,
            f"one of {where}",
        )


def _check_streams(stage: Stage, path: Architecture) -> Iterator[Check]:
    """Records of each stream, one of every class, and what they may not move."""
    base = stage.records(dict.fromkeys(STREAMS, _USUAL))
    for kind, stream in (*_FOREIGN, ("train", "weights"), ("train", "architecture")):
        more = base
        for label in range(stage.space.num_classes):
            more = inserted(more, stage.record("outlier", stream, label))
        plays = stage.play(kind, base, [path]), stage.play(kind, more, [path])
        yield _answers(f"{kind}, some more in {stream}", *plays)
        if not all(play.sums for play in plays):
            return
        sums = plays[0].sums.items()
        moved = {name for name, total in sums if not np.array_equal(total, plays[1].sums[name])}
        yield _check(
            "a record of one stream moves nothing that another stream pays for",
            moved <= {name for k, s, name in _READS if (k, s) == (kind, stream)},
            f"{kind}: some of {stream} moved {sorted(moved) or 'nothing'}",
        )


def _check_others(stage: Stage, path: Architecture) -> Iterator[Check]:
    """One of the records twice; all in another order, under other names, without names, in other chunks."""
    many = 2 * ROWS + 3
    base = stage.records(dict.fromkeys(STREAMS, many))
    order = np.random.default_rng([3, stage.subject.seed]).permutation(len(base[1]))
    others = [name for stream in STREAMS for name in stage.names[stream][many : 2 * many]]
    nameless = base[0], base[1], [b""] * len(order)
    for kind, stream, name in (_READS[0], _READS[1]):
        place = STREAMS.index(stream) * many
        twice = base[0][place], int(base[1][place]), base[2][place]
        trio = _trio(stage, kind, base, twice, [path])
        yield _answers(f"{kind}: a record that is there twice", trio.without, trio.with_it, trio.alone)
        if trio.answered:
            yield _check(
                "a record that is there twice counts twice: none decides whether another is kept",
                trio.off(name) <= trio.rounding(name),
                f"off by {trio.off(name):.1e} clip norms",
            )
    for kind in stage.kinds:
        for data in (base, nameless):
            turned = data[0][order], data[1][order], [data[2][i] for i in order]
            yield _same(
                "the order of the records changes nothing, so their streams hang on no position",
                f"{kind}, {'with' if data is base else 'without'} names",
                stage.play(kind, data, [path]),
                stage.play(kind, turned, [path]),
            )
        yield _same(
            "a record's name decides its stream, and nothing else",
            kind,
            stage.play(kind, base, [path]),
            stage.play(kind, (base[0], base[1], others), [path]),
        )
        yield _same(
            "how many records are held in memory at once changes nothing",
            kind,
            stage.play(kind, base, [path]),
            stage.play(kind, base, [path], micro_batch=5 * ROWS),
            rounding=1e-4,  # other kernels
        )


def _check_terms(stage: Stage, path: Architecture) -> Iterator[Check]:
    """What bounds a record is the plan, in every step by itself."""
    data = inserted(stage.records({}), stage.record("outlier", "weights", 1))
    agreed = stage.play("train", data, [path])
    large = dict.fromkeys(("clip_norm", "architecture_clip_norm"), 1000.0)
    yield _same(
        "the plan says what a step is, whatever else a study says",
        "a study with larger clip norms and a smaller sampling probability than its plan's",
        agreed,
        stage.play("train", data, [path], sampling_probability=0.01, **large),
    )
    data = inserted(stage.records({}), stage.record("usual", "weights"))
    sums = stage.crawl(data, path, _STEPS)
    length = np.inf if sums is None else _length(sums)
    yield _check(
        "a record moves a step by no more than the clip norm, however many came before",
        sums is not None and length <= _STEPS * bound("update", sums.size),
        f"by {length:.6f} clip norms in {_STEPS} steps",
    )


def _check_forms(stage: Stage, path: Architecture) -> Iterator[Check]:
    """With the study's own noise: all but the values is the same for any records, also for none."""
    streams = {stream: _USUAL for stream, names in stage.names.items() if names}
    base = stage.records(streams)
    for kind, reads in stage.kinds.items():
        empty = stage.play(kind, stage.records({}), [path])
        plays = {"no record": empty, "some": stage.play(kind, base, [path])}
        for value in (1e4, 3e38, np.nan):
            x, label, name = stage.record("usual", reads[0])
            more = inserted(base, (np.full_like(x, value), label, name))
            plays[f"one of {value:g} more"] = stage.play(kind, more, [path])
        for what, play in plays.items():
            yield _answers(f"{kind} with noise, {what}", play)
            yield _unseen(f"{kind} with noise, {what}", empty, play)
        if kind != "evaluate" and empty.sums:
            yield _check(
                "a site without records lets out noise",
                all(total.any() for total in empty.sums.values()),
                kind,
            )


def _check(name: str, holds: bool, detail: str) -> Check:
    return Check(layer="L1", name=name, holds=bool(holds), detail=detail)


def _answers(where: str, *plays: Play) -> Check:
    refusals = [play.refusal for play in plays if not play.sums]
    name = "a site answers, and in the form that was asked for, whatever its records are"
    return _check(name, not refusals, f"{where}: {refusals[0]}" if refusals else where)


def _unseen(where: str, without: Play, with_it: Play) -> Check:
    name = "all but the released values is the same with one record more"
    return _check(name, without.seen == with_it.seen, where)


def _same(name: str, where: str, one: Play, other: Play, *, rounding: float = 0.0) -> Check:
    """That two plays let out the same but for what an answer is rounded by."""
    refusals = [play.refusal for play in (one, other) if not play.sums]
    if refusals or one.sums.keys() != other.sums.keys():
        return _check(name, False, f"{where}: {refusals or 'not the same arrays'}")
    off = {name: _length(one.sums[name] - total) for name, total in other.sums.items()}
    near = all(
        off[name] <= max(rounding, ROUNDING[name]) * (1.0 + 2.0 * _length(one.sums[name])) for name in off
    )
    return _check(name, near, f"{where}: off by {max(off.values()):.1e}")


def _distance(one: Play, other: Play) -> float:
    """The longest difference of two sums."""
    return max(_length(one.sums[name] - other.sums[name]) for name in one.sums)


def _length(vector: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(vector))
