"""What the examination of a site's answer costs: honest ones, and hostile ones that are found late.

`python -m simulations.benchmarks.validator [--repeats N]` prints a table: milliseconds a megabyte, of this
process's processor time, at the median and at the 99th percentile.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save

from fednas.config import DataSchema, SearchSection, StudyConfig, dump_study, space_of
from fednas.devices import DeviceProfile
from fednas.errors import ExchangeError
from fednas.privacy.signing import Signer
from fednas.privacy.store import release_head
from fednas.schedule import plan_for
from fednas.wire import Answer, SiteFacts, Task
from server.cohort import Member
from server.correspondence import Correspondence
from server.marks import Marks
from simulations.loopback import InProcessGrid, node_configs

SIZES = (25_000, 250_000, 1_000_000)
"""Coordinates of an update: 0.1, 1 and 4 megabytes."""

SIGNER = Signer(b"benchmark")
Change = Callable[[bytes], bytes]


def flipped(blob: bytes) -> bytes:
    """The last bit of the last value: only the signature tells."""
    return blob[:-4] + bytes([blob[-4] ^ 1]) + blob[-3:]


def not_a_number(blob: bytes) -> bytes:
    """The last value is NaN."""
    return blob[:-4] + np.float32(np.nan).tobytes()


def huge(blob: bytes) -> bytes:
    """The last value is 1e18."""
    return blob[:-4] + np.float32(1e18).tobytes()


CHANGES: Mapping[str, Change] = {
    "as released": bytes,
    "one bit changed": flipped,
    "NaN": not_a_number,
    "1e18": huge,
    "cut": lambda blob: blob[:-1],
}


def question(study: StudyConfig, size: int) -> Task:
    """A task whose answer has so many coordinates."""
    return Task(
        kind="train",
        run="benchmark",
        round=1,
        plan=plan_for(study, 3, study.privacy.budget).to_json(),
        study=dump_study(study),
        architectures=(space_of(study).smallest(),),
        arrays={"weights.0": np.zeros(size, dtype=np.float32)},
    )


def answer(task: Task, facts: SiteFacts, change: Change) -> RecordDict:
    """A site's answer, signed as it was released and then changed."""
    update = np.random.default_rng(0).normal(scale=1e-3, size=task.arrays["weights.0"].shape)
    blob = save({"update": update.astype(np.float32)})
    operation = task.operation(facts.site).id
    fields = {
        "entries": 20,
        "operation": operation,
        "previous": "0" * 64,
        "signature": SIGNER.sign(facts.dataset, 20, release_head("0" * 64, 20, operation, blob)),
    }
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    flat = Array(np.frombuffer(change(blob), dtype=np.uint8))
    return RecordDict({"manifest": ConfigRecord({"json": text}), "data": ArrayRecord({"flat": flat})})


def milliseconds(examine: Callable[[], object], repeats: int) -> list[float]:
    """How long each of several examinations took."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        with suppress(ExchangeError):
            examine()
        times.append(1e3 * (time.process_time() - begin))
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = max(1, parser.parse_args().repeats)
    study = StudyConfig(
        name="benchmark",
        data=DataSchema(input_shape=(16,), class_names=("a", "b")),
        search=SearchSection(space="mlp"),
    )
    facts = SiteFacts(
        site="ward",
        dataset="benchmark/ward",
        declared_size=1000,
        epsilon_cap=3.0,
        delta=1e-5,
        device=DeviceProfile(
            tier="edge",
            memory_bytes=10**9,
            training_memory_bytes=10**9,
            upload_bytes=10**9,
            max_latency_ms=1e3,
            macs_per_ms=1e6,
        ),
        signer=SIGNER.public_key,
        entries=10,
        head="1" * 64,
    )
    member = Member(node=1, facts=facts)
    table = Table(
        title=f"Examination of an answer, {repeats} times each, one process on {platform.machine()}",
        title_justify="left",
    )
    for column in ("megabytes", "answer", "outcome", "median ms/MB", "99 % ms/MB"):
        table.add_column(column, justify="left" if column in ("answer", "outcome") else "right")
    with tempfile.TemporaryDirectory() as folder:
        correspondence = Correspondence(
            InProcessGrid(lambda message, context: message, node_configs(1), {}),  # type: ignore[arg-type]
            members=[member],
            federation=study.federation,
            marks=Marks(Path(folder, "marks.json")),
            repeats=False,
        )
        for size in SIZES:
            task = question(study, size)
            for name, change in CHANGES.items():
                content = answer(task, facts, change)
                try:
                    found = correspondence.examine(member, task, content)
                    outcome = "taken" if isinstance(found, Answer) else found.value
                except ExchangeError:
                    outcome = "rejected"
                examine = lambda: correspondence.examine(member, task, content)  # noqa: B023, E731
                megabytes = 4e-6 * size
                times = [t / megabytes for t in milliseconds(examine, repeats)]
                low, high = np.percentile(times, [50, 99])
                table.add_row(f"{megabytes:.1f}", name, outcome, f"{low:.2f}", f"{high:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
