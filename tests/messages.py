"""A task, a site and what messages are made of, for the tests of the wire."""

import dataclasses
import json
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.numpy import save

from fednas.devices import DeviceProfile
from fednas.space import create
from fednas.wire import SiteFacts, Task
from tests.privacy.ledgers import SMALL

SPACE = create("mlp", (5,), 3)
SMALLEST, LARGEST = SPACE.smallest(), SPACE.largest()
DEVICE = DeviceProfile(
    tier="phone",
    memory_bytes=10**6,
    training_memory_bytes=10**8,
    upload_bytes=10**6,
    max_latency_ms=5.5,
    macs_per_ms=1e4,
)


def task_of(**changes: Any) -> Task:
    weights = np.linspace(-1.0, 1.0, 7, dtype=np.float32)
    task = Task(
        kind="train",
        run="run-1",
        round=3,
        plan=SMALL.to_json(),
        study='name = "ward"\n',
        architectures=(SMALLEST,),
        arrays={"weights.0": weights, "alphas": np.array([0.5, -0.25])},
    )
    return dataclasses.replace(task, **changes)


TASK = task_of()
FACTS = SiteFacts(
    site="ward-1", dataset="ward/1", declared_size=440, epsilon_cap=3.0, delta=1e-5, device=DEVICE
)
BLOB = save({name: np.asarray(array) for name, array in TASK.arrays.items()})


def json_record(value: object) -> ConfigRecord:
    """A record of JSON in the spelling of the wire, or of any text."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
    return ConfigRecord({"json": text})


def packed(manifest: object, blob: bytes) -> RecordDict:
    """A message of this protocol's form with any content."""
    flat = Array(np.frombuffer(blob, dtype=np.uint8))
    return RecordDict({"manifest": json_record(manifest), "data": ArrayRecord({"flat": flat})})


def manifest_of(content: RecordDict) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(str(content.config_records["manifest"]["json"]))
    return parsed
