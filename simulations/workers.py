"""A Flower grid over processes of this machine: each worker runs the client app for its own nodes."""

import importlib
import logging
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Self, final

import torch
from flwr.app import Message, UserConfig, UserConfigValue
from flwr.clientapp import ClientApp

from fednas.errors import ConfigurationError
from simulations import internals
from simulations.loopback import Clock, LocalGrid, forget

_SITE_LOG = logging.getLogger("fednas.client")
_READY = b""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A message on its way: what is left to answer for it, and its wire format."""

    header: Message
    data: bytes


@final
class WorkerGrid(LocalGrid):
    """Runs a client app in spawned processes; messages cross the pipes in Flower's wire format, unpickled.

    A node lives in one worker for good, so its `Context.state` and what the app caches stay with it. A worker
    has one thread and takes one message at a time. When a worker dies, its nodes answer NODE_UNAVAILABLE.
    """

    def __init__(
        self,
        app: str,
        node_configs: Mapping[int, Mapping[str, UserConfigValue]],
        run_config: Mapping[str, UserConfigValue],
        *,
        num_workers: int = 2,
        clock: Clock = time.time,
    ) -> None:
        """Spawn the workers and wait until each has imported the app.

        Args:
            app: where a worker finds the client app, as "module:attribute".
            node_configs: node id to what only this node knows; nodes are dealt to the workers in turn.
            run_config: what every node knows.
            num_workers: processes; never more than nodes.
            clock: the present in seconds of Unix time; a message's ttl is measured with it.

        Raises:
            ConfigurationError: num_workers < 1, or a worker cannot import the app.
        """
        if num_workers < 1:
            raise ConfigurationError(f"expected {num_workers=} >= 1: choose at least one worker process")
        super().__init__(node_configs)
        self._clock = clock
        self._lock = threading.Lock()
        self._replies: dict[str, Message] = {}
        num_workers = min(num_workers, len(node_configs))
        shares: list[dict[int, UserConfig]] = [{} for _ in range(num_workers)]
        for index, (node, config) in enumerate(node_configs.items()):
            shares[index % num_workers][node] = dict(config)
        self._workers = [_Worker(self, app, share, dict(run_config)) for share in shares]
        self._worker_of = {
            node: worker for worker, share in zip(self._workers, shares, strict=True) for node in share
        }
        problems = [problem for worker in self._workers if (problem := worker.wait_until_ready())]
        if problems:
            self.close()
            raise ConfigurationError(f"a worker cannot run the client app {app!r}: {problems[0]}")
        for worker in self._workers:
            worker.start()

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there, without waiting.

        Args:
            message_ids: ids from `push_messages`.

        Returns:
            The replies not handed over before.
        """
        with self._lock:
            return [
                self._replies.pop(identity) for identity in list(message_ids) if identity in self._replies
            ]

    def close(self, *, patience_s: float = 5.0) -> None:
        """End the worker processes and join them; messages under way are lost, new ones are not accepted.

        Args:
            patience_s: seconds to let a message come to its end before its process is terminated.
        """
        workers, self._workers, self._nodes = self._workers, [], ()
        for worker in workers:
            worker.dismiss()
        end = time.monotonic() + patience_s
        for worker in workers:
            worker.join(max(0.0, end - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def now(self) -> float:
        """Return the present in seconds of Unix time."""
        return self._clock()

    def deliver(self, message_id: str, reply: Message) -> None:
        """Keep a reply until it is pulled; called by the threads that serve the workers."""
        with self._lock:
            self._replies[message_id] = reply

    def _accept(self, message: Message) -> None:
        with self._lock:
            self._replies = forget(self._replies, self._clock())
        job = _Job(header=internals.header(message), data=internals.encode(message))
        self._worker_of[message.metadata.dst_node_id].submit(job)


@final
class _Worker:
    """One process, the pipe to it, and the thread of this process that feeds it one message at a time."""

    def __init__(
        self, grid: WorkerGrid, app: str, nodes: dict[int, UserConfig], run_config: UserConfig
    ) -> None:
        self._grid = grid
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, app, nodes, run_config, _SITE_LOG.level), daemon=True
        )
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._dismissed = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> str:
        """Return an empty text when the app is imported, else what is wrong."""
        try:
            return self._pipe.recv_bytes().decode()
        except (EOFError, OSError):
            return "the process ended while it started; see its output above"

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: _Job) -> None:
        self._jobs.put(job)

    def dismiss(self) -> None:
        self._dismissed.set()
        self._jobs.put(None)
        if not self._thread.is_alive():
            self._pipe.close()

    def join(self, patience_s: float) -> None:
        if self._thread.is_alive():
            self._thread.join(patience_s)
        if self._thread.is_alive():
            self._process.terminate()
            self._thread.join()
        self._process.join(patience_s + 1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def _feed(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._grid.deliver(job.header.metadata.message_id, self._answer(job))
        self._pipe.close()

    def _answer(self, job: _Job) -> Message:
        if self._dismissed.is_set():
            return internals.lost(job.header)
        if internals.expired(job.header, self._grid.now()):
            return internals.refuse(job.header)
        try:
            self._pipe.send_bytes(job.data)
            reply = internals.decode(self._pipe.recv_bytes())
        except (EOFError, OSError):
            return internals.lost(job.header)
        return internals.refuse(job.header) if internals.expired(job.header, self._grid.now()) else reply


def _serve(
    pipe: Connection, app: str, nodes: dict[int, UserConfig], run_config: UserConfig, log_level: int
) -> None:
    """Be a worker: answer messages until the other end of the pipe is closed."""
    _SITE_LOG.setLevel(log_level)
    # The parent decides when to stop; an interrupt from the keyboard reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        client_app = load_app(app)
    except ConfigurationError as error:
        pipe.send_bytes(str(error).encode())
        return
    pipe.send_bytes(_READY)
    contexts = {node: internals.new_context(node, config, run_config) for node, config in nodes.items()}
    while True:
        try:
            message = internals.decode(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        node = message.metadata.dst_node_id
        internals.enter(node)
        reply = internals.encode(internals.answer(client_app, message, contexts[node]))
        try:
            pipe.send_bytes(reply)
        except OSError:
            return


def load_app(reference: str) -> ClientApp:
    """Import a client app.

    Args:
        reference: where it is, as "module:attribute".

    Returns:
        The app.

    Raises:
        ConfigurationError: there is no such module or attribute, or it is not a ClientApp.
    """
    module, colon, attribute = reference.partition(":")
    if not (module and colon and attribute.isidentifier()):
        raise ConfigurationError(f"expected 'module:attribute', got {reference!r}")
    try:
        app = vars(importlib.import_module(module)).get(attribute)
    except ImportError as error:
        raise ConfigurationError(f"cannot import {module}: {error.msg}") from error
    if not isinstance(app, ClientApp):
        raise ConfigurationError(f"{attribute!r} in {module} is not a flwr.clientapp.ClientApp")
    return app
