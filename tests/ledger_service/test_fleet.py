"""What a pull keeps of a fleet, and what it finds: tampered, replaced, hostile and missing sites."""

import fcntl
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fednas.errors import ConfigurationError
from fednas.ledger_service.client import REFUSED, TAMPERED, UNREACHABLE, Limits
from fednas.ledger_service.fleet import HOLDS, Pulled, Target, folder_of, pull
from fednas.privacy.marks import Mark
from fednas.privacy.verify import verify
from fednas.statement import state
from tests.ledger_service import hostile
from tests.ledger_service.fleets import Authority, kept, make_ledger, serving
from tests.ledger_service.hostile import Hostile, showing
from tests.privacy.ledger_content import Content, Original, read
from tests.privacy.tampering import KINDS, OUTSIDE, STRANGER

TIGHT = Limits(entries=5000, num_bytes=3_000_000, seconds=20.0)


def pull_one(address: str, authority: Authority, out: Path, **options: Any) -> Pulled:
    return pull([Target(address=address)], authority.identity(), out, **options)[0]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_pulled_ledger_has_the_rows_of_the_site_and_verifies(
    ledger: Path, authority: Authority, tmp_path: Path
) -> None:
    with serving(ledger, authority) as address:
        end = pull_one(address, authority, tmp_path / "out")
    assert end.ok
    assert set(files(tmp_path / "out")) == {"ward/ledger.sqlite", "ward/statement.json", "marks.json"}
    pulled = tmp_path / "out" / "ward" / "ledger.sqlite"
    assert read(pulled) == read(ledger)
    assert verify(pulled) == verify(ledger)
    assert pulled.with_name("statement.json").read_bytes() == state(ledger).document
    found = verify(ledger)
    marks = {"ward": {"signer": found.signer, "entries": found.entries, "head": found.head}}
    assert kept(tmp_path / "out") == marks


def test_a_ledger_that_grew_is_pulled_again_and_its_mark_goes_on(
    ledger: Path, authority: Authority, tmp_path: Path
) -> None:
    with serving(ledger, authority) as address:
        assert pull_one(address, authority, tmp_path / "out").ok
        before = kept(tmp_path / "out")["ward"]["entries"]
        make_ledger(ledger)
        assert pull_one(address, authority, tmp_path / "out").ok
    assert kept(tmp_path / "out")["ward"]["entries"] > before
    assert read(tmp_path / "out" / "ward" / "ledger.sqlite") == read(ledger)


@pytest.mark.parametrize("name", [*KINDS, *OUTSIDE])
def test_a_tampered_remote_ledger_is_found_and_what_was_pulled_before_stays(
    name: str, original: Original, authority: Authority, tmp_path: Path
) -> None:
    ledger, out = tmp_path / "ledger.sqlite", tmp_path / "out"
    shutil.copyfile(original.path, ledger)
    with serving(ledger, authority) as address:
        site = Target(address=address, dataset="ward")
        assert pull([site], authority.identity(), out)[0].ok
        before = files(out)
        (KINDS | OUTSIDE)[name](ledger, random.Random(name), original)
        (end,) = pull([site], authority.identity(), out)
    assert end.verdict in (TAMPERED, REFUSED)
    assert end.mark is None
    assert files(out) == before


def test_a_ledger_that_is_signed_anew_under_another_key_is_found(
    original: Original, authority: Authority, tmp_path: Path
) -> None:
    content = original.content.copy()
    content.rows[0] = content.rows[0].saying(signer=STRANGER.public_key)
    content.rechain(STRANGER)
    document = _document(content, original, tmp_path)
    with showing(Hostile(content, stated=document), authority) as address:
        assert pull_one(address, authority, tmp_path / "first use").ok, "nobody knew its key before"
        mark = Mark(signer=original.signer.public_key, entries=len(original.content.rows), head=original.head)
        end = pull_one(address, authority, tmp_path / "out", marks={"ward": mark})
        assert (end.verdict, end.mark) == (TAMPERED, None)
    with serving(original.path, authority) as address:
        assert pull_one(address, authority, tmp_path / "out").ok
    with showing(Hostile(content, stated=document), authority) as address:
        assert pull_one(address, authority, tmp_path / "out").verdict == TAMPERED


def _document(content: Content, original: Original, folder: Path) -> bytes:
    from tests.privacy.ledger_content import write

    path = Path(shutil.copyfile(original.path, folder / "forged"))
    write(content, path)
    return state(path).document


@pytest.mark.parametrize(
    "chunks",
    [
        hostile.endless,
        hostile.unending_reply,
        hostile.huge,
        hostile.empty,
        hostile.wrong_digest,
        hostile.out_of_order,
        hostile.twice,
    ],
)
def test_a_site_that_sends_too_much_or_nonsense_is_refused_and_leaves_no_file(
    chunks: Callable[[Content], Iterator[Any]], original: Original, authority: Authority, tmp_path: Path
) -> None:
    servicer = Hostile(original.content, chunks=chunks(original.content))
    with showing(servicer, authority) as address:
        end = pull_one(address, authority, tmp_path / "out", limits=TIGHT)
    assert end.verdict in (TAMPERED, REFUSED)
    assert set(files(tmp_path)) == {"out/marks.json"}
    assert kept(tmp_path / "out") == {}


@pytest.mark.parametrize(
    "head",
    [
        {"dataset": "../ward"},
        {"dataset": "/etc/ward"},
        {"dataset": ""},
        {"dataset": "ward\n"},
        {"dataset": "w" * 81},
        {"dataset": "clinic"},
        {"dataset": "marks.json"},
        {"dataset": "a/../../ward"},
        {"head": "0" * 64},
        {"head": "../x"},
        {"entries": 0},
        {"entries": 2**63},
        {"entries": 400},
    ],
)
def test_a_head_that_is_not_of_the_entries_is_refused_and_writes_nothing(
    head: dict[str, Any], original: Original, authority: Authority, tmp_path: Path
) -> None:
    with showing(Hostile(original.content, head=head), authority) as address:
        end = pull_one(address, authority, tmp_path / "in" / "out", limits=TIGHT)
    assert end.verdict in (TAMPERED, REFUSED)
    assert set(files(tmp_path)) == {"in/out/marks.json"}


def test_every_name_that_a_dataset_may_have_is_one_folder_of_its_own() -> None:
    names = ["a/b", "a//b", "a.b", "a/../../b", "a/.", "a", "a-b", "a/b/"]
    folders = [folder_of(name) for name in names]
    assert len(set(folders)) == len(names)
    assert not any("/" in folder or folder.startswith(".") for folder in folders)


def test_a_site_whose_statement_is_not_what_its_ledger_gives_is_accused(
    original: Original, authority: Authority, tmp_path: Path
) -> None:
    with showing(Hostile(original.content, stated=b'{"claim":{"epsilon":0.1}}'), authority) as address:
        end = pull_one(address, authority, tmp_path / "out")
    assert end.verdict == TAMPERED
    document = (tmp_path / "out" / "ward" / "statement.json").read_bytes()
    assert document == state(original.path).document, "what is kept is made from the ledger"


def test_a_site_that_keeps_another_dataset_than_expected_is_refused(
    ledger: Path, authority: Authority, tmp_path: Path
) -> None:
    with serving(ledger, authority) as address:
        (end,) = pull([Target(address=address, dataset="clinic")], authority.identity(), tmp_path / "out")
    assert (end.verdict, kept(tmp_path / "out")) == (REFUSED, {})


def test_two_sites_that_name_one_dataset_are_both_refused(
    ledger: Path, authority: Authority, tmp_path: Path
) -> None:
    other = make_ledger(tmp_path / "other" / "ledger.sqlite", "ward")
    with serving(ledger, authority) as one, serving(other, authority) as two:
        ends = pull([Target(address=one), Target(address=two)], authority.identity(), tmp_path / "out")
    assert [end.verdict for end in ends] == [REFUSED, REFUSED]
    assert kept(tmp_path / "out") == {}


def test_a_dataset_that_the_given_marks_do_not_know_is_found(
    ledger: Path, authority: Authority, tmp_path: Path
) -> None:
    with serving(ledger, authority) as address:
        assert pull_one(address, authority, tmp_path / "out", marks={}).verdict == TAMPERED


def test_a_folder_at_which_another_pull_is_at_work_is_refused(authority: Authority, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigurationError, match="another pull"):
            pull([], authority.identity(), tmp_path)
    finally:
        os.close(descriptor)


def test_marks_that_are_damaged_stop_the_pull(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "marks.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="restore it"):
        pull([], authority.identity(), tmp_path)


def test_in_a_small_fleet_one_tampered_and_one_missing_site_stop_no_other(
    authority: Authority, tmp_path: Path
) -> None:
    ledgers = [make_ledger(tmp_path / f"{n}" / "ledger.sqlite", f"ward/{n}") for n in range(5)]
    raw = bytearray(ledgers[2].read_bytes())
    place = raw.index(b'"RESERVE') if b'"RESERVE' in raw else raw.index(b"RESERVE")
    raw[place + 40] ^= 1
    ledgers[2].write_bytes(raw)
    with ExitStack() as stack:
        sites = [Target(address=stack.enter_context(serving(ledger, authority))) for ledger in ledgers]
        with serving(ledgers[0], authority) as gone:
            pass
        done: list[None] = []
        ends = pull(
            [*sites, Target(address=gone)],
            authority.identity(),
            tmp_path / "out",
            done=lambda: done.append(None),
        )
    assert [end.verdict for end in ends] == [HOLDS, HOLDS, TAMPERED, HOLDS, HOLDS, UNREACHABLE]
    assert len(done) == 6
    assert set(kept(tmp_path / "out")) == {"ward/0", "ward/1", "ward/3", "ward/4"}
    assert (tmp_path / "out" / "ward%2F0" / "ledger.sqlite").is_file()


@pytest.mark.slow
def test_fifty_sites_are_pulled_and_verified(
    authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledgers = [make_ledger(tmp_path / f"{n}" / "ledger.sqlite", f"ward-{n}", releases=15) for n in range(50)]
    with ExitStack() as stack:
        sites = [Target(address=stack.enter_context(serving(ledger, authority))) for ledger in ledgers]
        begin = time.perf_counter()
        ends = pull(sites, authority.identity(), tmp_path / "out")
        seconds = time.perf_counter() - begin
    assert all(end.ok for end in ends)
    with capsys.disabled():
        print(f"\n50 sites pulled and verified in {seconds:.1f} s")  # noqa: T201
