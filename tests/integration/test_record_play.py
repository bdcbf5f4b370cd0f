"""One record more, an outlier in the middle: sums move by its own integers, and nothing else moves."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fednas.config import SiteConfig, StudyConfig, dump_study
from fednas.privacy import ledger as ledger_module
from fednas.privacy.allowance import STREAMS
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.grid import GRID_STEP, sensitivity
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.streams import assign
from fednas.schedule import release_schedule
from fednas.search import Policy
from fednas.site import Site
from fednas.space import Architecture, create
from fednas.supernet import Supernet
from fednas.supernet.chunks import steady_rows
from fednas.training.engine import OpacusEngine
from fednas.wire import Task, encode, encode_facts
from tests.integration.record_play import (
    MECHANISMS,
    Features,
    Frozen,
    Labels,
    Spy,
    Units,
    forms,
    in_the_middle,
    length,
    monster,
    play,
)
from tests.privacy.ledgers import entries
from tests.simulations import tiny
from tests.training.sites import open_plan

BATCH = 16
NUMBERS = (0, 1, BATCH - 1, BATCH, BATCH + 1, 64, 65)
SHAPES = {
    "mlp": ("mlp", (5,), 3),
    "hospitals": ("mlp", (29,), 4),
    "conv": ("conv", (1, 8, 8), 3),
    "digits": ("conv", (3, 13, 11), 10),
    "conv1d": ("conv1d", (2, 16), 3),
    "watches": ("conv1d", (6, 45), 5),
}
SPACES = {name: create(*arguments) for name, arguments in SHAPES.items()}
KINDS = ("usual", "outlier", "huge", "tiny", "sparse", "zero")


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy().watch(monkeypatch)


# Mechanisms: any model, any path, any record.


def triple(seed: int, spy: Spy) -> tuple[Units, Units, Units]:
    """What the sums of a random mechanism are without a random record, with it, and of it alone."""
    g = np.random.default_rng([20, seed])
    space = SPACES[str(g.choice(list(SPACES), p=(0.2, 0.2, 0.2, 0.05, 0.2, 0.15)))]  # digits is slow
    what = str(g.choice(list(MECHANISMS)))
    architecture, number, micro_batch = space.sample(g), int(g.integers(0, 12)), int(g.choice([5, 8, 12, 16]))
    x = g.standard_normal((number, *space.input_shape)).astype(np.float32)
    y = g.integers(0, space.num_classes, number)
    record, label = monster(str(g.choice(KINDS)), space.input_shape, g), int(g.integers(space.num_classes))

    def summed(x: Features, y: Labels, extra: tuple[int, int] | None) -> Units:
        return play(what, space, architecture, x, y, seed=seed, spy=spy, extra=extra, micro_batch=micro_batch)

    with_it = in_the_middle(x, y, record, label)
    return summed(x, y, None), summed(*with_it), summed(*in_the_middle(x[:0], y[:0], record, label))


def check_triples(seeds: range, spy: Spy) -> None:
    moved = 0
    for seed in seeds:
        without, with_it, alone = triple(seed, spy)
        assert np.array_equal(with_it - without, alone), seed
        assert length(alone) <= sensitivity(alone.size), seed
        moved += bool(alone.any())
    assert moved > 0.5 * len(seeds)


def test_a_random_record_moves_a_random_sum_by_its_own_integers_and_within_the_bound(spy: Spy) -> None:
    check_triples(range(100), spy)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_random_records_move_random_sums_by_their_own_integers(part: int, spy: Spy) -> None:
    check_triples(range(1000 * part, 1000 * (part + 1)), spy)


@pytest.mark.parametrize("name", list(SPACES))
@pytest.mark.parametrize("what", ["search", "alphas"])
def test_an_outlier_reaches_the_bound_so_a_smaller_one_would_be_wrong(what: str, name: str, spy: Spy) -> None:
    space, lengths = SPACES[name], []
    for seed in range(6):
        g = np.random.default_rng(seed)
        x = (1e3 * g.standard_normal((1, *space.input_shape))).astype(np.float32)
        plan = open_plan(alphas_clip_norm=1e-3)
        units = play(what, space, space.sample(g), x, np.array([seed % 3]), seed=seed, spy=spy, plan=plan)
        lengths.append(length(units) / sensitivity(units.size))
    assert 0.99 < max(lengths) <= 1.0


def test_a_sum_in_which_records_mix_is_found(spy: Spy) -> None:
    """What is said of a sum of floats: its last bits hang on all records."""
    space = SPACES["conv1d"]
    g = np.random.default_rng(3)
    x, y = g.standard_normal((40, *space.input_shape)).astype(np.float32), np.arange(40) % 3
    rows = [
        play("search", space, space.smallest(), x[i : i + 1], y[i : i + 1], seed=0, spy=spy)
        for i in range(40)
    ]
    floats = [(row * (0.7 * GRID_STEP)).astype(np.float32) for row in rows]
    with_it = np.sum(floats, axis=0, dtype=np.float32)
    without = np.sum(floats[:20] + floats[21:], axis=0, dtype=np.float32)
    assert not np.array_equal(with_it - without, floats[20])
    assert np.array_equal(sum(rows) - sum(rows[:20] + rows[21:]), rows[20])


def test_an_engine_whose_records_mix_passes_them_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, spy: Spy
) -> None:
    space = SPACES["mlp"]
    pure: Callable[..., list[torch.Tensor]] = OpacusEngine._gradients
    seen: list[int] = []

    def mixed(self: OpacusEngine, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        seen.append(len(x))
        return [g - g.mean(dim=0) * 1e-6 if len(x) > 1 else g for g in pure(self, x, y)]

    monkeypatch.setattr(OpacusEngine, "_gradients", mixed)
    x, y = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32), np.arange(9) % 3
    found = play("search", space, space.smallest(), x, y, seed=0, spy=spy, micro_batch=8)
    assert seen[-9:] == [1] * 9
    monkeypatch.setattr(OpacusEngine, "_gradients", pure)
    assert np.array_equal(
        found, play("search", space, space.smallest(), x, y, seed=0, spy=spy, micro_batch=1)
    )


@pytest.mark.parametrize("name", list(SPACES))
def test_the_networks_of_this_project_let_records_pass_together(name: str) -> None:
    """Speed, not privacy: if this fails on a machine, it trains there record by record."""
    space = SPACES[name]
    for seed in range(3):
        network = space.build(space.sample(np.random.default_rng(seed)))
        with torch.no_grad():
            shape = tuple(network.stem(torch.zeros(1, *space.input_shape)).shape[1:])
        engine = OpacusEngine(network.trunk, clip_norm=1.0, learning_rate=0.1, momentum=0.0, micro_batch=8)
        assert steady_rows(engine._gradients, shape, 8) == 8
        engine.close()


# A site: the real one, with a real ledger.

SITE_STREAMS = {"train": ("weights", "architecture"), "final": ("weights",), "evaluate": ("fitness",)}
PLAYS = [(kind, stream) for kind, streams in SITE_STREAMS.items() for stream in streams]
FIXED = 5  # records of the other streams


def study_of(name: str) -> StudyConfig:
    space, shape, classes = SHAPES[name]
    return tiny.study(
        search={"space": space, "strategy": "differentiable"},
        data={"input_shape": shape, "class_names": tuple("abcdefghij"[:classes])},
        training={"steps_per_round": 1, "micro_batch": BATCH, "sampling_probability": 0.5},
    )


class Play:
    """One site of one dataset, again and again with other records under the same key."""

    def __init__(self, folder: Path, name: str, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch, self.count = folder, patch, 0
        self.study, self.space = study_of(name), SPACES[name]
        self.cap = PrivacyBudget(epsilon=3.0, delta=self.study.privacy.delta)
        self.plan = PrivacyPlan.calibrate(
            budget=self.cap,
            proportions=self.study.privacy.proportions,
            schedule=release_schedule(self.study, 3),
        )
        self.path = self.space.sample(np.random.default_rng(4))
        self.template = folder / "template"
        self.template.mkdir(parents=True)
        with PrivacyLedger.open(self.template / "ledger", dataset="ward", cap=self.cap) as ledger:
            self.key = ledger.stream_key
        self.spy = Spy().watch(patch)

    def task(self, kind: str) -> Task:
        supernet = Supernet.initialise(self.space, seed=0)
        paths: tuple[Architecture, ...] = (self.path,) * (2 if kind == "evaluate" else 1)
        arrays: dict[str, Any] = {f"weights.{i}": supernet.gather(path) for i, path in enumerate(paths)}
        if kind == "train":
            arrays["alphas"] = Policy(self.space).flat()
        return Task(
            kind=kind,  # type: ignore[arg-type]
            run="run",
            round=1,
            plan=self.plan.to_json(),
            study=dump_study(self.study),
            architectures=paths,
            arrays=arrays,
        )

    def records(self, stream: str, number: int) -> dict[str, np.ndarray]:
        """So many records of one stream, and a few of each other; the first ones are always the same."""
        names: list[bytes] = []
        for one in STREAMS:
            wanted, i = number if one == stream else FIXED, 0
            while wanted:
                name = f"{one}-{i}".encode()
                found = STREAMS[int(assign(self.key, [name], self.plan.proportions)[0])]
                wanted, i = wanted - (found == one), i + 1
                names += [name] * (found == one)
        x = [
            np.random.default_rng(list(name)).standard_normal(self.space.input_shape).astype(np.float32)
            for name in names
        ]
        return {
            "x": np.array(x, dtype=np.float32).reshape(len(names), *self.space.input_shape),
            "y": np.array([sum(name) % self.space.num_classes for name in names], dtype=np.int64),
            "id": np.array(names, dtype="S20") if names else np.zeros(0, dtype="S20"),
        }

    def with_one_more(
        self, kind: str, arrays: dict[str, np.ndarray], stream: str, record: Features, label: int
    ) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
        """One record more in the midst of its stream, and what `Frozen` must know of it."""
        streams = assign(self.key, arrays["id"].tolist(), self.plan.proportions)
        mine = np.flatnonzero(streams == STREAMS.index(stream))
        place = int(mine[len(mine) // 2]) if len(mine) else 0
        names = (f"extra-{i}".encode() for i in range(10_000))
        name = next(
            n for n in names if STREAMS[int(assign(self.key, [n], self.plan.proportions)[0])] == stream
        )
        more = {
            "x": np.insert(arrays["x"], place, record, axis=0),
            "y": np.insert(arrays["y"], place, label),
            "id": np.insert(arrays["id"], place, name),
        }
        # The final training samples from all streams, the others from one.
        return more, (len(streams) + 1, place) if kind == "final" else (len(mine) + 1, len(mine) // 2)

    def perform(
        self,
        kind: str,
        arrays: dict[str, np.ndarray],
        extra: tuple[int, int] | None = None,
        *,
        frozen: bool = True,
    ) -> tuple[dict[str, np.ndarray], list[Units], tuple[object, ...]]:
        """What a site releases, the sums before the noise, and all else that anybody could see."""
        self.count += 1
        folder = shutil.copytree(self.template, self.folder / str(self.count))
        np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
        config = SiteConfig(
            name="ward",
            dataset="ward",
            data=folder / "data.npz",
            declared_size=60,
            epsilon=3.0,
            delta=self.study.privacy.delta,
            ledger=folder / "ledger",
            device=tiny.device("large"),
        )
        entropy = Frozen(extra, rate=0.7)
        with self.patch.context() as patch:
            if frozen:
                patch.setattr(ledger_module, "SecureEntropy", lambda: entropy)
            site = Site(config, self.ledger(folder))
            facts = encode_facts(site.facts())
            answer = site.perform(self.task(kind))
        seen = (
            sizes(facts),
            forms(answer.value),
            sizes(encode(answer)),
            answer.operation_id,
            answer.entries,
            sizes(encode_facts(site.facts())),
            entropy.asked,
            [
                entries(folder / "ledger", word)
                for word in ("OPEN", "CAP", "DECLARE", "PLAN", "RESERVE", "REFUSE")
            ],
            [entry["operation"] for entry in entries(folder / "ledger", "RELEASE")],
            len(entries(folder / "ledger", "CHECKPOINT")),
        )
        return dict(answer.value), self.spy.take(), seen

    def ledger(self, folder: Path) -> PrivacyLedger:
        return PrivacyLedger.open(folder / "ledger", dataset="ward", cap=self.cap)


def sizes(content: RecordDict) -> list[object]:
    """How many bytes each part of a message has."""
    arrays = [
        (name, key, len(array.data), array.dtype, tuple(array.shape))
        for name, record in content.array_records.items()
        for key, array in record.items()
    ]
    texts = [
        (name, key, len(str(value)))
        for name, record in content.config_records.items()
        for key, value in record.items()
    ]
    return [*arrays, *texts, sorted(content.metric_records)]


def check_neighbours(site: Play, kind: str, stream: str, number: int, value: float) -> None:
    arrays = site.records(stream, number)
    record = np.full(site.space.input_shape, value, dtype=np.float32)
    more, extra = site.with_one_more(kind, arrays, stream, record, 1)
    before, sums, seen = site.perform(kind, arrays)
    after, more_sums, more_seen = site.perform(kind, more, extra if np.isfinite(value) else None)
    assert more_seen == seen
    assert len(more_sums) == len(sums) == {"train": 2, "final": 1, "evaluate": 0}[kind]
    for one, other in zip(sums, more_sums, strict=True):
        assert length(other - one) <= sensitivity(one.size)
    reads = {"train": ("architecture", "weights"), "final": ("weights",), "evaluate": ()}[kind]
    for name, one, other in zip(reads, sums, more_sums, strict=True):
        if name != stream or not np.isfinite(value):
            assert np.array_equal(one, other)
    if kind == "evaluate":
        assert set((after["correct"] - before["correct"]).tolist()) <= {0, 1}
    else:
        # The divisor is the same public number for both: updates are the sums times a constant.
        for update, total in ((before["update"], sums[-1]), (after["update"], more_sums[-1])):
            assert np.allclose(update, total * slope(site, kind), rtol=1e-4, atol=1e-6)


def slope(site: Play, kind: str) -> float:
    """What a grid unit of a sum moves a weight by: public numbers alone."""
    name = "search" if kind == "train" else "final"
    terms = site.plan.allowance(name)
    share = sum(dict(site.plan.proportions)[stream] for stream in terms.streams)
    divisor = terms.sampling_probability * 60 * share
    return -site.study.training.learning_rate * terms.clip_norm * GRID_STEP / divisor


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("kind", "stream"), PLAYS)
def test_all_but_the_values_is_the_same_with_one_record_more(
    kind: str, stream: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_neighbours(Play(tmp_path, "mlp", monkeypatch), kind, stream, number, 1e4)


@pytest.mark.parametrize("name", ["digits", "watches"])
@pytest.mark.parametrize(("kind", "stream"), PLAYS)
def test_all_but_the_values_is_the_same_in_the_other_spaces_too(
    name: str, kind: str, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_neighbours(Play(tmp_path, name, monkeypatch), kind, stream, BATCH, 1e4)


@pytest.mark.slow
@pytest.mark.parametrize("value", [1e4, 1e38, np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", list(SPACES))
@pytest.mark.parametrize(("kind", "stream"), PLAYS)
def test_all_but_the_values_is_the_same_whatever_the_record(
    kind: str,
    stream: str,
    name: str,
    number: int,
    value: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_neighbours(Play(tmp_path, name, monkeypatch), kind, stream, number, value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize(("kind", "stream"), PLAYS)
def test_a_monstrous_record_gives_a_finite_release_of_the_same_form(
    kind: str, stream: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Play(tmp_path, "mlp", monkeypatch)
    arrays = site.records(stream, 9)
    more, _ = site.with_one_more(kind, arrays, stream, np.full(site.space.input_shape, value, np.float32), 1)
    usual, _, seen = site.perform(kind, arrays, frozen=False)
    found, _, more_seen = site.perform(kind, more, frozen=False)  # with the site's own noise
    assert more_seen == seen
    assert np.isfinite(found["correct" if kind == "evaluate" else "update"]).all()
    assert forms(found) == forms(usual)
