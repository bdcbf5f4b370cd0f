"""A site of made-up records in a folder of its own, asked over the wire as a server would ask it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from fednas.config import SiteConfig, StudyConfig, dump_study
from fednas.devices import DeviceProfile
from fednas.errors import ExchangeError
from fednas.privacy.allowance import STREAMS
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.streams import assign
from fednas.site import Site
from fednas.space import Architecture
from fednas.wire import (
    Answer,
    SiteFacts,
    Task,
    TaskKind,
    check_answer,
    check_signature,
    decode,
    decode_facts,
    decode_task,
    encode,
    encode_facts,
    encode_task,
)
from fednas.wire_schema import explain

Records = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Features, shape (n, *input_shape), and labels, shape (n,)."""

_LARGE = 1 << 50
_ANY_DEVICE = DeviceProfile(
    tier="audit",
    memory_bytes=_LARGE,
    training_memory_bytes=_LARGE,
    upload_bytes=_LARGE,
    max_latency_ms=1e9,
    macs_per_ms=1e9,
)


@final
class Rehearsal:
    """The real `Site` with a real ledger: every task and every answer passes the wire's own code.

    What an audit asks of it is what a server could ask, so nothing here reaches into a mechanism. A study
    without noise is a plan of `NonPrivate` events.

    Args:
        folder: of the site's files; made.
        study: what the server sends.
        plan: what the site agrees to.
        declared_size: what the owner states; the number of records may be another.
        cap: what the owner allows; the plan's own budget by default.
        name: of the site and of its dataset.
        test_seed: of reproducible noise; None draws it as in production.
    """

    def __init__(
        self,
        folder: Path,
        *,
        study: StudyConfig,
        plan: PrivacyPlan,
        declared_size: int,
        cap: PrivacyBudget | None = None,
        name: str = "audit",
        test_seed: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        budget = plan.budget if cap is None else cap
        self.folder, self.study, self.plan = folder, study, plan
        self.config = SiteConfig(
            name=name,
            dataset=name,
            data=folder / "data.npz",
            declared_size=declared_size,
            epsilon=budget.epsilon,
            delta=budget.delta,
            non_private=not budget.is_private,
            order=budget.order,
            ledger=folder / "ledger.sqlite",
            device=_ANY_DEVICE,
            test_seed=test_seed,
        )
        self._study_text = dump_study(study)
        self._open()

    def _open(self) -> None:
        self.ledger = PrivacyLedger.open(
            self.config.ledger,
            dataset=self.config.dataset,
            cap=self.config.cap,
            test_seed=self.config.test_seed,
            declaration=self.config.declaration,
        )
        self.site = Site(self.config, self.ledger)

    def reopen(self) -> None:
        """Begin a new process's work: the ledger and the records are read again from their files."""
        self.ledger.close()
        self._open()

    def identifiers(self, stream: str, count: int, *, prefix: str = "record") -> list[bytes]:
        """Names of records that the site's key puts into a stream."""
        found: list[bytes] = []
        number, wanted = 0, STREAMS.index(stream)
        while len(found) < count:
            names = [f"{prefix}-{number + i}".encode() for i in range(512)]
            streams = assign(self.ledger.stream_key, names, self.plan.proportions)
            found += [name for name, place in zip(names, streams, strict=True) if place == wanted]
            number += 512
        return found[:count]

    def fill(self, records: Mapping[str, Records]) -> None:
        """Give the site its records, before it is first asked.

        Args:
            records: for each stream that has any.
        """
        names = [name for stream, (x, _) in records.items() for name in self.identifiers(stream, len(x))]
        shape = self.study.data.input_shape
        x = [np.zeros((0, *shape), np.float32), *[x for x, _ in records.values()]]
        y = [np.zeros(0, np.int64), *[y for _, y in records.values()]]
        self.write(np.concatenate(x), np.concatenate(y), names)

    def write(self, x: NDArray[np.float32], y: NDArray[np.int64], names: Iterable[bytes]) -> None:
        """Write the site's file of records as they are."""
        np.savez(self.config.data, x=x, y=y, id=np.array([*names, b"-"], dtype="S")[:-1])

    @property
    def facts(self) -> SiteFacts:
        """What the site says of itself, as a server reads it."""
        content = encode_facts(self.site.facts())
        explain(content)
        return decode_facts(content)

    def task(
        self,
        kind: TaskKind,
        round: int,  # noqa: A002  the protocol's own word
        architectures: Sequence[Architecture],
        weights: Sequence[NDArray[np.float32]],
        *,
        alphas: NDArray[np.float64] | None = None,
        run: str = "audit",
        mark: str = "",
    ) -> Task:
        """A task of this study and this plan.

        Args:
            kind: `train`, `final` or `evaluate`.
            round: from 1.
            architectures: one to train, or candidates.
            weights: of each, flat, in the order of `fednas.supernet.flatten`.
            alphas: where the study learns them.
            run: whose plan is charged.
            mark: a head that the server has seen.
        """
        arrays: dict[str, Any] = {f"weights.{i}": flat for i, flat in enumerate(weights)}
        if alphas is not None:
            arrays["alphas"] = alphas
        return Task(
            kind=kind,
            run=run,
            round=round,
            plan=self.plan.to_json(),
            study=self._study_text,
            architectures=tuple(architectures),
            arrays=arrays,
            mark=mark,
        )

    def ask(self, task: Task) -> Answer:
        """Ask the site and read its answer as a server does.

        Raises:
            FednasError: the site refuses, or its answer is not one.
        """
        released = self.site.perform(decode_task(encode_task(task)))
        content = encode(released)
        explain(content)
        answer = decode(content)
        if not isinstance(answer, Answer):
            raise ExchangeError("a released value arrived as a refusal")
        check_answer(answer, task)
        check_signature(answer, self.facts)
        return answer

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
