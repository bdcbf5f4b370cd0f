"""The scenarios that ship: each is a function, cheap to call until its data are loaded."""

from collections.abc import Callable, Mapping

from simulations.scenario import Scenario
from simulations.scenarios.digits import digits
from simulations.scenarios.hospitals import hospitals
from simulations.scenarios.watches import watches

SCENARIOS: Mapping[str, Callable[[], Scenario]] = {
    "hospitals": hospitals,
    "watches": watches,
    "digits": digits,
}

__all__ = ["SCENARIOS", "digits", "hospitals", "watches"]
