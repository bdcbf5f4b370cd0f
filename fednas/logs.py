"""What server and site write to their logs: named events with public fields, as text or as lines of JSON."""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from fednas.errors import FednasError

VARIABLE: Final = "FEDNAS_LOG"
"""Environment variable that chooses the form, `text` or `json`; systemd units set it.

Without it a log is what Python makes of it, warnings on standard error: a simulation wants no more.
"""

_OURS: Final = ("fednas", "server", "client")


class Event(StrEnum):
    """All that a log is ever about."""

    SITES_MET = "sites_met"
    SITE_LEFT_OUT = "site_left_out"
    SITE_RETURNED = "site_returned"
    ROUND_BEGINS = "round_begins"
    NO_ANSWER = "no_answer"
    REPLY_UNREADABLE = "reply_unreadable"
    LEDGER_ROLLED_BACK = "ledger_rolled_back"
    STUDY_COMPLETE = "study_complete"
    STUDY_STOPPED = "study_stopped"
    REQUEST_REFUSED = "request_refused"


def _matches(pattern: str) -> Callable[[object], bool]:
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 80 and value.isprintable()


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


FIELDS: Final[Mapping[str, Callable[[object], bool]]] = {
    "study": _is_name,
    "site": _is_name,
    "tier": _is_name,
    "round": _is_count,
    "rounds": _is_count,
    "entries": _is_count,
    "kind": _matches(r"[a-z]{1,20}"),
    "code": _matches(r"[A-Z_]{1,40}"),
    "error": _matches(r"[A-Za-z_]\w{0,79}"),
    "place": _matches(r"[A-Za-z_][\w.]{0,119}:\d{1,6}"),
}
"""Every field that a line of JSON may have beside its time, level and event, and the form of its value."""


def tagged(event: Event, **fields: object) -> dict[str, Any]:
    """What a log call passes as `extra`.

    Args:
        event: what happened.
        fields: public facts, by the names of `FIELDS`; a value of another form is left out of the line.
    """
    assert fields.keys() <= FIELDS.keys(), "a line of JSON has public fields only"
    return {"event": event, "fields": fields}


def set_up(name: str) -> bool:
    """Let a logger and those below it write to standard error, once, in the form that `VARIABLE` asks for.

    Args:
        name: of the logger.

    Returns:
        Whether a form is asked for.

    Guarantees:
        - A line of JSON holds a time, a level, an event and fields of `FIELDS`; a record without an event, as
          a word for a site's owner alone is, has no line.
        - Neither form holds a traceback, nor more than one line a record.
    """
    logger = logging.getLogger(name)
    wanted = os.environ.get(VARIABLE)
    if not wanted or any(isinstance(handler, _Handler) for handler in logger.handlers):
        return bool(wanted)
    handler = _Handler()
    handler.setFormatter(_Json() if wanted == "json" else _Text())
    if wanted == "json":
        handler.addFilter(lambda record: isinstance(getattr(record, "event", None), Event))
    logger.addHandler(handler)
    logger.propagate = False  # libraries set up handlers of their own, which would write it again
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if wanted not in ("text", "json"):
        logger.warning("%s is neither text nor json: text is written", VARIABLE)
    return True


def report_refusal(log: logging.Logger, code: str, error: BaseException) -> None:
    """Say on a site's own log why a request was refused.

    Args:
        log: the site's.
        code: the constant that travels.
        error: what happened; see `describe` for what is said of it.
    """
    fields = tagged(Event.REQUEST_REFUSED, code=code, error=_type_name(error), place=_place(error))
    log.error("refused with %s: %s", code, describe(error), extra=fields)


@contextmanager
def study_log(name: str) -> Iterator[None]:
    """Set a server's log up, and say there why the study in the block ended before its last round.

    Args:
        name: of the logger.
    """
    wanted = set_up(name)
    try:
        yield
    except Exception as error:
        if wanted:  # otherwise whoever began the study says it
            fields = tagged(Event.STUDY_STOPPED, error=_type_name(error), place=_place(error))
            logging.getLogger(name).error("the study stopped: %s", describe(error), extra=fields)
        raise


def describe(error: BaseException) -> str:
    """An exception in one line: the words of an error of this project, type and place of any other.

    The text of a `FednasError` holds public facts; that of others may hold a record, and so may one of ours
    that an owner's code raised.

    Guarantees:
        Nothing is asked of an exception that this project did not raise, but its type and its traceback.
    """
    kind = type(error)
    if _is_known(kind) and kind.__module__.split(".")[0] in _OURS and issubclass(kind, FednasError):
        modules = _modules(error)
        if modules and modules[-1] is not None:
            return _line(str(error))
    place = _place(error)
    return _type_name(error) + (f" at {place}" if place else "")


def _is_known(kind: type) -> bool:
    """Whether a type is what its name says: one that was made on the way may be named after anything."""
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind


def _type_name(error: BaseException) -> str:
    return type(error).__name__ if _is_known(type(error)) else "Exception"


def _modules(error: BaseException) -> list[str | None]:
    """For each call on the way to an exception `module:line` of this project, or None for other code."""
    places: list[str | None] = []
    trace = error.__traceback__
    while trace is not None:
        scope = trace.tb_frame.f_globals
        name = scope.get("__name__")
        known = isinstance(name, str) and name.split(".")[0] in _OURS and name in sys.modules
        ours = known and vars(sys.modules[str(name)]) is scope
        places.append(f"{name}:{trace.tb_lineno}" if ours else None)
        trace = trace.tb_next
    return places


def _place(error: BaseException) -> str:
    """The last line of this project on the way to an exception; "" if there is none."""
    return next((place for place in reversed(_modules(error)) if place is not None), "")


class _Handler(logging.Handler):
    """Writes to whatever standard error is when a record comes."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001  logging itself would print the record's arguments and a traceback
            return


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = f"{_time(record)} {record.levelname} {_line(record.getMessage())}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {describe(record.exc_info[1])}"
        return text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        given: Mapping[str, object] = getattr(record, "fields", {})
        public = {name: value for name, value in given.items() if name in FIELDS and FIELDS[name](value)}
        event = str(getattr(record, "event", ""))
        return json.dumps({"time": _time(record), "level": record.levelname, "event": event} | public)


def _time(record: logging.LogRecord) -> str:
    """UTC in ISO 8601."""
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _line(text: str) -> str:
    """A text in one line without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
