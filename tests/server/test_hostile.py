"""One of seven sites is hostile: what it sends is rejected with its code, and changes nothing of the rest."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fednas.config import StudyConfig
from fednas.privacy.signing import Signer
from fednas.wire import Refusal, Task
from server.agreement import Agreement, store
from server.checkpoint import RunDirectory, create_run
from server.report import Completed
from tests.messages import json_record, manifest_of
from tests.server.stubs import (
    PLAN,
    Stubs,
    arrays_for,
    facts,
    honest,
    outcomes,
    pack,
    refuse,
    run,
    same,
    when,
)
from tests.simulations import tiny

TIERS = {
    "alpha": "large",
    "bravo": "middle",
    "cobra": "small",
    "delta": "large",
    "eagle": "middle",
    "falcon": "small",
    "gecko": "middle",
}
HOSTILE, STRUCK = "eagle", 3
Hostile = Callable[[str, Task], RecordDict]


def spoilt(change: Callable[[np.ndarray], np.ndarray]) -> Hostile:
    return lambda site, task: pack(
        site, task, {**(a := arrays_for(site, task)), "update": change(a["update"])}
    )


def with_value(value: float) -> Hostile:
    def change(update: np.ndarray) -> np.ndarray:
        update = update.copy()
        update[len(update) // 2] = value
        return update

    return spoilt(change)


def replayed(site: str, task: Task) -> RecordDict:
    """What it sent in the round before: signed by its own ledger, and used once already."""
    return honest(site, replace(task, round=task.round - 1))


def renamed(site: str, task: Task) -> RecordDict:
    """The same under this round's name: the ledger never signed that."""
    content = replayed(site, task)
    manifest = manifest_of(content) | {"operation": task.operation(site).id}
    return RecordDict({"manifest": json_record(manifest), "data": content["data"]})


def flipped(site: str, task: Task) -> RecordDict:
    """A value that the ledger released, but for its last bit."""
    content = honest(site, task)
    array = content.array_records["data"]["flat"]
    blob = array.data[:-4] + bytes([array.data[-4] ^ 1]) + array.data[-3:]
    data = ArrayRecord({"flat": Array(array.dtype, array.shape, array.stype, blob)})
    return RecordDict({"manifest": content["manifest"], "data": data})


def bare(site: str, task: Task) -> RecordDict:
    content = honest(site, task)
    del content["data"]
    return content


MALFORMED, ROLLED_BACK = "MALFORMED_REPLY", Refusal.LEDGER_ROLLED_BACK.value
ATTACKS: dict[str, tuple[Hostile, str]] = {
    "NaN": (with_value(np.nan), MALFORMED),
    "infinity": (with_value(-np.inf), MALFORMED),
    "a weight of 1e18": (with_value(1e18), MALFORMED),
    "every weight a hundred thousand": (spoilt(lambda u: np.full_like(u, 1e5)), MALFORMED),
    "the wrong shape": (spoilt(lambda u: u.reshape(1, -1)), MALFORMED),
    "another architecture": (spoilt(lambda u: np.append(u, u[:7])), MALFORMED),
    "double precision": (spoilt(lambda u: u.astype(np.float64)), MALFORMED),
    "a part too few": (bare, MALFORMED),
    "nothing": (lambda site, task: RecordDict(), MALFORMED),
    "a program": (
        lambda site, task: RecordDict({"x": ConfigRecord({"x": b"\x80\x04cos\nsystem\n."})}),
        MALFORMED,
    ),
    "another ledger's signature": (
        lambda site, task: pack(site, task, arrays_for(site, task), key=Signer(b"another")),
        MALFORMED,
    ),
    "the answer of the round before": (replayed, MALFORMED),
    "the answer of the round before as one of this": (renamed, MALFORMED),
    "an answer with one bit of one weight changed": (flipped, MALFORMED),
    "an answer of no new entry": (
        lambda site, task: pack(site, task, arrays_for(site, task), entries=10 * STRUCK - 15),
        ROLLED_BACK,
    ),
}


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    return tiny.study(schedule={"search_rounds": 4, "final_rounds": 1})


def conducted(path: Path, study: StudyConfig, reply: Hostile) -> Completed:
    known = {fact.site: fact for fact in facts(study, TIERS)}
    create_run(path, study, run="run", about={})
    agreed = Agreement(num_tiers=3, plans=dict.fromkeys(known, PLAN), facts=known)
    store(RunDirectory(path), agreed)
    return run(Stubs(facts=facts(study, TIERS), reply=when(_struck, reply)), path)


def _struck(site: str, task: Task) -> bool:
    return site == HOSTILE and task.round == STRUCK


@pytest.fixture(scope="module")
def without(study: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Completed:
    """The study in which the hostile site sends nothing in that round."""
    return conducted(tmp_path_factory.mktemp("without") / "run", study, refuse(Refusal.SITE_FAILURE))


@pytest.fixture(scope="module")
def retired(study: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Completed:
    """The study that the hostile site leaves in that round: a ledger that went back is asked no more."""
    return conducted(tmp_path_factory.mktemp("retired") / "run", study, refuse(Refusal.LEDGER_ROLLED_BACK))


def test_an_honest_answer_would_have_changed_the_network(
    study: StudyConfig, tmp_path: Path, without: Completed, retired: Completed
) -> None:
    completed = conducted(tmp_path / "run", study, honest)
    assert not same(completed, without)
    assert not same(completed, retired)


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_rejected_with_its_code_and_the_network_is_the_one_without_it(
    study: StudyConfig, tmp_path: Path, without: Completed, retired: Completed, attack: str
) -> None:
    hostile, code = ATTACKS[attack]
    completed = conducted(tmp_path / "run", study, hostile)
    assert outcomes(tmp_path / "run", STRUCK) == {**dict.fromkeys(TIERS, "ok"), HOSTILE: code}
    assert same(completed, without if code == MALFORMED else retired)
