"""Sites without records: they note what they are asked and make answers up, so a study takes a moment."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import save

from fednas.config import StudyConfig
from fednas.privacy.allowance import READS, Allowance
from fednas.privacy.events import Gaussian, PoissonGaussian
from fednas.privacy.ledger import Arrays
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.signing import Signer
from fednas.privacy.store import release_head
from fednas.wire import Refusal, SiteFacts, Task, decode_task, encode_facts, encode_refusal
from server.agreement import Agreement, store
from server.app import conduct
from server.checkpoint import RunDirectory, create_run
from server.report import Completed
from simulations.loopback import InProcessGrid
from tests.messages import json_record
from tests.simulations import tiny

EVENTS = (
    ("search", PoissonGaussian(sampling_probability=0.2, noise_multiplier=2.0, steps=1)),
    ("alphas", PoissonGaussian(sampling_probability=0.2, noise_multiplier=3.0, steps=1)),
    ("fitness", Gaussian(noise_multiplier=5.0, releases=1)),
    ("final", PoissonGaussian(sampling_probability=0.2, noise_multiplier=2.0, steps=1)),
)


def plan(noise: float = 1.0) -> PrivacyPlan:
    """A plan with so many times the noise of `PLAN`."""
    events = [(name, replace(e, noise_multiplier=noise * e.noise_multiplier)) for name, e in EVENTS]
    return PrivacyPlan(
        budget=tiny.study().privacy.budget,
        proportions=tuple(tiny.study().privacy.proportions.items()),
        allowances=tuple(
            Allowance(name=name, streams=READS[name], event=event, clip_norm=1.0) for name, event in events
        ),
    )


PLAN = plan()
"""Stub sites check no plan, and calibrating one for every study would take most of the time."""

ENTRIES = 10_000
"""Of a stub's ledger at the greeting: more than any of its answers."""

Reply = Callable[[str, Task], RecordDict]


def facts(study: StudyConfig, tiers: Mapping[str, str] = tiny.TIERS) -> tuple[SiteFacts, ...]:
    """What the tiny sites, or others on the tiny tiers, say of themselves."""
    return tuple(
        SiteFacts(
            site=name,
            dataset=f"tiny/{name}",
            declared_size=tiny.SIZES.get(name, 60),
            epsilon_cap=study.privacy.epsilon,
            delta=study.privacy.delta,
            device=tiny.device(tier),
            signer=signer(name).public_key,
            entries=ENTRIES,
            head=digest(name, "greeting"),
        )
        for name, tier in tiers.items()
    )


def signer(site: str) -> Signer:
    """The key of a stub's ledger."""
    return Signer(site.encode())


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def pack(
    site: str, task: Task, arrays: Arrays, *, entries: int | None = None, key: Signer | None = None
) -> RecordDict:
    """A reply in the form of the wire; a real site can only make one from a `Released`.

    Args:
        site: who answers.
        task: what was asked.
        arrays: what is sent.
        entries: of the ledger with this reply; by default ten for every round so far.
        key: of the ledger, by default the site's own.
    """
    previous, count = digest(site, task.round, task.kind), 10 * task.round if entries is None else entries
    operation, blob = task.operation(site).id, save(arrays)
    head = release_head(previous, count, operation, blob)
    manifest = {
        "entries": count,
        "operation": operation,
        "previous": previous,
        "signature": (key or signer(site)).sign(f"tiny/{site}", count, head),
    }
    flat = Array(np.frombuffer(blob, dtype=np.uint8))
    return RecordDict({"manifest": json_record(manifest), "data": ArrayRecord({"flat": flat})})


def arrays_for(site: str, task: Task) -> Arrays:
    """Small values that depend on the site and the round alone."""
    seed = hashlib.sha256(f"{site}|{task.round}|{task.kind}".encode()).digest()
    generator = np.random.default_rng(list(seed[:8]))
    if task.kind == "evaluate":
        return {"correct": generator.integers(0, 12, size=len(task.architectures))}
    update = generator.normal(scale=0.01, size=task.arrays["weights.0"].shape).astype(np.float32)
    arrays: Arrays = {"update": update}
    if "alphas" in task.arrays:
        arrays["alphas"] = generator.normal(size=task.arrays["alphas"].shape)
        arrays["alphas"][: len(arrays["alphas"]) // 2] = np.nan  # choices that were not on the path
    return arrays


def honest(site: str, task: Task) -> RecordDict:
    return pack(site, task, arrays_for(site, task))


@dataclass(kw_only=True)
class Stubs:
    """Stub sites and the tasks that they were sent, in order."""

    facts: tuple[SiteFacts, ...]
    reply: Reply = honest
    tasks: list[tuple[str, Task]] = field(default_factory=list)

    def grid(self) -> InProcessGrid:
        app = ClientApp()

        @app.query("hello")
        def hello(message: Message, context: Context) -> Message:
            return Message(encode_facts(self._site(context)), reply_to=message)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            return self._answer(message, context)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            return self._answer(message, context)

        nodes = {i + 1: {"partition-id": i} for i in range(len(self.facts))}
        return InProcessGrid(app, nodes, {})

    def _site(self, context: Context) -> SiteFacts:
        return self.facts[int(context.node_config["partition-id"])]

    def _answer(self, message: Message, context: Context) -> Message:
        site, task = self._site(context).site, decode_task(message.content)
        self.tasks.append((site, task))
        return Message(self.reply(site, task), reply_to=message)


def folder(path: Path, study: StudyConfig, plans: Mapping[str, PrivacyPlan] | None = None) -> Path:
    """A run directory for stub sites: nothing in it but a study and plans, by default `PLAN` for all."""
    create_run(path, study, run="run", about={})
    known = {fact.site: fact for fact in facts(study)}
    agreed = dict.fromkeys(known, PLAN) if plans is None else plans
    store(RunDirectory(path), Agreement(num_tiers=len(set(tiny.TIERS)), plans=agreed, facts=known))
    return path


def run(stubs: Stubs, path: Path, *, resume: bool = False, marks_file: Path | None = None) -> Completed:
    """Conduct the study of a run directory with stub sites."""
    return conduct(stubs.grid(), path, resume=resume, marks_file=marks_file)


def kinds(tasks: Iterable[tuple[str, Task]], site: str) -> list[str]:
    return [task.kind for name, task in tasks if name == site]


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


def when(condition: Callable[[str, Task], bool], then: Reply) -> Reply:
    """Answer honestly but where the condition holds."""
    return lambda site, task: then(site, task) if condition(site, task) else honest(site, task)


def refuse(code: Refusal) -> Reply:
    return lambda site, task: encode_refusal(code)


def outcomes(path: Path, round_number: int) -> dict[str, str]:
    """What became of each site in a round."""
    record = json.loads((path / "rounds" / f"{round_number:05d}.json").read_text())
    return {site: entry["outcome"] for site, entry in record["sites"].items()}


def same(left: Completed, right: Completed) -> bool:
    """Equal to the last bit: the weights, the choices, and the released fitness."""
    files = []
    for completed in (left, right):
        file = completed.directory.path / "weights.safetensors"
        completed.coordinator.supernet.save(file)
        files.append(file.read_bytes())
    return (
        files[0] == files[1]
        and left.coordinator.chosen == right.coordinator.chosen
        and left.coordinator.fitness == right.coordinator.fitness
    )
