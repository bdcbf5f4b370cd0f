"""What somebody was sent to verify, sorted by what it holds and not by what it is called."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fednas.errors import ConfigurationError, RunDirectoryError
from fednas.privacy.marks import Mark, parse_marks
from fednas.statement.audit import decode_audit
from fednas.statement.overview import TITLE

_SQLITE: Final = b"SQLite format 3\0"
_STATEMENT_PAGE: Final = b"<title>Privacy statement: "
_OVERVIEW_PAGE: Final = f"<title>{TITLE}: ".encode()
_LARGEST: Final = 64 << 20  # bytes of a file that is no ledger
_NAMES: Final = ("marks.json", "statement.json", "statement.html", "privacy.html")
_OTHER: Final = "it is not what its name says: it was edited, or is of another program"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was verified, or cannot be.

    Args:
        what: kind of thing.
        subject: which of them.
        ok: whether it holds; None for what nobody can verify from files.
        words: how it was verified, what is wrong, or what to do.
    """

    what: str
    subject: str
    ok: bool | None
    words: str


@dataclass(kw_only=True)
class Sent:
    """Files by kind.

    Args:
        ledgers: databases.
        statements: (file, content, document) of statements as JSON.
        pages: (file, content) of statements as pages.
        overviews: (file, content) of pages over several statements.
        audits: (file, document).
        studies: (file, content) of `study.toml` files.
        marks: by dataset, each state that a server saw.
        problems: (file, why it is not what it should be).
        folders: that were given.
    """

    ledgers: list[Path] = field(default_factory=list)
    statements: list[tuple[Path, bytes, dict[str, Any]]] = field(default_factory=list)
    pages: list[tuple[Path, bytes]] = field(default_factory=list)
    overviews: list[tuple[Path, bytes]] = field(default_factory=list)
    audits: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    studies: list[tuple[Path, bytes]] = field(default_factory=list)
    marks: dict[str, list[Mark]] = field(default_factory=dict)
    problems: list[tuple[Path, str]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def name(self, file: Path) -> str:
        """A file as people call it: by its place in the folder that was given."""
        folder = next((folder for folder in self.folders if file.is_relative_to(folder)), None)
        return str(file if folder is None else file.relative_to(folder))


def read_sent(paths: Sequence[Path]) -> Sent:
    """Sort files, and all that is in folders; links in folders are not followed.

    Args:
        paths: files, each of which must be of some kind, and folders, which may hold anything else too.

    Raises:
        RunDirectoryError: a path is not there.
    """
    sent, seen = Sent(folders=[path for path in paths if path.is_dir()]), set[Path]()
    for path in paths:
        if not path.exists():
            raise RunDirectoryError(f"there is no file or folder {path}")
        for file in _files(path):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                if not _sort(file, sent) and path.is_file():
                    sent.problems.append((file, "it is no ledger, statement, audit, page, study or marks"))
    return sent


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if not Path(folder, name).is_symlink())


def _sort(file: Path, sent: Sent) -> bool:
    """Put a file where it belongs; whether it belongs anywhere."""
    try:
        with file.open("rb") as opened:
            content = opened.read(len(_SQLITE))
            if content == _SQLITE or file.suffix == ".sqlite":
                sent.ledgers.append(file)
                return True
            if file.suffix not in (".json", ".html", ".toml"):
                return False
            content += opened.read(_LARGEST + 1)
    except OSError as error:
        sent.problems.append((file, f"it cannot be read: {error.strerror}"))
        return True
    if len(content) > _LARGEST:
        sent.problems.append((file, f"it is larger than {_LARGEST} bytes"))
        return True
    if file.suffix == ".json":
        return _sort_json(file, content, sent)
    if file.suffix == ".html":
        kinds = ((_STATEMENT_PAGE, sent.pages), (_OVERVIEW_PAGE, sent.overviews))
        for title, pages in kinds:
            if title in content[:4096]:
                pages.append((file, content))
                return True
        return _is_misnamed(file, sent)
    if file.name == "study.toml":
        sent.studies.append((file, content))
    return file.name == "study.toml"


def _sort_json(file: Path, content: bytes, sent: Sent) -> bool:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    keys = set(value) if isinstance(value, dict) else set()
    if {"checks", "games", "accused"} <= keys or file.name == "audit.json":
        try:
            sent.audits.append((file, decode_audit(content)))
        except ConfigurationError as error:
            sent.problems.append((file, str(error)))
        return True
    if {"dataset", "claim", "ledger", "not_covered"} <= keys:
        sent.statements.append((file, content, value))
        return True
    if keys == {"format", "datasets"} and _take_marks(value, sent):
        return True
    return _is_misnamed(file, sent)


def _is_misnamed(file: Path, sent: Sent) -> bool:
    if file.name.endswith(_NAMES):
        sent.problems.append((file, _OTHER))
    return file.name.endswith(_NAMES)


def _take_marks(value: object, sent: Sent) -> bool:
    try:
        marks = parse_marks(value)
    except ValueError:
        return False
    for dataset, mark in marks.items():
        sent.marks.setdefault(dataset, []).append(mark)
    return True
