"""What crosses the network: round trips, what a site may send, and messages that nobody should have sent."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import ExchangeError, PrivacyError
from fednas.privacy.ledger import Arrays, Released
from fednas.privacy.signing import TaskSigner
from fednas.wire import (
    Answer,
    Refusal,
    SiteFacts,
    Task,
    decode,
    decode_facts,
    decode_task,
    encode,
    encode_facts,
    encode_refusal,
    encode_task,
)
from tests.messages import DEVICE, FACTS, LARGEST, SPACE, TASK, task_of
from tests.privacy.ledgers import SMALL, noise, open_ledger, operation

_NPY_HEADER = 128
examples = settings(deadline=None, max_examples=150)


@pytest.fixture
def paid(tmp_path: Path) -> Released[Arrays]:
    with open_ledger(tmp_path / "ledger") as ledger:
        ledger.open_plan("run", SMALL)
        return ledger.release(operation(1), charges={"search": 1}, mechanism=noise)


def equal(left: Task, right: Task) -> bool:
    plain = [dataclasses.replace(task, arrays={}) for task in (left, right)]
    return (
        plain[0] == plain[1]
        and left.arrays.keys() == right.arrays.keys()
        and all(
            a.dtype == right.arrays[n].dtype and np.array_equal(a, right.arrays[n], equal_nan=True)
            for n, a in left.arrays.items()
        )
    )


@given(
    kind=st.sampled_from(["train", "final", "evaluate"]),
    run=st.text(max_size=30),
    number=st.integers(1, 2**31),
    study=st.text(max_size=50),
    seeds=st.lists(st.integers(0, 2**32 - 1), max_size=4),
    learns=st.booleans(),
)
@examples
def test_a_task_survives_the_journey(
    kind: Any, run: str, number: int, study: str, seeds: list[int], learns: bool
) -> None:
    generators = [np.random.default_rng(seed) for seed in seeds]
    arrays: dict[str, Any] = {
        f"weights.{i}": g.standard_normal(int(g.integers(0, 20))).astype(np.float32)
        for i, g in enumerate(generators)
    }
    task = Task(
        kind=kind,
        run=run,
        round=number,
        plan="{}",
        study=study,
        architectures=tuple(SPACE.sample(g) for g in generators),
        arrays=arrays | ({"alphas": np.array([math.nan, 1e300])} if learns else {}),
    )
    received = decode_task(encode_task(task))
    assert equal(received, task)
    assert received.digest() == task.digest()


def test_strided_arrays_are_sent_as_what_they_show() -> None:
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    task = task_of(arrays={"weights.0": table[:, 1]})
    assert decode_task(encode_task(task)).arrays["weights.0"].tolist() == [1.0, 5.0, 9.0]


CHANGES: dict[str, Any] = {
    "kind": "final",
    "run": "run-2",
    "round": 4,
    "plan": SMALL.to_json() + " ",
    "study": 'name = "warp"\n',
    "architectures": (LARGEST,),
    "arrays": {"weights.0": TASK.arrays["weights.0"]},
}


@pytest.mark.parametrize("field", list(CHANGES))
def test_the_digest_changes_with_any_field(field: str) -> None:
    assert task_of(**{field: CHANGES[field]}).digest() != TASK.digest()


def test_no_field_is_forgotten_in_the_digest() -> None:
    assert set(CHANGES) == {field.name for field in dataclasses.fields(Task)} - {"mark", "signature"}


def test_a_mark_travels_with_a_task_and_is_no_part_of_its_digest() -> None:
    marked = task_of(mark="a" * 64)
    assert marked.digest() == TASK.digest()
    assert decode_task(encode_task(marked)).mark == "a" * 64


def test_a_servers_signature_is_good_for_one_task_one_site_and_one_mark() -> None:
    signer, other = TaskSigner(b"s" * 32), TaskSigner(b"o" * 32)
    signed = task_of(mark="a" * 64).signed(signer, "ward-1")
    assert signed.digest() == TASK.digest()
    received = decode_task(encode_task(signed))
    assert received.is_signed_by(signer.public_key, "ward-1")
    assert not received.is_signed_by(other.public_key, "ward-1")
    assert not received.is_signed_by(signer.public_key, "ward-2")
    for changes in ({"mark": ""}, {"round": 4}, {"kind": "final"}, {"study": "x"}, {"signature": ""}):
        assert not dataclasses.replace(received, **changes).is_signed_by(signer.public_key, "ward-1")
    spelt = dataclasses.replace(received, signature=received.signature.upper())
    assert not spelt.is_signed_by(signer.public_key, "ward-1")


@pytest.mark.parametrize("where", range(7))
def test_the_digest_changes_with_any_weight_by_its_last_bit(where: int) -> None:
    weights = TASK.arrays["weights.0"].copy()
    weights[where] = np.nextafter(weights[where], np.float32(9.0))
    assert task_of(arrays=dict(TASK.arrays) | {"weights.0": weights}).digest() != TASK.digest()


def test_an_operation_is_named_by_its_place_and_told_apart_by_its_digest() -> None:
    first, again = TASK.operation("ward-1"), task_of().operation("ward-1")
    assert first == again
    changed = task_of(study="other").operation("ward-1")
    assert changed.id == first.id  # the same place in the run: the ledger refuses another content there
    assert changed.digest != first.digest
    others = [
        TASK.operation("ward-2"),
        task_of(round=4).operation("ward-1"),
        task_of(kind="final").operation("ward-1"),
        task_of(run="run-2").operation("ward-1"),
    ]
    assert len({first.id, *(other.id for other in others)}) == 5


def test_a_released_value_arrives_as_it_was_paid_for(paid: Released[Arrays]) -> None:
    answer = decode(encode(paid))
    assert isinstance(answer, Answer)
    assert (answer.operation_id, answer.head) == (paid.operation_id, paid.head)
    assert (answer.entries, answer.signature) == (paid.entries, paid.signature)
    assert answer.arrays.keys() == paid.value.keys()
    for name, array in paid.value.items():
        assert answer.arrays[name].dtype == array.dtype
        assert np.array_equal(answer.arrays[name], array)


def test_one_signature_vouches_for_every_bit_of_an_answer(paid: Released[Arrays]) -> None:
    content = encode(paid)
    array = content.array_records["data"]["flat"]
    for where in range(_NPY_HEADER, len(array.data)):
        data = bytearray(array.data)
        data[where] ^= 1
        changed = Array(array.dtype, array.shape, array.stype, bytes(data))
        try:
            found = decode(
                RecordDict({"manifest": content["manifest"], "data": ArrayRecord({"flat": changed})})
            )
        except ExchangeError:
            continue  # no arrays any more
        assert isinstance(found, Answer)
        assert found.head != paid.head


def test_an_answer_holds_nothing_but_the_released_arrays_and_their_voucher(paid: Released[Arrays]) -> None:
    content = encode(paid)
    assert set(content) == {"manifest", "data"}
    manifest = json.loads(str(content.config_records["manifest"]["json"]))
    assert manifest == {
        "operation": paid.operation_id,
        "previous": paid.previous,
        "entries": paid.entries,
        "signature": paid.signature,
    }


class LookAlike:
    """Has all that a Released has."""

    def __init__(self) -> None:
        self.value = {"update": np.ones(3, dtype=np.float32)}

    operation_id = "0" * 32
    head = "0" * 64
    entries = 1


class Masked(LookAlike):
    """Claims to be one."""

    __class__ = Released  # type: ignore[assignment]


@pytest.mark.parametrize(
    "value",
    [
        {"update": np.ones(3, dtype=np.float32)},
        np.ones(3, dtype=np.float32),
        [np.ones(3)],
        None,
        "update",
        0.93,
        LookAlike(),
        Masked(),
        LookAlike,
        Released,
        Answer(operation_id="0", head="0", entries=1, signature="0", arrays={}),
        FACTS,
        TASK,
        RecordDict(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_but_a_released_value_is_encoded(value: Any) -> None:
    with pytest.raises(PrivacyError, match="only a Released value"):
        encode(value)


def test_a_class_derived_from_released_cannot_even_be_defined() -> None:
    with pytest.raises(PrivacyError, match="cannot derive"):
        type("Free", (Released,), {})


@pytest.mark.parametrize("value", [{"site": "ward"}, "ward", None, TASK, dataclasses.asdict(FACTS)])
def test_nothing_but_facts_describe_a_site(value: Any) -> None:
    with pytest.raises(PrivacyError, match="only SiteFacts"):
        encode_facts(value)


def test_facts_that_carry_more_are_refused() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(SiteFacts):
        records: int = 0

    more = More(**(dataclasses.asdict(FACTS) | {"device": DEVICE, "records": 439}))
    with pytest.raises(PrivacyError, match="only SiteFacts"):
        encode_facts(more)


@pytest.mark.parametrize("code", list(Refusal))
def test_a_refusal_is_its_code_and_nothing_else(code: Refusal) -> None:
    content = encode_refusal(code)
    assert decode(content) is code
    assert dict(content) == {"refusal": ConfigRecord({"code": code.value})}


@pytest.mark.parametrize("text", ["no budget: 439 records", "", "budget_exhausted"])
def test_words_of_ones_own_are_no_refusal(text: Any) -> None:
    with pytest.raises(ValueError, match="not a valid Refusal"):
        encode_refusal(text)


@pytest.mark.parametrize(
    "facts",
    [FACTS, dataclasses.replace(FACTS, epsilon_cap=math.inf), dataclasses.replace(FACTS, protocol=2)],
)
def test_site_facts_survive_the_journey(facts: SiteFacts) -> None:
    assert decode_facts(encode_facts(facts)) == facts


def test_flowers_own_tools_can_read_the_array(paid: Released[Arrays]) -> None:
    content = encode(paid)
    flat = content.array_records["data"]["flat"]
    assert flat.dtype == "uint8"
    assert flat.numpy().dtype == np.uint8
