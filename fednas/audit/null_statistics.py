"""Layer L2: whether noise and coins are what was promised, where their distribution is known exactly."""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import torch

from fednas.audit import null_tests as tests
from fednas.audit.findings import Check, Finding
from fednas.audit.null_tests import Evidence, Floats
from fednas.audit.open_site import BITS, STEPS, Mask, OpenSite, Samples, SampleStudy
from fednas.audit.quiet_site import (
    FINALS,
    ROUNDS,
    Noise,
    NoiseStudy,
    QuietSite,
    draw_in_children,
)
from fednas.audit.quiet_site import STEPS as STEPS_OF_NOISE
from fednas.audit.subject import Subject
from fednas.errors import FednasError

_SIZES: Final = (40, 400)  # that sites declare
_OTHERS: Final = 8  # rounds of a site that is like another
_ASKED: Final = 8  # rounds in which samples are seen
_FEW: Final = 48  # records of a small site

Draw = Mapping[str, Floats]
"""By mechanism, the noise that a site drew for the same few tasks."""


def check_statistics(subject: Subject, folder: Path) -> Iterator[Finding]:
    """Yield what this layer finds.

    Args:
        subject: what is audited.
        folder: empty, for the files of rehearsals.

    Guarantees:
        - A correct system fails a check with a chance of at most `fednas.audit.null_tests.ALARM`.
    """
    for what, look in (("noise is", _check_noise), ("samples are", _check_samples)):
        name = f"a site answers every task by which its {what} seen"
        try:
            yield from look(subject, folder / what.split()[0])
        except FednasError as error:
            yield Check(layer="L2", name=name, holds=False, detail=f"{type(error).__name__}: {error}")
        else:
            yield Check(layer="L2", name=name, holds=True)


def _check(name: str, *found: Evidence) -> Check:
    evidence = tests.worst(found)
    return Check(layer="L2", name=name, holds=not evidence.accuses, detail=str(evidence))


def _check_noise(subject: Subject, folder: Path) -> Iterator[Check]:
    terms = NoiseStudy(subject=subject)
    small, large = map(terms.declared_size, _SIZES)
    with QuietSite(folder / "none", terms, declared_size=small) as site:
        searched = [site.train(number + 1) for number in range(ROUNDS)]
        yield from _check_draws("search updates", np.array([noise.weights for noise in searched]))
        yield _check_tensors("search updates", terms, searched)
        yield from _check_gradients(searched)
        finals = [site.train(ROUNDS + number + 1, kind="final") for number in range(FINALS)]
        yield from _check_draws("final updates", np.array([noise.weights for noise in finals]))
        yield _check_tensors("final updates", terms, finals)
        series = np.concatenate([noise.weights for noise in [*searched, *finals]])
        yield _check("no noise of an update comes again in another", tests.echo(series))
        number = ROUNDS + FINALS + 1
        several = [site.train(number + i, steps=STEPS_OF_NOISE).weights for i in range(_OTHERS)]
        yield _check("every step of a round adds noise of its own", tests.scale(np.array(several)))
        number += _OTHERS
        counts = np.concatenate([site.counts(number + i) for i in range(2)])
    with QuietSite(folder / "some", terms, declared_size=small, records=terms.records) as site:
        others = [site.train(number + 1) for number in range(_OTHERS)]
        more = [site.train(_OTHERS + number + 1, kind="final") for number in range(_OTHERS)]
        counts = np.concatenate([counts, site.counts(2 * _OTHERS + 1)])
    yield from _check_counts(counts, terms.plan.noise_multiplier("fitness"))
    with QuietSite(folder / "large", terms, declared_size=large) as site:
        far = [site.train(number + 1) for number in range(_OTHERS)]
    yield _check(
        "the scale of noise does not hang on the records that a site has",
        *(tests.scale(np.array([noise.weights for noise in group])) for group in (others, more)),
        tests.scale(np.array([noise.alphas for noise in others])),
    )
    yield _check(
        "a site's declared size divides its updates and nothing else",
        tests.scale(np.array([noise.weights for noise in far])),
        tests.scale(np.array([noise.alphas for noise in far])),
    )
    yield from _check_keys(subject, terms, folder / "keys", small)


def _check_draws(what: str, noise: Floats, *, lattice: float = 0.0) -> Iterator[Check]:
    yield _check(f"the noise of {what} has the scale of the plan", tests.scale(noise))
    yield _check(
        f"the noise of {what} is Gaussian",
        tests.shape(noise, lattice=lattice),
        tests.tails(noise, lattice=lattice),
    )
    yield _check(f"the noise of {what} has a mean of zero", tests.centre(noise))


def _check_tensors(what: str, terms: NoiseStudy, rounds: Sequence[Noise]) -> Check:
    noise = np.array([one.weights for one in rounds])
    found = [tests.scale(noise[:, place]) for place in terms.parameters.values()]
    return _check(f"the noise of {what} is the same in every tensor", *found)


def _check_gradients(rounds: Sequence[Noise]) -> Iterator[Check]:
    alphas = np.array([noise.alphas for noise in rounds])
    yield from _check_draws("architecture gradients", alphas)
    away = max(noise.off_grid for noise in rounds)
    yield Check(
        layer="L2",
        name="architecture gradients are whole numbers on the grid",
        holds=away < 1e-3,
        detail=f"at most {away:.2g} of a grid step from one, n = {alphas.size}",
    )
    yield _check(
        "no noise of an architecture gradient comes again in another",
        tests.echo(alphas.ravel()),
        *(tests.scale(column) for column in alphas.T),
    )
    yield _check(
        "an architecture gradient and the update beside it do not share noise",
        tests.alignment(alphas, np.array([noise.weights for noise in rounds])),
    )


def _check_counts(counts: Floats, sigma: float) -> Iterator[Check]:
    yield from _check_draws("counts of correct predictions", counts, lattice=1.0 / sigma)
    yield _check("every candidate's count has noise of its own", tests.echo(counts, magnitudes=False))


def _check_keys(subject: Subject, terms: NoiseStudy, folder: Path, size: int) -> Iterator[Check]:
    """Ask sites that nothing public tells apart the same: what they draw must hang on secrets only."""

    def draw(place: Path) -> dict[str, Floats]:
        with QuietSite(place / "site", terms, declared_size=size) as site:
            noise = site.train(1)
            return {"updates": noise.weights, "gradients": noise.alphas, "counts": site.counts(2, 64)}

    alike = [draw(folder / f"alike-{index}") for index in range(2)]
    yield _check_apart("two sites that are asked the same draw different noise", alike)
    seeded = []
    for index in range(2):
        with _global_seeds(subject.seed):
            seeded.append(draw(folder / f"seeded-{index}"))
    yield _check_apart("no global seed of a process decides its noise", seeded)
    if hasattr(os, "fork"):
        forked = draw_in_children(folder / "forked", draw, number=2)
        forked.append(draw(folder / "parent"))
        yield _check_apart("processes that are forked from one draw different noise", forked)


def _check_apart(name: str, draws: Sequence[Draw]) -> Check:
    found = []
    for left, right in combinations(draws, 2):
        found += [tests.resemblance(left[mechanism], right[mechanism]) for mechanism in left]
        found.append(tests.echo(left["updates"], right["updates"]))
    return _check(name, *found)


@contextmanager
def _global_seeds(seed: int) -> Iterator[None]:
    """Seed all generators of the process that a mechanism could draw from, and put them back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _check_samples(subject: Subject, folder: Path) -> Iterator[Check]:
    terms = SampleStudy(subject=subject)
    q, number = terms.q, terms.records
    declared = number  # of all streams: the weights stream alone has as many, which nobody may count
    site = partial(OpenSite, terms=terms, rounds=_ASKED, declared_size=declared)
    with site(folder / "many", records={"weights": number}, powers=True) as many:
        rounds = [many.ask(index + 1) for index in range(_ASKED)]
    yield _check_exact("search", rounds)
    mask = np.concatenate([samples.weights for samples in rounds])
    yield from _check_coins("search steps", mask, q)
    architecture = np.array([samples.architecture for samples in rounds])
    yield _check(
        "architecture gradients sample a record as often as is charged",
        tests.rate(architecture, q),
        *(tests.rate(column, q) for column in architecture.T),
    )
    yield _check_shared(mask, architecture)
    with site(folder / "few", records={"weights": _FEW}, powers=True) as few:
        rounds = [few.ask(index + 1) for index in range(_ASKED)]
    yield _check(
        "a record's chance to be in a step does not hang on how many there are",
        tests.rate(np.concatenate([samples.weights for samples in rounds]), q),
    )
    third = number // 3
    records = {"weights": third, "architecture": third, "fitness": third}
    with site(folder / "final", records=records) as final:
        rounds = [final.ask(index + 1, kind="final") for index in range(_ASKED)]
    yield _check_exact("final", rounds)
    mask = np.concatenate([samples.weights for samples in rounds])
    yield _check(
        "a final samples the records of every stream as often as is charged",
        *(tests.rate(mask[:, i * third : (i + 1) * third], q) for i in range(3)),
    )
    yield from _check_coins("final steps", mask, q)
    yield from _check_steps(subject, folder)
    yield from _check_coins_apart(terms, folder / "apart")


def _check_exact(what: str, rounds: Sequence[Samples]) -> Check:
    doubt = max(samples.doubt for samples in rounds)
    return Check(
        layer="L2",
        name=f"a step of a {what} adds a record's clipped gradient once or not at all",
        holds=all(samples.exact for samples in rounds),
        detail=f"at most {doubt:.2g} of a gradient from a sum of whole ones, {len(rounds) * STEPS} steps",
    )


def _check_coins(what: str, mask: Mask, q: float) -> Iterator[Check]:
    yield _check(f"{what} sample a record as often as is charged", tests.rate(mask, q))
    yield _check(
        f"the samples of {what} vary in size as independent coins do", tests.dispersion(mask, q, axis=1)
    )
    yield _check(
        f"all records have the same chance in {what}, wherever they are in the file",
        tests.dispersion(mask, q, axis=0),
        *(tests.rate(half, q) for half in np.array_split(mask, 2, axis=1)),
    )
    yield _check(
        f"no sample of {what} says anything of another",
        tests.overlap(mask),
        tests.succession(mask),
    )
    yield _check(f"records next to each other are sampled apart in {what}", tests.succession(mask.T))


def _check_shared(mask: Mask, architecture: Mask) -> Check:
    """Whether records at the same places of their streams are in both samples, for each step of a round."""
    steps = mask.reshape(len(architecture), STEPS, -1)
    sizes = [(steps[:, step, :BITS], architecture) for step in range(STEPS)]
    return _check(
        "weights and architecture gradients have samples of their own",
        *(tests.association(left, right) for left, right in sizes),
    )


def _check_coins_apart(terms: SampleStudy, folder: Path) -> Iterator[Check]:
    """Ask sites that nothing public tells apart the same: their samples must hang on secrets only."""

    def draw(name: str) -> Mask:
        records = {"weights": terms.records}
        with OpenSite(folder / name, terms, rounds=1, declared_size=terms.records, records=records) as site:
            return site.ask(1).weights

    alike = [draw(f"alike-{index}") for index in range(2)]
    yield _check("two sites that are asked the same draw different samples", tests.association(*alike))
    seeded = []
    for index in range(2):
        with _global_seeds(terms.subject.seed):
            seeded.append(draw(f"seeded-{index}"))
    yield _check("no global seed of a process decides its samples", tests.association(*seeded))


def _check_steps(subject: Subject, folder: Path) -> Iterator[Check]:
    """Let every record be in every step of a round, which uses its plan up."""
    terms = SampleStudy(subject=subject, everyone=True)
    kinds: Mapping[str, Callable[[OpenSite], Samples]] = {
        "search": lambda site: site.ask(1),
        "final": lambda site: site.ask(2, kind="final"),
    }
    records = {"weights": _FEW}
    with OpenSite(folder / "all", terms, rounds=1, declared_size=_FEW, records=records) as site:
        for kind, ask in kinds.items():
            samples = ask(site)
            taken = samples.weights.all(axis=1)
            yield Check(
                layer="L2",
                name=f"a round of the {kind} takes as many steps as are charged",
                holds=samples.exact and bool(taken.all()),
                detail=f"{np.count_nonzero(taken)} steps had all records, {STEPS} are charged",
            )
