"""A site: one dataset, one ledger, one device, and what they do when a server asks."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from fednas.config import SiteConfig, StudyConfig, load_site, parse_study, space_of
from fednas.errors import (
    ConfigurationError,
    InfeasibleDeviceError,
    LedgerRolledBackError,
    UnknownServerError,
)
from fednas.evaluation import noised_counts
from fednas.privacy.ledger import Arrays, Permit, PrivacyLedger, Released
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.streams import StreamedRecords, assign
from fednas.search.policy import Policy
from fednas.site import datasets
from fednas.site.consent import Consent
from fednas.space import Architecture, SearchSpace
from fednas.space.cost import cost_of
from fednas.space.layers import Network, gates
from fednas.supernet import load
from fednas.training import Optimisation, architecture_gradient, train_weights
from fednas.wire import SiteFacts, Task


@final
class Site:
    """Answers tasks; owns the only ledger of its dataset.

    Args:
        config: what the site's owner declares.
        ledger: of the site's dataset.
    """

    def __init__(self, config: SiteConfig, ledger: PrivacyLedger) -> None:
        self._config = config
        self._ledger = ledger
        self._records: StreamedRecords | None = None
        self._left_out = 0
        self._proportions: tuple[tuple[str, float], ...] | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the site that a `site.toml` describes.

        Raises:
            ConfigurationError, LedgerError: one line each, with what to do.
        """
        config = load_site(path)
        ledger = PrivacyLedger.open(
            config.ledger,
            dataset=config.dataset,
            cap=config.cap,
            test_seed=config.test_seed,
            declaration=config.declaration,
        )
        return cls(config, ledger)

    def facts(self) -> SiteFacts:
        """The site's public facts, from its configuration and its ledger alone.

        Raises:
            SitePausedError, ConsentWithdrawnError: its owner allows no answer.
        """
        Consent.of(self._config).check()
        entries, head = self._ledger.position()
        return SiteFacts(
            site=self._config.name,
            dataset=self._config.dataset,
            declared_size=self._config.declared_size,
            epsilon_cap=self._config.epsilon,
            delta=self._config.delta,
            device=self._config.device,
            signer=self._ledger.public_key,
            entries=entries,
            head=head,
            order=self._config.order,
        )

    @property
    def left_out(self) -> int:
        """How many records of the file break the study's schema: private, for the owner's own log."""
        return self._left_out

    def perform(self, task: Task) -> Released[Arrays]:
        """Do what a task asks, charged to the ledger before a record is touched.

        Everything that can be wrong with a task is found before the charge.

        Raises:
            ConfigurationError, ExchangeError: a malformed task.
            InfeasibleDeviceError: a path that does not fit this device.
            UnknownServerError: the site names a server's key, and the task is not signed with it.
            LedgerRolledBackError: the ledger has never been where the server saw it.
            SitePausedError, ConsentWithdrawnError: the owner allows no answer, at its beginning or its end.
            PrivacyError: the ledger refuses.
        """
        if self._config.server_key and not task.is_signed_by(self._config.server_key, self._config.name):
            raise UnknownServerError(
                "a task is not signed with the server_key of site.toml, and nothing was done: compare it "
                "with the operator's server.pub, or find out who asks"
            )
        if task.mark and not self._ledger.contains(task.mark):
            raise LedgerRolledBackError(
                f"{self._config.ledger} has never been in the state {task.mark[:16]} that the server saw: it "
                "is an older copy, or was begun anew; restore the newest one"
            )
        study = _study(task.study)
        Consent.of(self._config).check(study.name)
        plan = _plan(task.plan)
        space = space_of(study)
        _check_form(task)
        networks = [self._network(task, index, space, study) for index in range(len(task.architectures))]
        charges, work = self._mechanism(task, networks, study, plan)
        operation = task.operation(self._config.name)
        plan.check_covers(charges)
        records = self._open_records(study, plan)
        self._ledger.open_plan(task.run, plan)
        released = self._ledger.release(
            operation, charges=charges, mechanism=lambda permit: work(records, permit)
        )
        # The work takes a while: what the owner said meanwhile holds for what it made.
        Consent.of(self._config).check(study.name)
        return released

    def _network(self, task: Task, index: int, space: SearchSpace, study: StudyConfig) -> Network:
        architecture = task.architectures[index]
        if not space.contains(architecture):
            raise ConfigurationError(f"architecture {architecture.id} is not in the space {space.name!r}")
        network = space.build(architecture)
        load(network, task.arrays[f"weights.{index}"])
        reason = self._misfit(architecture, study)
        if reason:
            raise InfeasibleDeviceError(f"architecture {architecture.id} does not fit: {reason}")
        return network

    def _misfit(self, architecture: Architecture, study: StudyConfig) -> str:
        cost = cost_of(space_of(study), architecture, micro_batch=study.training.micro_batch)
        return "" if self._config.device.fits(cost) else self._config.device.explain(cost)

    def _mechanism(
        self, task: Task, networks: list[Network], study: StudyConfig, plan: PrivacyPlan
    ) -> tuple[dict[str, int], Callable[[StreamedRecords, Permit], Arrays]]:
        """The charges of a task, and the work that they pay for."""
        if task.kind == "evaluate":

            def count(records: StreamedRecords, permit: Permit) -> Arrays:
                return {"correct": noised_counts(networks, records, permit)}

            return {"fitness": len(networks)}, count

        allowance = "search" if task.kind == "train" else "final"
        steps = study.training.steps_per_round
        optimisation = Optimisation(
            steps=steps,
            learning_rate=study.training.learning_rate,
            momentum=study.training.momentum,
            micro_batch=study.training.micro_batch,
            divisor_size=self._size(plan, allowance),
        )
        learns = task.kind == "train" and "alphas" in task.arrays
        charges = {allowance: steps}
        gradient = self._gradient(task, study, plan) if learns else None
        if gradient is not None:
            charges["alphas"] = 1

        def train(records: StreamedRecords, permit: Permit) -> Arrays:
            arrays: Arrays = {} if gradient is None else {"alphas": gradient(records, permit)}
            arrays["update"] = train_weights(
                networks[0], records, permit, allowance=allowance, optimisation=optimisation
            )
            return arrays

        return charges, train

    def _gradient(
        self, task: Task, study: StudyConfig, plan: PrivacyPlan
    ) -> Callable[[StreamedRecords, Permit], NDArray[np.float64]]:
        """The work of one architecture gradient, for alphas that were found good."""
        space = space_of(study)
        architecture = task.architectures[0]
        network = space.build(architecture, gated=True)
        load(network, task.arrays["weights.0"])
        policy = Policy(space)
        policy.set_flat(task.arrays["alphas"])
        shaped = gates(network)
        slopes = {name: row for name, row in policy.jacobian(architecture).items() if name in shaped}
        size = self._size(plan, "alphas")

        def gradient(records: StreamedRecords, permit: Permit) -> NDArray[np.float64]:
            released = architecture_gradient(
                network,
                records,
                permit,
                jacobian=slopes,
                divisor_size=size,
                micro_batch=study.training.micro_batch,
            )
            return policy.spread(slopes, released)

        return gradient

    def _size(self, plan: PrivacyPlan, allowance: str) -> float:
        """The declared size of the streams an allowance reads: public, never counted."""
        return self._config.declared_size * plan.share(allowance)

    def _open_records(self, study: StudyConfig, plan: PrivacyPlan) -> StreamedRecords:
        if self._records is None or self._proportions != plan.proportions:
            data = datasets.load(self._config, study.data)
            streams = assign(self._ledger.stream_key, data.identifiers, plan.proportions)
            self._records = StreamedRecords(data.x, data.y, streams)
            self._left_out = data.left_out
            self._proportions = plan.proportions
        return self._records


def _check_form(task: Task) -> None:
    """Refuse a task whose parts do not belong together.

    Raises:
        ConfigurationError: another number of architectures, or other arrays, than its kind has, or what is no
            finite vector.
    """
    count = len(task.architectures)
    if (count != 1) if task.kind != "evaluate" else (count < 1):
        raise ConfigurationError("a training task names exactly one architecture, an evaluation at least one")
    expected = {f"weights.{index}" for index in range(count)}
    if set(task.arrays) not in (expected, expected | {"alphas"} if task.kind == "train" else expected):
        raise ConfigurationError("a task holds the weights of each of its architectures and nothing else")
    for name, array in task.arrays.items():
        dtype = np.float64 if name == "alphas" else np.float32
        if array.dtype != dtype or array.ndim != 1 or not np.isfinite(array).all():
            raise ConfigurationError(
                "a task holds values that are not finite, or arrays of another type or shape; "
                "nothing can be learned from them"
            )


@lru_cache(maxsize=64)
def open_site(path: Path) -> Site:
    """The site of a `site.toml`, opened once a process: its data and features stay in memory."""
    return Site.open(path)


@lru_cache(maxsize=8)
def _study(text: str) -> StudyConfig:
    return parse_study(text)


@lru_cache(maxsize=8)
def _plan(text: str) -> PrivacyPlan:
    return PrivacyPlan.from_json(text)
