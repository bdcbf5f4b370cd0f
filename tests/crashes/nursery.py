"""A process that has imported everything and forks children, so that a thousand of them can be killed.

`python -m tests.crashes.nursery` reads jobs from its standard input, one JSON object a line, and answers each
with one line. A child writes frames into a pipe: that is the network, and what it holds is what was sent.
"""

import base64
import ctypes
import importlib
import json
import os
import selectors
import struct
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, final

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = ("server.app", "client.app", "simulations.loopback", "fednas.export", "tests.crashes.children")
ACTIONS = ("fail", "short", "kill before", "kill after")

KILLED = -9
MARK, REPLY, CALLS = b"M", b"R", b"C"
_HEADER = struct.Struct("<cI")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Which calls of a child go wrong, counted from 0 among those of a kind on files of a name.

    Args:
        kinds: letters of `o` (open), `w` (write, truncate), `s` (sync), `n` (rename, unlink, mkdir).
        pattern: what the path contains.
        first, last: the calls that go wrong.
        action: what happens.
        error: the errno of a call that fails.
    """

    kinds: str
    first: int
    last: int
    pattern: str = "/"
    action: Literal["fail", "short", "kill before", "kill after"] = "fail"
    error: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a child does.

    Args:
        program: a function of `tests.crashes.children`.
        arguments: its arguments, as JSON knows them.
        log: where the disk's log goes; None records nothing.
        root: the folder that the disk's log and faults are about.
        fault: None lets everything succeed.
    """

    program: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    log: str | None = None
    root: str | None = None
    fault: Fault | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """How a child ended, and what it had sent by then.

    Args:
        status: 0, or minus the signal that ended it, or another exit code.
        frames: kind and content of each whole frame.
    """

    status: int
    frames: tuple[tuple[bytes, bytes], ...]

    @property
    def marks(self) -> list[str]:
        """The marks among the frames."""
        return [data.decode() for kind, data in self.frames if kind == MARK]

    @property
    def calls(self) -> int:
        """How many calls a fault could have been about, as far as the child came."""
        return sum(int(data) for kind, data in self.frames if kind == CALLS)

    @property
    def replies(self) -> list[bytes]:
        """The replies among the frames."""
        return [data for kind, data in self.frames if kind == REPLY]


def frame(kind: bytes, data: bytes) -> bytes:
    """What a child writes into the network, in one call."""
    return _HEADER.pack(kind, len(data)) + data


def frames(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The whole frames of what was sent; a last one that is cut off never arrived."""
    found = []
    while len(data) >= _HEADER.size:
        kind, size = _HEADER.unpack_from(data)
        end = _HEADER.size + size
        if len(data) < end:
            break
        found.append((kind, data[_HEADER.size : end]))
        data = data[end:]
    return tuple(found)


@final
class Nursery:
    """Starts the process, and lets children live and die in it.

    Args:
        errors: a file for what children write to standard error.
        preload: a shared library that stands between the children and the disk; None for none.
    """

    def __init__(self, errors: Path, *, preload: Path | None) -> None:
        environment = dict(os.environ) | ({"LD_PRELOAD": str(preload)} if preload else {})
        self.watched = preload is not None
        self._errors = errors
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.crashes.nursery"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=ROOT,
                env=environment,
                text=True,
            )

    def run(self, *jobs: Job) -> list[End]:
        """Run children at the same time and wait for all of them.

        Returns:
            How each ended, in the order of the jobs.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([asdict(job) for job in jobs]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the nursery died: {self._errors.read_text()[-2000:]}"
        return [
            End(status=status, frames=frames(base64.b64decode(sent))) for status, sent in json.loads(line)
        ]

    def one(self, job: Job) -> End:
        """Run one child."""
        return self.run(job)[0]

    def errors(self) -> str:
        """The last that children wrote to standard error."""
        return self._errors.read_text()[-4000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    os.environ["OMP_NUM_THREADS"] = "1"
    modules = [importlib.import_module(name) for name in IMPORTS]
    importlib.import_module("torch").set_num_threads(1)
    programs = vars(modules[-1])
    programs["warm"]()
    for line in sys.stdin:
        answers.write(json.dumps(_run(json.loads(line), programs)) + "\n")
        answers.flush()
    os._exit(0)  # libraries take seconds to say goodbye


def _run(jobs: Sequence[Mapping[str, Any]], programs: Mapping[str, Any]) -> list[tuple[int, str]]:
    ready, go = os.pipe()
    children: dict[int, int] = {}  # the pipe's end to the process
    for job in jobs:
        end, network = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.close(end)
            for other in children:
                os.close(other)
            _live(job, programs, network, ready)
        os.close(network)
        children[end] = pid
    os.close(ready)
    os.close(go)  # all at once
    sent = {end: bytearray() for end in children}
    with selectors.DefaultSelector() as selector:
        for end in children:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 1 << 16)
                sent[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return [
        (os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), base64.b64encode(sent[end]).decode())
        for end, pid in children.items()
    ]


def _live(job: Mapping[str, Any], programs: Mapping[str, Any], network: int, ready: int) -> None:
    status = 1
    try:
        os.read(ready, 1)
        if job["root"] is not None:
            disk = ctypes.CDLL(None)
            # Without a log the root is still what faults are about.
            disk.disk_record((job["log"] or os.devnull).encode(), job["root"].encode())
            if job["fault"] is not None:
                fault = Fault(**job["fault"])
                disk.disk_fault(
                    fault.kinds.encode(),
                    fault.pattern.encode(),
                    ctypes.c_long(fault.first),
                    ctypes.c_long(fault.last),
                    ACTIONS.index(fault.action),
                    fault.error,
                )
        programs[job["program"]](network, **job["arguments"])
        if job["fault"] is not None:
            os.write(network, frame(CALLS, str(ctypes.CDLL(None).disk_calls()).encode()))
        status = 0
    except BaseException:  # noqa: BLE001  the child's own border: its parent sees the status
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
