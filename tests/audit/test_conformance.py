"""A run's own files: a real run conforms, and whoever alters one of its files is found by the right check."""

import gc
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fednas.audit.conformance import check_conformance, check_run
from fednas.audit.findings import Check
from fednas.audit.subject import Subject
from fednas.config import load_sites
from fednas.errors import FednasError
from fednas.privacy.signing import Signer
from server.checkpoint import RunDirectory
from simulations import runner
from tests.privacy.ledger_content import Content, read, write
from tests.simulations import tiny

RECORDS = "the server's records can be read and are complete"
PLANS = "the plans allow what the study's schedule needs and no more"
TRAVELS = "the epsilon that travels with the networks is that of the plans"
WHOLE = "every ledger is whole, in its order and signed by its own key"
MET = "the ledgers are those that the server met, and opened the plans that it holds"
RELEASED = "every answer that the server took is a release of that round in its site's ledger"
CHARGED = "every release was charged beforehand, with what its round costs"
ASKED = "no ledger holds a charge of this run that the study does not ask for"
MARKED = "every ledger holds the last state that the server saw of it"
SEEDED = "no ledger was made with reproducible noise"
CAPPED = "no stream claims more than its owner allows"
AGREED = "independent accountants agree on what every stream of every ledger cost"

STUDY = tiny.study(search={"strategy": "differentiable"})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study with secret noise, to its end."""
    path = tmp_path_factory.mktemp("original") / "run"
    runner.start(tiny.scenario(), STUDY, path, runner.Options())
    gc.collect()  # closes the ledgers: what is in a write-ahead log survives whatever is written to the file
    return path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A run to be spoilt."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def audited(run: Path) -> list[Check]:
    subject = replace(Subject.of(run / "study.toml"), run=run, num_tiers=tiny.NUM_SITES)
    return list(check_run(subject, run))


def accused(run: Path) -> set[str]:
    checks = audited(run)
    assert all("\n" not in check.detail for check in checks)
    return {check.name for check in checks if not check.holds}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite(run: Path, site: int, change: Callable[[Content], object], *, signed: bool) -> dict[str, str]:
    """Change a ledger and make its chain anew, with its owner's key or without.

    Returns:
        The new digest of each old one, for entries that are still there.
    """
    path = run / "sites" / f"site-{site}" / "ledger.sqlite"
    content, _ = read(path)
    change(content)
    before = [row.digest for row in content.rows]
    content.rechain(Signer(Path(f"{path}.key").read_bytes()) if signed else None)
    write(content, path)
    return dict(zip(before, (row.digest for row in content.rows), strict=True))


def collude(run: Path, moved: dict[str, str]) -> None:
    """Write the new heads into whatever the server wrote down."""
    for path in (*run.glob("rounds/*.json"), run / "marks.json", run / "plan.json"):
        text = path.read_text()
        for old, new in moved.items():
            text = text.replace(old, new)
        path.write_text(text)


def last(content: Content, kind: str) -> int:
    return content.places(kind)[-1]


def take_a_release(content: Content) -> None:
    place = content.places("RELEASE")[1]
    del content.replies[content.rows[place].facts["operation"]]
    del content.rows[place : place + 2]


def name_of(run: Path, site: int) -> str:
    return load_sites(run)[site].name


def test_a_real_run_conforms_and_is_not_touched(original: Path) -> None:
    before = digests(original)
    checks = audited(original)
    assert [check.name for check in checks if not check.holds] == []
    assert [check.name for check in checks] == [
        RECORDS, PLANS, TRAVELS, WHOLE, MET, RELEASED, CHARGED, ASKED, MARKED, SEEDED, CAPPED, AGREED,
    ]  # fmt: skip
    assert digests(original) == before


def test_the_layer_reads_the_run_first_and_then_drills(original: Path, tmp_path: Path) -> None:
    findings = check_conformance(Subject.of(original), tmp_path)
    names = [next(findings) for _ in range(13)]
    assert all(isinstance(check, Check) and check.holds and check.layer == "L0" for check in names)


def test_reproducible_noise_is_found_and_nothing_else(run: Path) -> None:
    def seed(content: Content) -> None:
        content.rows[0] = content.rows[0].saying(noise="seeded")

    collude(run, rewrite(run, 0, seed, signed=True))
    assert accused(run) == {SEEDED}


def test_a_release_that_was_taken_out_is_missed(run: Path) -> None:
    rewrite(run, 0, take_a_release, signed=False)
    assert accused(run) == {WHOLE, MET}


def test_a_release_that_the_owner_took_out_and_signed_is_missed(run: Path) -> None:
    rewrite(run, 0, take_a_release, signed=True)
    found = accused(run)
    assert {RELEASED, MARKED} <= found
    assert WHOLE not in found


@pytest.mark.parametrize("signed", [False, True])
def test_a_charge_that_was_lowered_is_found(run: Path, signed: bool) -> None:
    def lower(content: Content) -> None:
        place = last(content, "RESERVE")
        content.rows[place] = content.rows[place].saying(charges={"fitness": 1, "final": 1})

    moved = rewrite(run, 1, lower, signed=signed)
    if not signed:
        assert WHOLE in accused(run)
        return
    assert RELEASED in accused(run)
    collude(run, moved)
    assert accused(run) == {CHARGED}, "even a server that plays along cannot say what the round cost"


def test_a_charge_under_the_name_of_no_round_is_found(run: Path) -> None:
    def invent(content: Content) -> None:
        place = last(content, "RESERVE")
        extra = content.rows[place].saying(operation="0" * 32, round=9, charges={"final": 1})
        content.rows[place + 2 : place + 2] = [extra, content.rows[place + 1]]

    moved = rewrite(run, 2, invent, signed=True)
    collude(run, moved)
    found = accused(run)
    assert ASKED in found
    assert WHOLE not in found


def test_a_round_that_names_another_entry_is_found(run: Path) -> None:
    site = name_of(run, 0)
    head = json.loads((run / "rounds/00001.json").read_text())["sites"][site]

    def point(value: Any) -> None:
        value["sites"][site] |= {"head": head["head"], "entries": head["entries"]}

    edit_json(run / "rounds/00002.json", point)
    assert accused(run) == {RELEASED, CHARGED}


def test_a_round_whose_head_no_ledger_has_is_found(run: Path) -> None:
    edit_json(run / "rounds/00002.json", lambda v: v["sites"][name_of(run, 1)].update(head="0" * 64))
    assert accused(run) == {RELEASED}


def test_an_answer_that_no_ledger_released_is_found(run: Path) -> None:
    edit_json(run / "rounds/00003.json", lambda v: v["sites"][name_of(run, 1)].update(entries=10**6))
    assert accused(run) == {RELEASED}


@pytest.mark.parametrize("change", [{"head": "0" * 64}, {"entries": 10**6}, {"signer": "0" * 64}])
def test_a_mark_that_the_ledger_does_not_contain_is_found(run: Path, change: dict[str, Any]) -> None:
    dataset = load_sites(run)[2].dataset
    edit_json(run / "marks.json", lambda v: v["datasets"][dataset].update(change))
    assert accused(run) == {MARKED}


def test_a_mark_behind_the_servers_own_rounds_is_found(run: Path) -> None:
    site = load_sites(run)[0]
    early = json.loads((run / "rounds/00001.json").read_text())["sites"][site.name]

    def back(value: Any) -> None:
        value["datasets"][site.dataset] |= {"head": early["head"], "entries": early["entries"]}

    edit_json(run / "marks.json", back)
    assert accused(run) == {MARKED}


def test_an_older_copy_of_a_ledger_is_found(run: Path) -> None:
    def cut(content: Content) -> None:
        place = content.places("RELEASE")[-2]
        for row in content.rows[place + 2 :]:
            if row.kind == "RELEASE":
                del content.replies[row.facts["operation"]]
        del content.rows[place + 2 :]

    rewrite(run, 0, cut, signed=True)
    found = accused(run)
    assert WHOLE not in found
    assert {RELEASED, MARKED} <= found


def test_ledgers_that_changed_places_are_found(run: Path) -> None:
    left, right = (run / "sites" / f"site-{n}" / "ledger.sqlite" for n in (0, 1))
    shutil.move(left, run / "spare")
    shutil.move(right, left)
    shutil.move(run / "spare", right)
    assert {WHOLE, MET, RELEASED} <= accused(run)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + bytes(500), b"not a database" * 100])
def test_a_ledger_that_is_none_is_one_line(run: Path, content: bytes) -> None:
    (run / "sites/site-1/ledger.sqlite").write_bytes(content)
    assert accused(run) == {WHOLE, MET}


def test_a_plan_of_less_noise_is_found(run: Path) -> None:
    def weaken(value: Any) -> None:
        (entry,) = value["plans"]
        document = json.loads(entry["canonical"])
        document["allowances"][0]["event"]["noise_multiplier"] = "0.9"
        entry["canonical"] = json.dumps(document, sort_keys=True, separators=(",", ":"))
        entry["id"] = hashlib.sha256(entry["canonical"].encode()).hexdigest()
        for site in value["sites"].values():
            site["plan"] = entry["id"]

    edit_json(run / "plan.json", weaken)
    assert accused(run) == {PLANS, TRAVELS, MET}


def test_a_plan_for_more_rounds_than_the_study_has_is_found(run: Path) -> None:
    text = (run / "study.toml").read_text()
    (run / "study.toml").write_text(text.replace("spare_rounds = 1", "spare_rounds = 0"))
    assert accused(run) == {PLANS}


@pytest.mark.parametrize("name", ["result.json", "tiers/small/privacy.json"])
def test_an_epsilon_that_was_lowered_on_its_way_is_found(run: Path, name: str) -> None:
    edit_json(run / name, lambda value: value.update(epsilon=1.0))
    assert accused(run) == {TRAVELS}


def test_a_site_whose_ledger_was_taken_away_is_missed(run: Path) -> None:
    shutil.rmtree(run / "sites/site-1")
    assert accused(run) == {MET}


def test_the_record_of_a_round_that_was_taken_away_is_missed(run: Path) -> None:
    (run / "rounds/00002.json").unlink()
    assert RECORDS in accused(run)


def test_a_deployed_run_holds_no_ledgers_and_is_audited_for_the_rest(run: Path) -> None:
    shutil.rmtree(run / "sites")
    checks = audited(run)
    assert [check.name for check in checks] == [
        RECORDS, PLANS, TRAVELS, "the run directory holds no ledgers",
    ]  # fmt: skip
    assert all(check.holds for check in checks)
    edit_json(run / "result.json", lambda value: value.update(epsilon=1.0))
    assert accused(run) == {TRAVELS}


def test_ledgers_that_were_handed_in_are_audited_wherever_they_lie(run: Path, tmp_path: Path) -> None:
    handed = run / "handed-in"
    handed.mkdir()
    shutil.copyfile(run / "sites/site-1/ledger.sqlite", handed / "from-bravo.sqlite")
    shutil.rmtree(run / "sites")
    checks = {check.name: check for check in audited(run)}
    assert all(check.holds for check in checks.values())
    assert "no ledger of alpha, cobra is here" in checks[MET].detail
    edit_json(run / "rounds/00001.json", lambda v: v["sites"]["bravo"].update(head="0" * 64))
    assert accused(run) == {RELEASED}


@pytest.mark.parametrize("name", ["run.json", "plan.json", "marks.json", "result.json", "rounds/00002.json"])
def test_a_truncated_record_is_one_line(run: Path, name: str) -> None:
    text = (run / name).read_bytes()
    for spoilt in (text[: len(text) // 2], b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000):
        (run / name).write_bytes(spoilt)
        assert RECORDS in accused(run)


def test_a_missing_file_of_marks_is_found(run: Path) -> None:
    (run / "marks.json").unlink()
    assert accused(run) == {RECORDS, MARKED}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in leaves(part, (*path, key)))]


def test_whatever_a_record_holds_the_audit_ends_in_checks(original: Path, tmp_path: Path) -> None:
    source = random.Random(1)
    names = ["run.json", "plan.json", "marks.json", "result.json", "rounds/00001.json", "rounds/00003.json"]
    run = Path(shutil.copytree(original, tmp_path / "run"))
    subject = Subject.of(run)
    odd: list[Any] = [
        None,
        -1,
        0,
        10**30,
        0.5,
        "",
        "x",
        "\n" * 3,
        "é" * 300,
        [],
        {},
        [[]],
        {"a": 1},
        True,
        1e308,
    ]
    for _ in range(40):
        name = source.choice(names)
        text = (run / name).read_text()
        value = json.loads(text)
        *before, key = source.choice(leaves(value)[1:])
        place = value
        for step in before:
            place = place[step]
        place[key] = source.choice(odd)
        (run / name).write_text(json.dumps(value))
        with suppress(FednasError):  # a subject of a corrupt study or plan is refused in one line before
            for check in check_run(subject, run):
                assert "\n" not in check.detail
        (run / name).write_text(text)


@pytest.mark.slow
def test_whatever_a_ledger_file_holds_the_audit_ends_in_checks(original: Path, tmp_path: Path) -> None:
    source = random.Random(2)
    run = Path(shutil.copytree(original, tmp_path / "run"))
    subject, path = Subject.of(run), run / "sites/site-0/ledger.sqlite"
    whole = path.read_bytes()
    for _ in range(200):
        spoilt = bytearray(whole)
        for _ in range(source.randint(1, 4)):
            spoilt[source.randrange(len(spoilt))] ^= 1 << source.randrange(8)
        path.write_bytes(spoilt)
        list(check_run(subject, run))


def adaptive(path: Path) -> Path:
    """A run whose sites account by a filter at one order."""
    tiny.make_run(path, STUDY, seed=None)
    for file in path.glob("sites/*/site.toml"):
        file.write_text("order = 16\n" + file.read_text())
    runner.resume(path, runner.Options(), scenario="tiny")
    return path


def shared(path: Path) -> Path:
    """The second run on the same ledgers and marks, which lie elsewhere."""
    options = runner.Options(cap=5.0, state=path.parent / "state")
    for place in (path.parent / "first", path):
        runner.start(tiny.scenario(), tiny.study(), place, options)
    gc.collect()
    assert accused(path.parent / "first") == set()
    return path


def unequal(path: Path) -> Path:
    """A run with a site that allows less than the others."""
    runner.start(tiny.scenario(), tiny.study(), path, runner.Options(caps={"alpha": 1.0}))
    return path


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


def resumed(path: Path) -> Path:
    """A run that died between a round's record and its checkpoint, and went on."""
    save = RunDirectory.save

    def dying(self: RunDirectory, number: int, *rest: Any) -> None:
        if number == 3:
            raise Killed
        save(self, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "save", dying)
        with suppress(Killed):
            runner.start(tiny.scenario(), STUDY, path, runner.Options())
    gc.collect()
    assert accused(path) == set(), "a run that lies there half done is none to be accused"
    runner.resume(path, runner.Options(), scenario="tiny")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("made", [adaptive, shared, unequal, resumed])
def test_correct_runs_of_every_kind_conform(made: Callable[[Path], Path], tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    gc.collect()
    checks = audited(run)
    assert [(check.name, check.detail) for check in checks if not check.holds] == []
    assert len(checks) == 12
