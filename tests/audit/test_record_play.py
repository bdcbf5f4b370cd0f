"""L1 is silent about the real code, in every space, and reads off answers what mechanisms really summed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fednas.audit.findings import Check
from fednas.audit.record_play import Stage, check_neighbours, inserted
from fednas.audit.subject import Subject, reference
from fednas.config import DataSchema, SearchSection
from fednas.privacy.grid import GRID_STEP, GridSum
from simulations.scenarios import SCENARIOS

SENTENCES = {
    "a candidate is right about a record for one of all classes",
    "a record moves a count by itself: by nothing, or by one",
    "a record moves a sum by its own share, whatever the other records are and how many",
    "a record moves a sum by no more than the clip norm",
    "a record of one stream moves nothing that another stream pays for",
    "a record that breaks the schema is left out and moves nothing",
    "a record that is there twice counts twice: none decides whether another is kept",
    "a site answers whatever its records are",
    "all but the released values is the same with one record more",
    "the order of the records changes nothing, so their streams hang on no position",
    "whatever a record holds, what leaves is finite",
}


def study_in(space: str, shape: tuple[int, ...]) -> Subject:
    study = reference().study
    search = SearchSection(space=space, strategy="evolution")  # type: ignore[arg-type]
    data = DataSchema(input_shape=shape, class_names=("a", "b"))
    return Subject(study=study.model_copy(update={"search": search, "data": data}))


@pytest.mark.parametrize("subject", [reference(), study_in("conv", (1, 8, 8)), study_in("conv1d", (2, 16))])
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


def test_what_is_read_off_an_update_is_what_was_summed(tmp_path: Path) -> None:
    stage = Stage(reference(), tmp_path)
    path = stage.space.sample(np.random.default_rng(7))
    x, y, names = stage.records({"weights": 11})
    read = stage.play("train", (x, y, names), [path]).sums["update"]
    network = stage.supernet.extract(path)
    parameters = [p for _, p in sorted(network.trunk.named_parameters())]
    total = GridSum(sum(p.numel() for p in parameters), clip_norm=stage.study.training.clip_norm)
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
    stage = Stage(reference(), tmp_path)
    path = stage.space.sample(np.random.default_rng([2, 0]))
    alone = inserted(stage.records({}), stage.record("outlier", stream))
    sums = stage.play("train", alone, [path]).sums[name]
    assert 0.999 < np.linalg.norm(sums) <= stage.bound(name, sums.size)


def test_plays_under_one_key_are_the_same_bits(tmp_path: Path) -> None:
    stage = Stage(reference(), tmp_path)
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
    stage = Stage(reference(), tmp_path)
    x, y, names = stage.records({"weights": 3})
    play = stage.play("train", (x[:, :3], y, names), [stage.space.smallest()])
    assert play.sums == {}
    assert play.seen == ("refused", "DatasetError")
