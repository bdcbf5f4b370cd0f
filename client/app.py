"""The Flower ClientApp: Flower's types end here, and so does every word about a failure."""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fednas.errors import (
    BudgetExceededError,
    ConfigurationError,
    ConsentWithdrawnError,
    DatasetError,
    ExchangeError,
    FednasError,
    InfeasibleDeviceError,
    LedgerError,
    LedgerRolledBackError,
    PrivacyError,
    ReplayMismatchError,
    SitePausedError,
    UnknownServerError,
)
from fednas.logs import report_refusal, set_up
from fednas.site import Site, open_site
from fednas.wire import Refusal, decode_task, encode, encode_facts, encode_refusal
from fednas.wire_schema import explain

app = ClientApp()

_log = logging.getLogger("fednas.client")

_CODES: tuple[tuple[type[FednasError], Refusal], ...] = (
    (BudgetExceededError, Refusal.BUDGET_EXHAUSTED),
    (ReplayMismatchError, Refusal.REPLAY_MISMATCH),
    (LedgerRolledBackError, Refusal.LEDGER_ROLLED_BACK),
    (LedgerError, Refusal.LEDGER_FAILURE),
    (SitePausedError, Refusal.PAUSED),
    (UnknownServerError, Refusal.UNKNOWN_SERVER),
    (ConsentWithdrawnError, Refusal.WITHDRAWN),
    (PrivacyError, Refusal.PRIVACY_REFUSAL),
    (InfeasibleDeviceError, Refusal.DOES_NOT_FIT),
    (ExchangeError, Refusal.MALFORMED),
    (ConfigurationError, Refusal.MALFORMED),
    (DatasetError, Refusal.SITE_FAILURE),
)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Answer with the site's public facts."""
    return _answer(message, context, lambda site: encode_facts(site.facts()))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one path on this site."""
    return _answer(message, context, lambda site: encode(site.perform(decode_task(message.content))))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Count correct predictions of candidates on this site."""
    return _answer(message, context, lambda site: encode(site.perform(decode_task(message.content))))


def _answer(message: Message, context: Context, act: Callable[[Site], RecordDict]) -> Message:
    """Act on the site of this node; whatever goes wrong leaves as a constant code, its words stay here."""
    with suppress(Exception):
        set_up(_log.name)
    try:
        site = open_site(_site_file(context))
        content = act(site)
        explain(content)  # what the schema does not name stays here
        with suppress(Exception):  # whether this line could be written must not decide the answer
            if site.left_out:
                _log.warning("%d records break the study's schema and are left out", site.left_out)
    except Exception as error:  # noqa: BLE001  an exception's text or type may hold private values: it must not travel
        # Asked of the type: an exception may claim to be of another class, or raise when it is asked.
        code = next((c for kind, c in _CODES if issubclass(type(error), kind)), Refusal.SITE_FAILURE)
        # If this line failed, Flower would answer with the exception's text: some cannot be printed.
        with suppress(Exception):
            report_refusal(_log, code.value, error)
        content = encode_refusal(code)
    return Message(content, reply_to=message)


def _site_file(context: Context) -> Path:
    """Where this node's site is described: by the node itself, or, in a simulation, by its partition."""
    if "site" in context.node_config:
        return Path(str(context.node_config["site"]))
    folder = str(context.run_config.get("sites-dir", ""))
    partition = context.node_config.get("partition-id")
    if not folder or partition is None:
        raise ConfigurationError("this node has no site: set --node-config 'site=\"/path/to/site.toml\"'")
    return Path(folder) / f"site-{partition}" / "site.toml"
