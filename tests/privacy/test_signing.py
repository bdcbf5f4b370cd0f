"""A signature stands under one state of one ledger, and nobody without the key makes one."""

import itertools
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.errors import LedgerError
from fednas.privacy import verify as verifier
from fednas.privacy.signing import Signer, is_signed, signed_text
from fednas.privacy.store import LedgerStore
from tests.privacy.ledgers import SMALL, entries, fill, noise, open_ledger, operation

SIGNER = Signer(b"a secret of the site, 32 bytes..")
STATE = {"dataset": "ward", "entries": 7, "head": "ab" * 32}


@given(st.binary(min_size=32, max_size=32), st.integers(1, 10**6), st.text("0123456789abcdef", min_size=64))
def test_the_stranger_and_the_ledger_agree_on_every_signature(secret: bytes, count: int, text: str) -> None:
    signer, head = Signer(secret), text[:64]
    signature = signer.sign("ward", count, head)
    assert is_signed(signer.public_key, signature, dataset="ward", entries=count, head=head)
    assert verifier.is_signed(signer.public_key, signature, signed_text("ward", count, head))
    assert not verifier.is_signed(signer.public_key, signature, signed_text("ward", count + 1, head))
    assert not verifier.is_signed(SIGNER.public_key, signature, signed_text("ward", count, head))


@given(st.integers(0, 8 * 96 - 1))
def test_any_flipped_bit_of_a_key_or_a_signature_voids_it(bit: int) -> None:
    data = bytearray(bytes.fromhex(SIGNER.public_key + SIGNER.sign(**STATE)))  # type: ignore[arg-type]
    data[bit // 8] ^= 1 << bit % 8
    key, signature = data[:32].hex(), data[32:].hex()
    assert not is_signed(key, signature, **STATE)  # type: ignore[arg-type]
    assert not verifier.is_signed(key, signature, signed_text(**STATE))  # type: ignore[arg-type]


@pytest.mark.parametrize("signature", ["", "00", "zz" * 64, "00" * 64, "ff" * 64, "ä" * 128])
@pytest.mark.parametrize("key", ["", "00" * 32, "ff" * 32, "zz" * 32, SIGNER.public_key])
def test_malformed_keys_and_signatures_are_no_signatures(key: str, signature: str) -> None:
    if key == "00" * 32 and signature == "00" * 64:
        pytest.skip("the all-zero key is a point of low order, which no ledger has")
    assert not is_signed(key, signature, **STATE)  # type: ignore[arg-type]
    assert not verifier.is_signed(key, signature, signed_text(**STATE))  # type: ignore[arg-type]


def test_the_same_state_has_the_same_signature_and_the_key_is_not_the_stream_key() -> None:
    assert SIGNER.sign(**STATE) == SIGNER.sign(**STATE)  # type: ignore[arg-type]
    secret = bytes(range(32))
    assert Signer(secret).public_key != Signer(bytes(32)).public_key
    assert secret.hex() not in Signer(secret).public_key


def test_every_commit_ends_in_a_signature(tmp_path: Path) -> None:
    fill(tmp_path / "ledger")
    with closing(sqlite3.connect(tmp_path / "ledger")) as connection:
        rows = connection.execute("SELECT seq, kind, body, digest FROM entries ORDER BY seq").fetchall()
    signer = json.loads(rows[0][2])["signer"]
    signed = [row[0] for row in rows if row[1] == "CHECKPOINT"]
    assert rows[-1][1] == "CHECKPOINT"
    assert all(second - first > 1 for first, second in itertools.pairwise(signed))
    for seq in signed:
        signature = json.loads(rows[seq][2])["signature"]
        assert is_signed(signer, signature, dataset="ward", entries=seq, head=rows[seq - 1][3])


def test_opening_and_closing_again_writes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "ledger")
    with open_ledger(tmp_path / "ledger") as ledger:
        first = ledger.position()
    with open_ledger(tmp_path / "ledger") as ledger:
        assert ledger.position() == first


def test_a_release_carries_the_signature_of_its_head_and_a_repeat_the_same(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger") as ledger:
        ledger.open_plan("run", SMALL)
        paid = ledger.release(operation(1), charges={"search": 1}, mechanism=noise)
        ledger.release(operation(2), charges={"search": 1}, mechanism=noise)
        again = ledger.release(operation(1), charges={"search": 1}, mechanism=noise)
        assert is_signed(
            ledger.public_key, paid.signature, dataset="ward", entries=paid.entries, head=paid.head
        )
        assert (again.signature, again.head, again.entries) == (paid.signature, paid.head, paid.entries)
        assert ledger.contains(paid.head)
        assert not ledger.contains("0" * 64)


def test_an_entry_appended_without_the_key_is_refused_by_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    fill(path)
    forged = entries(path, "RESERVE")[-1] | {"operation": "f" * 32}
    with LedgerStore(path) as store, store.transaction():
        store.append("RESERVE", forged)
    with pytest.raises(LedgerError, match="not a signature of its own key"):
        open_ledger(path)
    with pytest.raises(verifier.LedgerTampered, match="no signature"):
        verifier.verify(path)


def test_an_entry_signed_with_another_key_is_refused_by_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    fill(path)
    with LedgerStore(path) as store, store.transaction():
        store.append("REFUSE", {"code": "BUDGET_EXHAUSTED", "run": "run", "subject": "forged"})
        count, _, head = store.tail()
        store.append("CHECKPOINT", {"signature": SIGNER.sign("ward", count, head)})
    with pytest.raises(LedgerError, match="not a signature of its own key"):
        open_ledger(path)
    with pytest.raises(verifier.LedgerTampered, match="not the site's"):
        verifier.verify(path)
