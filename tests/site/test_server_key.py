"""A site that knows its server does what that server asks, and nothing that anybody else does."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fednas.config import load_site, save_site
from fednas.privacy.signing import TaskSigner
from fednas.site import open_site
from fednas.wire import Answer, Refusal, Task, decode
from tests.simulations import tiny
from tests.site.sites import STUDY, Sites, plan_of, task


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    yield Sites(tiny.make_run(tmp_path / "run", STUDY))
    open_site.cache_clear()


SERVER, STRANGER = TaskSigner(b"s" * 32), TaskSigner(b"x" * 32)
UNSIGNED: dict[str, Callable[[str], Task]] = {
    "nobody": lambda site: task(),
    "a stranger": lambda site: task().signed(STRANGER, site),
    "the server, for another site": lambda site: task().signed(SERVER, "cobra"),
    "the server, for another round": lambda site: replace(task().signed(SERVER, site), round=2),
    "the server, with another plan": lambda site: replace(
        task().signed(SERVER, site), plan=plan_of(epsilon=2.0).to_json()
    ),
    "the server, with other weights": lambda site: replace(
        task().signed(SERVER, site), arrays={"weights.0": 2.0 * task().arrays["weights.0"]}
    ),
    "the server, with another mark": lambda site: replace(task().signed(SERVER, site), mark="a" * 64),
}


def obey(sites: Sites, key: str) -> str:
    """Let the first site know its server; returns its name."""
    path = sites.path / "sites" / "site-0" / "site.toml"
    config = load_site(path).model_copy(update={"server_key": key})
    save_site(config, path)
    sites.restart()
    return config.name


@pytest.mark.parametrize("who", UNSIGNED)
def test_a_site_that_knows_its_server_does_nothing_that_another_asks(sites: Sites, who: str) -> None:
    name = obey(sites, SERVER.public_key)
    assert decode(sites.ask(UNSIGNED[who](name))) is Refusal.UNKNOWN_SERVER
    assert sites.entries() == ["OPEN"]


def test_a_site_that_knows_its_server_answers_it(sites: Sites) -> None:
    name = obey(sites, SERVER.public_key)
    asked = task().signed(SERVER, name)
    answer = decode(sites.ask(asked))
    assert isinstance(answer, Answer)
    assert answer.operation_id == task().operation(name).id
    assert sites.ask(asked) == sites.ask(asked), "a repeat is no other task"
