"""Hypothesis strategies for whatever Flower can carry: records of any name, kind and value."""

import json
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.messages import json_record

_NAMES: Final = st.sampled_from(["manifest", "data", "refusal", "facts", "json", "flat", "code"]) | st.text(
    max_size=5
)
_FIELDS: Final = st.sampled_from(
    [
        *("entries", "operation", "previous", "signature", "head"),
        *("protocol", "kind", "run", "round", "plan", "study", "architectures", "mark"),
    ]
)
_HEX: Final = st.sampled_from(["a" * 32, "0" * 64, "f" * 128, "0" * 63])
_LEAVES: Final = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | _HEX | st.just("train")
)
JSON: Final = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_FIELDS, inner, max_size=4)
)
_TEXTS: Final = st.text(max_size=40) | JSON.map(json.dumps)
_DTYPES: Final = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<i4", "|u1", "|b1"])
_ARRAYS: Final = st.builds(
    lambda dtype, shape, fill: np.full(shape, fill).astype(dtype),
    _DTYPES,
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.integers(-3, 3),
)
_BLOBS: Final = st.binary(max_size=60) | st.dictionaries(
    st.sampled_from(["update", "alphas", "correct", "weights.0"]) | st.text(max_size=4),
    _ARRAYS,
    max_size=3,
).map(save)
_FLAT: Final = st.builds(
    Array,
    dtype=st.sampled_from(["uint8", "float32", "object", ""]),
    shape=st.lists(st.integers(0, 200), max_size=2).map(tuple),
    stype=st.sampled_from(["numpy.ndarray", "torch.tensor", ""]),
    data=st.binary(max_size=200),
) | _BLOBS.map(lambda blob: Array(np.frombuffer(blob, dtype=np.uint8)))
_VALUES: Final = (
    _TEXTS
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.binary(max_size=20)
    | st.booleans()
    | st.lists(st.integers(-9, 9), max_size=3)
)
_METRICS: Final = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.lists(st.floats(), max_size=3)


def _manifests() -> st.SearchStrategy[ConfigRecord]:
    return st.dictionaries(_FIELDS, JSON, max_size=9).map(json_record)


_RECORDS: Final[st.SearchStrategy[Any]] = (
    st.dictionaries(_NAMES, _VALUES, max_size=3).map(lambda found: ConfigRecord(dict(found)))
    | st.dictionaries(_NAMES, _METRICS, max_size=3).map(lambda found: MetricRecord(dict(found)))
    | st.dictionaries(_NAMES, _FLAT, max_size=2).map(ArrayRecord)
    | _manifests()
)
_LIKELY: Final = st.builds(
    lambda manifest, flat: RecordDict({"manifest": manifest, "data": ArrayRecord({"flat": flat})}),
    _manifests(),
    _FLAT,
)
CONTENTS: Final[st.SearchStrategy[RecordDict]] = (
    st.dictionaries(_NAMES, _RECORDS, max_size=3).map(RecordDict) | _LIKELY
)
