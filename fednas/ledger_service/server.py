"""Serve one ledger to auditors with a client certificate: its rows and its statement, and nothing else."""

import json
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, Final, final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from fednas.errors import ConfigurationError, LedgerError
from fednas.ledger_service import ledger_pb2, ledger_pb2_grpc
from fednas.ledger_service.rows import Rows
from fednas.statement import state

SERVICE: Final = ledger_pb2.DESCRIPTOR.services_by_name["Ledger"].full_name
MAX_SECONDS: Final = 600.0
MAX_REQUEST: Final = 64 * 1024
MAX_MESSAGE: Final = 4 * 1024 * 1024
PART: Final = 1024 * 1024
THREADS: Final = 4
CONCURRENT: Final = 16

# Constant words: an error tells neither a path nor what the disk said.
NO_DEADLINE: Final = f"set a deadline of at most {MAX_SECONDS:.0f} seconds"
UNREADABLE: Final = "the site's ledger cannot be read"
UNVERIFIED: Final = "the site's ledger does not verify"
MOVED_ON: Final = "the ledger has moved on"
BUSY: Final = "another statement is being made"
UNPROTECTED: Final = "the ledger holds releases that no noise protects"
TOO_LARGE: Final = "an entry is larger than a message may be"


def serve(*, ledger: Path, address: str, certificate: Path, key: Path, client_ca: Path) -> tuple[Any, int]:
    """Start serving a ledger; TLS with certificates on both sides, there is no other way.

    Args:
        ledger: the file; it may be made later, and is only read.
        address: HOST:PORT to listen on; port 0 takes a free one.
        certificate: the site's, PEM.
        key: of that certificate, PEM.
        client_ca: whose client certificates are let in, PEM.

    Returns:
        The running gRPC server and its port.

    Raises:
        ConfigurationError: a file cannot be read, or the address cannot be listened on.

    Guarantees:
        - Without a certificate of the client CA no call is answered, health and reflection included.
        - Every reply is made of rows of the ledger file alone; the file is not written to.
        - A stored reply is shown only where noise protects every release of the ledger.
    """
    credentials = grpc.ssl_server_credentials(
        [(read_pem(key), read_pem(certificate))],
        root_certificates=read_pem(client_ca),
        require_client_auth=True,
    )
    server = grpc.server(
        futures.ThreadPoolExecutor(THREADS, thread_name_prefix="ledger"),
        maximum_concurrent_rpcs=CONCURRENT,
        options=(
            ("grpc.max_receive_message_length", MAX_REQUEST),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 60_000),
        ),
    )
    ledger_pb2_grpc.add_LedgerServicer_to_server(LedgerService(Rows(ledger), ledger), server)
    checks = health.HealthServicer(experimental_non_blocking=True)
    for name in ("", SERVICE):
        checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(names), server)
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        port = 0
        cause: Exception | None = error
    else:
        cause = None
    if port == 0:
        raise ConfigurationError(
            f"cannot listen on {address}: give a free HOST:PORT, and a certificate, key and client CA in PEM"
        ) from cause
    server.start()
    return server, port


def read_pem(path: Path) -> bytes:
    """The content of a PEM file.

    Raises:
        ConfigurationError: it cannot be read or is none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; give a file in PEM") from error
    if b"-----BEGIN " not in content:
        raise ConfigurationError(f"{path} is not in PEM; give a certificate or a key that begins -----BEGIN")
    return content


def _check_deadline(context: Any) -> None:
    """A call without an end could hold a thread for ever, simply by not reading."""
    remaining = context.time_remaining()
    if remaining is None or remaining > MAX_SECONDS:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, NO_DEADLINE)


class _Reflection(reflection.ReflectionServicer):
    def ServerReflectionInfo(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        _check_deadline(context)
        yield from super().ServerReflectionInfo(request_iterator, context)


@final
class LedgerService(ledger_pb2_grpc.LedgerServicer):
    """Answers from one ledger file; see ledger.proto.

    Args:
        rows: of the file.
        ledger: the same file, for its statement.
    """

    def __init__(self, rows: Rows, ledger: Path) -> None:
        self._rows, self._ledger = rows, ledger
        self._stating = threading.Lock()
        self._stated = ("", b"")  # the last head that was stated, and its document

    def Head(self, _: Any, context: Any) -> Any:  # noqa: N802
        """The state that the ledger is in."""
        _check_deadline(context)
        try:
            found = self._rows.state()
        except LedgerError:
            context.abort(grpc.StatusCode.DATA_LOSS, UNREADABLE)
        return ledger_pb2.HeadReply(
            dataset=found.dataset, signer=found.signer, entries=found.entries, head=found.head
        )

    def Entries(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        """Entries from a position to the present state; from the first one, all stored replies follow."""
        _check_deadline(context)
        try:
            # The file's replies before its state: each of them then has its release among the entries, and
            # what is released meanwhile is found by its entry. One that no entry names is shown as well.
            operations = set(self._rows.operations()) if request.start == 0 else set()
            end = self._rows.state().entries
            bare = False
            for rows in self._rows.entries(request.start, end):
                yield from _chunks(rows, context)
                bare = bare or any(_is_bare(kind, body) for _, kind, body, _ in rows)
                if request.start == 0:
                    operations |= {_operation(body) for _, kind, body, _ in rows if kind == "RELEASE"}
            if operations and bare:  # the server of the study has them; that is no reason to spread them
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, UNPROTECTED)
            for operation in sorted(operations):
                reply = self._rows.reply(operation)
                if reply is not None:
                    yield from _parts(operation, reply)
        except LedgerError:
            context.abort(grpc.StatusCode.DATA_LOSS, UNREADABLE)

    def Statement(self, request: Any, context: Any) -> Any:  # noqa: N802
        """statement.json of one state, made again from the file."""
        _check_deadline(context)
        if not self._stating.acquire(timeout=min(context.time_remaining(), 60.0)):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, BUSY)
        try:
            self._check_head(request.head, context)
            if self._stated[0] != request.head:
                try:
                    document = state(self._ledger).document
                except LedgerError:
                    self._check_head(request.head, context)
                    context.abort(grpc.StatusCode.DATA_LOSS, UNVERIFIED)
                self._check_head(request.head, context)
                self._stated = (request.head, document)
            return ledger_pb2.StatementReply(document=self._stated[1])
        finally:
            self._stating.release()

    def _check_head(self, head: str, context: Any) -> None:
        try:
            now = self._rows.state().head
        except LedgerError:
            context.abort(grpc.StatusCode.DATA_LOSS, UNREADABLE)
        if now != head:
            context.abort(grpc.StatusCode.ABORTED, MOVED_ON)


def _chunks(rows: list[tuple[int, str, str, str]], context: Any) -> Iterator[Any]:
    """Entries in messages of bounded size."""
    chunk, size = ledger_pb2.Chunk(), 0
    for seq, kind, body, digest in rows:
        entry = ledger_pb2.Entry(seq=seq, kind=kind, body=body, digest=digest)
        length = entry.ByteSize()
        if length > MAX_MESSAGE - 1024:
            context.abort(grpc.StatusCode.DATA_LOSS, TOO_LARGE)
        if size and size + length > PART:
            yield chunk
            chunk, size = ledger_pb2.Chunk(), 0
        chunk.entries.append(entry)
        size += length
    if size:
        yield chunk


def _parts(operation: str, reply: bytes) -> Iterator[Any]:
    """A reply in messages of bounded size; an empty one is one part."""
    for begin in range(0, max(1, len(reply)), PART):
        part = ledger_pb2.ReplyPart(
            operation=operation, part=reply[begin : begin + PART], last=begin + PART >= len(reply)
        )
        yield ledger_pb2.Chunk(parts=[part])


def _is_bare(kind: str, body: str) -> bool:
    """Whether an entry says that releases have test noise, or none."""
    seeded = kind in ("OPEN", "RESERVE") and '"noise":"secure"' not in body
    return seeded or (kind == "PLAN" and '"kind":"non_private"' in body)


def _operation(body: str) -> str:
    """The operation that a release names; empty where it names none, which the verifier finds."""
    try:
        operation = json.loads(body)["operation"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return operation if isinstance(operation, str) else ""
