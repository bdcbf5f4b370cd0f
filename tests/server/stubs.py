"""Sites without records: they note what they are asked and make answers up, so a study takes a moment."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import save

from fednas.config import StudyConfig
from fednas.privacy.allowance import READS, Allowance
from fednas.privacy.events import Gaussian, PoissonGaussian
from fednas.privacy.ledger import Arrays
from fednas.privacy.plan import PrivacyPlan
from fednas.wire import SiteFacts, Task, decode_task, encode_facts
from server.app import conduct
from server.checkpoint import create_run, write_json
from server.report import Completed
from simulations.loopback import InProcessGrid
from tests.simulations import tiny

PLAN = PrivacyPlan(
    budget=tiny.study().privacy.budget,
    proportions=tuple(tiny.study().privacy.proportions.items()),
    allowances=tuple(
        Allowance(name=name, streams=READS[name], event=event, clip_norm=1.0)
        for name, event in (
            ("fitness", Gaussian(noise_multiplier=5.0, releases=1)),
            ("final", PoissonGaussian(sampling_probability=0.2, noise_multiplier=2.0, steps=1)),
        )
    ),
)
"""Stub sites check no plan, and calibrating one for every study would take most of the time."""

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
        )
        for name, tier in tiers.items()
    )


def pack(arrays: Arrays) -> RecordDict:
    """A reply in the form of the wire; a real site can only make one from a `Released`."""
    manifest = json.dumps({"operation": "0", "head": "0" * 64})
    flat = Array(np.frombuffer(save(arrays), dtype=np.uint8))
    return RecordDict({"manifest": ConfigRecord({"json": manifest}), "data": ArrayRecord({"flat": flat})})


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
    return pack(arrays_for(site, task))


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


def folder(path: Path, study: StudyConfig) -> Path:
    """A run directory for stub sites: nothing in it but a study and a plan."""
    create_run(path, study, run="run", about={})
    write_json(path / "plan.json", {"canonical": PLAN.to_json()})
    return path


def run(stubs: Stubs, path: Path, *, resume: bool = False) -> Completed:
    """Conduct the study of a run directory with stub sites."""
    return conduct(stubs.grid(), path, resume=resume)


def kinds(tasks: Iterable[tuple[str, Task]], site: str) -> list[str]:
    return [task.kind for name, task in tasks if name == site]
