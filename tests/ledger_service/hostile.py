"""Sites that are up to no good: each shows something else than a ledger of its own."""

import hashlib
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from fednas.ledger_service import ledger_pb2, ledger_pb2_grpc
from tests.ledger_service.fleets import Authority
from tests.privacy.ledger_content import Content


class Hostile(ledger_pb2_grpc.LedgerServicer):
    """Shows some content, but as the test likes; by default everything as it is.

    Args:
        content: of a ledger.
        head: fields of the head that are shown otherwise.
        chunks: messages instead of the entries.
        stated: the statement.
    """

    def __init__(
        self,
        content: Content,
        *,
        head: dict[str, Any] | None = None,
        chunks: Iterator[Any] | None = None,
        stated: bytes = b"{}",
    ) -> None:
        self._content, self._head, self._chunks, self._stated = content, head or {}, chunks, stated

    def Head(self, _: Any, __: Any) -> Any:
        first, last = self._content.rows[0].facts, self._content.rows[-1]
        shown = {
            "dataset": first["dataset"],
            "signer": first["signer"],
            "entries": len(self._content.rows),
            "head": last.digest,
        }
        return ledger_pb2.HeadReply(**shown | self._head)

    def Entries(self, _: Any, __: Any) -> Iterator[Any]:
        yield from self._chunks if self._chunks is not None else honest(self._content)

    def Statement(self, _: Any, __: Any) -> Any:
        return ledger_pb2.StatementReply(document=self._stated)


def honest(content: Content) -> Iterator[Any]:
    """The messages that a content is shown in."""
    for row in content.rows:
        entry = ledger_pb2.Entry(seq=row.seq, kind=row.kind, body=row.body, digest=row.digest)
        yield ledger_pb2.Chunk(entries=[entry])
    for name, reply in content.replies.items():
        yield ledger_pb2.Chunk(parts=[ledger_pb2.ReplyPart(operation=name, part=reply, last=True)])


def endless(content: Content) -> Iterator[Any]:
    """Entries that never end, each with a digest."""
    seq = 0
    while True:
        digest = hashlib.sha256(str(seq).encode()).hexdigest()
        entry = ledger_pb2.Entry(seq=seq, kind="REFUSE", body="{}" + " " * 1000, digest=digest)
        yield ledger_pb2.Chunk(entries=[entry])
        seq += 1


def unending_reply(content: Content) -> Iterator[Any]:
    """A reply without an end, after honest entries."""
    yield from (chunk for chunk in honest(content) if chunk.entries)
    while True:
        yield ledger_pb2.Chunk(parts=[ledger_pb2.ReplyPart(operation="a", part=bytes(100_000))])


def huge(content: Content) -> Iterator[Any]:
    """One message larger than any that is taken."""
    yield ledger_pb2.Chunk(entries=[ledger_pb2.Entry(seq=0, kind="OPEN", body=" " * 8_000_000)])


def empty(content: Content) -> Iterator[Any]:
    """Messages that hold nothing, without an end."""
    while True:
        yield ledger_pb2.Chunk()


def wrong_digest(content: Content) -> Iterator[Any]:
    """Honest, but for one digest."""
    for chunk in honest(content):
        for entry in chunk.entries:
            if entry.seq == 4:
                entry.digest = "0" * 64
        yield chunk


def out_of_order(content: Content) -> Iterator[Any]:
    """The entries backwards, with positions beyond those of any file."""
    for chunk in honest(content):
        for entry in chunk.entries:
            entry.seq = 2**64 - 1 - entry.seq
        yield chunk


def twice(content: Content) -> Iterator[Any]:
    """Each reply twice."""
    for chunk in honest(content):
        yield chunk
        if chunk.parts:
            yield chunk


@contextmanager
def showing(servicer: Hostile, authority: Authority) -> Iterator[str]:
    """The address of a site with a good certificate and bad intentions."""
    certificate, key = authority.issue("site")
    pool = futures.ThreadPoolExecutor(2)
    server = grpc.server(pool, options=(("grpc.max_send_message_length", -1),))
    ledger_pb2_grpc.add_LedgerServicer_to_server(servicer, server)
    pair = (key.read_bytes(), certificate.read_bytes())
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([pair], authority.ca.read_bytes(), True)
    )
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
        pool.shutdown(wait=True)
