"""Logs of both forms hold public facts only, whatever an attacker puts into records, exceptions and paths."""

import ast
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fednas import logs
from fednas.errors import DatasetError, ExchangeError, FednasError
from fednas.logs import Event, describe, set_up, study_log, tagged
from fednas.site import open_site
from fednas.wire import Refusal
from server.checkpoint import RunDirectory
from tests.client.test_failures import SECRET, WEIRD, fail
from tests.server import stubs
from tests.simulations import tiny
from tests.site.sites import Sites, task

ROOT = Path(__file__).parents[1]
WORDS = ("42.125", "record 17", "record_17")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Loggers belong to the process: whatever a test sets up is undone."""
    loggers = [logging.getLogger(name) for name in ("fednas", "fednas.client", "fednas.test")]
    before = [(list(one.handlers), one.level, one.propagate) for one in loggers]
    yield
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)
    open_site.cache_clear()


@pytest.fixture(params=["text", "json"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(logs.VARIABLE, request.param)
    return str(request.param)


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "json")


def written(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines of JSON on standard error: each is one object, and nothing else is there."""
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def ours(error: Exception) -> Exception:
    """An error as this project's own code raises it."""
    space: dict[str, Any] = vars(sys.modules["fednas.site.site"])
    try:
        exec("def _raise(error): raise error", space)
        space["_raise"](error)
    except Exception as raised:  # noqa: BLE001
        return raised
    finally:
        del space["_raise"]
    raise AssertionError


def test_a_line_of_json_holds_a_time_a_level_an_event_and_public_fields(
    as_json: None, capfd: pytest.CaptureFixture[str]
) -> None:
    set_up("fednas.test")
    fields = {"study": "tiny", "round": 3, "rounds": 9, "kind": "search", "site": "alpha", "tier": "small"}
    extra = tagged(Event.ROUND_BEGINS, **fields, code="LATE", entries=4)
    logging.getLogger("fednas.test").info("round %d", 3, extra=extra)
    (line,) = written(capfd)
    time = line.pop("time")
    assert len(time) == len("2026-01-01T00:00:00.000Z")
    assert time.endswith("Z")
    assert line == {"level": "INFO", "event": "round_begins", "code": "LATE", "entries": 4, **fields}


@given(
    fields=st.dictionaries(
        st.sampled_from(sorted(logs.FIELDS)), st.text() | st.integers() | st.floats() | st.lists(st.text())
    )
)
@example(fields={"code": SECRET, "kind": SECRET, "error": SECRET, "place": SECRET, "round": SECRET})
@example(fields={"site": "a\nb", "study": "\x1b[2J", "tier": "x" * 81, "entries": -1, "rounds": True})
@settings(deadline=None)
def test_a_field_of_another_form_is_left_out(fields: dict[str, Any]) -> None:
    record = logging.makeLogRecord({"msg": SECRET, **tagged(Event.NO_ANSWER, **fields)})
    text = logs._Json().format(record)
    assert "\n" not in text
    line = json.loads(text)
    kept = line.keys() - {"time", "level", "event"}
    assert kept == {name for name, value in fields.items() if logs.FIELDS[name](value)}
    assert not any(word in text for word in WORDS)


def test_a_field_that_is_not_public_cannot_be_tagged() -> None:
    with pytest.raises(AssertionError, match="public fields only"):
        tagged(Event.NO_ANSWER, loss=0.42125)


def test_a_record_without_an_event_has_no_line_of_json_and_no_other_handler_writes_one(
    as_json: None, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    set_up("fednas.test")
    log = logging.getLogger("fednas.test.part")
    log.warning("%d records", 17)
    log.warning("free text", extra={"event": "free", "fields": {"site": "alpha"}})
    assert written(capfd) == []
    assert caplog.text == ""


def test_text_is_one_line_without_a_traceback_and_without_what_a_terminal_obeys(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.VARIABLE, "text")
    set_up("fednas.test")
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("fednas.test").exception("a\nb \x1b[31mred")
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    assert " ERROR a b  [31mred: ValueError" in text
    assert not any(word in text for word in WORDS)


def test_a_log_is_set_up_once_and_only_where_a_form_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("fednas.test")
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    assert not set_up("fednas.test")
    assert log.handlers == []
    monkeypatch.setenv(logs.VARIABLE, "xml")
    assert set_up("fednas.test")
    assert set_up("fednas.test")
    assert len(log.handlers) == 1
    assert "FEDNAS_LOG is neither text nor json" in capfd.readouterr().err


def test_a_log_that_cannot_be_written_says_nothing_of_what_it_was_given(
    form: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python's own handlers then print the arguments."""
    set_up("fednas.test")

    def full(_: str) -> None:
        raise OSError(28, SECRET)

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", SimpleNamespace(write=full, flush=lambda: None))
        logging.getLogger("fednas.test").error("%s", SECRET, extra=tagged(Event.NO_ANSWER))
    logging.getLogger("fednas.test").error("%d", SECRET, extra=tagged(Event.NO_ANSWER))
    assert not any(word in capfd.readouterr().err for word in WORDS)


@pytest.mark.parametrize("weird", WEIRD)
def test_no_word_of_a_foreign_exception_is_in_either_form(
    weird: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    fail(WEIRD[weird](), tmp_path / SECRET, "train", monkeypatch)
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    assert "SITE_FAILURE" in text or "PRIVACY_REFUSAL" in text
    assert "client.app:" in text, "the place says where to look"
    assert not any(word in text for word in WORDS)


@pytest.mark.parametrize("weird", WEIRD)
def test_nothing_of_an_exception_while_records_are_trained_on_is_in_either_form(
    weird: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> None:
        secret = SECRET
        raise WEIRD[weird]() from ValueError(secret)

    monkeypatch.setattr("fednas.site.site.train_weights", failing)
    Sites(tiny.make_run(tmp_path / "run", tiny.study())).ask(task())
    text = capfd.readouterr().err
    assert "fednas." in text
    assert not any(word in text for word in WORDS)


@given(secret=st.text())
@settings(deadline=None, max_examples=50)
def test_what_is_said_of_a_foreign_exception_does_not_depend_on_its_words(secret: str) -> None:
    for kind in (ValueError, KeyError, RuntimeError, DatasetError):
        assert describe(kind(secret)) == describe(kind("other")) == kind.__name__
    telling = type("E", (Exception,), {"__module__": secret, "__qualname__": "E"})
    assert describe(telling(secret)) == "Exception"


def test_the_words_of_an_error_of_this_project_are_for_the_owner_and_not_for_json(
    form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    set_up("fednas.test")
    error = ours(DatasetError("/home/anna/data.csv has no\ncolumn 'label'; name it"))
    logs.report_refusal(logging.getLogger("fednas.test"), "SITE_FAILURE", error)
    text = capfd.readouterr().err
    if form == "text":
        assert "SITE_FAILURE: /home/anna/data.csv has no column 'label'; name it\n" in text
    else:
        line = json.loads(text)
        assert line.keys() == {"time", "level", "event", "code", "error", "place"}
        assert (line["event"], line["error"]) == ("request_refused", "DatasetError")
        assert line["place"].startswith("fednas.site.site:")


@pytest.mark.parametrize(
    "make",
    [
        lambda: DatasetError(SECRET),  # raised by somebody else's code
        lambda: ours(type("DatasetError", (FednasError,), {"__module__": "fednas.errors"})(SECRET)),
        lambda: ours(type("Mine", (FednasError,), {})(SECRET)),
        lambda: ours(ValueError(SECRET)),
    ],
)
def test_an_error_that_only_looks_like_ours_is_described_as_a_foreign_one(
    make: Callable[[], Exception],
) -> None:
    with pytest.raises((FednasError, ValueError)) as caught:
        raise make()
    assert not any(word in describe(caught.value) for word in WORDS)


def test_two_sites_that_differ_in_records_and_paths_write_the_same_lines_of_json(
    as_json: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One lies elsewhere and has records that break the schema; later the ledger of each is broken."""
    lines = []
    for name, bad in (("plain", False), (SECRET, True)):
        path = tmp_path / name / "run"
        path.parent.mkdir()
        sites = Sites(tiny.make_run(path, tiny.study()))
        folder = sites.path / "sites" / "site-0"
        if bad:
            x, y = np.ones((60, 4), dtype=np.float32), np.arange(60) % 3
            x[[3, 5], 1], y[7] = 42.125, 8
            x[3, 1] = np.nan
            np.savez(folder / "data.npz", x=x, y=y)
        sites.ask(task())
        (folder / "ledger.sqlite").write_bytes(b"no ledger")
        open_site.cache_clear()
        content = sites.ask(task())
        assert content.config_records["refusal"]["code"] == Refusal.LEDGER_FAILURE
        text = capfd.readouterr().err
        assert not any(word in text for word in WORDS)
        lines.append([{**json.loads(line), "time": ""} for line in text.splitlines()])
    assert lines[0] == lines[1]
    assert [line["code"] for line in lines[0]] == ["LEDGER_FAILURE"]


def test_a_study_writes_its_rounds_and_who_did_not_answer(
    as_json: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = tiny.study()
    reply = stubs.when(
        lambda site, task: site == "bravo" and task.round == 2, stubs.refuse(Refusal.SITE_FAILURE)
    )
    path = stubs.folder(tmp_path / "run", study)
    with study_log("fednas"):
        stubs.run(stubs.Stubs(facts=stubs.facts(study), reply=reply), path)
    lines = written(capfd)
    rounds = len(list((path / "rounds").glob("*.json")))
    assert [line["round"] for line in lines if line["event"] == "round_begins"] == list(range(1, rounds + 1))
    (missing,) = [line for line in lines if line["event"] == "no_answer"]
    assert (missing["site"], missing["code"], missing["round"]) == ("bravo", "SITE_FAILURE", 2)
    assert lines[0]["event"] == "sites_met"
    assert (lines[-1]["event"], lines[-1]["rounds"]) == ("study_complete", rounds)
    assert RunDirectory(path).study.name == lines[-1]["study"]


def test_every_line_of_server_and_site_has_an_event_but_the_words_for_the_owner_alone() -> None:
    without = []
    for path in sorted((*(ROOT / "server").glob("*.py"), *(ROOT / "client").glob("*.py"))):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if ast.unparse(call.func).startswith("_log.") and all(k.arg != "extra" for k in call.keywords):
                without.append(f"{path.parent.name}/{path.name}: {ast.unparse(call.args[0])}")
    assert without == ["""client/app.py: "%d records break the study's schema and are left out\""""]


def test_a_study_that_stops_says_so_and_the_error_goes_on(
    form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    error = ours(ExchangeError("1 of 3 sites answered"))
    with pytest.raises(ExchangeError), study_log("fednas"):
        raise error
    text = capfd.readouterr().err
    assert text.count("\n") == 1
    assert ("study_stopped" in text) == (form == "json")
    assert '"ExchangeError"' in text or "the study stopped" in text
