"""Tree-structured Parzen estimators: the contract, and that Optuna stays quiet and leaves nothing behind."""

import logging
import warnings

import numpy as np
import optuna
import pytest

from fednas.search import create
from tests.contracts.search_strategy import LearningStrategyContract
from tests.search import synthetic


class TestTpe(LearningStrategyContract):
    name = "tpe"

    @pytest.mark.slow
    def test_its_choice_beats_that_of_random_search_under_a_constraint(self) -> None:
        super().test_its_choice_beats_that_of_random_search_under_a_constraint()


def test_optuna_is_silenced_only_while_asking(caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.enable_propagation()
    before = optuna.logging.get_verbosity()
    strategy = create("tpe", space=synthetic.space(), violation=synthetic.violation)
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy.ask(2, np.random.default_rng(0))
    optuna.logging.disable_propagation()
    assert optuna.logging.get_verbosity() == before
    assert not caplog.records
