"""Whatever goes wrong at a site, and whatever an exception says or is: one constant code leaves, no word."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import app as app_module
from client.app import app
from fednas import errors
from fednas.errors import FednasError
from fednas.site import open_site
from fednas.wire import Refusal, encode_task
from fednas.wire_schema import CODES, explain
from simulations import internals
from simulations.loopback import InProcessGrid
from tests.simulations import tiny
from tests.site.sites import Sites, task

SECRET = "record 17 has the value 42.125"


class SpeakingError(Exception):
    """Says it in every way that an exception has."""

    def __init__(self, secret: str) -> None:
        super().__init__(secret, secret.encode())
        self.add_note(secret)
        self.reason = self.code = self.message = secret


class BrokenError(Exception):
    """Cannot be printed: the printer fails, and not only with an error of its own kind."""

    def __str__(self) -> str:
        raise RecursionError(SECRET)

    __repr__ = __str__


class MaskedError(Exception):
    """Refuses to say what it is."""

    __class__ = property(lambda self: 1 / 0)


class PretendingError(Exception):
    """Claims to be something with a code of its own."""

    __class__ = errors.BudgetExceededError  # type: ignore[assignment]


class PosingError(errors.PrivacyError):
    """Has a code, as a refusal of the ledger has; but a free text."""

    code = SECRET


def named(secret: str) -> type[Exception]:
    """A type whose name tells."""
    return type(secret.replace(" ", "_"), (ValueError,), {"__module__": secret, "__doc__": secret})


def chained() -> Exception:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise OSError(28, SECRET, f"/data/{SECRET}") from error
    except OSError as error:
        return error


WEIRD: dict[str, Callable[[], Exception]] = {
    "a text": lambda: RuntimeError(SECRET),
    "no text": lambda: RuntimeError(),
    "notes, arguments and fields": lambda: SpeakingError(SECRET),
    "a telling name": lambda: named(SECRET)("hidden"),
    "a cause": chained,
    "a group": lambda: ExceptionGroup(SECRET, [ValueError(SECRET), TypeError(SECRET)]),
    "bytes that are no text": lambda: UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
    "a text that is no text": lambda: ValueError("\ud800", b"\xff" * 99),
    "a very long text": lambda: MemoryError(SECRET * 10_000),
    "format letters": lambda: RuntimeError("%s %d %(x)s {0} {x!r}"),
    "the end of an iteration": lambda: StopIteration(SECRET),
    "the end of an asynchronous one": lambda: StopAsyncIteration(SECRET),
    "a failed assertion": lambda: AssertionError(SECRET),
    "a key": lambda: KeyError(SECRET),
    "an attribute": lambda: AttributeError(SECRET, name=SECRET, obj=object()),
    "no more stack": lambda: RecursionError(SECRET),
    "cannot be printed": lambda: BrokenError(),
    "refuses to say what it is": lambda: MaskedError(SECRET),
    "pretends to be an error of ours": lambda: PretendingError(SECRET),
    "poses as a refusal": lambda: PosingError(SECRET),
}


CODE_OF = {"poses as a refusal": Refusal.PRIVACY_REFUSAL}


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    yield Sites(tiny.make_run(tmp_path / "run", tiny.study(search={"strategy": "differentiable"})))
    open_site.cache_clear()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log as on a device: what cannot be printed there is not raised here."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


def fail(error: Exception, path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Message:
    """The reply of a real app whose site fails with an exception, as it would be sent."""

    def failing(_: Path) -> None:
        raise error

    grid = InProcessGrid(app, {1: {"site": str(path)}}, {})
    with monkeypatch.context() as patch:
        patch.setattr(app_module, "open_site", failing)
        (reply,) = grid.send_and_receive([Message(encode_task(task()), 1, kind, ttl=60.0)])
    return reply


def refusal(reply: Message) -> str:
    """The code of a reply, after a check that nothing else is in it."""
    assert not reply.has_error(), "Flower's own error carries the exception's text"
    assert {span.field.message for span in explain(reply.content)} == {"refusal"}
    return str(reply.content.config_records["refusal"]["code"])


@pytest.mark.parametrize("kind", ["query.hello", "train", "evaluate"])
@pytest.mark.parametrize("weird", WEIRD)
def test_any_exception_leaves_as_a_constant_code(
    weird: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = fail(WEIRD[weird](), tmp_path, kind, monkeypatch)
    assert refusal(reply) == CODE_OF.get(weird, Refusal.SITE_FAILURE)
    sent = internals.encode(reply)
    assert not any(word in sent for word in (b"record", b"42.125", b"Speaking", b"Error", b"test_failures"))


@given(secret=st.text(min_size=1), kind=st.sampled_from(sorted(vars(errors))))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_code_depends_on_the_kind_of_error_and_on_none_of_its_words(
    secret: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = vars(errors)[kind]
    if not (isinstance(error, type) and issubclass(error, FednasError)):
        error = RuntimeError
    first = fail(error(secret), tmp_path, "train", monkeypatch)
    other = fail(error(), tmp_path, "train", monkeypatch)
    assert refusal(first) == refusal(other)
    assert refusal(first) in CODES
    assert len(internals.encode(first)) == len(internals.encode(other))


@pytest.mark.parametrize("where", ["fednas.site.datasets.load", "fednas.site.site.train_weights"])
@pytest.mark.parametrize("weird", WEIRD)
def test_any_exception_while_records_are_read_or_trained_on_leaves_as_a_constant_code(
    sites: Sites, where: str, weird: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise WEIRD[weird]()

    monkeypatch.setattr(where, failing)
    content = sites.ask(task())
    assert {span.field.message for span in explain(content)} == {"refusal"}
    assert content.config_records["refusal"]["code"] == CODE_OF.get(weird, Refusal.SITE_FAILURE).value


def test_a_log_that_fails_keeps_no_site_from_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk under the log must not turn an exception's text into Flower's own error."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, SECRET)

    monkeypatch.setattr(app_module._log, "error", full)
    assert refusal(fail(RuntimeError(SECRET), tmp_path, "train", monkeypatch)) == "SITE_FAILURE"


def test_a_reply_that_the_wire_schema_does_not_explain_stays_at_the_site(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = RecordDict({"facts": ConfigRecord({"json": '{"loss":0.42125}'})})
    monkeypatch.setattr(app_module, "encode_facts", lambda _: loss)
    content = sites.send(RecordDict(), "query.hello")
    assert dict(content) == {"refusal": ConfigRecord({"code": "PRIVACY_REFUSAL"})}
