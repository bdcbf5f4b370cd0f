"""Epsilon once more, from a ledger's entries and by formulas that share no code with its accountants."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from fednas.audit.estimators.gaussian import epsilon_of
from fednas.privacy import verify

Mechanism: TypeAlias = tuple[float, float]
"""Sampling probability and noise multiplier; (1, 0) protects nothing."""

Spent: TypeAlias = Mapping[Mechanism, int]
"""How often each mechanism was applied to one stream's records."""

STREAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "search": ("weights",),
    "alphas": ("architecture",),
    "fitness": ("fitness",),
    "final": ("weights", "architecture", "fitness"),
}
"""Which streams a charge's name reads: written down here again, so that an audit notices a change there."""

_PRV_ERROR: Final = 0.01  # Opacus adds this to its estimate, so that it is an upper bound
# Where ten thousand schedules were compared (tests/privacy/cross_check.py); elsewhere it may take minutes.
_PRV_EPSILON: Final = (0.05, 15.0)
_PRV_Q: Final = (1e-3, 0.5)
_PRV_SIGMA: Final = (0.6, 20.0)
_PRV_STEPS: Final = 15_000
_CEILING: Final = 300.0  # of any epsilon that is looked for


@dataclass(frozen=True, kw_only=True)
class Recount:
    """What a ledger's entries add up to, per stream.

    Args:
        claimed: by stream, every release of every opened plan.
        charged: by stream, every release that was charged.
    """

    claimed: Mapping[str, Counter[Mechanism]] = field(default_factory=lambda: _streams())
    charged: Mapping[str, Counter[Mechanism]] = field(default_factory=lambda: _streams())


def recount(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> Recount:
    """Add entries up.

    Args:
        entries: (kind, body) of each, in order, of a ledger that verifies.
    """
    result = Recount()
    plans: dict[str, dict[str, Mechanism]] = {}
    for kind, body in entries:
        if kind == "PLAN":
            plans[body["run"]] = {}
            for allowance in body["plan"]["allowances"]:
                mechanism, amount = read_event(allowance["event"])
                plans[body["run"]][allowance["name"]] = mechanism
                for stream in STREAMS[allowance["name"]]:
                    result.claimed[stream][mechanism] += amount
        elif kind == "RESERVE":
            for name, amount in body["charges"].items():
                for stream in STREAMS[name]:
                    result.charged[stream][plans[body["run"]][name]] += amount
    return result


def read_event(event: Mapping[str, Any]) -> tuple[Mechanism, int]:
    """The mechanism of an event in a plan's JSON, and how often the plan has it."""
    if event["kind"] == "non_private":
        return (1.0, 0.0), int(event["releases"])
    q = 1.0 if event["kind"] == "gaussian" else float(event["sampling_probability"])
    amount = event["releases" if event["kind"] == "gaussian" else "steps"]
    return (q, float(event["noise_multiplier"])), int(amount)


def sampled_delta(q: float, sigma: float, epsilon: float) -> tuple[float, float]:
    """The exact delta of one Poisson-sampled Gaussian release: of removing a record, and of adding one.

    With P = (1-q) N(0, s^2) + q N(1, s^2) and Q = N(0, s^2) it is the integral of max(0, P - e^epsilon Q),
    and of max(0, Q - e^epsilon P). P / Q grows with the output, so each is positive on one side of one point.

    Args:
        q: sampling probability, 0 < q < 1.
        sigma: standard deviation over sensitivity.
        epsilon: at least 0.
    """

    def mixture(z: float, centre: float, sign: float) -> float:
        return float((1 - q) * ndtr(sign * z / sigma) + q * ndtr(sign * (z - centre) / sigma))

    def point(ratio: float) -> float:
        """Where P / Q has a value above 1 - q."""
        return sigma**2 * math.log((ratio - (1 - q)) / q) + 0.5

    x = point(math.exp(epsilon))
    removed = mixture(x, 1.0, -1.0) - math.exp(epsilon + log_ndtr(-x / sigma))
    if math.exp(-epsilon) <= 1 - q:
        return removed, 0.0
    x = point(math.exp(-epsilon))
    return removed, float(ndtr(x / sigma)) - math.exp(epsilon) * mixture(x, 1.0, 1.0)


def sampled_epsilon(q: float, sigma: float, delta: float) -> float:
    """The exact epsilon of one Poisson-sampled Gaussian release, whichever neighbour has the record."""
    return _least(lambda epsilon: max(sampled_delta(q, sigma, epsilon)), delta)


def replaced_epsilon(q: float, sigma: float, delta: float) -> float:
    """The exact epsilon of one Poisson-sampled Gaussian release when one record is replaced by its opposite.

    Source: the pair that `fednas.privacy.replacement` proves worst, (1-q) N(0) + q N(1) and its mirror image.
    """

    def loss(x: float) -> float:
        up, down = (math.log1p(-q + q * math.exp((s * 2 * x - 1) / (2 * sigma**2))) for s in (1, -1))
        return up - down

    def excess(epsilon: float) -> float:
        most = math.log1p(-q + q * math.exp(300.0)) - math.log1p(-q)
        if epsilon >= most:
            return 0.0
        x = float(brentq(lambda x: loss(x) - epsilon, 0.0, 300.0 * sigma**2, xtol=1e-13))
        p = (1 - q) * ndtr(-x / sigma) + q * ndtr((1 - x) / sigma)
        r = (1 - q) * ndtr(-x / sigma) + q * ndtr((-1 - x) / sigma)
        return float(p - math.exp(epsilon) * r)

    return _least(excess, delta)


def prv_epsilon(spent: Spent, delta: float) -> float:
    """Opacus' estimate by privacy random variables, less the error that it adds.

    Gaussians without sampling are merged into one first, which is exact.

    Source: Gopi, Lee and Wutschitz (2021), arXiv 2106.02848.
    """
    from opacus.accountants import PRVAccountant  # slow to import

    accountant = PRVAccountant()
    accountant.history = [(sigma, q, n) for (q, sigma), n in spent.items() if q < 1.0]
    whole = _whole(spent)
    if whole < math.inf:
        accountant.history.append((whole, 1.0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta, eps_error=_PRV_ERROR)) - _PRV_ERROR


def disagreements(claim: float, spent: Spent, delta: float) -> tuple[list[str], str]:
    """Hold an epsilon by privacy loss distributions against all that is known otherwise.

    Args:
        claim: what the ledger's own accountant says.
        spent: of which mechanisms.
        delta: 0 < delta < 1.

    Returns:
        The rules that are broken, and the figures in words.
    """
    spent = {mechanism: amount for mechanism, amount in spent.items() if amount > 0}
    if not spent:
        return (["nothing was spent, something is claimed"] if claim != 0.0 else []), "nothing spent"
    if any(sigma == 0.0 for _, sigma in spent):
        return ([] if math.isinf(claim) else ["a release without noise costs infinity"]), "no noise"
    rdp = verify.epsilon(spent.items(), delta)
    wrong, words = [], [f"PLD {claim:.4f}", f"RDP {rdp:.4f}"]
    if not claim <= rdp * (1 + 1e-12):
        wrong.append("more than the proved bound")
    whole, sampled = _whole(spent), [(m, n) for m, n in spent.items() if m[0] < 1.0]
    least = 0.0 if whole == math.inf else epsilon_of(1.0 / whole, delta)
    for (q, sigma), _ in sampled:
        least = max(least, sampled_epsilon(q, sigma, delta))
    words.append(f"exact for a part {least:.4f}")
    if not claim >= least - 1e-9:
        wrong.append("less than a part of it costs, exactly")
    exact = not sampled or (whole == math.inf and [n for _, n in sampled] == [1])
    if exact and not claim <= least * 1.001 + 1e-3:
        wrong.append("more than it costs, exactly")
    if _tried(claim, sampled):
        prv = prv_epsilon(spent, delta)
        words.append(f"PRV {prv:.4f}")
        if not abs(claim - prv) <= 0.005 * claim + 0.002:
            wrong.append("not what Opacus' PRV accountant says")
    else:
        words.append("PRV not asked: outside the range it is known to answer in")
    return wrong, ", ".join(words)


def _tried(claim: float, sampled: list[tuple[Mechanism, int]]) -> bool:
    inside = all(
        _PRV_Q[0] <= q <= _PRV_Q[1] and _PRV_SIGMA[0] <= sigma <= _PRV_SIGMA[1] for (q, sigma), _ in sampled
    )
    return inside and _PRV_EPSILON[0] <= claim <= _PRV_EPSILON[1] and sum(n for _, n in sampled) <= _PRV_STEPS


def _whole(spent: Spent) -> float:
    """The noise multiplier of all releases without sampling together; infinite if there are none."""
    precision = math.fsum(n / sigma**2 for (q, sigma), n in spent.items() if q == 1.0)
    return precision**-0.5 if precision > 0.0 else math.inf


def _least(excess: Callable[[float], float], delta: float) -> float:
    """The least epsilon at which a decreasing delta is small enough."""
    if excess(0.0) <= delta:
        return 0.0
    high = 1.0
    while excess(high) > delta and high < _CEILING:
        high *= 2.0
    return float(brentq(lambda epsilon: excess(epsilon) - delta, 0.0, high, xtol=1e-12))


def _streams() -> dict[str, Counter[Mechanism]]:
    return {stream: Counter() for stream in STREAMS["final"]}
