"""What the claim rests on: whose records it is about, which numbers are public, what amplifies nothing."""

import ast
import inspect
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fednas import evaluation
from fednas.aggregation import NoisyCount, combine_counts
from fednas.config import PrivacySection, SiteConfig
from fednas.errors import ConfigurationError
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.entropy import SecureEntropy
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import release_schedule
from fednas.site import open_site
from fednas.space import create
from fednas.training import alphas, weights
from fednas.wire import Answer, Task, decode, decode_task
from server.agreement import Agreement
from server.cohort import Cohort, Member
from simulations import internals
from tests.architecture.test_what_leaves import SEES_RECORDS, words
from tests.architecture.test_wire_gate import name_of, sources
from tests.integration.spy import whole
from tests.privacy.ledgers import plan_of, search_event
from tests.server.stubs import facts
from tests.simulations import tiny
from tests.site.sites import LARGE, SMALL, Sites, task

SPACE = create("mlp", (4,), 3)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    open_site.cache_clear()
    yield
    open_site.cache_clear()


# Whose epsilon


@pytest.mark.parametrize("change", [{"min_sites": 30}, {"quorum": 0.1}, {"min_sites": 1, "quorum": 1.0}])
def test_how_many_sites_take_part_amplifies_nothing(change: dict[str, Any]) -> None:
    """The server sees each site's bytes: a plan is that of a site which is asked in every round."""
    assert release_schedule(tiny.study(federation=change), 3) == release_schedule(tiny.study(), 3)
    for function in (epsilon_pld, PrivacyPlan.calibrate, release_schedule):
        names = " ".join(inspect.signature(function).parameters)
        assert not any(word in names for word in ("site", "client", "cohort", "fraction"))


def test_the_epsilon_of_a_study_is_the_largest_of_its_sites_and_no_sum_or_mean() -> None:
    strict, generous = plan_of(search=search_event(5)), plan_of(search=search_event(50))
    agreement = Agreement(num_tiers=1, plans={"a": strict, "b": generous, "c": strict})
    assert agreement.claim == generous.claim > strict.claim


# Delta


def test_delta_is_one_in_a_hundred_thousand_unless_somebody_asks_for_another() -> None:
    assert PrivacySection(epsilon=1.0).delta == 1e-5
    assert SiteConfig.model_fields["delta"].default == 1e-5
    assert PrivacyBudget.non_private().delta == 1e-5


def test_a_study_whose_delta_could_publish_a_record_of_a_site_is_refused() -> None:
    study = tiny.study()
    members = [Member(node=i, facts=fact) for i, fact in enumerate(facts(study))]
    Cohort(members, SPACE, study)
    vast = replace(members[0].facts, declared_size=int(1 / study.privacy.delta) + 1)
    with pytest.raises(ConfigurationError, match="above 1 / "):
        Cohort([Member(node=0, facts=vast), *members[1:]], SPACE, study)


# What is public


def test_fitness_is_divided_by_the_declared_size_and_never_by_a_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[int, tuple[Task, Answer]] = {}  # of each node, the last: that of the final report
    answer = internals.answer

    def listen(app: ClientApp, question: Message, context: Context) -> Message:
        reply = answer(app, question, context)
        if question.metadata.message_type == "evaluate":
            released = decode(reply.content)
            assert isinstance(released, Answer)
            heard[context.node_id] = decode_task(question.content), released
        return reply

    monkeypatch.setattr(internals, "answer", listen)
    path = tiny.make_run(tmp_path / "run", tiny.study())
    for number in range(tiny.NUM_SITES):  # half of the records are gone, and the declarations stay
        file = path / "sites" / f"site-{number}" / "data.npz"
        data = np.load(file)
        np.savez(file, **{name: data[name][::2] for name in data.files})
    completed = whole(path)

    (plan,) = {plan.id: plan for plan, _ in completed.agreement.by_plan()}.values()
    share, noise = dict(plan.proportions)["fitness"], plan.noise_multiplier("fitness")
    architecture = completed.coordinator.chosen["large"]

    def fitness(part: float) -> float:
        counts = []
        for (request, released), declared in zip(heard.values(), tiny.SIZES.values(), strict=True):
            if architecture in request.architectures:
                correct = released.arrays["correct"][request.architectures.index(architecture)]
                counts.append(
                    NoisyCount(correct=float(correct), size=part * declared * share, noise_std=noise)
                )
        return combine_counts(counts).fitness

    stated = completed.coordinator.fitness["large"].fitness
    assert stated == pytest.approx(fitness(1.0))
    assert stated != pytest.approx(fitness(0.5)), "by the records that are there it would be another one"


def test_no_entry_of_a_ledger_depends_on_a_record(tmp_path: Path) -> None:
    """The same requests to a site with other records, and other numbers of them: the same entries."""

    def entries(name: str, keep: slice) -> list[tuple[str, dict[str, Any]]]:
        open_site.cache_clear()
        path = tiny.make_run(tmp_path / name, tiny.study(search={"strategy": "differentiable"}), seed=None)
        folder = path / "sites" / "site-0"
        data = np.load(folder / "data.npz")
        np.savez(folder / "data.npz", **{key: data[key][keep] for key in data.files})
        sites = Sites(path)
        for request in (task(alphas=True), task("evaluate", SMALL, LARGE), task("final"), task("final")):
            sites.ask(request)
        open_site.cache_clear()
        with sqlite3.connect(folder / "ledger.sqlite") as connection:
            rows = connection.execute("SELECT kind, body FROM entries ORDER BY seq").fetchall()
        connection.close()
        return [(kind, json.loads(body)) for kind, body in rows]

    drawn = {
        "key",
        "signer",
        "signature",
        "reply",
    }  # keys of the file, and digests of what noise was added to
    many, few = entries("many", slice(None)), entries("few", slice(7))
    assert [kind for kind, _ in many] == [kind for kind, _ in few]
    for (kind, left), (_, right) in zip(many, few, strict=True):
        assert left.keys() == right.keys()
        assert {k: v for k, v in left.items() if k not in drawn} == {
            k: v for k, v in right.items() if k not in drawn
        }, kind


# Who may choose


@pytest.mark.parametrize("path", sources("client", "fednas", "server"), ids=name_of)
def test_nothing_of_opacus_or_torch_chooses_rates_divisors_noise_or_seeds(path: Path) -> None:
    """Opacus derives them from the number of records, and its noise can be seeded."""
    forbidden = {
        "PrivacyEngine",
        "make_private",
        "make_private_with_epsilon",
        "DPDataLoader",
        "BatchMemoryManager",
        "UniformWithReplacementSampler",
        "secure_mode",
    }
    if name_of(path) in SEES_RECORDS:  # public randomness, as of the search, may be seeded
        forbidden |= {"manual_seed", "default_rng", "Generator", "rand", "randn", "normal_"}
    if path.name in ("streams.py", "chunks.py"):  # they try a function on noise before it sees a record
        forbidden -= {"default_rng", "manual_seed", "Generator", "randn"}
    found = {word for _, word in words(ast.parse(path.read_text()))}
    assert found & forbidden == set()


@pytest.mark.parametrize(
    "mechanism",
    [
        weights.train_weights,
        alphas.architecture_gradient,
        evaluation.noised_counts,
        SecureEntropy,
        PrivacyLedger.release,
    ],
)
def test_no_mechanism_takes_a_seed_a_generator_a_rate_a_clip_or_a_noise(mechanism: Any) -> None:
    names = " ".join(inspect.signature(mechanism).parameters)
    for word in ("seed", "generator", "random", "noise", "sigma", "probability", "rate", "clip", "entropy"):
        assert word not in names
