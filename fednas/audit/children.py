"""Children that live as mutants: forked from a process that imported the library whole, ended by their time.

A child forgets the library, imports it with its mutant's edits, and runs one layer on the reference study:
there are made-up records in reach and no others. Files outside its own folder and the network are refused to
it, whatever the broken code tries. `python -m fednas.audit.children` reads what to do from its standard input
as JSON and writes how each child ended, one JSON object a line.
"""

import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from fednas.audit.mutation import Edit, accusation, examine, infect

_ENDS = (signal.SIGTERM, signal.SIGINT)


def hang_words(limit_s: float) -> str:
    """What is said of a child that did not end."""
    return f"hung: ended after {limit_s:g} s"


def exit_words(status: int) -> str:
    """What is known of a child that ended without a word."""
    if status < 0:
        with suppress(ValueError):
            return f"died of {signal.Signals(-status).name}"
    return f"ended with code {status} and no verdict"


@dataclass(kw_only=True)
class _Child:
    index: int
    pid: int
    start: float
    folder: Path
    said: bytearray = field(default_factory=bytearray)


def _serve(request: Mapping[str, Any], answers: IO[str]) -> None:
    """Fork a child for each job, a few at a time, and tell how each ended."""
    importlib.import_module("fednas.audit.layers")
    importlib.import_module("fednas.audit.rehearsal")
    gc.collect()
    gc.freeze()  # no child touches, and so copies, what all share
    # Heard while this process waits: in between, it or a child just born would not know what to end.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    for number in _ENDS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    jobs, limit_s = request["jobs"], request["limit_s"]
    running: dict[int, _Child] = {}
    born = 0
    with selectors.DefaultSelector() as selector:
        try:
            while born < len(jobs) or running:
                while born < len(jobs) and len(running) < request["workers"]:
                    end = _bear(
                        born, jobs[born], Path(request["folder"]) / str(born), limit_s, running, answers
                    )
                    selector.register(end, selectors.EVENT_READ)
                    born += 1
                oldest = min(child.start for child in running.values())
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
                ready = selector.select(max(0.0, oldest + limit_s - time.monotonic()))
                signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
                for key, _ in ready:
                    child = running[key.fd]
                    data = os.read(key.fd, 1 << 16)
                    child.said += data
                    # Whoever said its line is done, even if what it started still holds the pipe.
                    if not data or child.said.endswith(b"\n"):
                        selector.unregister(key.fd)
                        _bury(running.pop(key.fd), key.fd, None, answers)
                for fd, child in list(running.items()):
                    if time.monotonic() - child.start >= limit_s:
                        selector.unregister(fd)
                        _bury(running.pop(fd), fd, limit_s, answers)
        finally:
            for child in running.values():
                kill(child.pid)
                os.waitpid(child.pid, 0)


def _bear(
    index: int,
    job: Mapping[str, Any],
    folder: Path,
    limit_s: float,
    running: dict[int, _Child],
    answers: IO[str],
) -> int:
    """Fork a child, and return the end of its pipe."""
    folder.mkdir()
    end, pipe = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()  # a group of its own: what it starts ends with it
            for number in _ENDS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
            signal.setitimer(signal.ITIMER_REAL, limit_s + 5.0)  # should nobody be left to end it
            # Whoever listens hears at once that the parent is gone.
            for other in (end, answers.fileno(), *running):
                os.close(other)
            _live(job, folder, pipe)
        finally:
            os._exit(1)
    os.close(pipe)
    running[end] = _Child(index=index, pid=pid, start=start, folder=folder)
    return end


def _bury(child: _Child, fd: int, overdue_s: float | None, answers: IO[str]) -> None:
    """End a child with all that it started, and tell how it ended."""
    os.close(fd)
    kill(child.pid)  # one that is dying keeps the status that it dies of
    status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    shutil.rmtree(child.folder, ignore_errors=True)
    end: dict[str, Any] = {"found_by": "", "checks": 0, "error": ""}
    if child.said.endswith(b"\n"):
        end |= json.loads(child.said)
    else:
        end["error"] = exit_words(status) if overdue_s is None else hang_words(overdue_s)
    end |= {"index": child.index, "seconds": time.monotonic() - child.start}
    print(json.dumps(end), file=answers, flush=True)


def kill(leader: int) -> None:
    """End a process that nobody has waited for yet, and the group that it leads, or is about to."""
    for end in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            end(leader, signal.SIGKILL)


def _live(job: Mapping[str, Any], folder: Path, pipe: int) -> NoReturn:
    """Be one mutant, and say in one line how that ended."""
    end: dict[str, Any] = {"found_by": "", "checks": 0, "error": ""}
    try:
        confine(folder)
        edits = [Edit(**edit) for edit in job["edits"]]
        infect(edits)
        (folder / "files").mkdir()
        for check in examine(job["layer"], folder / "files"):
            end["checks"] += 1
            if not check.holds:
                # The name of a folder that is gone in a moment says nothing, and is another each time.
                end["found_by"] = accusation(check).replace(f"{folder / 'files'}{os.sep}", "")
                break
        unseen = sorted({edit.module for edit in edits} - set(sys.modules))
        if unseen and not end["found_by"]:
            end["error"] = f"{job['layer']} never imports {', '.join(unseen)}"
    except BaseException as error:  # noqa: BLE001  the child's own border: whatever it is, it is no verdict
        sys.stderr.write(f"--- {job['name']} ({job['layer']})\n")
        traceback.print_exc()
        words = str(error).partition("\n")[0][:300]
        end["error"] = f"{type(error).__name__}: {words}" if words else type(error).__name__
    finally:
        sys.stderr.flush()
    data = (json.dumps(end) + "\n").encode()
    while data:
        data = data[os.write(pipe, data) :]
    os._exit(0)  # libraries take seconds to say goodbye


def confine(folder: Path) -> None:
    """Refuse this process, until it ends, to write files outside a folder, and the network.

    Args:
        folder: where temporary files go from now on.
    """
    inside = os.path.realpath(folder) + os.sep
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    os.chdir(folder)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            outside = flags & writing and path != os.devnull
        elif event in ("sqlite3.connect", "os.rename", "os.truncate"):
            path = arguments[0]
            outside = path != ":memory:"
        else:
            if event in ("socket.connect", "socket.bind") and isinstance(arguments[1], tuple):
                raise PermissionError("a mutant has no network")
            return
        if not outside or not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.fsdecode(path).removeprefix("file://").partition("?")[0]
        if not os.path.realpath(place).startswith(inside):
            raise PermissionError("a mutant writes nothing outside its own folder")

    sys.addaudithook(refuse)


def _main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    request = cast(Mapping[str, Any], json.load(sys.stdin))
    if "job" in request:
        _live(request["job"], Path(request["folder"]), answers.fileno())
    status = 1
    try:
        _serve(request, answers)
        status = 0
    except SystemExit as error:
        status = int(str(error))
    except BaseException:  # noqa: BLE001  this process's border: its parent sees the status
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # libraries take seconds to say goodbye


if __name__ == "__main__":
    _main()
