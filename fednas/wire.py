"""What crosses the network: one flat array and one JSON manifest a message, a site's values as `Released`.

Every byte a site sends is one of three things: facts from its configuration and its ledger (`SiteFacts`), a
constant refusal code, or a `Released` value that its ledger charged for and signed. No other module of the
library knows Flower.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from itertools import repeat
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fednas.devices import DeviceProfile
from fednas.errors import ConfigurationError, ExchangeError, PrivacyError
from fednas.privacy.ledger import Arrays, Operation, Released
from fednas.privacy.numbers import is_digest
from fednas.privacy.released import operation_id
from fednas.privacy.signing import TaskSigner, is_signed, is_signed_task
from fednas.privacy.store import release_head
from fednas.space import Architecture

PROTOCOL = 3
"""Raised whenever a message changes its meaning; a site refuses another one."""

TaskKind = Literal["train", "final", "evaluate"]

_FORM = "a message is not in the form of this protocol: one flat array of bytes and one JSON object"
_NPY_HEADER = 128  # bytes that numpy writes before the values of any array of one dimension
_VOUCHER = ("entries", "operation", "previous", "signature")
_MAX_NAME = 80
_MAX_COUNT = 10**12  # of records: beyond it arithmetic on public weights would overflow


class Refusal(StrEnum):
    """Why a site sent nothing; the only words about a failure that leave it."""

    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    REPLAY_MISMATCH = "REPLAY_MISMATCH"
    DOES_NOT_FIT = "DOES_NOT_FIT"
    MALFORMED = "MALFORMED"
    LEDGER_FAILURE = "LEDGER_FAILURE"
    LEDGER_ROLLED_BACK = "LEDGER_ROLLED_BACK"
    PRIVACY_REFUSAL = "PRIVACY_REFUSAL"
    PAUSED = "PAUSED"
    WITHDRAWN = "WITHDRAWN"
    UNKNOWN_SERVER = "UNKNOWN_SERVER"
    SITE_FAILURE = "SITE_FAILURE"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the server asks of one site in one round; every field is public.

    Args:
        kind: `train` (weights, and alphas where the study has them), `final`, or `evaluate`.
        run: the run's identity; a site's ledger holds one plan for each.
        round: counted from 1.
        plan: canonical JSON of the privacy plan.
        study: canonical JSON of the study configuration.
        architectures: one path to train, or the candidates to count correct predictions of.
        arrays: `weights.<i>` for each architecture, float32; `alphas` (float64) where the study learns them.
        mark: the newest ledger head that the server has seen of this site, "" before the first: the site
            refuses when its ledger has never been there. No part of the operation: a repeat may carry a
            newer one.
        signature: of the server under all of this and the site's name; "" for a server without a key. No part
            of the operation.
    """

    kind: TaskKind
    run: str
    round: int
    plan: str
    study: str
    architectures: tuple[Architecture, ...]
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    mark: str = ""
    signature: str = ""

    def operation(self, site: str) -> Operation:
        """The ledger's name of this task at a site: the same after a crash, so a repeat is recognised."""
        return Operation(
            run=self.run, round=self.round, kind=self.kind, nonce=self._nonce(site), digest=self.digest()
        )

    def operation_id(self, site: str) -> str:
        """The id of that operation, which does not depend on what is asked: no array is read."""
        return operation_id(self.run, self.round, self._nonce(site))

    def _nonce(self, site: str) -> str:
        return hashlib.sha256(f"{self.run}|{self.round}|{self.kind}|{site}".encode()).hexdigest()[:16]

    def digest(self) -> str:
        """sha256 of the canonical message without its mark and its signature; worked out once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        manifest, blob = _task_parts(replace(self, mark="", signature=""))
        return hashlib.sha256(manifest.encode() + b"\0" + blob).hexdigest()

    def signed(self, signer: TaskSigner, site: str) -> "Task":
        """This task with a server's signature: good for one site, and for this mark alone."""
        return replace(self, signature=signer.sign(site, self.digest(), self.mark))

    def is_signed_by(self, public_key: str, site: str) -> bool:
        """Whether the server of a public key asks this of this site."""
        return is_signed_task(public_key, self.signature, site=site, digest=self.digest(), mark=self.mark)


@dataclass(frozen=True, kw_only=True)
class SiteFacts:
    """What a site says of itself: all of it from its configuration or its ledger, nothing of its data.

    Args:
        site: its public name.
        dataset: public name of its dataset.
        declared_size: of the dataset in records, as its owner declares it.
        epsilon_cap: the most that may ever leave the dataset.
        delta: of the cap.
        order: of the cap, where it is a filter.
        device: the hardware, as its owner declares it.
        signer: public key of the site's ledger, 64 hexadecimal digits; "" for a site without one, which only
            a rehearsal has.
        entries: of the ledger.
        head: digest of its last entry.
        protocol: of the messages.

    Raises:
        ExchangeError: a field is of another type or out of its bounds.
    """

    site: str
    dataset: str
    declared_size: int
    epsilon_cap: float
    delta: float
    device: DeviceProfile
    signer: str = ""
    entries: int = 0
    head: str = ""
    order: int | None = None
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        names = all(
            isinstance(name, str) and 0 < len(name) <= _MAX_NAME and name.isprintable()
            for name in (self.site, self.dataset)
        )
        counts = all(type(n) is int and 1 <= n <= _MAX_COUNT for n in (self.declared_size, self.protocol))
        budget = all(type(bound) in (int, float) for bound in (self.epsilon_cap, self.delta))
        budget = budget and self.epsilon_cap > 0.0 and 0.0 < self.delta < 1.0
        order = self.order is None or (type(self.order) is int and 2 <= self.order <= 256)
        shown = type(self.entries) is int and self.entries > 0 and is_digest(self.signer, self.head)
        ledger = shown or (self.entries, self.signer, self.head) == (0, "", "")
        if not (names and counts and budget and order and ledger):
            raise ExchangeError("a site described itself with a value that is out of its bounds")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A released reply as the server reads it: the arrays and the signed ledger head that vouches for them.

    Args:
        operation_id: of the operation that was charged.
        head: digest of the ledger's entry of this release, computed from the bytes that came: a signature
            under it vouches for each of them.
        entries: of the ledger up to that head.
        signature: under them, by the site's ledger; see `check_signature`.
        arrays: what was released.
    """

    operation_id: str
    head: str
    entries: int
    signature: str
    arrays: Arrays = field(repr=False)


def encode_task(task: Task) -> RecordDict:
    """Pack a task for one site."""
    return _pack(*_task_parts(task))


def decode_task(content: RecordDict) -> Task:
    """Unpack a task.

    Raises:
        ExchangeError: when it is not exactly what `encode_task` makes.
    """
    manifest, blob = _unpack(content)
    if manifest.pop("protocol", None) != PROTOCOL:
        raise ExchangeError(
            f"the server speaks another protocol than {PROTOCOL}; install the same fednas version"
        )
    try:
        arrays = _arrays(blob)
        architectures = tuple(Architecture.from_json(text) for text in manifest.pop("architectures"))
        task = Task(architectures=architectures, arrays=arrays, **manifest)
    except (KeyError, TypeError, ConfigurationError) as error:
        raise ExchangeError("a task has missing, unknown or malformed fields") from error
    if task.kind not in ("train", "final", "evaluate"):
        raise ExchangeError("unknown kind of task")
    texts = all(isinstance(text, str) for text in (task.run, task.plan, task.study))
    texts = texts and isinstance(task.signature, str)
    if type(task.round) is not int or not texts or not (task.mark == "" or is_digest(task.mark)):
        raise ExchangeError("a task has a field of another type")
    if arrays.keys() - {"alphas"} != {f"weights.{index}" for index in range(len(architectures))}:
        raise ExchangeError("a task has other arrays than its architectures need")
    if _manifest(task) != _only(content, "manifest", "json"):
        raise ExchangeError("a task is spelt in another way than this protocol's")
    return task


def encode(released: Released[Arrays]) -> RecordDict:
    """Pack a paid-for value; nothing else about data can be sent.

    Raises:
        PrivacyError: for anything but a `Released` from a ledger.
    """
    if type(released) is not Released:
        raise PrivacyError("only a Released value may leave a site; get one from PrivacyLedger.release")
    manifest = {
        "operation": released.operation_id,
        "previous": released.previous,
        "entries": released.entries,
        "signature": released.signature,
    }
    return _pack(_canonical(manifest), save(dict(released.value)))


def encode_refusal(code: Refusal) -> RecordDict:
    """Pack a constant code."""
    return RecordDict({"refusal": ConfigRecord({"code": Refusal(code).value})})


def encode_facts(facts: SiteFacts) -> RecordDict:
    """Pack a site's public facts."""
    if type(facts) is not SiteFacts:
        raise PrivacyError("only SiteFacts describe a site")
    return RecordDict({"facts": ConfigRecord({"json": _canonical(asdict(facts))})})


def decode_facts(content: RecordDict) -> SiteFacts:
    """Unpack a site's facts.

    Raises:
        ExchangeError: when they are malformed.
    """
    try:
        raw = _object(_only(content, "facts", "json"))
        return SiteFacts(**(raw | {"device": DeviceProfile(**raw["device"])}))
    except (KeyError, TypeError, ConfigurationError) as error:
        raise ExchangeError("a site described itself in an unknown form") from error


def decode(content: RecordDict) -> Answer | Refusal:
    """Unpack a site's reply to a task.

    Raises:
        ExchangeError: when it is neither a refusal code nor a released value.
    """
    if "refusal" in content:
        try:
            return Refusal(_only(content, "refusal", "code"))
        except ValueError as error:
            raise ExchangeError("a site refused with an unknown code") from error
    manifest, blob = _unpack(content)
    entries, operation, previous, signature = map(manifest.pop, _VOUCHER, repeat(None))
    texts = all(isinstance(text, str) for text in (operation, signature)) and is_digest(previous)
    if manifest or not texts or type(entries) is not int or not 1 <= entries <= _MAX_COUNT:
        raise ExchangeError("a reply has missing, unknown or malformed fields")
    return Answer(
        operation_id=operation,
        head=release_head(previous, entries, operation, blob),
        entries=entries,
        signature=signature,
        arrays=_arrays(blob),
    )


def check_signature(answer: Answer, facts: SiteFacts) -> None:
    """Refuse an answer that the ledger of a site did not sign, byte for byte.

    Args:
        answer: as `decode` read it.
        facts: of the site, with the public key that the server remembers.

    Raises:
        ExchangeError: the signature is another's, or stands under another state or another reply.
    """
    if not is_signed(
        facts.signer, answer.signature, dataset=facts.dataset, entries=answer.entries, head=answer.head
    ):
        raise ExchangeError("a reply is not signed by the ledger of its site")


def check_answer(answer: Answer, task: Task) -> None:
    """Refuse an answer that is not what the task asked for.

    Raises:
        ExchangeError: unexpected names, dtypes, shapes, or values that are not finite.
    """
    if task.kind == "evaluate":
        expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
            "correct": (np.dtype(np.int64), (len(task.architectures),))
        }
    else:
        expected = {"update": (np.dtype(np.float32), task.arrays["weights.0"].shape)}
        if "alphas" in task.arrays:
            expected["alphas"] = (np.dtype(np.float64), task.arrays["alphas"].shape)
    if set(answer.arrays) != set(expected):
        raise ExchangeError("a reply holds other arrays than the task asked for")
    for name, (dtype, shape) in expected.items():
        array = answer.arrays[name]
        if array.dtype != dtype or array.shape != shape:
            raise ExchangeError("a reply has an array of another type or shape than the task asked for")
        finite = np.isfinite(array) | (np.isnan(array) if name == "alphas" else False)
        if not finite.all():
            raise ExchangeError("a reply has values that are not finite")


def _manifest(task: Task) -> str:
    fields = {
        "protocol": PROTOCOL,
        "kind": task.kind,
        "run": task.run,
        "round": task.round,
        "plan": task.plan,
        "study": task.study,
        "architectures": [a.to_json() for a in task.architectures],
        "mark": task.mark,
        "signature": task.signature,
    }
    return _canonical(fields)


def _task_parts(task: Task) -> tuple[str, bytes]:
    # safetensors writes the memory behind a strided view as if it were dense: other numbers would be sent.
    return _manifest(task), save({name: np.asarray(a, order="C") for name, a in task.arrays.items()})


def _pack(manifest: str, blob: bytes) -> RecordDict:
    flat = np.frombuffer(blob, dtype=np.uint8)
    return RecordDict(
        {"manifest": ConfigRecord({"json": manifest}), "data": ArrayRecord({"flat": Array(flat)})}
    )


def _unpack(content: RecordDict) -> tuple[dict[str, Any], bytes]:
    """The manifest and the bytes of the arrays of a message that holds these two and nothing else."""
    if set(content) != {"manifest", "data"}:
        raise ExchangeError(_FORM)
    data = content["data"]
    if not isinstance(data, ArrayRecord) or set(data) != {"flat"}:
        raise ExchangeError(_FORM)
    return _object(_only(content, "manifest", "json")), _blob(data["flat"])


def _only(content: RecordDict, record: str, key: str) -> str:
    """The text of a record that holds one text and nothing else."""
    found = content.get(record)
    if not isinstance(found, ConfigRecord) or set(found) != {key} or not isinstance(found[key], str):
        raise ExchangeError(_FORM)
    return str(found[key])


def _arrays(blob: bytes) -> Arrays:
    """Read arrays in their one spelling: a header could say the same, and more, in many ways."""
    try:
        arrays = load(blob)
    except (KeyError, ValueError, SafetensorError) as error:
        raise ExchangeError(_FORM) from error
    if save(arrays) != blob:
        raise ExchangeError(_FORM)
    return arrays


def _blob(array: Array) -> bytes:
    """The bytes that `_pack` put into an array.

    Numpy's own reader is not asked: a forged header could name any type, a huge size, or an archive.
    """
    blob = bytes(array.data[_NPY_HEADER:])
    ours = Array(np.frombuffer(blob, dtype=np.uint8))
    if array.data != ours.data or (array.dtype, tuple(array.shape), array.stype) != (
        ours.dtype,
        tuple(ours.shape),
        ours.stype,
    ):
        raise ExchangeError(_FORM)
    return blob


def _object(text: str) -> dict[str, Any]:
    """Read a JSON object in its one spelling."""
    try:
        value = json.loads(text)
        canonical = isinstance(value, dict) and _canonical(value) == text
    except (ValueError, RecursionError) as error:
        raise ExchangeError("a message holds no JSON where this protocol has it") from error
    if not canonical:
        raise ExchangeError(_FORM)
    return dict(value)


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
