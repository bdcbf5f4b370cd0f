"""Which path each site of a cohort trains: sandwich roles, operators drawn fairly, all public randomness."""

from collections.abc import Callable, Sequence

import numpy as np

from fednas.errors import InfeasibleDeviceError
from fednas.space.architecture import Architecture, Value
from fednas.space.search_space import SearchSpace

Fits = Callable[[Architecture], bool]

ROLES = ("smallest", "largest", "random")
ATTEMPTS = 16
"""Fair draws of a cohort, and then uniform draws for a site, before a path is lowered until it fits."""
SMALLEST = 256
"""Architectures around the smallest that are tried before a device is called infeasible."""


def sandwich_paths(
    space: SearchSpace,
    *,
    fits: Sequence[Fits],
    round: int,  # noqa: A002
    generator: np.random.Generator,
) -> list[Architecture]:
    """Assign one path to each site: smallest, largest or random, the roles rotating over sites and rounds.

    Each choice spreads permutations of its options over the cohort's random paths, so that no operator is
    drawn more than once more often than another, as far as the devices allow.

    Args:
        space: the supernet's space.
        fits: for each site, whether an architecture fits its device.
        round: rotates the roles.
        generator: public randomness, drawn before any record is touched.

    Returns:
        One feasible path per site, in the order of `fits`.

    Raises:
        InfeasibleDeviceError: when a site fits nothing, in any role.

    Source: Yu & Huang (2019), the sandwich rule, 1903.05134; Chu et al. (2019), FairNAS, 1907.01845.
    """
    roles = [ROLES[(site + round) % len(ROLES)] for site in range(len(fits))]
    fair = iter(_fair(space, [fit for fit, role in zip(fits, roles) if role == "random"], generator))
    named = {"smallest": smallest_feasible, "largest": largest_feasible}
    found: dict[tuple[str, Fits], Architecture] = {}  # sites of one tier may share their `fits`
    paths = []
    for fit, role in zip(fits, roles):
        if role != "random" and (role, fit) not in found:
            found[role, fit] = named[role](space, fit)
        paths.append(next(fair) if role == "random" else found[role, fit])
    return paths


def smallest_feasible(space: SearchSpace, fits: Fits) -> Architecture:
    """Find a small architecture that fits: the cheapest options, or the fewest steps away from them.

    The cheapest options everywhere need not be the cheapest in every respect: a frozen stem has no parameters
    but takes time.

    Args:
        space: options are listed cheapest first.
        fits: whether an architecture fits.

    Raises:
        InfeasibleDeviceError: when nothing within a few steps of the smallest fits.
    """
    met = {space.smallest(): None}
    queue = list(met)
    for architecture in queue:  # grows while it is walked
        if fits(architecture):
            return architecture
        if len(queue) < SMALLEST:
            new = [other for other in space.neighbours(architecture) if other not in met]
            met.update(dict.fromkeys(new))
            queue += new
    raise InfeasibleDeviceError(
        f"no architecture of the space {space.name!r} fits, not even the smallest ones; "
        "raise the device's limits or choose a smaller space"
    )


def largest_feasible(space: SearchSpace, fits: Fits) -> Architecture:
    """Find a large architecture that fits: down from the largest, evenly, then up where it can.

    No single choice of the result can take a dearer option and still fit.

    Args:
        space: options are listed cheapest first.
        fits: whether an architecture fits.

    Raises:
        InfeasibleDeviceError: when nothing fits.
    """
    return _raised(space, lowered(space, space.largest(), fits, None), fits)


def lowered(
    space: SearchSpace, architecture: Architecture, fits: Fits, generator: np.random.Generator | None
) -> Architecture:
    """Step choices down to cheaper options, one at a time, until the architecture fits.

    Args:
        space: options are listed cheapest first.
        architecture: where to start.
        fits: whether an architecture fits.
        generator: picks the choice to lower; without one it is the choice that is dearest on its own scale.

    Returns:
        An architecture that fits; the smallest that does when lowering everything was not enough.

    Raises:
        InfeasibleDeviceError: when nothing fits.
    """
    options = space.options()
    values = architecture.as_dict()
    while not fits(architecture):
        heights = {
            name: options[name].index(value) / (len(options[name]) - 1)
            for name, value in architecture.choices
            if options[name].index(value) > 0
        }
        if not heights:
            return smallest_feasible(space, fits)
        names = sorted(heights)
        if generator is None:
            name = max(names, key=heights.__getitem__)
        else:
            name = names[generator.integers(len(names))]
        values[name] = options[name][options[name].index(values[name]) - 1]
        architecture = _preferring(space, values, 0)
        values |= architecture.as_dict()
    return architecture


def _raised(space: SearchSpace, architecture: Architecture, fits: Fits) -> Architecture:
    """Step choices up to dearer options while the architecture fits, until none can."""
    growing = True
    while growing:
        growing = False
        for name, options in space.options().items():
            while (taller := _taller(space, architecture, name, options)) is not None and fits(taller):
                architecture, growing = taller, True
    return architecture


def _taller(
    space: SearchSpace, architecture: Architecture, name: str, options: tuple[Value, ...]
) -> Architecture | None:
    """Raise one choice by one option; None when it is inactive or at its dearest."""
    values = architecture.as_dict()
    if name not in values or values[name] == options[-1]:
        return None
    return _preferring(space, values | {name: options[options.index(values[name]) + 1]}, 0)


def _preferring(space: SearchSpace, values: dict[str, Value], default: int) -> Architecture:
    """Complete an architecture with these values; choices that have none take the option at `default`."""

    def pick(name: str, options: tuple[Value, ...]) -> Value:
        return values[name] if name in values and values[name] in options else options[default]

    return space.complete(pick)


def _fair(space: SearchSpace, fits: Sequence[Fits], generator: np.random.Generator) -> list[Architecture]:
    """Draw one path per site, fairly; paths that do not fit are replaced one by one."""
    best: list[Architecture] = []
    most = -1
    for _ in range(ATTEMPTS):
        drawn = _permuted(space, len(fits), generator)
        fitting = sum(fit(path) for fit, path in zip(fits, drawn))
        if fitting > most:
            best, most = drawn, fitting
        if fitting == len(fits):
            break
    return [path if fit(path) else _replaced(space, path, fit, generator) for fit, path in zip(fits, best)]


def _permuted(space: SearchSpace, count: int, generator: np.random.Generator) -> list[Architecture]:
    """Draw `count` paths so that each choice walks through permutations of its options."""
    plans: dict[str, list[Value]] = {}
    for name, options in sorted(space.options().items()):
        turns = -(-count // len(options))
        plans[name] = [options[i] for _ in range(turns) for i in generator.permutation(len(options))]
    return [space.complete(lambda name, _, j=j: plans[name][j]) for j in range(count)]  # type: ignore[misc]


def _replaced(
    space: SearchSpace, path: Architecture, fits: Fits, generator: np.random.Generator
) -> Architecture:
    """Draw uniformly until a path fits, at last by lowering the fair one."""
    for _ in range(ATTEMPTS):
        drawn = space.sample(generator)
        if fits(drawn):
            return drawn
    return lowered(space, path, fits, generator)
