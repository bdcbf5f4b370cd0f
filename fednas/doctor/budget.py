"""Checks of a site's ledger and of what is left of its budget; the ledger is only read."""

from typing import Final

from fednas.config import SiteConfig, StudyConfig
from fednas.doctor.findings import Finding, fail, ok, warn
from fednas.errors import LedgerError
from fednas.privacy.renyi_filter import RenyiFilter
from fednas.privacy.spend import Spend
from fednas.privacy.store import LedgerStore, key_file, stream_key
from fednas.privacy.verify import LedgerTampered, verify
from fednas.schedule import budget_for, plan_for

_TIERS: Final = 3  # as `fednas plan` takes it: the noise is fitted to the same epsilon however many there are


def ledger(config: SiteConfig) -> Finding:
    """Whether the ledger is whole, and is this dataset's."""
    bound = "every digest, signature, charge and reply holds, for this dataset and its key"
    path = config.ledger
    if not path.exists():
        if config.test_seed is None and key_file(path).exists():
            return fail(f"{path.name} is missing beside its key", bound, "restore it: its spend is forgotten")
        return ok("no ledger yet: the first request makes it", bound)
    restore = "restore an intact copy, the newest one"
    try:
        found = verify(path)
        _read(config)
    except (LedgerTampered, LedgerError) as error:
        return fail(f"it does not hold: {error}", bound, restore)
    return ok(f"{found.entries} entries verify", bound)


def budget(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """Whether there is epsilon left, and enough for a study's plan; nothing is charged.

    Args:
        config: of the site, whose ledger is whole.
        study: that it may take part in; None shows what is left.
    """
    cap = config.cap
    bound = f"epsilon {cap.epsilon:g} at delta {cap.delta:g} a stream"
    if config.test_seed is not None or config.non_private:
        return warn("no noise protects what leaves", bound, "remove test_seed and non_private from site.toml")
    spend = _read(config)
    statement = spend.statement()
    seen = "spent: " + ", ".join(f"{s.stream} {s.claimed_epsilon:.3g}" for s in statement.streams)
    remedy = "raise epsilon in site.toml if its owner wants that, or ask for a smaller study"
    if study is None:
        if statement.claimed_epsilon < cap.epsilon:
            return ok(seen, bound)
        return warn(f"{seen}: nothing is left", bound, remedy)
    share = budget_for(study, epsilon=cap.epsilon, delta=cap.delta, order=cap.order)
    plan = plan_for(study, _TIERS, share)
    refusal = spend.moved(plan) or spend.excess(plan)
    if refusal is None:
        return ok(f"{seen}; the plan of {study.name} fits", f"{bound}, the plan of {study.name} within it")
    return fail(f"{seen}; {refusal}", f"{bound}, the plan of {study.name} within it", remedy)


def _read(config: SiteConfig) -> Spend:
    """The sum over a ledger's entries, under the cap that the owner sets now.

    Raises:
        LedgerError: the file is corrupt, or is another site's.
    """
    path = config.ledger
    if not path.exists():
        return Spend(cap=config.cap, first_cap=config.cap, filter=_filter(config))
    spend = Spend()
    with LedgerStore(path, read_only=True) as store:
        store.replay(spend.add)
    spend.check_signature()
    key = stream_key(key_file(path), config.test_seed, create=False)
    spend.check_identity(dataset=config.dataset, key=key, cap=config.cap)
    spend.cap = config.cap  # of this sum in memory alone
    return spend


def _filter(config: SiteConfig) -> RenyiFilter | None:
    return None if config.order is None else RenyiFilter(config.order)
