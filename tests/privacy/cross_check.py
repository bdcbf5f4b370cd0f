"""Four accountants on random schedules: ours by loss distributions and by Rényi, and two that share no code.

    python -m tests.privacy.cross_check --first 0 --last 10000 --log FILE

writes a line for each schedule and goes on where FILE ends; two processes may share the range and the file.
The 10 000 draw their mechanisms from `PAIRS` pairs of q and sigma, so that what an accountant knows of a pair
is computed once; how many steps, and which pairs stand together, is drawn for each schedule.
"""

import argparse
import json
import math
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from pathlib import Path

from opacus.accountants.analysis import rdp as opacus_rdp
from scipy.optimize import brentq
from scipy.special import log_ndtr

from fednas.privacy import accounting
from fednas.privacy.accounting import ORDERS, epsilon_pld, epsilon_rdp, rdp_curve
from fednas.privacy.events import PoissonGaussian

DELTA = 1e-5
PRV_ERROR = 0.01  # Opacus adds this to its estimate, so that it is an upper bound
LEAST, MOST = 0.05, 15.0  # epsilon of the schedules that are checked
PAIRS = 500
_COARSE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Population:
    """Which schedules are drawn: one to three mechanisms, every range uniform in its logarithm.

    A mechanism samples everybody with chance 0.15. A schedule is drawn again until its Rényi epsilon is
    `LEAST` to twice `MOST`, and its epsilon by loss distributions `LEAST` to `MOST`; no other is left out.
    """

    q: tuple[float, float] = (1e-3, 0.5)
    sigma: tuple[float, float] = (0.6, 20.0)
    steps: int = 5000
    pool: int | None = None  # so many pairs of q and sigma in all, so that accountants can remember them

    def draw(self, index: int) -> tuple[list[PoissonGaussian], float]:
        """Return the schedule of an index and its epsilon by loss distributions."""
        source = random.Random(f"cross-check {index}")
        while True:
            events = [self._mechanism(source) for _ in range(source.randint(1, 3))]
            if LEAST <= epsilon_rdp(events, DELTA) <= 2 * MOST:
                epsilon = epsilon_pld(events, DELTA)
                if LEAST <= epsilon <= MOST:
                    return events, epsilon

    def _mechanism(self, source: random.Random) -> PoissonGaussian:
        pair = source if self.pool is None else random.Random(f"pair {source.randrange(self.pool)}")
        everybody = pair.random() < 0.15
        return PoissonGaussian(
            sampling_probability=1.0 if everybody else _log_uniform(pair, *self.q),
            noise_multiplier=_log_uniform(pair, *self.sigma),
            steps=round(_log_uniform(source, 1.0, self.steps)),
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the accountants say of one schedule; `wrong` names each rule that does not hold."""

    index: int
    mechanisms: int
    pld: float
    prv: float
    rdp: float
    share: float  # (pld - prv's estimate) over the tolerance: within -1 and 1
    wrong: tuple[str, ...]
    seconds: float


def check(index: int, population: Population) -> Verdict:
    """Compare everything that is known of one schedule."""
    started = time.perf_counter()
    events, pld = population.draw(index)
    prv, rdp = prv_epsilon(events), epsilon_rdp(events, DELTA)
    share = (pld - prv) / (0.005 * pld + 0.002)
    rules = {
        "PLD is PRV": abs(share) <= 1.0,
        "PLD < RDP": pld < rdp,
        "RDP is the published sum": _is_the_published_sum(events, rdp, random.Random(index)),
        "monotone": _is_monotone(events, index),
    }
    if all(event.sampling_probability == 1.0 for event in events):
        exact = gaussian_epsilon(sum(e.steps / e.noise_multiplier**2 for e in events) ** -0.5)
        rules["PLD is the closed form"] = -1e-9 <= pld - exact <= 1e-3 * exact + 1e-3
    return Verdict(
        index=index,
        mechanisms=len(events),
        pld=pld,
        prv=prv,
        rdp=rdp,
        share=share,
        wrong=tuple(rule for rule, holds in rules.items() if not holds),
        seconds=time.perf_counter() - started,
    )


def prv_epsilon(events: Sequence[PoissonGaussian]) -> float:
    """Opacus' estimate by privacy random variables, less the error that it adds (Gopi et al. 2021)."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sampling_probability, e.steps) for e in events]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(DELTA, eps_error=PRV_ERROR)) - PRV_ERROR


def gaussian_epsilon(sigma: float) -> float:
    """The exact epsilon of one Gaussian release (Balle and Wang 2018, 1805.06530)."""

    def excess(epsilon: float) -> float:
        upper = math.exp(log_ndtr(0.5 / sigma - epsilon * sigma))
        return upper - math.exp(epsilon + log_ndtr(-0.5 / sigma - epsilon * sigma)) - DELTA

    return float(brentq(excess, 0.0, 200.0, xtol=1e-12)) if excess(0.0) > 0.0 else 0.0


def exact_divergence(q: float, sigma: float, order: int) -> Decimal:
    """The published sum (Mironov et al. 2019, 1908.10530) by 60 digits, each term from the one before."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 10**9, -(10**9)
        probability, precision = Decimal(q), 1 / (Decimal(sigma) * Decimal(sigma))
        if q == 1.0:
            return order * precision / 2
        odds, growth = probability / (1 - probability), precision.exp()
        term = (1 - probability) ** order
        total, factor = term, Decimal(1)
        for i in range(order):
            term *= odds * (order - i) / (i + 1) * factor
            factor *= growth  # exp((i^2 - i) / (2 sigma^2)) grows by exp(i / sigma^2)
            total += term
        return total.ln() / (order - 1)


def _is_the_published_sum(events: Sequence[PoissonGaussian], rdp: float, source: random.Random) -> bool:
    """Whether our Rényi epsilon is attained at its order, and no other order that is tried gives less."""
    curve = rdp_curve(events)
    best = min(ORDERS, key=lambda order: float(curve[order - 2] + _conversion(order)))
    for order in {best, *source.sample(ORDERS[:127], 2)}:
        exact = sum(
            (e.steps * exact_divergence(e.sampling_probability, e.noise_multiplier, order) for e in events),
            Decimal(0),
        )
        epsilon = float(exact + Decimal(_conversion(order)))
        if not math.isclose(float(exact), curve[order - 2], rel_tol=1e-9) or epsilon < rdp * (1 - 1e-9):
            return False
        if order == best and not math.isclose(epsilon, rdp, rel_tol=1e-9):
            return False
    return True


def _conversion(order: int) -> float:
    """log of ((a-1)/a)^a / ((a-1) delta), over a-1: Canonne et al. (2020), 2004.00010, solved for epsilon."""
    a = order
    return (a * math.log((a - 1) / a) - math.log(a - 1) - math.log(DELTA)) / (a - 1)


def _is_monotone(events: Sequence[PoissonGaussian], index: int) -> bool:
    """Whether one of more steps, more sampling and less noise costs more; the index says which."""

    def more(event: PoissonGaussian) -> PoissonGaussian:
        q, sigma, steps = event.sampling_probability, event.noise_multiplier, event.steps
        if index % 3 == 0:
            steps = math.ceil(1.1 * steps)
        elif index % 3 == 1:
            q = min(1.0, 1.1 * q)
        if index % 3 == 2 or q == event.sampling_probability == 1.0:
            sigma /= 1.05
        return PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)

    dearer = [more(event) for event in events]
    return epsilon_rdp(events, DELTA) < epsilon_rdp(dearer, DELTA) and epsilon_pld(
        events, DELTA, value_discretization_interval=_COARSE
    ) < epsilon_pld(dearer, DELTA, value_discretization_interval=_COARSE)


def _log_uniform(source: random.Random, low: float, high: float) -> float:
    return math.exp(source.uniform(math.log(low), math.log(high)))


def remember() -> None:
    """Let both accountants keep what they know of a mechanism, for this process; it changes no number."""
    for module, name in ((opacus_rdp, "_compute_rdp"), (accounting, "_single_loss")):
        function = getattr(module, name)
        setattr(module, name, lru_cache(maxsize=None)(getattr(function, "__wrapped__", function)))


def done(log: Path) -> dict[int, dict[str, object]]:
    """What a log holds already, by index; a line that was cut off is forgotten."""
    lines: dict[int, dict[str, object]] = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        lines[value["index"]] = value
    return lines


def run(indices: Sequence[int], log: Path) -> None:
    """Check the schedules that the log does not hold yet, and append a line for each."""
    known = done(log)
    remember()
    with log.open("a") as file:
        if file.tell() and not log.read_text().endswith("\n"):
            file.write("\n")  # a line that was cut off stays a line of its own
        for index in indices:
            if index not in known:
                file.write(json.dumps(asdict(check(index, Population(pool=PAIRS)))) + "\n")
                file.flush()


def summary(log: Path) -> dict[str, object]:
    """How many schedules a log holds, which fail, and how near the others came to it."""
    lines = list(done(log).values())
    shares = [float(str(line["share"])) for line in lines]
    return {
        "checked": len(lines),
        "wrong": [line for line in lines if line["wrong"]],
        "greatest share of the tolerance": max(shares),
        "least share of the tolerance": min(shares),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=10_000)
    parser.add_argument("--step", type=int, default=1, help="2 with --first 0 and --first 1: two processes")
    parser.add_argument("--log", type=Path, required=True)
    arguments = parser.parse_args()
    run(range(arguments.first, arguments.last, arguments.step), arguments.log)
    print(json.dumps(summary(arguments.log), indent=1))  # noqa: T201
