"""Whatever comes in a site's name: the run goes on, and nothing is taken but what its ledger released."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from flwr.app import RecordDict
from hypothesis import HealthCheck, given, settings

from tests.fuzz.records import CONTENTS
from tests.fuzz.replies import FORGERIES, Server, altered, forged

SMALL_VERSION = {"altered": 15_000, "forged": 4_500, "made up": 500}
"""Together 20 000."""
WHOLE = {"altered": 640_000, "forged": 200_000, "made up": 40_000, "guided": 120_000}
"""Together 1 000 000."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("fuzz"))


def test_what_the_site_released_is_taken(server: Server) -> None:
    """Otherwise nothing that is refused would mean anything."""
    for name, conversation in server.conversations.items():
        assert server.judge(name, conversation.wire) == "taken"
        arrays = dict(conversation.answer.arrays)
        with pytest.raises(AssertionError):
            server.examine(name, server.sign(conversation.task, arrays))  # well formed, yet another reply


def alter(server: Server, number: int, seed: int) -> Counter[str]:
    replies = altered(server, Random(seed))
    return Counter(server.judge(*next(replies)) for _ in range(number))


def forge(server: Server, number: int, seed: int) -> Counter[str]:
    replies = forged(server, Random(seed))
    return Counter(server.examine(*next(replies)) for _ in range(number))


def make_up(server: Server, number: int) -> Counter[str]:
    found: Counter[str] = Counter()
    names = list(server.conversations)

    @settings(
        max_examples=number, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(content=CONTENTS)
    def examine(content: RecordDict) -> None:
        name = names[found.total() % len(names)]
        found[server.examine(name, content)] += 1

    examine()
    return found


def check(found: Counter[str], number: int) -> None:
    """Nothing is taken but an unaltered reply in another envelope, which is the site's own."""
    assert found.total() >= number
    assert found["taken"] < 0.01 * number
    assert set(found) <= {"taken", "refused", "MALFORMED_REPLY", "MISROUTED_REPLY", "UNKNOWN", "LATE"}


@pytest.mark.parametrize("seed", [1, 2])
def test_an_altered_reply_is_refused_and_ends_nothing(server: Server, seed: int) -> None:
    number = SMALL_VERSION["altered"] // 2
    check(alter(server, number, seed), number)


def test_a_forged_reply_is_refused_though_its_ledger_signs_it(server: Server) -> None:
    found = forge(server, SMALL_VERSION["forged"], seed=1)
    assert found == {"MALFORMED_REPLY": SMALL_VERSION["forged"]}


def test_a_reply_that_was_made_up_is_refused(server: Server) -> None:
    found = make_up(server, SMALL_VERSION["made up"])
    assert found["taken"] == 0
    check(found, SMALL_VERSION["made up"])


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.__name__.strip("_"))
def test_every_kind_of_forgery_is_a_forgery(server: Server, forgery: object) -> None:
    """Each differs from what the site released, always: a fuzzer that sends the truth finds nothing."""
    assert callable(forgery)
    draw = Random(3)
    for conversation in server.conversations.values():
        for _ in range(40):
            assert forgery(server, conversation, draw) != conversation.content


@pytest.mark.slow
def test_a_million_hostile_replies_end_nothing_and_none_is_taken(server: Server, tmp_path: Path) -> None:
    begin = time.monotonic()
    found = alter(server, WHOLE["altered"], seed=10)
    check(found, WHOLE["altered"])
    others = forge(server, WHOLE["forged"], seed=11)
    assert others == {"MALFORMED_REPLY": WHOLE["forged"]}
    made_up = make_up(server, WHOLE["made up"])
    check(made_up, WHOLE["made up"])
    assert made_up["taken"] == 0
    sys.stdout.write(f"\naltered {dict(found)}\nforged {dict(others)}\nmade up {dict(made_up)}\n")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", f"-runs={WHOLE['guided']}", "-seed=12", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sys.stdout.write("\n".join(done.stderr.splitlines()[-5:]))
    sys.stdout.write(f"\n{sum(WHOLE.values())} replies in {time.monotonic() - begin:.0f} s\n")
