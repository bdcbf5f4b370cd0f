"""The scenarios that ship: each is a function, cheap to call until its data are loaded."""

from collections.abc import Callable, Mapping

from simulations.scenario import Scenario
from simulations.scenarios import digits, hospitals, watches

SCENARIOS: Mapping[str, Callable[[], Scenario]] = {
    "hospitals": hospitals.scenario,
    "watches": watches.scenario,
    "digits": digits.scenario,
}

__all__ = ["SCENARIOS"]
