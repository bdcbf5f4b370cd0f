"""A site refuses with a constant code before it charges, and answers a repeated task with the same bytes."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.app import app
from fednas.config import load_site
from fednas.errors import ExchangeError
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import release_schedule
from fednas.search import Policy
from fednas.site import open_site
from fednas.site import site as site_module
from fednas.space import Architecture
from fednas.wire import Answer, SiteFacts, Task, check_signature, decode, decode_facts, encode_task
from simulations.loopback import InProcessGrid
from tests.simulations import tiny
from tests.site.sites import LARGE, SMALL, SPACE, STUDY, SUPERNET, TOO_LARGE_SITE, Sites, plan_of, task

SECRET = "record 17 has the value 42.125"
Change = Callable[[Task], Task]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    yield Sites(tiny.make_run(tmp_path / "run", STUDY))
    open_site.cache_clear()


def arrays_of(content: RecordDict) -> dict[str, np.ndarray]:
    answer = decode(content)
    assert isinstance(answer, Answer)
    return dict(answer.arrays)


def code(content: RecordDict) -> str:
    """The refusal's code, after a check that a code is all there is."""
    assert list(content) == ["refusal"]
    assert list(content.config_records["refusal"]) == ["code"]
    return str(content.config_records["refusal"]["code"])


def same(left: RecordDict, right: RecordDict) -> bool:
    return (
        left.config_records["manifest"]["json"] == right.config_records["manifest"]["json"]
        and left.array_records["data"]["flat"].data == right.array_records["data"]["flat"].data
    )


def foreign() -> Architecture:
    """An architecture that no space of the study holds."""
    return Architecture.of("mlp", SMALL.as_dict() | {"layers.0.width": 17})


def with_weights(index: int, weights: np.ndarray) -> Change:
    return lambda t: replace(t, arrays={**t.arrays, f"weights.{index}": weights})


def with_alphas(values: np.ndarray) -> Change:
    return lambda t: replace(t, arrays={**t.arrays, "alphas": values})


MALFORMED: dict[str, Change] = {
    "an architecture outside the space": lambda t: replace(t, architectures=(foreign(),)),
    "an architecture of another space": lambda t: replace(
        t, architectures=(Architecture.of("conv", SMALL.as_dict()),)
    ),
    "weights that are too short": with_weights(0, SUPERNET.gather(SMALL)[:-1]),
    "weights that are too long": with_weights(0, SUPERNET.gather(LARGE)),
    "weights of another type": with_weights(0, SUPERNET.gather(SMALL).astype(np.float64)),
    "weights of another shape": with_weights(0, SUPERNET.gather(SMALL)[None]),
    "no weights": lambda t: replace(t, arrays={}),
    "weights of two, architecture of one": with_weights(1, SUPERNET.gather(SMALL)),
    "an array of unknown use": lambda t: replace(t, arrays={**t.arrays, "extra": np.zeros(1)}),
    "two architectures to train": lambda t: replace(
        t,
        architectures=(SMALL, SMALL),
        arrays={"weights.0": SUPERNET.gather(SMALL), "weights.1": SUPERNET.gather(SMALL)},
    ),
    "no architecture": lambda t: replace(t, architectures=(), arrays={}),
    "nothing to evaluate": lambda t: replace(t, kind="evaluate", architectures=(), arrays={}),
    "alphas to evaluate": lambda t: with_alphas(Policy(SPACE).flat())(replace(t, kind="evaluate")),
    "alphas in the final": lambda t: with_alphas(Policy(SPACE).flat())(replace(t, kind="final")),
    "alphas that are too short": with_alphas(np.zeros(3)),
    "alphas that are no numbers": with_alphas(np.full_like(Policy(SPACE).flat(), np.nan)),
    "an unknown kind": lambda t: replace(t, kind="look"),  # type: ignore[arg-type]
    "a study that is none": lambda t: replace(t, study="epsilon = 3"),
    "a study that is no TOML": lambda t: replace(t, study="= ="),
    "a plan that is none": lambda t: replace(t, plan="{}"),
    "a plan in another spelling": lambda t: replace(t, plan=t.plan.replace(",", ", ", 1)),
    "a plan of infinite noise": lambda t: replace(
        t, plan=t.plan.replace('"noise_multiplier":"', '"noise_multiplier":"inf', 1)
    ),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_task_is_refused_before_anything_is_charged(sites: Sites, change: Change) -> None:
    assert code(sites.ask(change(task()))) == "MALFORMED"
    assert sites.entries() == ["OPEN"]


def test_an_empty_message_is_refused_before_anything_is_charged(sites: Sites) -> None:
    assert code(sites.send(RecordDict())) == "MALFORMED"
    assert code(sites.send(RecordDict({"manifest": ConfigRecord({"json": "[]"})}), "evaluate")) == "MALFORMED"
    assert sites.entries() == ["OPEN"]


def test_a_task_of_another_protocol_is_refused(sites: Sites) -> None:
    content = encode_task(task())
    manifest = json.loads(str(content.config_records["manifest"]["json"])) | {"protocol": 0}
    content["manifest"] = ConfigRecord({"json": json.dumps(manifest)})
    assert code(sites.send(content)) == "MALFORMED"
    assert sites.entries() == ["OPEN"]


@pytest.mark.parametrize("kind", ["train", "final", "evaluate"])
def test_a_path_that_does_not_fit_the_device_is_refused_before_anything_is_charged(
    sites: Sites, kind: str
) -> None:
    assert code(sites.ask(task(kind, LARGE), site=TOO_LARGE_SITE)) == "DOES_NOT_FIT"
    assert sites.entries(TOO_LARGE_SITE) == ["OPEN"]
    assert decode(sites.ask(task(kind, LARGE), site=0)), "it does fit the largest device"


def test_one_candidate_of_many_that_does_not_fit_refuses_them_all(sites: Sites) -> None:
    assert code(sites.ask(task("evaluate", SMALL, LARGE), site=TOO_LARGE_SITE)) == "DOES_NOT_FIT"
    assert sites.entries(TOO_LARGE_SITE) == ["OPEN"]


def test_a_plan_over_the_cap_is_refused_and_only_the_refusal_is_written(sites: Sites) -> None:
    greedy = task(plan=plan_of(epsilon=3.5))
    assert code(sites.ask(greedy)) == "BUDGET_EXHAUSTED"
    assert sites.entries() == ["OPEN", "REFUSE"]
    assert code(sites.ask(greedy)) == "BUDGET_EXHAUSTED"
    assert sites.entries() == ["OPEN", "REFUSE"], "a repeated request fills no disk"


def test_a_plan_without_noise_is_over_every_cap(sites: Sites) -> None:
    bare = tiny.study(privacy={"epsilon": float("inf"), "non_private": True})
    plan = PrivacyPlan.calibrate(
        budget=bare.privacy.budget,
        proportions=bare.privacy.proportions,
        schedule=release_schedule(bare, 3),
    )
    assert code(sites.ask(task(study=bare, plan=plan))) == "BUDGET_EXHAUSTED"
    assert sites.entries() == ["OPEN", "REFUSE"]


def test_a_second_plan_that_no_longer_fits_is_refused(sites: Sites) -> None:
    assert decode(sites.ask(task()))
    assert code(sites.ask(replace(task(), run="again"))) == "BUDGET_EXHAUSTED"
    assert sites.entries() == ["OPEN", "PLAN", "RESERVE", "RELEASE", "REFUSE"]


def test_another_plan_for_the_same_run_is_refused(sites: Sites) -> None:
    assert decode(sites.ask(task()))
    other = replace(task(plan=plan_of(epsilon=2.0)), round=2)
    assert code(sites.ask(other)) == "REPLAY_MISMATCH"
    assert sites.entries()[-2:] == ["RELEASE", "REFUSE"]


def test_more_steps_than_the_plan_has_are_never_taken(sites: Sites) -> None:
    greedy = tiny.study(search={"strategy": "differentiable"}, training={"steps_per_round": 1000})
    assert code(sites.ask(task(study=greedy, plan=plan_of()))) == "BUDGET_EXHAUSTED"
    assert sites.entries() == ["OPEN"], "a plan that cannot pay for what is asked is not opened either"


def test_a_release_that_the_plan_does_not_know_is_never_made(sites: Sites) -> None:
    fixed = tiny.study(search={"fixed": {"large": SMALL.as_dict()}})
    assert code(sites.ask(task("evaluate", study=fixed))) == "PRIVACY_REFUSAL"
    assert sites.entries() == ["OPEN"]


def test_data_that_cannot_be_read_are_found_before_anything_is_charged(sites: Sites) -> None:
    (sites.path / "sites" / "site-0" / "data.npz").unlink()
    assert code(sites.ask(task())) == "SITE_FAILURE"
    assert sites.entries() == ["OPEN"]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((60, 5), dtype=np.float32), np.arange(60) % 3),
        (np.zeros((60, 4), dtype=np.float64), np.arange(60) % 3),
    ],
    ids=["another shape", "another type"],
)
def test_a_file_of_another_form_is_a_failure_without_a_word_or_a_charge(
    sites: Sites, x: np.ndarray, y: np.ndarray
) -> None:
    np.savez(sites.path / "sites" / "site-0" / "data.npz", x=x, y=y)
    assert code(sites.ask(task())) == "SITE_FAILURE"
    assert sites.entries() == ["OPEN"]


def give_a_table(sites: Sites, header: str) -> None:
    """The first site's records as a CSV file in the place of its `.npz`."""
    folder = sites.path / "sites" / "site-0"
    with np.load(folder / "data.npz") as arrays:
        x, y, names = arrays["x"], arrays["y"], arrays["id"]
    rows = zip(x.tolist(), y.tolist(), names.tolist(), strict=True)
    lines = [",".join(map(repr, row)) + f",{label},{name.decode()}" for row, label, name in rows]
    (folder / "data.csv").write_text("\n".join([header, *lines]) + "\n")
    (folder / "data.npz").unlink()
    text = (folder / "site.toml").read_text()
    columns = '[columns]\nlabel = "class"\nid = "patient"\n\n[device]'
    (folder / "site.toml").write_text(text.replace("data.npz", "data.csv").replace("[device]", columns))


def test_a_table_without_a_column_is_found_before_anything_is_charged(sites: Sites) -> None:
    give_a_table(sites, "a,b,c,d,diagnosis,patient")
    assert code(sites.ask(task())) == "SITE_FAILURE"
    assert sites.entries() == ["OPEN"]


def test_a_site_answers_the_same_whatever_its_records_are_kept_in(sites: Sites) -> None:
    usual = arrays_of(sites.ask(task(alphas=True)))
    ledger = load_site(sites.path / "sites" / "site-0" / "site.toml").ledger
    sites.restart()
    for file in ledger.parent.glob(f"{ledger.name}*"):
        file.unlink()
    give_a_table(sites, "a,b,c,d,class,patient")
    answer = arrays_of(sites.ask(task(alphas=True)))
    assert answer.keys() == usual.keys()
    assert all(np.array_equal(answer[name], usual[name], equal_nan=True) for name in usual)


@pytest.mark.parametrize("what", [task(alphas=True), task("final"), task("evaluate", SMALL, SMALL)])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.full((60, 4), np.nan, dtype=np.float32), np.arange(60) % 3),
        (np.full((60, 4), 1e38, dtype=np.float32), np.arange(60) % 3),
        (np.ones((60, 4), dtype=np.float32), np.full(60, 7)),
        (np.ones((60, 4), dtype=np.float32), np.zeros(60, dtype=np.int64)),
        (np.ones((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)),
    ],
    ids=["no numbers", "monstrous numbers", "no known class", "one class", "no record"],
)
def test_records_whatever_they_are_never_decide_whether_a_site_answers(
    sites: Sites, x: np.ndarray, y: np.ndarray, what: Task
) -> None:
    usual = arrays_of(sites.ask(what))
    np.savez(sites.path / "sites" / "site-1" / "data.npz", x=x, y=y)
    answer = arrays_of(sites.ask(what, 1))
    assert {k: (a.shape, a.dtype) for k, a in answer.items()} == {
        k: (a.shape, a.dtype) for k, a in usual.items()
    }
    known = {name: np.isfinite(array) for name, array in usual.items()}  # a policy's unseen choices are NaN
    for name, array in answer.items():
        assert np.array_equal(np.isfinite(array), known[name])
    assert sites.entries(1) == sites.entries(0)


def test_only_the_owners_log_tells_how_many_records_break_the_schema(
    sites: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    usual = sites.ask(task(), 1)
    assert "break the study's schema" not in caplog.text
    x, y = np.ones((60, 4), dtype=np.float32), np.arange(60) % 3
    x[[3, 5], 1], y[7] = np.nan, 8
    np.savez(sites.path / "sites" / "site-0" / "data.npz", x=x, y=y)
    answer = sites.ask(task())
    assert "3 records break the study's schema" in caplog.text
    assert len(answer.array_records) == len(usual.array_records)
    assert set(answer) == set(usual)
    for name, record in answer.config_records.items():
        assert set(record) == set(usual.config_records[name])


def test_a_corrupt_ledger_is_a_ledger_failure(sites: Sites) -> None:
    (sites.path / "sites" / "site-0" / "ledger.sqlite").write_bytes(b"not a database" * 100)
    assert code(sites.ask(task())) == "LEDGER_FAILURE"
    assert code(sites.send(RecordDict(), "query.hello")) == "LEDGER_FAILURE"


def test_a_node_without_a_site_says_so_with_a_code() -> None:
    grid = InProcessGrid(app, {1: {}}, {})
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, "query.hello", ttl=60.0)])
    assert code(reply.content) == "MALFORMED"


@pytest.mark.parametrize(
    "what", [task(), task("final"), task("evaluate", SMALL, SMALL), task(alphas=True)], ids=lambda t: t.kind
)
def test_a_repeated_task_gets_the_same_bytes_without_a_charge_even_after_a_restart(
    sites: Sites, what: Task
) -> None:
    first = sites.ask(what)
    assert sites.entries() == ["OPEN", "PLAN", "RESERVE", "RELEASE"]
    assert same(first, sites.ask(what))
    sites.restart()
    assert same(first, sites.ask(what))
    assert sites.entries() == ["OPEN", "PLAN", "RESERVE", "RELEASE"]


def test_another_round_is_another_operation_with_other_noise(sites: Sites) -> None:
    assert not same(sites.ask(task()), sites.ask(replace(task(), round=2)))
    assert sites.entries() == ["OPEN", "PLAN", "RESERVE", "RELEASE", "RESERVE", "RELEASE"]


def test_the_same_operation_with_another_content_is_refused_and_not_charged(sites: Sites) -> None:
    first = sites.ask(task())
    other = with_weights(0, SUPERNET.gather(SMALL) + np.float32(1))(task())
    assert code(sites.ask(other)) == "REPLAY_MISMATCH"
    assert sites.entries() == ["OPEN", "PLAN", "RESERVE", "RELEASE", "REFUSE"]
    assert same(first, sites.ask(task())), "the first content is still answered"


def test_an_unexpected_exception_leaves_as_a_code_without_a_word_and_its_charge_stays(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    with monkeypatch.context() as patch:
        patch.setattr(site_module, "train_weights", fail)
        content = sites.ask(task())
    assert code(content) == "SITE_FAILURE"
    assert SECRET not in repr(content)
    assert sites.entries() == ["OPEN", "PLAN", "RESERVE"], "the charge stays"
    assert decode(sites.ask(task()))
    assert sites.entries() == ["OPEN", "PLAN", "RESERVE", "RESERVE", "RELEASE"], "a retry charges again"


def test_a_ledger_that_was_restored_from_an_older_copy_is_refused_before_anything_is_charged(
    sites: Sites, tmp_path: Path
) -> None:
    ledger = load_site(sites.path / "sites" / "site-0" / "site.toml").ledger
    decode(sites.ask(task()))
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(tmp_path / "older")) as copy:
        source.backup(copy)
    seen = decode(sites.ask(replace(task(), round=2)))
    assert isinstance(seen, Answer)
    marked = replace(task(), round=3, mark=seen.head)
    assert isinstance(decode(sites.ask(marked)), Answer)
    sites.restart()
    for suffix in ("-wal", "-shm"):
        ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)
    shutil.copy(tmp_path / "older", ledger)
    before = sites.entries()
    assert code(sites.ask(replace(marked, round=4))) == "LEDGER_ROLLED_BACK"
    assert sites.entries() == before
    facts = decode_facts(sites.send(RecordDict(), "query.hello"))
    assert facts.entries < seen.entries, "the server sees it too, at hello"


def test_a_newer_mark_does_not_make_a_repeated_task_another_one(sites: Sites) -> None:
    first = sites.ask(task())
    answer = decode(first)
    assert isinstance(answer, Answer)
    assert same(first, sites.ask(replace(task(), mark=answer.head)))
    assert sites.entries() == ["OPEN", "PLAN", "RESERVE", "RELEASE"]


def test_every_answer_is_signed_by_the_key_that_hello_showed(sites: Sites) -> None:
    facts = decode_facts(sites.send(RecordDict(), "query.hello"))
    other = decode_facts(sites.send(RecordDict(), "query.hello", site=1))
    answer = decode(sites.ask(task()))
    assert isinstance(answer, Answer)
    check_signature(answer, facts)
    for lie in (
        (replace(answer, entries=answer.entries + 1), facts),
        (replace(answer, head="0" * 64), facts),
        (replace(answer, signature="no signature"), facts),
        (answer, other),
        (answer, replace(facts, dataset="another")),
    ):
        with pytest.raises(ExchangeError, match="not signed"):
            check_signature(*lie)


def test_hello_holds_facts_of_the_configuration_and_nothing_else(sites: Sites) -> None:
    content = sites.send(RecordDict(), "query.hello", site=1)
    assert list(content) == ["facts"]
    assert list(content.config_records["facts"]) == ["json"]
    config = load_site(sites.path / "sites" / "site-1" / "site.toml")
    with PrivacyLedger.open(
        config.ledger, dataset=config.dataset, cap=config.cap, test_seed=config.test_seed
    ) as ledger:
        (entries, head), signer = ledger.position(), ledger.public_key
    assert decode_facts(content) == SiteFacts(
        site=config.name,
        dataset=config.dataset,
        declared_size=config.declared_size,
        epsilon_cap=config.epsilon,
        delta=config.delta,
        device=config.device,
        signer=signer,
        entries=entries,
        head=head,
    )
    assert set(json.loads(str(content.config_records["facts"]["json"]))) == {
        "site",
        "dataset",
        "declared_size",
        "epsilon_cap",
        "delta",
        "device",
        "signer",
        "entries",
        "head",
        "order",
        "protocol",
    }


def test_hello_says_the_same_whatever_the_records_are(sites: Sites) -> None:
    before = sites.send(RecordDict(), "query.hello")
    (sites.path / "sites" / "site-0" / "data.npz").unlink()
    sites.restart()
    after = sites.send(RecordDict(), "query.hello")
    assert before.config_records["facts"]["json"] == after.config_records["facts"]["json"]
