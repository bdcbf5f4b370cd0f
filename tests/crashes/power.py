"""Power loss: replay a disk's log up to a cut and keep only what a disk must keep, the rest at random."""

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, final

SECTOR: Final = 512
PAGE: Final = 4096
_RECORD = struct.Struct("<c3xHHIiq")

Mode = Literal["nothing", "in order", "anything"]
MODES: tuple[Mode, ...] = ("nothing", "in order", "anything")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One call that changed something.

    Args:
        kind: C(reate), W(rite), T(runcate), S(ync), F(ailed sync), R(ename), U(nlink), M(ake folder),
            D(elete folder), P(ut into a pipe).
        path: absolute; empty for a pipe.
        other: what a rename made of it.
        offset: where a write began, or the length after a truncation.
        data: what was written.
    """

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""


def events(log: Path) -> list[Event]:
    """Read what `disk.c` wrote."""
    raw, found, at = log.read_bytes(), [], 0
    while at < len(raw):
        kind, path, other, size, _, offset = _RECORD.unpack_from(raw, at)
        at += _RECORD.size
        names = raw[at : at + path + other].decode()
        at += path + other
        data = raw[at : at + size]
        at += size
        found.append(
            Event(kind=kind.decode(), path=names[:path], other=names[path:], offset=offset, data=data)
        )
    return found


@final
@dataclass(kw_only=True, eq=False)
class File:
    """A file in the page cache, on the disk, and what lies between.

    Args:
        now: what programs read.
        safe: what is on the disk.
        pending: writes (offset and data) and truncations (offset and None) since the last sync.
        doomed: pages of a failed sync: clean in the cache, perhaps not on the disk, and no later sync writes
            them (Rebello et al. 2020, "Can applications recover from fsync failures?").
    """

    now: bytearray
    safe: bytearray
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    doomed: set[int] = field(default_factory=set)

    def write(self, offset: int, data: bytes | None) -> None:
        """Change the cache; the disk learns of it at the next sync."""
        _apply(self.now, offset, data)
        self.pending.append((offset, data))
        if data is not None:
            for page in sorted(self.doomed & _pages(offset, data)):  # dirty again, as a whole
                self.doomed.remove(page)
                self.pending.append((page * PAGE, bytes(self.now[page * PAGE : (page + 1) * PAGE])))

    def sync(self) -> None:
        """What was written is on the disk."""
        for offset, data in self.pending:
            _apply(self.safe, offset, data)
        self.pending.clear()

    def fail(self, moments: random.Random) -> None:
        """A sync failed: what was pending may have been written or not, and is not tried again."""
        for offset, data in self.pending:
            if data is not None:
                self.doomed |= _pages(offset, data)
        self.safe = self.after(moments, "anything")
        self.pending.clear()

    def after(self, moments: random.Random, mode: Mode) -> bytearray:
        """What is found after a power loss."""
        found = bytearray(self.safe)
        kept = moments.randint(0, len(self.pending)) if mode == "in order" else len(self.pending)
        for offset, data in self.pending[:kept] if mode != "nothing" else ():
            torn = mode == "anything" and moments.random() < 0.67
            for at, piece in _sectors(offset, data) if torn else ((offset, data),):
                if not torn or moments.random() < 0.5:
                    _apply(found, at, piece)
        return found


@final
@dataclass(kw_only=True, eq=False)
class Folder:
    """Names in the cache, on the disk, and the changes between: (name, what it is now), None for nothing."""

    now: "dict[str, File | Folder]" = field(default_factory=dict)
    safe: "dict[str, File | Folder]" = field(default_factory=dict)
    pending: "list[dict[str, File | Folder | None]]" = field(default_factory=list)

    def change(self, names: "dict[str, File | Folder | None]") -> None:
        """Change some names at once."""
        _rename(self.now, names)
        self.pending.append(names)

    def sync(self) -> None:
        """The names are on the disk."""
        for names in self.pending:
            _rename(self.safe, names)
        self.pending.clear()

    def after(self, moments: random.Random, mode: Mode) -> "dict[str, File | Folder]":
        """The names that are found after a power loss; a rename happened or not."""
        found = dict(self.safe)
        kept = moments.randint(0, len(self.pending)) if mode == "in order" else len(self.pending)
        for names in self.pending[:kept] if mode != "nothing" else ():
            if mode == "in order" or moments.random() < 0.5:
                _rename(found, names)
        return found


@final
class Disk:
    """A tree of files that was wholly on the disk when the log began.

    Args:
        root: where the log's paths begin.
        tree: the files as they were then.
        moments: public randomness of what survives.
    """

    def __init__(self, root: Path, tree: Path, moments: random.Random) -> None:
        self._root, self._moments = str(root), moments
        self._top = _load(tree)

    def take(self, event: Event) -> None:
        """Let one call happen."""
        if event.kind == "P" or event.path.endswith(" (deleted)"):
            return
        folder, name = self._at(event.path)
        if event.kind in "CM":
            made = Folder() if event.kind == "M" else File(now=bytearray(), safe=bytearray())
            folder.change({name: made})
        elif event.kind == "R":
            target, other = self._at(event.other)
            assert target is folder, "renames across folders are not simulated"
            folder.change({name: None, other: folder.now[name]})
        elif event.kind in "UD":
            folder.change({name: None})
        else:
            self._content(folder, name, event)

    def _content(self, folder: Folder, name: str, event: Event) -> None:
        node = folder.now.get(name) if name else folder
        if node is None:  # a library opened it past libc
            node = File(now=bytearray(), safe=bytearray())
            folder.change({name: node})
        if event.kind == "S":
            node.sync()
        elif isinstance(node, File):
            if event.kind == "F":
                node.fail(self._moments)
            else:
                node.write(event.offset, event.data if event.kind == "W" else None)

    def _at(self, path: str) -> tuple[Folder, str]:
        """The folder that holds a path's last name; an empty name for the root itself."""
        assert path.startswith(self._root)
        *parents, name = path[len(self._root) :].strip("/").split("/")
        folder = self._top
        for parent in parents:
            found = folder.now[parent]
            assert isinstance(found, Folder)
            folder = found
        return folder, name

    def lose_power(self, out: Path) -> None:
        """Write what is found afterwards into an empty folder."""
        _found(self._top, out, self._moments, self._moments.choice(MODES))


def cuts(found: Sequence[Event], count: int, moments: random.Random) -> Iterator[int]:
    """Random moments of a log, in increasing order: how many calls had happened."""
    yield from sorted(moments.randint(1, len(found)) for _ in range(count))


def _found(folder: Folder, out: Path, moments: random.Random, mode: Mode) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, node in folder.after(moments, mode).items():
        if isinstance(node, Folder):
            _found(node, out / name, moments, mode)
        else:
            (out / name).write_bytes(node.after(moments, mode))


def _load(tree: Path) -> Folder:
    names: dict[str, File | Folder] = {}
    for path in sorted(tree.iterdir()):
        if path.is_dir():
            names[path.name] = _load(path)
        else:
            data = path.read_bytes()
            names[path.name] = File(now=bytearray(data), safe=bytearray(data))
    return Folder(now=dict(names), safe=dict(names))


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    end = offset + len(data or b"")
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset:end] = data


def _rename(names: "dict[str, File | Folder]", change: "dict[str, File | Folder | None]") -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _pages(offset: int, data: bytes) -> set[int]:
    return set(range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1)) if data else set()


def _sectors(offset: int, data: bytes | None) -> Iterator[tuple[int, bytes | None]]:
    if data is None:
        yield offset, None
        return
    at = offset
    while at < offset + len(data):
        end = min((at // SECTOR + 1) * SECTOR, offset + len(data))
        yield at, data[at - offset : end - offset]
        at = end
