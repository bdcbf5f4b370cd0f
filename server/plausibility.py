"""The largest answer that an honest site could give: what is beyond it is rejected and never merged."""

import math
from functools import lru_cache
from typing import Final

import numpy as np

from fednas.config import StudyConfig, parse_study
from fednas.errors import ExchangeError
from fednas.privacy.allowance import Allowance
from fednas.privacy.plan import PrivacyPlan
from fednas.wire import Answer, SiteFacts, Task

_CROWD: Final = 8.0  # how many times its declared size a site may have before it is taken for a liar
_SPARE: Final = 64  # records more, for sites so small that chance matters
_TAIL: Final = 12.0  # standard deviations: beyond them noise is in one of 10^32 answers


def check_plausible(answer: Answer, task: Task, facts: SiteFacts) -> None:
    """Refuse an answer that no honest site could give, whatever its records are.

    The bounds are of public values alone: the plan's clip norms and noise, the study's steps and learning
    rate, and the size that the site declares. What one site can do to an aggregate is bounded by them; it can
    still send any direction within them (Sun et al. 2019, "Can you really backdoor federated learning?",
    arXiv 1911.07963).

    Args:
        answer: of the form that the task asked for; see `fednas.wire.check_answer`.
        task: what was asked.
        facts: what the site said of itself.

    Raises:
        ExchangeError: a count, or the norm of an update or of a gradient, is beyond what is possible.
    """
    study, plan = _study(task.study), _plan(task.plan)
    if task.kind == "evaluate":
        terms = plan.allowance("fitness")
        most = _records(plan, terms, facts) + _TAIL * max(1.0, terms.noise_multiplier)
        if np.max(np.abs(answer.arrays["correct"].astype(np.float64)), initial=0.0) > most:
            raise ExchangeError("a count is beyond what the site's declared size allows")
        return
    terms = plan.allowance("search" if task.kind == "train" else "final")
    training = study.training
    reach = training.learning_rate * training.steps_per_round / (1.0 - training.momentum)
    update = answer.arrays["update"]
    if _norm(update) > reach * _step(plan, terms, facts, update.size):
        raise ExchangeError("an update is longer than clipped and noised steps can be")
    if "alphas" in answer.arrays:
        known = answer.arrays["alphas"][~np.isnan(answer.arrays["alphas"])]
        if _norm(known) > _step(plan, plan.allowance("alphas"), facts, known.size):
            raise ExchangeError("an architecture gradient is longer than a clipped and noised one can be")


def _records(plan: PrivacyPlan, terms: Allowance, facts: SiteFacts) -> float:
    """The most records that one release may read."""
    return _CROWD * terms.sampling_probability * facts.declared_size * plan.share(terms.name) + _SPARE


def _step(plan: PrivacyPlan, terms: Allowance, facts: SiteFacts, length: int) -> float:
    """The longest noised average of clipped gradients: records in one direction, noise in all."""
    divisor = terms.sampling_probability * facts.declared_size * plan.share(terms.name)
    noise = terms.noise_multiplier * (math.sqrt(length) + _TAIL)
    return terms.clip_norm * (_records(plan, terms, facts) + noise) / divisor


def _norm(values: np.ndarray) -> float:
    """The L2 norm, in double precision: it may be infinite, never wrong for being large."""
    with np.errstate(over="ignore"):
        # Not by BLAS: its threads wait for each other on a busy machine.
        return math.sqrt(float(np.sum(np.square(values, dtype=np.float64))))


@lru_cache(maxsize=8)
def _study(text: str) -> StudyConfig:
    return parse_study(text)


@lru_cache(maxsize=64)
def _plan(text: str) -> PrivacyPlan:
    return PrivacyPlan.from_json(text)
