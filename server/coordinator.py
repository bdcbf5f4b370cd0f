"""The round loop: send paths, merge what was released, search on it, and remember every whole round."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, final

import numpy as np

from fednas.aggregation import (
    Estimate,
    NoisyCount,
    average_gradients,
    combine_counts,
    robust_rule,
    update_weight,
)
from fednas.config import dump_study
from fednas.errors import ExchangeError, RunDirectoryError
from fednas.logs import Event, tagged
from fednas.schedule import Step, agenda, candidates_per_tier
from fednas.search import Policy, SearchStrategy, Trial, create, shortlist, successor
from fednas.space import Architecture, SearchSpace
from fednas.supernet import Contribution, Supernet
from fednas.wire import Task, TaskKind
from server.agreement import Agreement
from server.checkpoint import RunDirectory
from server.cohort import Cohort, Member
from server.correspondence import Correspondence

_log = logging.getLogger("fednas.coordinator")

SANDWICH_EVERY = 3
"""One search round in so many trains the smallest, the largest and random paths: the supernet stays whole."""

_PAYS: Mapping[TaskKind, str] = {"train": "search", "final": "final"}
"""The allowance of a plan that pays for an update of each kind."""


@final
class Coordinator:
    """Runs one study with its sites, from its last checkpoint or from the start.

    Every decision reads released values, public facts and public randomness; the latter is derived from the
    study's seed and the round, so a resumed run continues exactly.

    Args:
        sites: how the sites are asked.
        cohort: the sites that take part.
        agreement: the privacy plan of each of them.
        directory: where rounds and checkpoints go.
        space: the space of the study.
    """

    def __init__(
        self,
        sites: Correspondence,
        *,
        cohort: Cohort,
        agreement: Agreement,
        directory: RunDirectory,
        space: SearchSpace,
    ) -> None:
        self._sites = sites
        self._cohort = cohort
        self._plans = agreement.plans
        self._directory = directory
        self._study = directory.study
        # Every message carries both.
        self._study_text = dump_study(directory.study)
        self._plan_texts = {site: plan.to_json() for site, plan in agreement.plans.items()}
        self._space = space
        federation = directory.study.federation
        self._rule = robust_rule(federation.aggregation, federation.max_hostile)
        self._least = 1 if self._rule is None else self._rule.least_sites
        self._supernet = Supernet.initialise(space, seed=self._study.seed)
        self._policy = Policy(space) if self._study.search.strategy == "differentiable" else None
        self._strategies: Mapping[str, SearchStrategy] = {
            tier: create(
                self._study.search.strategy,
                space=space,
                violation=cohort.costs.violation(devices),
                policy=self._policy,
            )
            for tier, devices in cohort.tiers.items()
        }
        self._chosen = dict(cohort.given(self._study))
        self._fitness: dict[str, Estimate] = {}
        self._candidates: list[Architecture] = []
        self._completed = 0

    @property
    def supernet(self) -> Supernet:
        """The shared weights after the last whole round."""
        return self._supernet

    @property
    def chosen(self) -> Mapping[str, Architecture]:
        """The architecture of each tier, by released fitness."""
        return self._chosen

    @property
    def fitness(self) -> Mapping[str, Estimate]:
        """The released fitness of each tier's trained network; empty where nothing was searched."""
        return self._fitness

    @property
    def refused(self) -> Mapping[str, str]:
        """The sites that do not take part any more, and the code that says why."""
        return self._sites.refused

    def resume(self) -> int:
        """Continue from the last checkpoint, if any; returns the number of whole rounds behind it."""
        latest = self._directory.latest(self._space)
        if latest is not None:
            self._completed, self._supernet, state = latest
            self._restore(state)
        return self._completed

    def run(self) -> None:
        """Do every round that is not behind a checkpoint.

        Raises:
            ExchangeError: fewer sites than the quorum answered.
            BudgetExceededError: every site refuses for lack of budget.
        """
        steps = agenda(self._study)
        for step in steps[self._completed :]:
            _log.info(
                "round %d of %d: %s",
                step.round,
                len(steps),
                step.kind,
                extra=tagged(
                    Event.ROUND_BEGINS,
                    study=self._study.name,
                    round=step.round,
                    rounds=len(steps),
                    kind=step.kind,
                ),
            )
            record = self._do(step)
            self._completed = step.round
            self._directory.write(f"rounds/{step.round:05d}.json", record)
            self._directory.save(step.round, self._supernet, self._state())
        finished = tagged(Event.STUDY_COMPLETE, study=self._study.name, rounds=len(steps))
        _log.info("study complete", extra=finished)

    def _do(self, step: Step) -> dict[str, Any]:
        record: dict[str, Any] = {"round": step.round, "kind": step.kind}
        if step.kind in ("search", "final"):
            return record | self._train(step)
        if step.kind == "generation":
            return record | self._generation(step)
        return record | self._report(step)

    # Training rounds

    def _train(self, step: Step) -> dict[str, Any]:
        kind: TaskKind = "final" if step.kind == "final" else "train"
        active = set(self._sites.active())
        drawn = zip(self._sites.members, self._paths(step), strict=True)
        paths = {member: path for member, path in drawn if path is not None and member in active}
        tasks = {
            member: self._task(member, step, kind, [path], alphas=step.kind == "search")
            for member, path in paths.items()
        }
        self._check_enough(len(tasks), "could be asked")
        answers, sites = self._sites.ask(tasks)
        self._check_enough(len(answers), "answered")
        contributions, weights, gradients = [], [], []
        for member, answer in answers.items():
            update, weight = answer.arrays["update"], self._weight(member, _PAYS[kind])
            contributions.append(Contribution(architecture=paths[member], update=update, weight=weight))
            if self._policy is not None and "alphas" in answer.arrays:
                weights.append(self._weight(member, "alphas"))
                gradients.append(answer.arrays["alphas"])
        self._supernet = self._supernet.merge(contributions, self._rule)
        if self._policy is not None and gradients:
            self._policy.learn(
                average_gradients(gradients, weights, self._rule),
                self._study.training.architecture_learning_rate,
            )
        for member in tasks:
            sites[member.facts.site]["architecture"] = paths[member].id
        return {"sites": sites}

    def _weight(self, member: Member, allowance: str) -> float:
        """The public weight of what a member releases under an allowance: its own inverse noise variance."""
        return update_weight(
            declared_size=member.facts.declared_size,
            noise_multiplier=self._plans[member.facts.site].noise_multiplier(allowance),
        )

    def _check_enough(self, count: int, what: str) -> None:
        """Refuse a round that the rule cannot bear, rather than keep a promise of fewer hostile sites.

        Raises:
            ExchangeError: fewer sites than the rule needs.
        """
        if self._rule is not None and count < self._least:
            raise ExchangeError(
                f"{count} sites {what}, {self._rule.name} with max_hostile = {self._rule.max_hostile} needs "
                f"at least {self._least}; mend the others and resume"
            )

    def _judged(self, architecture: Architecture, members: Sequence[Member]) -> bool:
        """Whether enough of these hold an architecture to say how good it is: one, or what the rule needs."""
        return sum(self._cohort.fits(member)(architecture) for member in members) >= self._least

    def _paths(self, step: Step) -> Sequence[Architecture | None]:
        """Public randomness, before anything is asked: a path a member, none where nothing chosen fits.

        Every third search round is a sandwich; the others train what will be evaluated: the candidates of the
        generation, or paths drawn from the architecture parameters.
        """
        if step.kind == "final":
            return self._cohort.rotate(list(self._chosen.values()), step.round)
        if step.round % SANDWICH_EVERY == 0:
            return self._cohort.search_paths(step.round, self._generator(step, 0))
        if self._policy is not None:
            return self._cohort.policy_paths(self._policy, self._generator(step, 0))
        self._candidates = self._candidates or self._propose(step)
        return self._cohort.rotate(self._candidates, step.round)

    # Evaluation rounds

    def _propose(self, step: Step) -> list[Architecture]:
        """The candidates of a generation: each tier's best so far, and a shortlist of what it asks for."""
        share = candidates_per_tier(self._study, len(self._cohort.tiers))
        candidates: dict[Architecture, None] = {}
        live = self._live_tiers()
        # The sandwich trains the smallest path most: what cannot beat it is not worth its noise.
        anchor = self._space.smallest()
        for index, (tier, strategy) in enumerate(self._strategies.items()):
            if tier not in live:
                continue
            generator = self._generator(step, 1 + index)
            kept = list(dict.fromkeys([self._chosen.get(tier, anchor), anchor]))[:share]
            asked = strategy.ask(self._study.search.pool, generator)
            # Who is away counts: a resumed round has to ask what was asked when all were there.
            remaining = self._sites.remaining()
            pool = [a for a in asked if a not in kept and self._judged(a, remaining)]
            count = min(share - len(kept), len(pool))
            ranked = shortlist(
                pool,
                self._space.build,
                self._cohort.costs,
                count,
                input_shape=self._space.input_shape,
                generator=generator,
            )
            candidates.update(dict.fromkeys([*kept, *ranked]))
        return list(candidates)

    def _generation(self, step: Step) -> dict[str, Any]:
        trials, sites = self._evaluate(step, self._candidates or self._propose(step))
        self._candidates = []
        for strategy in self._strategies.values():
            strategy.tell(trials)
        for tier in self._live_tiers():
            fits = self._cohort.costs.fits(self._cohort.tiers[tier])
            incumbent = self._chosen.get(tier, self._space.smallest())
            self._chosen[tier] = successor(trials, fits, incumbent).architecture
        return {"sites": sites, "trials": [_describe(t) for t in trials], "chosen": self._chosen_ids()}

    def _report(self, step: Step) -> dict[str, Any]:
        trials, sites = self._evaluate(step, list(dict.fromkeys(self._chosen.values())))
        found = {t.architecture: Estimate(fitness=t.fitness, std=t.fitness_std) for t in trials}
        self._fitness = {tier: found[a] for tier, a in self._chosen.items() if a in found}
        return {"sites": sites, "trials": [_describe(t) for t in trials], "chosen": self._chosen_ids()}

    def _evaluate(self, step: Step, candidates: Sequence[Architecture]) -> tuple[list[Trial], dict[str, Any]]:
        """Released correct-counts of the candidates, each from every site whose device it fits."""
        asked = self._sites.active()
        self._check_enough(len(asked), "are left")
        candidates = [a for a in candidates if self._judged(a, self._sites.remaining())]
        share = {member: [a for a in candidates if self._cohort.fits(member)(a)] for member in asked}
        tasks = {
            member: self._task(member, step, "evaluate", fitting)
            for member, fitting in share.items()
            if fitting
        }
        answers, sites = self._sites.ask(tasks)
        counts: dict[Architecture, list[NoisyCount]] = {a: [] for a in candidates}
        for member, answer in answers.items():
            plan = self._plans[member.facts.site]
            size = member.facts.declared_size * dict(plan.proportions)["fitness"]
            noise = plan.noise_multiplier("fitness")
            for architecture, correct in zip(share[member], answer.arrays["correct"], strict=True):
                counts[architecture].append(NoisyCount(correct=float(correct), size=size, noise_std=noise))
        left = self._sites.active()
        self._check_enough(len(left), "are left")
        retired = [a for a in candidates if not self._judged(a, left)]
        for architecture in retired:  # those who could say have left the study: their tiers go without
            del counts[architecture]
        missing = [a.id for a, found in counts.items() if len(found) < self._least]
        if missing:
            few = "no site" if self._least == 1 else f"fewer than {self._least} sites"
            raise ExchangeError(
                f"{few} answered for architecture {missing[0]}; resume when its sites are back"
            )
        trials = []
        for architecture, found in counts.items():
            estimate = combine_counts(found, self._rule)
            trials.append(
                Trial(
                    architecture=architecture,
                    fitness=estimate.fitness,
                    fitness_std=estimate.std,
                    cost=self._cohort.costs(architecture),
                )
            )
        return trials, sites

    # What the sites are asked

    def _task(
        self,
        member: Member,
        step: Step,
        kind: TaskKind,
        architectures: Sequence[Architecture],
        *,
        alphas: bool = False,
    ) -> Task:
        arrays: dict[str, Any] = {
            f"weights.{i}": self._supernet.gather(a) for i, a in enumerate(architectures)
        }
        if alphas and self._policy is not None:
            arrays["alphas"] = self._policy.flat()
        return Task(
            kind=kind,
            run=self._directory.run,
            round=step.round,
            plan=self._plan_texts[member.facts.site],
            study=self._study_text,
            architectures=tuple(architectures),
            arrays=arrays,
        )

    def _live_tiers(self) -> list[str]:
        """The tiers with a site that has not retired, in the order of the cohort."""
        live = {member.facts.device.tier for member in self._sites.remaining()}
        return [tier for tier in self._cohort.tiers if tier in live]

    def _generator(self, step: Step, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._study.seed, step.round, purpose])

    # What a checkpoint remembers

    def _chosen_ids(self) -> dict[str, str]:
        return {tier: architecture.id for tier, architecture in self._chosen.items()}

    def _state(self) -> dict[str, Any]:
        return {
            "plans": {site: plan.id for site, plan in self._plans.items()},
            "sites": self._sites.state(),
            "strategies": {tier: strategy.state() for tier, strategy in self._strategies.items()},
            "policy": None if self._policy is None else self._policy.state(),
            "chosen": {tier: architecture.to_json() for tier, architecture in self._chosen.items()},
            "fitness": {tier: asdict(estimate) for tier, estimate in self._fitness.items()},
            "candidates": [architecture.to_json() for architecture in self._candidates],
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take a checkpoint's state over.

        Raises:
            RunDirectoryError: it is malformed, or of another plan.
        """
        try:
            if any(self._plans[site].id != plan for site, plan in state["plans"].items()):
                raise RunDirectoryError(
                    f"the last checkpoint of {self._directory.path} is of another plan; the run cannot go on"
                )
            self._read(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunDirectoryError(
                f"the last checkpoint of {self._directory.path} is malformed; the run cannot go on"
            ) from error

    def _read(self, state: Mapping[str, Any]) -> None:
        for tier, strategy in self._strategies.items():
            strategy.restore(state["strategies"][tier])
        if self._policy is not None:
            self._policy.restore(state["policy"])
        self._chosen = {tier: Architecture.from_json(text) for tier, text in state["chosen"].items()}
        self._fitness = {tier: Estimate(**value) for tier, value in state["fitness"].items()}
        self._candidates = [Architecture.from_json(text) for text in state["candidates"]]
        self._sites.restore(state["sites"])


def _describe(trial: Trial) -> dict[str, Any]:
    return {
        "architecture": trial.architecture.to_json(),
        "id": trial.architecture.id,
        "fitness": trial.fitness,
        "std": trial.fitness_std,
    }
