"""What a charge, a release, an opening and a verification cost beside a long history, on this machine's disk.

`python -m simulations.benchmarks.ledger [--folder DIR]` prints a table. Histories are written entry by entry,
as a ledger would, with signatures, but in one transaction and without accounting: the accountants could not
even compose ten thousand different plans. What is measured afterwards is the real thing.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fednas.privacy import verify as verifier
from fednas.privacy.allowance import READS, Allowance
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import PoissonGaussian
from fednas.privacy.ledger import Arrays, Operation, Permit, PrivacyLedger
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.signing import Signer
from fednas.privacy.store import LedgerStore

DELTA, ORDER = 1e-5, 8
SHARES = (("weights", 0.9), ("architecture", 0.05), ("fitness", 0.05))
REPLY = np.zeros(25_000, dtype=np.float32)  # 100 kB, an update of a small network


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Times of one kind of call.

    Args:
        what: was measured.
        wall_ms: one number a call, in milliseconds by the clock.
        cpu_ms: likewise, of this process's or its child's processor time.
    """

    what: str
    wall_ms: list[float]
    cpu_ms: list[float]


def plan_of(*, q: float, sigma: float, steps: int) -> PrivacyPlan:
    """A plan of training steps on the weights alone."""
    event = PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)
    search = Allowance(name="search", streams=READS["search"], event=event, clip_norm=1.0)
    budget = PrivacyBudget(epsilon=1.0, delta=DELTA)
    return PrivacyPlan(budget=budget, proportions=SHARES, allowances=(search,))


def history(events: int, plans: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries of a past of so many charges and releases, spread over so many different (q, sigma)."""
    for index in range(plans):
        plan = plan_of(q=0.01, sigma=50.0 + index / 1000, steps=10**6)
        yield "PLAN", {"id": plan.id, "plan": json.loads(plan.to_json()), "run": f"past {index}"}
    plan = plan_of(q=0.01, sigma=50.0, steps=10**4)
    yield "PLAN", {"id": plan.id, "plan": json.loads(plan.to_json()), "run": "now"}
    for number in range(events):
        run = f"past {number % plans}"
        asked = Operation(run=run, round=number, kind="train", nonce="past", digest="0" * 64)
        yield (
            "RESERVE",
            {
                "charges": {"search": 1},
                "digest": asked.digest,
                "kind": asked.kind,
                "noise": "secure",
                "operation": asked.id,
                "round": asked.round,
                "run": run,
            },
        )
        yield "RELEASE", {"operation": asked.id, "reply": sha256(b"past").hexdigest()}


def make(path: Path, *, cap: PrivacyBudget, events: int, plans: int) -> None:
    """Make a ledger file with a past."""
    with PrivacyLedger.open(path, dataset="benchmark", cap=cap) as ledger:
        signer = Signer(ledger.stream_key)
    with LedgerStore(path) as store, store.transaction():
        for kind, body in history(events, plans):
            if kind == "RELEASE":
                store.keep(body["operation"], b"past")
            store.append(kind, body)
            entries, _, head = store.tail()
            store.append("CHECKPOINT", {"signature": signer.sign("benchmark", entries, head)})


def time_releases(path: Path, *, cap: PrivacyBudget, times: int, name: str) -> tuple[Cost, Cost]:
    """Time releases of an open run: up to the start of the mechanism, and as a whole."""
    charge = Cost(what=f"charge: {name}", wall_ms=[], cpu_ms=[])
    whole = Cost(what=f"release of 100 kB: {name}", wall_ms=[], cpu_ms=[])
    with PrivacyLedger.open(path, dataset="benchmark", cap=cap) as ledger:
        for number in range(times):
            asked = Operation(run="now", round=number, kind="train", nonce="now", digest="0" * 64)
            marks: list[tuple[float, float]] = []

            def mechanism(_: Permit, marks: list[tuple[float, float]] = marks) -> Arrays:
                marks.append(_now())
                return {"update": REPLY}

            start = _now()
            ledger.release(asked, charges={"search": 1}, mechanism=mechanism)
            end = _now()
            for cost, stop in ((charge, marks[0]), (whole, end)):
                cost.wall_ms.append(1e3 * (stop[0] - start[0]))
                cost.cpu_ms.append(1e3 * (stop[1] - start[1]))
    return charge, whole


def time_verification(path: Path, *, times: int) -> Cost:
    """Time the verifier as an auditor runs it: one file, a process of its own."""
    cost = Cost(what="verification of 100 000 entries, a process of its own", wall_ms=[], cpu_ms=[])
    for _ in range(times):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-I", verifier.__file__, path], check=True, capture_output=True)
        cost.wall_ms.append(1e3 * (time.perf_counter() - start))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost.cpu_ms.append(1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime))
    return cost


def time_opening(path: Path, *, cap: PrivacyBudget, times: int) -> Cost:
    """Time the opening of a ledger, which reads and checks all of it."""
    cost = Cost(what="opening of 100 000 entries", wall_ms=[], cpu_ms=[])
    for _ in range(times):
        start = _now()
        PrivacyLedger.open(path, dataset="benchmark", cap=cap).close()
        end = _now()
        cost.wall_ms.append(1e3 * (end[0] - start[0]))
        cost.cpu_ms.append(1e3 * (end[1] - start[1]))
    return cost


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure(folder: Path, *, times: int) -> Iterator[Cost]:
    """Measure everything, with files in a folder.

    Args:
        folder: on the disk in question, empty.
        times: how many releases are timed beside each history.
    """
    for order, plans, name in (
        (None, 1, "plans, 10 000 events"),
        (None, 10_000, "plans, 10 000 different events"),
        (ORDER, 1, "filter, 10 000 events"),
        (ORDER, 10_000, "filter, 10 000 different events"),
    ):
        cap = PrivacyBudget(epsilon=8.0, delta=DELTA, order=order)
        make(folder / name, cap=cap, events=10_000, plans=plans)
        yield from time_releases(folder / name, cap=cap, times=times, name=name)
    # Where a cap was lowered, the plans are held against it once more: few of them, or none had been opened.
    low, name = PrivacyBudget(epsilon=7.0, delta=DELTA), "20 plans and a lowered cap"
    make(folder / name, cap=PrivacyBudget(epsilon=8.0, delta=DELTA), events=10_000, plans=20)
    yield from time_releases(folder / name, cap=low, times=times, name=name)
    cap = PrivacyBudget(epsilon=8.0, delta=DELTA)
    make(folder / "long", cap=cap, events=25_000, plans=1)
    yield time_opening(folder / "long", cap=cap, times=5)
    yield time_verification(folder / "long", times=5)


def table(costs: Iterable[Cost]) -> Table:
    """Costs as people read them."""
    rows = Table(title=f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    rows.add_column("what")
    for name in ("calls", "best ms", "p50 ms", "p99 ms", "worst ms", "p50 CPU ms", "p99 CPU ms"):
        rows.add_column(name, justify="right")
    for cost in costs:
        wall, cpu = np.array(cost.wall_ms), np.array(cost.cpu_ms)
        figures = (
            wall.min(),
            *np.quantile(wall, (0.5, 0.99)),
            wall.max(),
            *np.quantile(cpu, (0.5, 0.99)),
        )
        rows.add_row(cost.what, str(wall.size), *(f"{figure:.2f}" for figure in figures))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--times", type=int, default=1000, help="releases to time; default 1000")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        Console().print(table(measure(Path(folder), times=options.times)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
