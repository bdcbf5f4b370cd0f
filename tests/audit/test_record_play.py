"""L1 is silent about the real code, in every space, and reads off answers what mechanisms really summed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fednas.audit.findings import Check
from fednas.audit.neighbours import Stage, bound, inserted
from fednas.audit.record_play import check_neighbours
from fednas.audit.subject import Subject, reference
from fednas.config import DataSchema, SearchSection, StudyConfig, validated
from fednas.privacy.grid import GRID_STEP, GridSum
from fednas.supernet import Supernet
from simulations.scenarios import SCENARIOS

SENTENCES = {
    "a candidate is right about a record for one of all classes",
    "a record moves a count by itself: by nothing, or by one",
    "a record moves a step by no more than the clip norm, however many came before",
    "a record moves a sum by its own share, whatever the other records are and how many",
    "a record moves a sum by no more than the clip norm, and a count by one",
    "a record of one stream moves nothing that another stream pays for",
    "a record that breaks the schema is left out and moves nothing",
    "a record that is there twice counts twice: none decides whether another is kept",
    "a record's name decides its stream, and nothing else",
    "a site answers, and in the form that was asked for, whatever its records are",
    "a site without records lets out noise",
    "all but the released values is the same with one record more",
    "an outlier moves a sum by all of the clip norm: no smaller one would be seen to be broken",
    "how many records are held in memory at once changes nothing",
    "the order of the records changes nothing, so their streams hang on no position",
    "the plan says what a step is, whatever else a study says",
    "whatever a record holds, what leaves is finite",
}


def study_in(space: str, shape: tuple[int, ...]) -> Subject:
    study = reference().study
    strategy = "differentiable" if space == "conv" else "evolution"
    search = SearchSection(space=space, strategy=strategy)  # type: ignore[arg-type]
    data = DataSchema(input_shape=shape, class_names=("a", "b"))
    return Subject(study=study.model_copy(update={"search": search, "data": data}))


@pytest.mark.parametrize(
    "subject",
    [
        reference(),
        study_in("conv1d", (2, 16)),
        pytest.param(study_in("conv", (1, 8, 8)), marks=pytest.mark.slow),
    ],
)
def test_nothing_is_said_against_the_real_code(subject: Subject, tmp_path: Path) -> None:
    found = list(check_neighbours(subject, tmp_path))
    assert all(isinstance(check, Check) and check.layer == "L1" for check in found)
    assert [check for check in found if isinstance(check, Check) and not check.holds] == []
    assert {check.name for check in found if isinstance(check, Check)} == SENTENCES


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCENARIOS))
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_against_the_studies_of_the_scenarios(name: str, seed: int, tmp_path: Path) -> None:
    subject = Subject(study=SCENARIOS[name]().study, seed=seed)
    found = [check for check in check_neighbours(subject, tmp_path) if isinstance(check, Check)]
    assert [check for check in found if not check.holds] == []


ODD: dict[str, dict[str, dict[str, Any]]] = {
    "a tiny clip norm": {"training": {"clip_norm": 1e-9, "architecture_clip_norm": 1e-9}},
    "a huge clip norm": {"training": {"clip_norm": 1e5, "architecture_clip_norm": 1e5}},
    "a large delta": {"privacy": {"delta": 0.04}},
    "one round of all": {
        "schedule": {"search_rounds": 1, "final_rounds": 1, "generations": 1, "candidates": 1},
        "training": {"steps_per_round": 1, "momentum": 0.9, "micro_batch": 1, "sampling_probability": 1.0},
    },
    "weights alone": {
        "search": {
            "strategy": "evolution",
            "fixed": {"large": {"activation": "relu", "depth": 1, "layers.0.width": 16}},
        },
        "privacy": {"weights": 1.0, "architecture": 0.0, "fitness": 0.0},
    },
    "many classes": {"data": {"class_names": tuple("abcdefghijklmnopqrst"), "input_shape": (40,)}},
    "one feature": {"data": {"class_names": ("a", "b"), "input_shape": (1,)}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("tiers", [1, 3])
def test_nothing_is_said_against_odd_studies(name: str, tiers: int, tmp_path: Path) -> None:
    values = reference().study.model_dump()
    for section, changes in ODD[name].items():
        values[section] |= changes
    subject = Subject(study=validated(StudyConfig, values, "odd"), num_tiers=tiers)
    found = [check for check in check_neighbours(subject, tmp_path) if isinstance(check, Check)]
    assert [check for check in found if not check.holds] == []


def test_what_is_read_off_an_update_is_what_was_summed(tmp_path: Path) -> None:
    stage = Stage.without_noise(reference(), tmp_path)
    path = stage.space.sample(np.random.default_rng(7))
    x, y, names = stage.records({"weights": 11})
    read = stage.play("train", (x, y, names), [path]).sums["update"]
    network = Supernet.initialise(stage.space, seed=0).extract(path)
    parameters = [p for _, p in sorted(network.trunk.named_parameters())]
    total = GridSum(sum(p.numel() for p in parameters), clip_norm=0.5)
    for record, label in zip(torch.from_numpy(x), torch.from_numpy(y), strict=True):
        loss = nn.functional.cross_entropy(network(record[None]), label[None])
        row = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
        total.add(row[None].double().numpy())
    # The update is in the order of `flatten`, the sum in that of the names: the same numbers in any order.
    assert np.allclose(np.sort(read), np.sort(total.units * GRID_STEP), atol=2e-6)


@pytest.mark.parametrize(("name", "stream"), [("update", "weights"), ("alphas", "architecture")])
def test_an_outlier_reaches_the_bound_so_that_plays_are_not_in_vain(
    name: str, stream: str, tmp_path: Path
) -> None:
    stage = Stage.without_noise(reference(), tmp_path)
    path = stage.space.sample(np.random.default_rng([2, 0]))
    sums = [
        stage.play("train", inserted(stage.records({}), stage.record("outlier", stream, label)), [path]).sums
        for label in (0, 1)  # the network is right about one of them
    ]
    assert 0.999 < max(np.linalg.norm(one[name]) for one in sums) <= bound(name, sums[0][name].size)


def test_what_steps_sum_up_is_read_off_their_end(tmp_path: Path) -> None:
    stage = Stage.without_noise(reference(), tmp_path)
    data = inserted(stage.records({}), stage.record("usual", "weights"))
    lengths = [stage.crawl(data, stage.space.smallest(), steps) for steps in (1, 2, 3)]
    # With weights of zero each step has the same gradient, longer than the clip norm.
    assert [np.linalg.norm(one) for one in lengths if one is not None] == pytest.approx([1, 2, 3], rel=1e-3)


def without_clip(self: GridSum, rows: NDArray[np.float64]) -> None:
    with np.errstate(all="ignore"):
        self._total += np.rint(rows * (1e6 / self._clip_norm)).sum(axis=0)


def a_little_too_long(self: GridSum, rows: NDArray[np.float64]) -> None:
    before = self._total.copy()
    HONEST(self, rows)
    self._total = before + np.rint((self._total - before) * 1.0001)


def batch_by_batch(self: GridSum, rows: NDArray[np.float64]) -> None:
    HONEST(self, rows.sum(axis=0, keepdims=True))


def nothing_where_one_is_infinite(self: GridSum, rows: NDArray[np.float64]) -> None:
    with np.errstate(all="ignore"):
        if np.isfinite(np.square(rows, dtype=np.float64).sum()):
            HONEST(self, rows)


HONEST = GridSum.add


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (without_clip, "a record moves a sum by no more than the clip norm, and a count by one"),
        (a_little_too_long, "a record moves a sum by no more than the clip norm, and a count by one"),
        (
            batch_by_batch,
            "a record moves a sum by its own share, whatever the other records are and how many",
        ),
        (
            nothing_where_one_is_infinite,
            "a record moves a sum by its own share, whatever the other records are and how many",
        ),
    ],
)
def test_a_planted_mistake_is_found_for_what_it_is(
    broken: Callable[..., None], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GridSum, "add", broken)
    found = (check for check in check_neighbours(reference(), tmp_path) if isinstance(check, Check))
    assert next(check.name for check in found if not check.holds) == sentence


def test_plays_under_one_key_are_the_same_bits(tmp_path: Path) -> None:
    stage = Stage.without_noise(reference(), tmp_path)
    path, data = stage.space.smallest(), stage.records({"weights": 5, "architecture": 2})
    one, other = stage.play("train", data, [path]), stage.play("train", data, [path])
    assert one.seen == other.seen
    assert all(np.array_equal(one.sums[name], other.sums[name]) for name in ("update", "alphas"))
    # And a difference of one record is seen where it should be, and only there.
    more = stage.play("train", inserted(data, stage.record("outlier", "weights")), [path])
    assert more.seen == one.seen
    assert not np.array_equal(more.sums["update"], one.sums["update"])
    assert np.array_equal(more.sums["alphas"], one.sums["alphas"])


def test_a_site_that_refuses_is_a_play_without_sums(tmp_path: Path) -> None:
    stage = Stage.without_noise(reference(), tmp_path)
    x, y, names = stage.records({"weights": 3})
    play = stage.play("train", (x[:, :3], y, names), [stage.space.smallest()])
    assert play.sums == {}
    assert play.seen == ("refused",)
    assert play.refusal.startswith("DatasetError: ")
