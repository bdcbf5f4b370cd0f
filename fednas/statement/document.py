"""The privacy statement of a ledger as one value: what a data protection officer signs, and nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from fednas.privacy.events import NonPrivate, encode
from fednas.privacy.grid import GRID_STEP
from fednas.privacy.plan import STREAMS
from fednas.statement import audit as audits
from fednas.statement.account import Account, PlanUse
from fednas.statement.bounds import RELATIONS, Bound, event_bounds, filter_bounds, site_bounds
from fednas.statement.tradeoff import risk

FORMAT: Final = 1
GROUPS: Final = (2, 5, 10)
INFINITE: Final = "infinite"

UNIT = "one record of this dataset"
RELATION_WORDS: Final = {
    "add_remove": "with and without the record",
    "replace_one": "with the record and with another one in its place, in the same stream or in another",
}
DISJOINT = (
    "Records of different sites are disjoint, so a record's guarantee is its own site's. Inside the site a "
    "secret keyed hash of each record itself divides the records into streams that never change; they are "
    "disjoint, so a record loses at most the maximum over the streams, never their sum."
)
ADVERSARY = (
    "The server and every other site, who see every byte that this site ever sends, keep it for ever, know "
    "every other record, and choose what they ask for."
)
TRUST = (
    "Nobody but this site is trusted: not the server, not its aggregation, not the choice of sites in a "
    "round. Only the site's own secret Poisson sampling amplifies."
)
MECHANISMS: Final = {
    "search": "clipped gradients of a sub-network's weights, one release a training step",
    "alphas": "clipped gradients of the architecture parameters, first order",
    "fitness": "numbers of correct predictions of candidate networks, one release a candidate",
    "final": "clipped gradients of the chosen network's weights; reads all streams and is charged to each",
}
GRID = (
    "Each record's vector is clipped to an L2 norm C and rounded to an integer grid of step "
    f"{GRID_STEP:g} C; the integers add up exactly and get discrete Gaussian noise. Noise multiplier: "
    "standard deviation over the sensitivity, rounding and arithmetic error included. A count gets "
    "discrete Gaussian noise of sensitivity 1."
)
SAMPLING = (
    "Poisson: each training step takes each record of its streams by its own secret coin. Counts read the "
    "whole stream."
)
SECURE = (
    "A cryptographic generator keyed by the operating system anew for every release; no seed can be given."
)
SEEDED = "A test generator with a known seed: whoever knows it removes all noise."
THEOREMS: Final = {
    "plan": (
        "Privacy loss distributions of every opened plan at its T_max, composed (Koskela et al. 2020, arXiv "
        "1906.03049; Doroshenko et al. 2022, arXiv 2207.04380), and parallel composition over disjoint "
        "streams (McSherry 2009). Proved beside it: Rényi divergences of the integer orders 2 to 256 "
        "(Mironov et al. 2019, arXiv 1908.10530), for which discrete and continuous Gaussian noise agree, "
        "converted by Canonne et al. 2020, arXiv 2004.00010, proposition 12."
    ),
    "adaptive": (
        "A Rényi filter at one order fixed beforehand (Feldman and Zrnic 2021, arXiv 2008.11193; Lécuyer "
        "2021, arXiv 2103.01379): charges add up to at most what the first cap allows, converted by Canonne "
        "et al. 2020, arXiv 2004.00010, proposition 12; and parallel composition over disjoint streams "
        "(McSherry 2009)."
    ),
}
T_MAX: Final = {
    "plan": "Every plan is charged whole when it opens: stopping early does not lower the claim.",
    "adaptive": "The claim is the first cap as soon as anything was charged, however little.",
}
RISK_SOURCE = (
    "the trade-off curve that the claims at the three deltas imply together (Kairouz et al. 2015, arXiv "
    "1311.0776, theorem 2.1; Dong et al. 2019, arXiv 1905.02383, proposition 2.5): for each pair, true "
    "positive rate <= min(delta + exp(epsilon) a, 1 - exp(-epsilon) (1 - delta - a)) at the false positive "
    "rate a"
)
NOT_COVERED: Final = (
    "Side channels and timing: how long a private step takes, power, memory, when a message comes.",
    "Poisoned clients: what other sites send to mislead the model.",
    "The same person at two sites, or in several records: each further record adds to the loss.",
    "What others do with a model after it was released, and what it tells of the population as a whole.",
    "A site's operator who rewrites his own ledger while nobody else kept its head or its public key.",
)
SEVERAL_PLANS = (
    "Noise of a later plan that was chosen from earlier releases: composing several plans assumes that none "
    "was."
)


def compose(account: Account, audit: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The statement of an account as plain JSON values.

    Epsilons and risks are rounded up to six decimals; what protects nothing is the word "infinite".

    Args:
        account: of a verified ledger.
        audit: a validated audit of what the site ran; see `fednas.statement.audit`.

    Returns:
        A value that depends on the ledger's entries and on the audit alone.
    """
    spend, proof = account.spend, account.proof
    cap, first = spend.cap, spend.first_cap
    assert cap is not None
    assert first is not None
    spent = spend.statement()
    mode = "plan" if account.order is None else "adaptive"
    whole = _site(account)
    shares = dict(account.plans[0].plan.proportions) if account.plans else {}
    declared = spend.declaration
    return {
        "format": FORMAT,
        "dataset": spend.dataset,
        "controller": declared.controller or None,
        "purpose": declared.purpose or None,
        "declared_size": declared.declared_size or None,
        "private": not spent.non_private,
        "not_private_because": _reasons(account),
        "claim": {
            "epsilon": upward(spent.claimed_epsilon),
            "nominal_epsilon": upward(spent.nominal_claimed_epsilon),
            "delta": cap.delta,
            "relation": "add_remove",
            "cap": upward(cap.epsilon),
            "first_cap": upward(first.epsilon),
            "mode": mode,
            "order": account.order,
            "bounds": [_bound(bound, spend.seeded) for bound in whole],
            "theorem": THEOREMS[mode],
            "t_max": T_MAX[mode],
        },
        "unit": {
            "protects": UNIT,
            "relations": RELATION_WORDS,
            "groups": [_group(k, spent.claimed_epsilon, cap.delta) for k in GROUPS],
            "disjoint": DISJOINT,
        },
        "adversary": ADVERSARY,
        "trust": TRUST,
        "streams": [
            {
                "stream": s.stream,
                "share": shares.get(s.stream),
                "claimed": upward(s.claimed_epsilon),
                "nominal_claimed": upward(s.nominal_claimed_epsilon),
                "charged": upward(s.charged_epsilon),
                "nominal_charged": upward(s.nominal_charged_epsilon),
                "proved": upward(proof.streams[s.stream]["claimed_rdp"]),
                "bounds": [_bound(bound, spend.seeded) for bound in _stream(account, s.stream)],
            }
            for s in spent.streams
        ],
        "audit": audits.section(account, audit),
        "risk": {"source": RISK_SOURCE, "relations": [_risk(r, whole, spend.seeded) for r in RELATIONS]},
        "releases": {
            "mechanism": GRID,
            "noise_source": SEEDED if spend.seeded else SECURE,
            "sampling": SAMPLING,
            "plans": [_plan(use) for use in account.plans],
        },
        "software": [{"code": code, "packages": dict(packages)} for code, packages in account.software],
        "incidents": {
            "refusals": dict(sorted(account.refusals.items())),
            "open_reservations": spent.open_reservations,
            "retries": account.retries,
        },
        "ledger": {"entries": proof.entries, "head": proof.head, "signer": proof.signer},
        "verify": commands(head=proof.head, signer=proof.signer),
        "history": [
            {"entries": n, "charged": {s: upward(e) for s, e in charged.items()}}
            for n, charged in account.history
        ],
        "not_covered": [*NOT_COVERED, *([SEVERAL_PLANS] if mode == "plan" else [])],
    }


def commands(*, head: str, signer: str) -> list[str]:
    """The exact commands that verify the ledger: with this program, and with Python alone."""
    kept = f"--head {head} --signer {signer}"
    return [
        f"fednas ledger verify ledger.sqlite {kept}",
        f"fednas ledger verifier --out verify.py && python3 -I -S verify.py ledger.sqlite {kept}",
    ]


def upward(value: float) -> float | str:
    """A number rounded up to six decimals, exactly; "infinite" where it is."""
    if math.isinf(value):
        return INFINITE
    return float(Decimal(repr(float(value))).quantize(Decimal("0.000001"), rounding=ROUND_CEILING))


def _reasons(account: Account) -> list[str]:
    """Why nothing is protected; empty where something is."""
    reasons = [
        f"a release without protection: {allowance.event.reason}"
        for use in account.plans
        for allowance in use.plan.allowances
        if isinstance(allowance.event, NonPrivate)
    ]
    if account.spend.seeded:
        reasons.insert(0, "the noise came from a known seed: this is a test, not a private release")
    return list(dict.fromkeys(reasons))


def _group(size: int, epsilon: float, delta: float) -> dict[str, Any]:
    """What k records together lose: k epsilon at k exp((k - 1) epsilon) delta, or nothing is known."""
    exponent = (size - 1) * epsilon
    together = size * math.exp(exponent) * delta if exponent < 700.0 else math.inf
    known = together < 1.0
    return {
        "records": size,
        "epsilon": upward(size * epsilon) if known else INFINITE,
        "delta": float(f"{together * (1 + 1e-6):.6g}") if known else 1.0,
    }


def _site(account: Account) -> tuple[Bound, ...]:
    """Bounds of any record, as if no noise had been seeded: of all plans at T_max, or of the filter."""
    cap = account.spend.cap
    assert cap is not None
    if account.order is not None:
        return _filter(account, any(account.spend.charged(stream) for stream in STREAMS))
    plans = account.spend.plans.values()
    return site_bounds([(a.event, a.streams) for plan in plans for a in plan.allowances], cap.delta)


def _stream(account: Account, stream: str) -> tuple[Bound, ...]:
    """The same of a record of one stream, which another one of this stream may replace."""
    cap = account.spend.cap
    assert cap is not None
    if account.order is not None:
        return _filter(account, bool(account.spend.charged(stream)))
    return event_bounds(account.spend.claimed(stream), cap.delta)


def _filter(account: Account, charged: bool) -> tuple[Bound, ...]:
    cap, order = account.spend.first_cap, account.order
    assert cap is not None
    assert order is not None
    return filter_bounds(cap.renyi if charged else 0.0, order, cap.delta)


def _bound(bound: Bound, seeded: bool) -> dict[str, Any]:
    nominal = {"pld": bound.pld, "proved": bound.proved}
    figures = {
        name: None if value is None else upward(math.inf if seeded and value > 0.0 else value)
        for name, value in nominal.items()
    }
    return {"relation": bound.relation, "delta": bound.delta} | figures


def _risk(relation: str, bounds: Sequence[Bound], seeded: bool) -> dict[str, Any]:
    pairs = [
        (math.inf if seeded and bound.best > 0.0 else bound.best, bound.delta)
        for bound in bounds
        if bound.relation == relation
    ]
    return {"relation": relation} | {name: upward(value) for name, value in asdict(risk(pairs)).items()}


def _plan(use: PlanUse) -> dict[str, Any]:
    return {
        "id": use.plan.id,
        "runs": list(use.runs),
        "proportions": dict(use.plan.proportions),
        "allowances": [
            {
                "name": allowance.name,
                "what": MECHANISMS[allowance.name],
                "streams": list(allowance.streams),
                "event": encode(allowance.event),
                "clip_norm": allowance.clip_norm,
                "t_max": allowance.amount,
                "charged": use.charged[allowance.name],
            }
            for allowance in use.plan.allowances
        ],
    }
