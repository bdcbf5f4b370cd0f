"""How much privacy a site is willing to lose: epsilon at delta, or explicitly none of it protected."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from fednas.errors import ConfigurationError
from fednas.privacy.numbers import decode_real, encode_real, real
from fednas.privacy.renyi import ORDERS, checked_order, least_order, renyi_budget


@dataclass(frozen=True, kw_only=True)
class PrivacyBudget:
    """An (epsilon, delta) bound on what the records of one stream may lose, add or remove one record.

    Args:
        epsilon: positive and finite; infinite only when `is_private` is False.
        delta: strictly between 0 and 1; see `check_size` for the bound that a site's size sets.
        is_private: False states in so many words that nothing is protected.
        order: None in plan mode, where noise is fixed beforehand and the claim is by privacy loss
            distributions. 2 to 256 in adaptive mode: the one order at which a Rényi filter adds up what is
            charged, so that noise may depend on what was released; it costs some epsilon.

    Raises:
        ConfigurationError: a number is out of its bounds, epsilon and `is_private` contradict each other, or
            nothing at all fits epsilon and delta at the order.

    Source: Feldman and Zrnic (2021), arXiv 2008.11193; Lécuyer (2021), arXiv 2103.01379.
    """

    epsilon: float
    delta: float
    is_private: bool = True
    order: int | None = None

    def __post_init__(self) -> None:
        epsilon, delta = real(self.epsilon), real(self.delta)
        if delta is None or not 0.0 < delta < 1.0:
            raise ConfigurationError(f"expected 0 < delta < 1, got {self.delta!r}")
        if epsilon is None or not epsilon > 0.0:
            raise ConfigurationError(f"expected epsilon > 0, got {self.epsilon!r}")
        if math.isinf(epsilon) == self.is_private:
            raise ConfigurationError(
                f"expected a finite epsilon, got {epsilon!r}; without privacy, use non_private()"
                if self.is_private
                else f"a non-private budget has an infinite epsilon, got {epsilon!r}"
            )
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "delta", delta)
        if self.order is not None:
            self._check_order()

    def _check_order(self) -> None:
        assert self.order is not None
        if not self.is_private:
            raise ConfigurationError(f"a non-private budget has no order, got {self.order!r}")
        order = checked_order(self.order)
        object.__setattr__(self, "order", order)
        if not renyi_budget(self.epsilon, self.delta, order) > 0.0:
            least = least_order(self.epsilon, self.delta)
            raise ConfigurationError(
                f"at order {order} nothing at all fits epsilon {self.epsilon:g} at delta {self.delta:g}; "
                + ("raise epsilon" if least is None else f"choose an order of {least} to {ORDERS[-1]}")
            )

    @property
    def renyi(self) -> float:
        """The most Rényi divergence that fits, in nats, at `order`.

        Raises:
            ConfigurationError: the budget has no order.
        """
        if self.order is None:
            raise ConfigurationError("a budget without an order has no Rényi budget; fix an order, 2 to 256")
        return renyi_budget(self.epsilon, self.delta, self.order)

    @classmethod
    def non_private(cls, *, delta: float = 1e-5) -> Self:
        """Return the budget that protects nothing: an infinite epsilon, asked for by name.

        Args:
            delta: kept so that the budget compares with private ones.

        Returns:
            A budget with `epsilon == inf` and `is_private == False`.
        """
        return cls(epsilon=math.inf, delta=delta, is_private=False)

    def check_size(self, declared_size: int) -> None:
        """Refuse a delta at which one record of a dataset this large could simply be published.

        Args:
            declared_size: the public size of the dataset in records, at least 1.

        Raises:
            ConfigurationError: delta is above 1 / declared_size, or the size is not positive.
        """
        if declared_size < 1:
            raise ConfigurationError(f"expected declared_size >= 1, got {declared_size}")
        if self.is_private and self.delta > 1.0 / declared_size:
            raise ConfigurationError(
                f"delta {self.delta:g} is above 1 / {declared_size} records; choose a delta of at most "
                f"{1.0 / declared_size:g}"
            )

    def encode(self) -> dict[str, str | int]:
        """Return the budget as canonical JSON values: numbers are exact strings, an order is an integer."""
        value: dict[str, str | int] = {
            "delta": encode_real(self.delta),
            "epsilon": encode_real(self.epsilon),
        }
        return value if self.order is None else {**value, "order": self.order}

    @classmethod
    def decode(cls, value: object) -> Self:
        """Return the budget that `encode` wrote.

        Args:
            value: a parsed JSON object with exactly the keys `epsilon`, `delta` and, if any, `order`.

        Raises:
            ConfigurationError: a key is unknown or missing, or a number is not canonical or out of bounds.
        """
        if not isinstance(value, Mapping) or set(value) - {"order"} != {"delta", "epsilon"}:
            raise ConfigurationError(
                "expected a budget with exactly the keys delta, epsilon and, if any, order"
            )
        epsilon, delta = decode_real(value["epsilon"]), decode_real(value["delta"])
        if epsilon is None or delta is None:
            raise ConfigurationError("expected the numbers of a budget as exact decimal strings")
        order = value.get("order")
        if "order" in value and type(order) is not int:
            raise ConfigurationError("expected the order of a budget as an integer")
        return cls(epsilon=epsilon, delta=delta, is_private=not math.isinf(epsilon), order=order)


NON_PRIVATE = PrivacyBudget.non_private()
