"""The statement that a data protection officer reads: made again, bit for bit, from a ledger and an audit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednas.errors import ConfigurationError
from fednas.privacy.numbers import canonical_json
from fednas.statement.account import Account, read_account
from fednas.statement.audit import decode_audit, encode_audit, read_audit, validated
from fednas.statement.document import compose
from fednas.statement.overview import Link, Site, links, overview
from fednas.statement.page import render

__all__ = [
    "Account",
    "Link",
    "Site",
    "Statement",
    "compose",
    "decode_audit",
    "encode_audit",
    "links",
    "overview",
    "read_account",
    "read_audit",
    "render",
    "state",
    "state_account",
    "validated",
    "write",
    "write_file",
]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement in both of its forms.

    Args:
        dataset: whose it is.
        document: canonical JSON, ASCII, with a newline at its end.
        page: one self-contained HTML page, UTF-8.
    """

    dataset: str
    document: bytes
    page: bytes


def state(ledger: Path, audit: Mapping[str, Any] | None = None) -> Statement:
    """Make the statement of a ledger.

    Args:
        ledger: the file; it is only read, and verified first.
        audit: of the code that the site ran, as `read_audit` gives it; None where none was made.

    Raises:
        LedgerError: the ledger is missing, foreign or tampered with.
        ConfigurationError: the audit is none.

    Guarantees:
        - Equal ledgers and audits give equal bytes: neither clock, locale, file name nor environment takes
          part.
        - Nothing is stated of a file that does not verify.
    """
    return state_account(read_account(ledger), audit)


def state_account(account: Account, audit: Mapping[str, Any] | None = None) -> Statement:
    """Make the statement of a ledger that was read; see `state`.

    Args:
        account: of the ledger.
        audit: of the code that the site ran.

    Raises:
        ConfigurationError: the audit is none.
    """
    document = compose(account, None if audit is None else validated(audit))
    return Statement(
        dataset=document["dataset"],
        document=(canonical_json(document) + "\n").encode("ascii"),
        page=render(document).encode("utf-8", "xmlcharrefreplace"),
    )


def write(statement: Statement, folder: Path, stem: str = "statement") -> tuple[Path, Path]:
    """Write a statement's two files into a folder, which is made.

    Args:
        statement: the statement.
        folder: where to.
        stem: the files' name without suffix.

    Returns:
        The paths of the JSON and of the page.

    Raises:
        ConfigurationError: the folder cannot be written to.
    """
    document, page = folder / f"{stem}.json", folder / f"{stem}.html"
    write_file(document, statement.document)
    write_file(page, statement.page)
    return document, page


def write_file(path: Path, content: bytes) -> None:
    """Write a file into a folder, which is made.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path.name} to {path.parent}: {error.strerror}; give another folder with --out"
        ) from error
