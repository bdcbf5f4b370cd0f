"""A site that knows its server, and what becomes of whatever a server, or somebody else, asks of it."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from flwr.app import Message, RecordDict

from client.app import app
from fednas.config import load_site, save_site
from fednas.privacy.events import NonPrivate
from fednas.privacy.signing import TaskSigner
from fednas.privacy.store import read_entries
from fednas.space import Architecture
from fednas.wire import Answer, Refusal, Task, decode, encode_task
from simulations import internals
from tests.fuzz.mutations import mutated
from tests.simulations import tiny
from tests.site.sites import LARGE, SMALL, STUDY, SUPERNET, Sites, plan_of, task

SERVER, STRANGER = TaskSigner(b"s" * 32), TaskSigner(b"x" * 32)
SITE: Final = "cobra"
"""The smallest device of the three: there are paths that do not fit it."""
ASKED: Final = (
    task("train", SMALL, alphas=True),
    replace(task("final", SMALL), round=2),
    replace(task("evaluate", SMALL, SMALL), round=3),
)


class SpentError(AssertionError):
    """A site did something that its server never asked, or could not ask."""


class Device:
    """One site behind the real client app; `ask` is what it makes of a message.

    Args:
        path: an empty folder.
    """

    def __init__(self, path: Path) -> None:
        run = tiny.make_run(path / "run", STUDY)
        file = run / "sites" / "site-2" / "site.toml"
        config = load_site(file).model_copy(update={"server_key": SERVER.public_key})
        assert config.name == SITE
        save_site(config, file)
        self.ledger = config.ledger
        self.sites = Sites(run)
        self._context = internals.new_context(1, {"partition-id": 2}, {"sites-dir": str(run / "sites")})
        self.sites.send(RecordDict(), "query.hello", site=2)
        self.wires = [self.wire(asked.signed(SERVER, SITE)) for asked in ASKED]

    def wire(self, asked: Task, kind: str | None = None) -> bytes:
        """The bytes in which Flower carries a task."""
        return self.carry(encode_task(asked), kind or ("evaluate" if asked.kind == "evaluate" else "train"))

    def carry(self, content: RecordDict, kind: str = "train") -> bytes:
        """The bytes in which Flower carries any message to this node."""
        message = Message(content, 1, kind, ttl=60.0)
        internals.stamp(message, f"{1:032x}")
        return internals.encode(message)

    def ask(self, data: bytes) -> str:
        """What the site answers to the bytes of a message: a constant code.

        Raises:
            SpentError: it answered with anything that was paid for.
            Exception: it ended, which Flower would report in its own words.
        """
        try:
            message = internals.decode(data)
        except Exception:  # noqa: BLE001  Flower never hands it over
            return "UNREADABLE"
        if message.has_error():
            return "UNREADABLE"
        if message.metadata.message_type.partition(".")[0] not in ("train", "evaluate", "query"):
            return "UNROUTED"
        reply = app(message, self._context)
        if "facts" in reply.content:
            return "facts"
        found = decode(reply.content)
        if isinstance(found, Answer):
            raise SpentError(found.operation_id)
        return found.value

    def spent(self) -> list[str]:
        """The entries by which a ledger opens a plan, charges, or releases: there must be none."""
        kinds = [entry.kind for entry in read_entries(self.ledger)]
        return [kind for kind in kinds if kind in ("PLAN", "RESERVE", "RELEASE")]


def altered(device: Device, draw: Random) -> Iterator[bytes]:
    """The server's own signed tasks after a few changes of their bytes that leave no task whole, for ever."""
    whole = {_content(data) for data in device.wires}
    while True:
        data = mutated(draw.choice(device.wires), draw, device.wires)
        if _content(data) not in whole:
            yield data


def _content(data: bytes) -> str:
    """What a message asks, whatever envelope it has."""
    try:
        return repr(internals.decode(data).content)
    except Exception:  # noqa: BLE001  Flower never hands it over
        return ""


def strange(device: Device, draw: Random) -> Iterator[bytes]:
    """Well-formed tasks that the server did not sign as they are, for ever."""
    while True:
        yield device.wire(_unsigned(draw.choice(ASKED), draw))


def _unsigned(asked: Task, draw: Random) -> Task:
    """A task that anybody could make, or that the server signed and somebody then changed."""
    signed = asked.signed(SERVER, SITE)
    arrays = {name: np.array(array) for name, array in asked.arrays.items()}
    name = draw.choice(list(arrays))
    arrays[name][draw.randrange(arrays[name].size)] += draw.choice((1e-3, -1.0, 4.0))
    seed = f"seed = {draw.randrange(1, 99)}"
    spelt = ("", "0" * 128, signed.signature[::-1], signed.signature.upper())
    changes: list[Callable[[], Task]] = [
        lambda: asked,
        lambda: asked.signed(STRANGER, SITE),
        lambda: asked.signed(TaskSigner(draw.randbytes(32)), SITE),
        lambda: asked.signed(SERVER, draw.choice(("alpha", "bravo", "cobra2", ""))),
        lambda: replace(signed, round=draw.randrange(1, 10**6) + 3),
        lambda: replace(signed, run=f"run {draw.random()}"),
        lambda: replace(signed, mark=f"{draw.getrandbits(256):064x}"),
        lambda: replace(signed, arrays=arrays),
        lambda: replace(signed, study=asked.study.replace("seed = 0", seed)),
        lambda: replace(signed, plan=plan_of(epsilon=draw.choice((0.5, 2.0))).to_json()),
        lambda: replace(signed, signature=draw.choice(spelt)),
    ]
    return draw.choice(changes)()


Abuse = Callable[[Task, Random], Task]
_TEXTS: Final = (
    "",
    "\n",
    "\x00",
    "x" * 10_000,
    "[" * 5_000,
    "{}",
    "null",
    "é",
    "a = 1",
    "import os",
    "../../x",
)


def _weights(asked: Task, draw: Random) -> Task:
    """Weights of another length, type, number, or not finite."""
    arrays = {name: np.array(array) for name, array in asked.arrays.items()}
    name = draw.choice(list(arrays))
    if draw.random() < 0.5:
        arrays[name][draw.randrange(arrays[name].size)] = draw.choice((np.nan, np.inf, -np.inf))
    else:
        worse: list[np.ndarray] = [
            arrays[name][:-1],
            np.append(arrays[name], arrays[name][:3]),
            arrays[name].astype(np.float16),
            arrays[name].astype(np.int64),
            arrays[name].reshape(1, -1),
            np.zeros(0, dtype=arrays[name].dtype),
        ]
        arrays[name] = draw.choice(worse)
    return replace(asked, arrays=arrays)


def _path(asked: Task, draw: Random) -> Task:
    """A path that is not in the space, or does not fit the device, or belongs to other weights."""
    choices = json.loads(SMALL.to_json())["choices"]
    if draw.random() < 0.2:
        return replace(asked, architectures=(LARGE,), arrays={"weights.0": SUPERNET.gather(LARGE)})
    wrong = {draw.choice([*choices, "more"]): draw.choice((0, -1, 10**9, "x", 0.5))}
    paths: list[Architecture] = [
        LARGE,
        Architecture.of("mlp", choices | wrong),
        Architecture.of(draw.choice(("conv", "conv1d", "os")), choices),
        Architecture.of("mlp", {}),
    ]
    return replace(asked, architectures=(draw.choice(paths),) * len(asked.architectures))


def _plan(asked: Task, draw: Random) -> Task:
    """A plan over the cap, without noise, or none at all."""
    plan = plan_of()
    bare = replace(plan.allowances[0], event=NonPrivate(reason="because", releases=9))
    plans = [
        plan_of(epsilon=4.0).to_json(),
        replace(plan, allowances=(bare, *plan.allowances[1:])).to_json(),
        plan.to_json().replace('"noise_multiplier":', '"noise_multiplier":-'),
        plan.to_json().replace("1", "9"),
        plan.to_json()[draw.randrange(1, 40) :],
        " " + plan.to_json(),
        *_TEXTS,
    ]
    return replace(asked, plan=draw.choice(plans))


def _study(asked: Task, draw: Random) -> Task:
    """A study of another form, shape, or of more steps than the plan pays for."""
    text = asked.study
    studies = [
        # An evaluation takes no steps, so it may be told of any number.
        text if asked.kind == "evaluate" else text.replace("per_round = 2", "per_round = 1000000"),
        text.replace("[4]", "[5]").replace("[\n    4,\n]", "[5]"),
        text.replace('space = "mlp"', f'space = "{draw.choice(("conv", "os.system", "../mlp"))}"'),
        text.replace("input_shape", "input_form"),
        text.replace("micro_batch = 16", "micro_batch = 0"),
        text + "\n[more]\ncode = 'import os'\n",
        text[: draw.randrange(120)],
        *_TEXTS,
    ]
    return replace(asked, study=draw.choice([s for s in studies if s != text]))


def _name(asked: Task, draw: Random) -> Task:
    """A run without a name that a ledger takes, a round before the first, a state that never was."""
    changes: list[dict[str, Any]] = [
        {"run": draw.choice(("", "\n", "x" * 201, "é", "a\x00b"))},
        {"round": draw.choice((-1, -(2**70), 2**53, 2**64))},
        {"mark": f"{draw.getrandbits(256):064x}"},
        {"kind": draw.choice(("hello", "", "Train", "train "))},
    ]
    return replace(asked, **draw.choice(changes))


def _parts(asked: Task, draw: Random) -> Task:
    """More or fewer arrays and paths than belong together."""
    more = dict(asked.arrays) | {draw.choice(("weights.7", "more", "alphas2")): np.zeros(3)}
    changes: list[dict[str, Any]] = [
        {"arrays": more},
        {"arrays": {}},
        {"architectures": ()},
        {"architectures": asked.architectures * 2},
    ]
    return replace(asked, **draw.choice(changes))


ABUSES: Final[tuple[Abuse, ...]] = (_weights, _path, _plan, _study, _name, _parts)


def abused(device: Device, draw: Random) -> Iterator[bytes]:
    """What a server that holds the right key can ask and no site may do, for ever."""
    fields = {field.name for field in dataclasses.fields(Task)}
    assert {"kind", "run", "round", "plan", "study", "architectures", "arrays", "mark"} <= fields
    while True:
        asked = draw.choice(ABUSES)(draw.choice(ASKED), draw)
        yield device.wire(asked.signed(SERVER, SITE), draw.choice(("train", "evaluate")))


def refusals() -> set[str]:
    """Every word that a site may answer to a hostile message."""
    return {code.value for code in Refusal} | {"UNREADABLE", "UNROUTED", "facts"}
