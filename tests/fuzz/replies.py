"""A server that asked real sites, and what it makes of whatever comes in their place."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from safetensors.numpy import save

from fednas.config import load_site
from fednas.errors import ExchangeError
from fednas.privacy.ledger import Arrays
from fednas.privacy.signing import Signer
from fednas.privacy.store import release_head, stream_key
from fednas.wire import Answer, Refusal, SiteFacts, Task, decode, decode_facts
from server.cohort import Member
from server.correspondence import Correspondence
from server.exchange import exchange
from server.marks import Marks
from simulations import internals
from simulations.loopback import LocalGrid
from tests.fuzz.mutations import mutated
from tests.messages import json_record
from tests.simulations import tiny
from tests.site.sites import LARGE, SMALL, STUDY, Sites, task

QUESTION: Final = f"{1:032x}"
TASKS: Final = {
    "gradients": task("train", SMALL, alphas=True),
    "final": replace(task("final", SMALL), round=2),
    "counts": replace(task("evaluate", SMALL, LARGE, SMALL), round=3),
    "large": replace(task("final", LARGE), round=4),
}
_OFTEN: Final = (9, 9, 9, 1)  # 200 kB take their time


class AlteredReplyError(AssertionError):
    """The server took something that a site never released."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A task, the real site's reply to it, and the bytes in which Flower carries that."""

    task: Task
    content: RecordDict
    wire: bytes

    @property
    def answer(self) -> Answer:
        found = decode(self.content)
        assert isinstance(found, Answer)
        return found


class OneReply(LocalGrid):
    """A grid of one node from which any bytes may come."""

    def __init__(self) -> None:
        super().__init__([1])
        self.data = b""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for message in messages:
            internals.stamp(message, QUESTION)
        return [QUESTION]

    def _accept(self, message: Message) -> None:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [internals.decode(self.data)]


class Server:
    """Asks a real site one question of each kind; `judge` is what it makes of a reply.

    Args:
        path: an empty folder.
    """

    def __init__(self, path: Path) -> None:
        run = tiny.make_run(path / "run", STUDY)
        sites = Sites(run)
        config = load_site(run / "sites" / "site-0" / "site.toml")
        self.site = config.name
        self.signer = Signer(stream_key(config.ledger.with_name("none"), config.test_seed, create=False))
        self.facts: SiteFacts = decode_facts(sites.send(RecordDict(), "query.hello"))
        assert self.signer.public_key == self.facts.signer
        self.grid = OneReply()
        self.question = Message(RecordDict(), 1, "train", ttl=60.0)
        internals.stamp(self.question, QUESTION)
        self.conversations: dict[str, Conversation] = {}
        for name, asked in TASKS.items():
            content = sites.ask(asked)
            reply = Message(content, reply_to=self.question)
            self.conversations[name] = Conversation(task=asked, content=content, wire=internals.encode(reply))
        self.member = Member(node=1, facts=self.facts)
        self._correspondence = Correspondence(
            self.grid,
            members=[self.member],
            federation=STUDY.federation,
            marks=Marks(path / "marks.json"),
            repeats=False,
        )
        sites.restart()

    def judge(self, name: str, data: bytes) -> str:
        """What becomes of bytes as the reply to a task: a constant code.

        Raises:
            AlteredReplyError: they were taken, and are not what the site released.
            Exception: whatever would end a run.
        """
        conversation = self.conversations[name]
        self.grid.data = data
        found: list[Answer | Refusal] = []

        def receive(node: int, reply: Message) -> None:
            found.append(self._correspondence.examine(self.member, conversation.task, reply.content))
            if isinstance(found[-1], Answer) and reply.content != conversation.content:
                raise AlteredReplyError(name)

        outcome = exchange(self.grid, [self.question], on_reply=receive, deadline_s=0.0)
        if found and isinstance(found[-1], Refusal):
            return "refused"
        return "taken" if outcome.ok else next(iter(outcome.failed.values()), "LATE")

    def examine(self, name: str, content: RecordDict) -> str:
        """What becomes of a reply that Flower could read; see `judge`."""
        conversation = self.conversations[name]
        try:
            found = self._correspondence.examine(self.member, conversation.task, content)
        except ExchangeError:
            return "MALFORMED_REPLY"
        if isinstance(found, Answer):
            if content != conversation.content:
                raise AlteredReplyError(name)
            return "taken"
        return "refused"

    def sign(self, task: Task, arrays: Arrays | bytes, **changes: Any) -> RecordDict:
        """What a site that holds the ledger's key can send: signed by it, whatever it is.

        Args:
            task: what was asked.
            arrays: what is sent, or its bytes.
            changes: other fields of the manifest, or `signer` and `dataset` of the signature.
        """
        blob = arrays if isinstance(arrays, bytes) else save(arrays)
        signer, dataset = changes.pop("signer", self.signer), changes.pop("dataset", self.facts.dataset)
        fields: dict[str, Any] = {
            "entries": 50,
            "operation": task.operation(self.site).id,
            "previous": "a" * 64,
        } | changes
        head = release_head(fields["previous"], fields["entries"], fields["operation"], blob)
        signature = signer.sign(dataset, fields["entries"], head)
        flat = Array(np.frombuffer(blob, dtype=np.uint8))
        manifest = {"signature": signature} | fields
        return RecordDict({"manifest": json_record(manifest), "data": ArrayRecord({"flat": flat})})


def altered(server: Server, draw: Random) -> Iterator[tuple[str, bytes]]:
    """Real replies after a few changes of their bytes, for ever."""
    everything = [conversation.wire for conversation in server.conversations.values()]
    names = list(server.conversations)
    while True:
        (name,) = draw.choices(names, _OFTEN)
        yield name, mutated(server.conversations[name].wire, draw, everything)


Forgery = Callable[[Server, Conversation, Random], RecordDict]
_JUNK: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "0", "a" * 32,
    "A" * 64, "g" * 64, "0" * 63, "0" * 65, "é" * 64, "\x00", "1e3", [], [1], {}, {"a": 1}, [[[]]] * 9,
)  # fmt: skip
_DTYPES: Final = ("float16", "float32", "float64", "int8", "uint8", "int32", "int64", "uint64", "bool")


def _one_of(server: Server, conversation: Conversation) -> Arrays:
    return {name: np.array(array) for name, array in conversation.answer.arrays.items()}


def _field(server: Server, conversation: Conversation, draw: Random) -> RecordDict:
    """One field of the manifest is something else, gone, or there is one more."""
    text = str(conversation.content.config_records["manifest"]["json"])
    manifest = json.loads(text)
    name = draw.choice([*manifest, "more", "head", "weight", "num_examples"])
    if draw.random() < 0.2:
        manifest.pop(name, None)
        manifest["\x7f"] = 1
    else:
        junk = draw.choice(_JUNK)
        manifest[name] = f"{manifest.get(name)}0" if manifest.get(name) == junk else junk
    return RecordDict({"manifest": json_record(manifest), "data": conversation.content["data"]})


def _value(server: Server, conversation: Conversation, draw: Random) -> RecordDict:
    """Values that no mechanism makes, signed by the site's own ledger."""
    arrays = _one_of(server, conversation)
    name = draw.choice([n for n in arrays if n != "alphas"])
    array = arrays[name]
    where = draw.randrange(array.size)
    if array.dtype.kind == "i":
        array[where] = draw.choice((2**62, -(2**63), 10**12, -(10**9)))
    else:
        worst = (np.nan, np.inf, -np.inf, 1e18, -1e30, 3.4e38)
        array[where] = draw.choice(worst)
        if draw.random() < 0.3:
            array[:] = draw.choice((*worst, 1e6, -1e9))
    return server.sign(conversation.task, arrays)


def _form(server: Server, conversation: Conversation, draw: Random) -> RecordDict:
    """Arrays of another type, shape, number or name."""
    arrays = _one_of(server, conversation)
    name = draw.choice(list(arrays))
    array = arrays[name]
    with np.errstate(all="ignore"):
        others = [np.nan_to_num(array).astype(d) for d in _DTYPES if d != array.dtype.name]
    extra = np.zeros(draw.choice((0, 1, 7)), dtype=draw.choice(_DTYPES))
    changes: list[Callable[[], Arrays]] = [
        lambda: arrays | {name: draw.choice(others)},
        lambda: arrays | {name: array[: draw.randrange(array.size)]},
        lambda: arrays | {name: np.append(array, array[: draw.randrange(1, 9)])},
        lambda: arrays | {name: array.reshape(1, -1)},
        lambda: arrays | {name: array.reshape(-1, 1)},
        lambda: arrays | {draw.choice(("more", "weights.0", "correct ", "update2")): extra},
        lambda: {n: a for n, a in arrays.items() if n != name},
        lambda: {n + draw.choice(("s", " ", "\x00")): a for n, a in arrays.items()},
        dict,
    ]
    return server.sign(conversation.task, draw.choice(changes)())


def _other(server: Server, conversation: Conversation, draw: Random) -> RecordDict:
    """An answer to something else: another round, kind, site, run, or the one before."""
    task, arrays = conversation.task, _one_of(server, conversation)
    elsewhere = [c for c in server.conversations.values() if c is not conversation]
    asked = [
        replace(task, round=task.round + draw.choice((-1, 1, 7, 10**6))),
        replace(task, kind=draw.choice([k for k in ("train", "final", "evaluate") if k != task.kind])),
        replace(task, run=draw.choice(("other", "run2"))),
    ]
    choices: list[Callable[[], RecordDict]] = [
        lambda: server.sign(draw.choice(asked), arrays),
        lambda: server.sign(task, arrays, operation=task.operation("bravo").id),
        lambda: draw.choice(elsewhere).content,
        lambda: server.sign(draw.choice(elsewhere).task, _one_of(server, draw.choice(elsewhere))),
    ]
    return draw.choice(choices)()


def _signature(server: Server, conversation: Conversation, draw: Random) -> RecordDict:
    """Signed by another key, under another dataset, or not at all."""
    task, arrays = conversation.task, _one_of(server, conversation)
    good = server.sign(task, arrays)
    signature = str(json.loads(str(good.config_records["manifest"]["json"]))["signature"])
    where = draw.randrange(128)
    digit = draw.choice([d for d in "0123456789abcdef" if d != signature[where]])
    choices: list[Callable[[], RecordDict]] = [
        lambda: server.sign(task, arrays, signer=Signer(draw.randbytes(32))),
        lambda: server.sign(task, arrays, dataset=draw.choice(("tiny/bravo", "", "tiny/alpha "))),
        lambda: server.sign(task, arrays, signature=signature[:where] + digit + signature[where + 1 :]),
        lambda: server.sign(task, arrays, signature=signature.upper()),
        lambda: server.sign(task, arrays, signature=draw.choice(("", "0" * 128, "f" * 128, signature[:-1]))),
        lambda: server.sign(task, arrays, signature=signature, previous="b" * 64),
        lambda: server.sign(task, arrays, signature=signature, entries=51),
    ]
    return draw.choice(choices)()


def _header(server: Server, conversation: Conversation, draw: Random) -> RecordDict:
    """Bytes that look like arrays, with a header of lies, signed all the same."""
    blob = bytearray(save(_one_of(server, conversation)))
    size = int.from_bytes(blob[:8], "little")
    for _ in range(draw.choice((1, 2, 5))):
        blob[draw.randrange(8 + size)] = draw.randrange(256)
    if draw.random() < 0.2:
        blob = bytearray(draw.choice((0, 2**63, 2**64 - 1, len(blob))).to_bytes(8, "little")) + blob[8:]
    if bytes(blob) == save(_one_of(server, conversation)):
        blob += b"\x00"
    return server.sign(conversation.task, bytes(blob))


FORGERIES: Final[tuple[Forgery, ...]] = (_field, _value, _form, _other, _signature, _header)


def forged(server: Server, draw: Random) -> Iterator[tuple[str, RecordDict]]:
    """What a site that holds its ledger's key sends instead of an answer, for ever."""
    names = list(server.conversations)
    while True:
        (name,), forge = draw.choices(names, _OFTEN), draw.choice(FORGERIES)
        yield name, forge(server, server.conversations[name], draw)
