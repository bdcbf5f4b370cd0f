"""Who is answered, and with what: the rows of one file, to those with a certificate; nothing is written."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fednas.config import SiteConfig
from fednas.errors import ConfigurationError
from fednas.ledger_service import client, ledger_pb2, ledger_pb2_grpc
from fednas.ledger_service.server import MAX_REQUEST, SERVICE, serve
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.verify import verify
from fednas.statement import state
from tests.ledger_service.fleets import Authority, channel, make_ledger, serving
from tests.privacy.ledger_content import Row, read
from tests.privacy.ledgers import CAP, UNPROTECTED, noise, operation, plan_of, search_event

ROOT = Path(__file__).parents[2]
HEALTH = health_pb2.HealthCheckRequest(service=SERVICE)
LIST = reflection_pb2.ServerReflectionRequest(list_services="")
CALLS: dict[str, Callable[[Any], Any]] = {
    "head": lambda c: ledger_pb2_grpc.LedgerStub(c).Head(ledger_pb2.HeadRequest(), timeout=3),
    "entries": lambda c: list(ledger_pb2_grpc.LedgerStub(c).Entries(ledger_pb2.EntriesRequest(), timeout=3)),
    "statement": lambda c: ledger_pb2_grpc.LedgerStub(c).Statement(
        ledger_pb2.StatementRequest(head="0" * 64), timeout=3
    ),
    "health": lambda c: health_pb2_grpc.HealthStub(c).Check(HEALTH, timeout=3),
    "reflection": lambda c: list(
        reflection_pb2_grpc.ServerReflectionStub(c).ServerReflectionInfo(iter([LIST]), timeout=3)
    ),
}


def image(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every file of a folder."""
    return {
        p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in folder.iterdir()
    }


@pytest.mark.parametrize("name", CALLS)
def test_nobody_without_a_certificate_of_the_client_authority_is_answered(
    name: str, ledger: Path, authority: Authority, stranger: Authority
) -> None:
    certificate, key = stranger.issue("auditor")
    with serving(ledger, authority) as address:
        for credentials in (
            grpc.ssl_channel_credentials(authority.ca.read_bytes()),
            grpc.ssl_channel_credentials(
                authority.ca.read_bytes(), key.read_bytes(), certificate.read_bytes()
            ),
        ):
            with (
                grpc.secure_channel(address, credentials) as strange,
                pytest.raises(grpc.RpcError) as refusal,
            ):
                CALLS[name](strange)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(address) as plain, pytest.raises(grpc.RpcError):
            CALLS[name](plain)


def test_a_server_whose_certificate_is_not_of_our_authority_is_not_asked(
    ledger: Path, authority: Authority, stranger: Authority
) -> None:
    identity = authority.identity(trusting=stranger.ca)
    with serving(ledger, authority) as address, client.Client(address, identity, client.Limits()) as asked:
        with pytest.raises(client.PullError) as refusal:
            asked.head()
        assert refusal.value.verdict == client.UNREACHABLE


def test_health_and_reflection_answer_whoever_has_a_certificate(ledger: Path, authority: Authority) -> None:
    with serving(ledger, authority) as address, channel(address, authority.identity()) as ours:
        assert CALLS["health"](ours).status == health_pb2.HealthCheckResponse.SERVING
        listed = CALLS["reflection"](ours)[0].list_services_response.service
        assert SERVICE in {service.name for service in listed}


def test_every_reply_is_what_the_file_holds_and_nothing_else(ledger: Path, authority: Authority) -> None:
    content, _ = read(ledger)
    last = content.rows[-1]
    with serving(ledger, authority) as address, channel(address, authority.identity()) as ours:
        head = CALLS["head"](ours)
        chunks = CALLS["entries"](ours)
        stub = ledger_pb2_grpc.LedgerStub(ours)
        stated = stub.Statement(ledger_pb2.StatementRequest(head=last.digest), timeout=60).document
        tail = [e for c in stub.Entries(ledger_pb2.EntriesRequest(start=3), timeout=3) for e in c.entries]
        beyond = list(stub.Entries(ledger_pb2.EntriesRequest(start=10**6), timeout=3))
    first = content.rows[0].facts
    assert (head.dataset, head.signer) == (first["dataset"], first["signer"])
    assert (head.entries, head.head) == (len(content.rows), last.digest)
    rows = [Row(e.seq, e.kind, e.body, e.digest) for c in chunks for e in c.entries]
    assert rows == content.rows
    replies: dict[str, bytes] = {}
    for part in (p for c in chunks for p in c.parts):
        replies[part.operation] = replies.get(part.operation, b"") + part.part
    assert replies == content.replies
    assert [e.seq for e in tail] == list(range(3, len(content.rows)))
    assert beyond == []
    assert stated == state(ledger).document
    secret = ledger.with_name("ledger.sqlite.key").read_bytes()
    sent = b"".join(m.SerializeToString() for m in (head, *chunks)) + stated
    assert secret not in sent
    assert secret.hex().encode() not in sent
    assert str(ledger.parent).encode() not in sent


def test_a_closed_ledger_and_its_folder_are_left_as_they_are(ledger: Path, authority: Authority) -> None:
    before = image(ledger.parent)
    with serving(ledger, authority) as address, channel(address, authority.identity()) as ours:
        head = CALLS["head"](ours).head
        CALLS["entries"](ours)
        ledger_pb2_grpc.LedgerStub(ours).Statement(ledger_pb2.StatementRequest(head=head), timeout=60)
    assert image(ledger.parent) == before


def test_an_open_ledger_is_read_through_its_log_without_a_byte_written_to_either(
    ledger: Path, authority: Authority
) -> None:
    with PrivacyLedger.open(ledger, dataset="ward", cap=CAP) as opened:
        opened.release(operation(8), charges={"search": 1}, mechanism=noise)
        names = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite.key")
        before = {name: image(ledger.parent)[name] for name in names}
        with serving(ledger, authority) as address, channel(address, authority.identity()) as ours:
            assert CALLS["head"](ours).head == opened.head
            CALLS["entries"](ours)
        assert {name: image(ledger.parent)[name] for name in names} == before


def test_a_site_that_appends_meanwhile_is_neither_stalled_nor_misread(
    ledger: Path, authority: Authority, tmp_path: Path
) -> None:
    stop = threading.Event()

    def append() -> int:
        number = 10
        while not stop.is_set() and number < 24:
            with PrivacyLedger.open(ledger, dataset="ward", cap=CAP) as opened:  # opening empties the log
                opened.release(operation(number), charges={"search": 1}, mechanism=noise)
            number += 1
        return number

    with (
        serving(ledger, authority) as address,
        client.Client(address, authority.identity(), client.Limits()) as asked,
        ThreadPoolExecutor(1) as site,
    ):
        appended = site.submit(append)
        for number in range(30):
            shown = asked.head()
            target = tmp_path / f"{number}.sqlite"
            asked.fetch(target)
            found = verify(target, expected_head=shown.head)
            assert found.entries >= shown.entries
        stop.set()
        assert appended.result() > 10


def test_a_call_without_a_deadline_or_with_a_distant_one_is_refused(
    ledger: Path, authority: Authority
) -> None:
    with serving(ledger, authority) as address, channel(address, authority.identity()) as ours:
        stub, info = ledger_pb2_grpc.LedgerStub(ours), reflection_pb2_grpc.ServerReflectionStub(ours)
        for timeout in (None, 1e4):
            for ask in (
                lambda t: stub.Head(ledger_pb2.HeadRequest(), timeout=t),
                lambda t: list(stub.Entries(ledger_pb2.EntriesRequest(), timeout=t)),
                lambda t: stub.Statement(ledger_pb2.StatementRequest(), timeout=t),
                lambda t: list(info.ServerReflectionInfo(iter([LIST]), timeout=t)),
            ):
                with pytest.raises(grpc.RpcError) as refusal:
                    ask(timeout)
                assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_request_larger_than_any_is_refused(ledger: Path, authority: Authority) -> None:
    with serving(ledger, authority) as address, channel(address, authority.identity()) as ours:
        request = ledger_pb2.StatementRequest(head="0" * (MAX_REQUEST + 1))
        with pytest.raises(grpc.RpcError) as refusal:
            ledger_pb2_grpc.LedgerStub(ours).Statement(request, timeout=3)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_error_says_the_same_words_whatever_is_wrong_and_names_no_path(
    tmp_path: Path, authority: Authority
) -> None:
    path, found = tmp_path / "secret-place", set()
    for content in (None, b"", b"no ledger", b"SQLite format 3\0" + os.urandom(4096)):
        if content is not None:
            path.write_bytes(content)
        with serving(path, authority) as address, channel(address, authority.identity()) as ours:
            for name in ("head", "entries", "statement"):
                with pytest.raises(grpc.RpcError) as refusal:
                    CALLS[name](ours)
                found.add((refusal.value.code(), refusal.value.details()))
    assert found == {(grpc.StatusCode.DATA_LOSS, "the site's ledger cannot be read")}


@pytest.mark.parametrize("bare", ["unprotected", "seeded"])
def test_replies_that_no_noise_protects_are_not_shown(
    bare: str, tmp_path: Path, authority: Authority
) -> None:
    path, plain = tmp_path / "ledger", bare == "unprotected"
    plan = UNPROTECTED if plain else plan_of(search=search_event(20))
    cap = UNPROTECTED.budget if plain else CAP
    with PrivacyLedger.open(path, dataset="ward", cap=cap, test_seed=None if plain else 1) as opened:
        opened.open_plan("run", plan)
        opened.release(
            operation(0),
            charges={"search": 1},
            mechanism=(lambda _: {"update": np.zeros(3)}) if plain else noise,
        )
    with serving(path, authority) as address, channel(address, authority.identity()) as ours:
        stream = ledger_pb2_grpc.LedgerStub(ours).Entries(ledger_pb2.EntriesRequest(), timeout=3)
        chunks: list[Any] = []
        with pytest.raises(grpc.RpcError) as refusal:
            chunks.extend(stream)
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert not any(chunk.parts for chunk in chunks)


def test_a_certificate_that_is_none_or_a_port_that_is_taken_is_one_line(
    ledger: Path, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("site")
    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    with serving(ledger, authority) as address:
        with pytest.raises(ConfigurationError, match="cannot listen"):
            serve(ledger=ledger, address=address, certificate=certificate, key=key, client_ca=authority.ca)
        with pytest.raises(ConfigurationError, match="PEM"):
            serve(ledger=ledger, address="127.0.0.1:0", certificate=junk, key=key, client_ca=authority.ca)
        with pytest.raises(ConfigurationError, match="not in PEM"):
            serve(ledger=ledger, address="127.0.0.1:0", certificate=ledger, key=key, client_ca=authority.ca)


def test_the_generated_code_is_what_the_proto_file_gives(tmp_path: Path) -> None:
    folder = Path("fednas/ledger_service")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"--python_out={tmp_path}"]
    command += [f"--grpc_python_out={tmp_path}", str(folder / "ledger.proto")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    for name in ("ledger_pb2.py", "ledger_pb2_grpc.py"):
        assert (tmp_path / folder / name).read_text() == (ROOT / folder / name).read_text()


def test_a_device_that_serves_loads_neither_torch_nor_flower_nor_an_accountant() -> None:
    code = (
        "import sys, fednas.ledger_service.server, fednas.ledger_service.fleet\n"
        "heavy = {'torch', 'flwr', 'opacus', 'dp_accounting', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_a_dataset_is_named_as_a_site_may_name_it() -> None:
    (rule,) = [m for m in SiteConfig.model_fields["dataset"].metadata if getattr(m, "pattern", None)]
    assert rule.pattern == f"^{client.DATASET.pattern}$"


def test_a_ledger_that_is_made_later_is_served_from_then_on(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "ledger.sqlite"
    with serving(path, authority) as address, channel(address, authority.identity()) as ours:
        with pytest.raises(grpc.RpcError):
            CALLS["head"](ours)
        make_ledger(path)
        assert CALLS["head"](ours).entries == len(read(path)[0].rows)
