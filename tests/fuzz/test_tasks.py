"""Whatever is asked in a server's name: a site answers with a constant code, and pays for nothing."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from flwr.app import RecordDict
from hypothesis import HealthCheck, given, settings

from fednas.wire import Answer, decode
from tests.fuzz.records import CONTENTS
from tests.fuzz.tasks import (
    ABUSES,
    ASKED,
    SERVER,
    SITE,
    Device,
    SpentError,
    abused,
    altered,
    refusals,
    strange,
)

SMALL_VERSION = {"altered": 3_000, "strange": 600, "abused": 300, "made up": 300}
WHOLE = {"altered": 76_000, "strange": 10_000, "abused": 4_000, "made up": 10_000}
"""Together 100 000."""


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    made.sites.restart()


def make_up(device: Device, number: int) -> Counter[str]:
    found: Counter[str] = Counter()

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(content=CONTENTS)
    def ask(content: RecordDict) -> None:
        found[device.ask(device.carry(content))] += 1

    ask()
    return found


def besiege(device: Device, numbers: dict[str, int], seed: int) -> dict[str, Counter[str]]:
    """Ask everything; the ledger pays for nothing."""
    streams = {"altered": altered, "strange": strange, "abused": abused}
    found = {}
    for name, stream in streams.items():
        messages = stream(device, Random(seed))
        found[name] = Counter(device.ask(next(messages)) for _ in range(numbers[name]))
        assert device.spent() == [], name
    found["made up"] = make_up(device, numbers["made up"])
    assert device.spent() == []
    assert set().union(*found.values()) <= refusals()
    return found


def test_hostile_messages_cost_a_site_nothing_and_are_answered_with_codes(device: Device) -> None:
    found = besiege(device, SMALL_VERSION, seed=1)
    assert found["strange"].keys() == {"UNKNOWN_SERVER"}
    assert found["altered"]["UNKNOWN_SERVER"] > 100, "many must be well formed, or the key protects nothing"
    assert {"MALFORMED", "DOES_NOT_FIT", "BUDGET_EXHAUSTED", "LEDGER_ROLLED_BACK"} <= found["abused"].keys()
    for asked in ASKED:  # and the site is as willing as before
        reply = device.sites.ask(asked.signed(SERVER, SITE), site=2)
        assert isinstance(decode(reply), Answer)
    assert device.spent().count("RESERVE") == len(ASKED)


def test_what_the_server_asks_would_have_been_paid_for(device: Device) -> None:
    """Otherwise a device that does nothing at all would pass."""
    with pytest.raises(SpentError):
        device.ask(device.wires[0])


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.__name__.strip("_"))
def test_every_kind_of_abuse_is_one(device: Device, abuse: object) -> None:
    assert callable(abuse)
    draw = Random(5)
    for _ in range(30):
        asked = abuse(ASKED[draw.randrange(len(ASKED))], draw)
        assert all(asked.digest() != fair.digest() or asked.mark for fair in ASKED)


@pytest.mark.slow
def test_a_hundred_thousand_hostile_messages_cost_a_site_nothing(device: Device) -> None:
    begin = time.monotonic()
    found = besiege(device, WHOLE, seed=2)
    for name, counts in found.items():
        sys.stdout.write(f"\n{name} {dict(counts)}")
    sys.stdout.write(f"\n{sum(WHOLE.values())} messages in {time.monotonic() - begin:.0f} s, nothing spent\n")
