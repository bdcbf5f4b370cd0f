"""Checks of the machine itself: a disk that keeps what it says, a clock that is set, memory, versions."""

import ctypes
import os
import platform
import re
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fednas.doctor.findings import Finding, fail, ok, skip, warn
from fednas.operations import free_memory_bytes

FORGETFUL: Final = ("tmpfs", "ramfs", "devtmpfs", "rootfs")
SHARED: Final = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs")
FREE_BYTES: Final = 512 * 1024**2
IDLE_BYTES: Final = 240_000_000  # of a SuperNode before any app
_SYNCS: Final = 9
_FAST_S: Final = 15e-6  # no disk that keeps what it says is faster
_SLOW_S: Final = 0.25
_TIME_ERROR: Final = 5


def disk_sync(folder: Path, mounts: Path = Path("/proc/mounts")) -> Finding:
    """Whether what a folder's disk confirms is really kept: a ledger that forgets would spend twice.

    Args:
        folder: in which a draft is written, synced and removed.
        mounts: the kernel's table of file systems.
    """
    bound = "a local disk that keeps what it confirms"
    kind = filesystem(folder, mounts)
    if kind in FORGETFUL:
        return fail(
            f"{folder} is on {kind}, which forgets everything when the machine stops",
            bound,
            "move it to a disk before anything is spent",
        )
    taken = median(_sync_times(folder))
    seen = f"{kind or 'unknown file system'}, synced in {1000 * taken:.2g} ms"
    if kind in SHARED:
        return warn(f"{seen}; {kind} does not lock as SQLite needs it", bound, "move it to a local disk")
    if kind == "overlay":
        return warn(
            f"{seen}; it may be a container's own, which goes with the container", bound, "mount a volume"
        )
    if taken < _FAST_S:
        return warn(f"{seen}: nothing reaches a disk in that time", bound, "let the disk, or its host, sync")
    if taken > _SLOW_S:
        return warn(f"{seen}: every answer waits for several", bound, "take a faster disk or a better card")
    return ok(seen, bound)


def _sync_times(folder: Path) -> list[float]:
    taken = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".fednas-doctor-") as draft:
        for _ in range(_SYNCS):
            draft.write(b"\0" * 4096)
            draft.flush()
            begin = time.perf_counter()
            os.fsync(draft.fileno())
            taken.append(time.perf_counter() - begin)
    return taken


def filesystem(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of file system that a folder is on; empty where the system does not tell."""
    if not mounts.is_file():
        return ""
    resolved, best, kind = folder.resolve(), Path(), ""
    for line in mounts.read_text().splitlines():
        _, where, found, *_ = line.split(" ")
        place = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where))
        # Of two at one place the later one is seen.
        if resolved.is_relative_to(place) and (not kind or len(place.parts) >= len(best.parts)):
            best, kind = place, found
    return kind


def disk_space(folder: Path) -> Finding:
    """Whether a ledger, or a run, has room to grow."""
    free = shutil.disk_usage(folder).free
    bound = f"at least {FREE_BYTES / 1e9:.2g} GB"
    seen = f"{free / 1e9:.2g} GB free"
    return ok(seen, bound) if free >= FREE_BYTES else fail(seen, bound, f"make room on the disk of {folder}")


def memory(needed: int) -> Finding:
    """Whether an app may use what the device profile declares.

    Args:
        needed: `training_memory_bytes` of the profile.
    """
    free = free_memory_bytes()
    bound = f"{needed / 1e6:.3g} MB for training, as site.toml declares, beside {IDLE_BYTES / 1e6:.0f} MB"
    seen = f"{free / 1e6:.3g} MB free"
    remedy = "declare less in [device] (python -m client device), or end something"
    if free < needed:
        return fail(seen, bound, remedy)
    return warn(seen, bound, remedy) if free < needed + IDLE_BYTES else ok(seen, bound)


def synchronised() -> Finding:
    """Whether something keeps this clock right, as the kernel was told."""
    bound = "a time service keeps the clock"
    try:
        ask = ctypes.CDLL(None).adjtimex
    except (AttributeError, OSError):
        return skip("this system does not tell")
    state = ask(ctypes.create_string_buffer(1024))  # all zero: nothing is set, only read
    if state == -1:
        return skip("this system does not tell")
    if state == _TIME_ERROR:
        return warn("no time service has set the clock", bound, "sudo timedatectl set-ntp true")
    return ok("a time service keeps the clock", bound)


def versions(package: str = "fednas") -> Finding:
    """Whether the installed packages are those that this one was made for.

    Args:
        package: whose metadata say so.
    """
    bound = f"what {package} declares"
    try:
        about = metadata.metadata(package)
        required = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return skip(f"{package} is not installed as a package")
    wrong = []
    python = platform.python_version()
    wanted = str(about.json.get("requires_python", ""))
    if not SpecifierSet(wanted).contains(python):
        wrong.append(f"Python {python} (wanted {wanted})")
    found = {}
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found[requirement.name], prereleases=True):
            wrong.append(f"{requirement.name} {found[requirement.name]} (wanted {requirement.specifier})")
    if wrong:
        return fail(", ".join(wrong), bound, f"pip install --upgrade {package}")
    flower = ".".join(found.get("flwr", "?").split(".")[:2])
    shown = ", ".join(f"{name} {found[name]}" for name in ("flwr", "torch", "opacus") if name in found)
    return ok(f"Python {python}, {shown}; server and sites must share flwr {flower}", bound)
