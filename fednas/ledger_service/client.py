"""Fetch what one site shows of its ledger, within limits: whoever answers may be hostile."""

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

import grpc

from fednas.ledger_service import ledger_pb2, ledger_pb2_grpc
from fednas.ledger_service.server import MAX_MESSAGE, read_pem
from fednas.privacy.numbers import is_digest
from fednas.privacy.store import SCHEMA

DATASET: Final = re.compile(r"[a-z0-9][a-z0-9_./-]{0,79}")  # as a site.toml may name one
CONNECT_S: Final = 10.0
STATEMENT_S: Final = 120.0

UNREACHABLE: Final = "unreachable"
REFUSED: Final = "refused"
TAMPERED: Final = "tampered"


class PullError(Exception):
    """Why nothing of a site is kept.

    Args:
        verdict: `unreachable`, `refused` or `tampered`.
        finding: in words of this program, never of the site.
    """

    def __init__(self, verdict: str, finding: str) -> None:
        super().__init__(finding)
        self.verdict, self.finding = verdict, finding


class MovedOnError(Exception):
    """The ledger grew between two calls: ask again."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a site may send at most.

    Args:
        entries: of its ledger.
        num_bytes: of entries, replies and statement together.
        seconds: that one attempt may take.
    """

    entries: int = 1_000_000
    num_bytes: int = 2 * 1024**3
    seconds: float = 300.0


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The auditor's side of mutual TLS, as the content of files in PEM."""

    certificate: bytes
    key: bytes
    ca: bytes

    @classmethod
    def read(cls, *, certificate: Path, key: Path, ca: Path) -> Self:
        """Read the three files.

        Raises:
            ConfigurationError: one of them cannot be read.
        """
        return cls(certificate=read_pem(certificate), key=read_pem(key), ca=read_pem(ca))


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The state that a site says its ledger is in."""

    dataset: str
    entries: int
    head: str


@final
class Client:
    """One site's ledger service.

    Args:
        address: HOST:PORT.
        identity: this side's certificate, and whose server certificates are trusted.
        limits: on what is taken.
    """

    def __init__(self, address: str, identity: Identity, limits: Limits) -> None:
        self._limits = limits
        self._channel = grpc.secure_channel(
            address,
            grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate),
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.enable_http_proxy", 0),
                ("grpc.enable_retries", 0),
            ),
        )
        self._stub = ledger_pb2_grpc.LedgerStub(self._channel)

    def head(self) -> Shown:
        """The state that the site's ledger is in.

        Raises:
            PullError: it cannot be had, or is malformed.
        """
        with _translated():
            reply = self._stub.Head(ledger_pb2.HeadRequest(), timeout=CONNECT_S)
        if not DATASET.fullmatch(reply.dataset):
            raise PullError(REFUSED, "it names its dataset as no site may")
        if not is_digest(reply.head) or not 0 < reply.entries <= self._limits.entries:
            raise PullError(REFUSED, "it shows a head that is none, or more entries than are taken")
        return Shown(dataset=reply.dataset, entries=reply.entries, head=reply.head)

    def fetch(self, target: Path) -> None:
        """Write the site's entries and replies into a new ledger file; nothing of it is believed yet.

        Raises:
            PullError: they cannot be had, are malformed, or exceed the limits.
        """
        connection = sqlite3.connect(target, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=OFF")
            connection.execute("PRAGMA synchronous=OFF")  # synced as a whole before it gets its name
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute("BEGIN")
            with _translated():
                calls = self._stub.Entries(ledger_pb2.EntriesRequest(start=0), timeout=self._limits.seconds)
                try:
                    self._take(calls, connection)
                finally:
                    calls.cancel()
            connection.execute("COMMIT")
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise PullError(
                REFUSED, "its entries do not fit into a ledger file, or this disk is full"
            ) from error
        finally:
            connection.close()

    def _take(self, chunks: Any, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + self._limits.seconds
        size, seq, operation = 0, 0, None
        reply = bytearray()
        for chunk in chunks:
            size += chunk.ByteSize()
            if size > self._limits.num_bytes or time.monotonic() > deadline:
                raise PullError(REFUSED, "it sends more than is taken")
            if not chunk.entries and not chunk.parts:
                raise PullError(REFUSED, "it sends messages that hold nothing")
            for entry in chunk.entries:
                if entry.seq != seq or seq >= self._limits.entries:
                    raise PullError(TAMPERED, f"entry {seq} is not where it belongs")
                row = (seq, entry.kind, entry.body, entry.digest)
                connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", row)
                seq += 1
            for part in chunk.parts:
                if operation not in (None, part.operation):
                    raise PullError(REFUSED, "it sends replies that do not end")
                operation = part.operation
                reply += part.part
                if part.last:
                    connection.execute("INSERT INTO replies VALUES (?, ?)", (operation, bytes(reply)))
                    operation = None
                    reply.clear()
        if operation is not None:
            raise PullError(REFUSED, "it sends replies that do not end")

    def statement(self, head: str) -> bytes:
        """The document that the site states of this state of its ledger.

        Raises:
            MovedOnError: the ledger is in another state by now.
            PullError: it cannot be had.
        """
        try:
            with _translated():
                request = ledger_pb2.StatementRequest(head=head)
                document: bytes = self._stub.Statement(request, timeout=STATEMENT_S).document
        except PullError as error:
            cause = error.__cause__
            if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.ABORTED:
                raise MovedOnError from error
            raise
        return document

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _translated() -> Iterator[None]:
    """A failed call as a verdict; what the other side wrote into it is not repeated."""
    codes = grpc.StatusCode
    try:
        yield
    except grpc.RpcError as error:
        code = error.code()
        if code is codes.UNAVAILABLE or code is codes.DEADLINE_EXCEEDED:
            raise PullError(UNREACHABLE, "no answer, or no certificate that both sides trust") from error
        if code is codes.DATA_LOSS:
            raise PullError(TAMPERED, "the site itself cannot read or verify its ledger") from error
        if code is codes.FAILED_PRECONDITION:
            raise PullError(REFUSED, "no noise protects its releases, so it does not show them") from error
        if code is codes.RESOURCE_EXHAUSTED:
            raise PullError(REFUSED, "busy, or a message is larger than is taken") from error
        raise PullError(REFUSED, f"the call failed with {code.name}") from error
