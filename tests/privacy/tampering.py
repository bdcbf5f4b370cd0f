"""Ways to tamper with a ledger file: by hand, with its chain made anew, under a strange key or its own."""

import hashlib
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fednas.privacy.numbers import canonical_json
from fednas.privacy.signing import Signer
from fednas.privacy.store import SCHEMA
from tests.privacy.ledger_content import Content, Original, Row, altering, write

STRANGER: Final = Signer(bytes(32))
Kind = Callable[[Path, random.Random, Original], None]
KINDS: dict[str, Kind] = {}
"""What the file itself shows to whoever verifies it."""
OUTSIDE: dict[str, Kind] = {}
"""What needs a fact that somebody else kept: a head, or the public key."""


def kind(name: str, *, needs: dict[str, Kind] = KINDS) -> Callable[[Kind], Kind]:
    def register(function: Kind) -> Kind:
        needs[name] = function
        return function

    return register


def change(
    name: str, *, rechained: bool = False, signed_by: str = "", needs: dict[str, Kind] = KINDS
) -> Callable[[Callable[[Content, random.Random], object]], Callable[[Content, random.Random], object]]:
    """Register a change of the content, as it is, or with the chain made anew, or signed anew as well."""

    def register(
        function: Callable[[Content, random.Random], object],
    ) -> Callable[[Content, random.Random], object]:
        def tamper(path: Path, generator: random.Random, original: Original) -> None:
            content = original.content.copy()
            function(content, generator)
            if rechained or signed_by:
                signer = {"": None, "stranger": STRANGER, "owner": original.signer}[signed_by]
                content.rechain(signer)
            write(content, path)

        needs[name] = tamper
        return function

    return register


def flip(value: Any, generator: random.Random) -> Any:
    """A value of SQLite with one bit changed; text comes back as bytes, which need not be text any more."""
    if isinstance(value, int):
        return value ^ (1 << generator.randrange(40))
    data = bytearray(value if isinstance(value, bytes) else value.encode())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(data)


def flip_bit(path: Path, generator: random.Random, table: str, columns: tuple[str, ...]) -> None:
    with altering(path) as connection:
        column = generator.choice(columns)
        where = generator.randrange(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        select = f"SELECT rowid, {column} FROM {table} LIMIT 1 OFFSET {where}"
        rowid, value = connection.execute(select).fetchone()
        new = "CAST(? AS TEXT)" if isinstance(value, str) else "?"
        while True:
            with suppress(sqlite3.IntegrityError):  # another row has this position
                connection.execute(
                    f"UPDATE {table} SET {column} = {new} WHERE rowid = ?", (flip(value, generator), rowid)
                )
                return


@kind("flip a bit of an entry")
def _(path: Path, generator: random.Random, _: Original) -> None:
    flip_bit(path, generator, "entries", ("seq", "kind", "body", "digest"))


@kind("flip a bit of a reply")
def _(path: Path, generator: random.Random, _: Original) -> None:
    flip_bit(path, generator, "replies", ("operation", "reply"))


@kind("cut the file")
def _(path: Path, generator: random.Random, _: Original) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: generator.randrange(len(raw))])


@kind("change the schema")
def _(path: Path, generator: random.Random, _: Original) -> None:
    trigger = generator.choice(SCHEMA[2:])
    name, blind = trigger.split()[2], trigger.replace(" BEGIN", " WHEN 0 BEGIN", 1)
    if " WHEN " in trigger:
        blind = trigger.replace(" WHEN ", " WHEN 0 AND ", 1)
    change = generator.choice(
        (
            f"DROP TRIGGER {name}",
            f"DROP TRIGGER {name}; {blind}",
            f"DROP TRIGGER {name}; {trigger.replace('RAISE(ABORT, ', 'quote(')}",
            "CREATE TABLE notes (text)",
            "CREATE INDEX speed ON entries (kind)",
            "CREATE VIEW summary AS SELECT count(*) FROM entries",
            "CREATE TRIGGER mine AFTER INSERT ON entries BEGIN SELECT 1; END",
            "ALTER TABLE entries ADD COLUMN note TEXT",
            "ALTER TABLE replies RENAME COLUMN reply TO answer",
            "ALTER TABLE entries RENAME TO records",
        )
    )
    with sqlite3.connect(path) as connection:
        connection.executescript(change)
    connection.close()


@kind("put back an older copy", needs=OUTSIDE)
def _(path: Path, generator: random.Random, original: Original) -> None:
    shutil.copyfile(generator.choice(original.snapshots), path)


@kind("put the ledger of another dataset in its place", needs=OUTSIDE)
def _(path: Path, _: random.Random, original: Original) -> None:
    shutil.copyfile(original.other, path)


@change("delete an entry")
def _(content: Content, generator: random.Random) -> None:
    del content.rows[generator.randrange(len(content.rows))]


@change("delete an entry and close the gap")
def _(content: Content, generator: random.Random) -> None:
    del content.rows[generator.randrange(len(content.rows) - 1)]
    content.rows = [replace(row, seq=seq) for seq, row in enumerate(content.rows)]


@change("delete an entry, chain anew", rechained=True)
def _(content: Content, generator: random.Random) -> None:
    del content.rows[generator.randrange(1, len(content.rows))]


@change("hide an operation, chain anew", rechained=True)
def hide(content: Content, generator: random.Random) -> None:
    name = generator.choice(sorted(content.replies))
    about = [n for n in content.places("RESERVE", "RELEASE") if content.rows[n].facts["operation"] == name]
    hidden = {*about, *(n + 1 for n in about)}  # with their signatures
    content.rows = [row for n, row in enumerate(content.rows) if n not in hidden]
    del content.replies[name]


def forged(content: Content, generator: random.Random) -> Row:
    """An entry that a ledger could write next."""
    rows = content.rows
    model = rows[generator.choice(content.places("RESERVE", "REFUSE", "CAP", "PLAN", "DECLARE", "RELEASE"))]
    facts = model.facts
    name = f"{generator.getrandbits(128):032x}"
    if model.kind == "RESERVE":
        return model.saying(operation=name, charges={"search": 1})
    if model.kind == "RELEASE":
        waiting = {rows[n].facts["operation"] for n in content.places("RESERVE")} - set(content.replies)
        reply = generator.randbytes(64)
        operation = sorted(waiting)[0]
        content.replies[operation] = reply
        return model.saying(operation=operation, reply=hashlib.sha256(reply).hexdigest())
    return {
        "REFUSE": lambda: model.saying(subject=f"operation {name}"),
        "CAP": lambda: model.saying(cap=facts["cap"] | {"epsilon": "9.0"}),
        "PLAN": lambda: model.saying(run=f"run {name}"),
        "DECLARE": lambda: model.saying(purpose="another"),
    }[model.kind]()


@change("insert a copy of an entry")
def _(content: Content, generator: random.Random) -> None:
    content.rows.insert(generator.randrange(len(content.rows)), generator.choice(content.rows))
    content.rows = [replace(row, seq=seq) for seq, row in enumerate(content.rows)]


@change("insert a forged entry, chain anew", rechained=True)
def _(content: Content, generator: random.Random) -> None:
    content.rows.insert(generator.randrange(2, len(content.rows)), forged(content, generator))


@change("append a forged entry", rechained=True)
def append(content: Content, generator: random.Random) -> None:
    content.rows.append(forged(content, generator))


@change("append a forged entry and an old signature", rechained=True)
def _(content: Content, generator: random.Random) -> None:
    append(content, generator)
    content.rows.append(content.rows[generator.choice(content.places("CHECKPOINT"))])


@change("append a forged entry and a stranger's signature", rechained=True)
def _(content: Content, generator: random.Random) -> None:
    append(content, generator)
    content.rechain()
    last = content.rows[-1]
    signature = STRANGER.sign(content.rows[0].facts["dataset"], last.seq + 1, last.digest)
    content.rows.append(Row(0, "CHECKPOINT", canonical_json({"signature": signature}), ""))


def swap(content: Content, generator: random.Random) -> None:
    while True:
        a, b = generator.sample(range(1, len(content.rows)), 2)
        left, right = content.rows[a], content.rows[b]
        if (left.kind, left.body) != (right.kind, right.body):
            content.rows[a] = replace(left, kind=right.kind, body=right.body, digest=right.digest)
            content.rows[b] = replace(right, kind=left.kind, body=left.body, digest=left.digest)
            return


def rotate(content: Content, generator: random.Random) -> None:
    a, b = sorted(generator.sample(range(1, len(content.rows)), 2))
    content.rows[a : b + 1] = [*content.rows[a + 1 : b + 1], content.rows[a]]
    content.rows = [replace(row, seq=seq) for seq, row in enumerate(content.rows)]


change("swap two entries")(swap)
change("swap two entries, chain anew", rechained=True)(swap)
change("move an entry")(rotate)
change("move an entry, chain anew", rechained=True)(rotate)


def cut(content: Content, generator: random.Random, *, signed: bool) -> set[str]:
    """Drop the tail of the entries; returns the operations whose release is gone."""
    ends = [n for n in range(1, len(content.rows) - 1) if (content.rows[n].kind == "CHECKPOINT") == signed]
    content.rows = content.rows[: generator.choice(ends) + 1]
    return set(content.replies) - {content.rows[n].facts["operation"] for n in content.places("RELEASE")}


@change("cut the entries")
def _(content: Content, generator: random.Random) -> None:
    for name in cut(content, generator, signed=False):
        del content.replies[name]


@change("cut the entries, keep the replies")
def _(content: Content, generator: random.Random) -> None:
    rows = content.rows
    while not cut(content, generator, signed=True):
        content.rows = rows


@change("cut the entries back to a signature", needs=OUTSIDE)
def _(content: Content, generator: random.Random) -> None:
    for name in cut(content, generator, signed=True):
        del content.replies[name]


@change("swap two replies")
def _(content: Content, generator: random.Random) -> None:
    a, b = generator.sample(sorted(content.replies), 2)
    content.replies[a], content.replies[b] = content.replies[b], content.replies[a]


@change("swap two replies and their digests, chain anew", rechained=True)
def _(content: Content, generator: random.Random) -> None:
    a, b = generator.sample(content.places("RELEASE"), 2)
    left, right = content.rows[a].facts, content.rows[b].facts
    content.rows[a] = content.rows[a].saying(reply=right["reply"])
    content.rows[b] = content.rows[b].saying(reply=left["reply"])
    one, two = left["operation"], right["operation"]
    content.replies[one], content.replies[two] = content.replies[two], content.replies[one]


@change("drop a reply")
def _(content: Content, generator: random.Random) -> None:
    del content.replies[generator.choice(sorted(content.replies))]


@change("add a reply")
def _(content: Content, generator: random.Random) -> None:
    content.replies[f"{generator.getrandbits(128):032x}"] = generator.randbytes(64)


@change("replace a reply and its digest, chain anew", rechained=True)
def _(content: Content, generator: random.Random) -> None:
    place, reply = generator.choice(content.places("RELEASE")), generator.randbytes(64)
    content.replies[content.rows[place].facts["operation"]] = reply
    content.rows[place] = content.rows[place].saying(reply=hashlib.sha256(reply).hexdigest())


@change("release an operation twice, chain anew", rechained=True)
def _(content: Content, generator: random.Random) -> None:
    place = generator.choice(content.places("RELEASE"))
    content.rows.insert(generator.randrange(place + 1, len(content.rows)), content.rows[place])


def understate(content: Content, generator: random.Random) -> None:
    """Charge one step less, or none of an allowance: an entry that any ledger could hold."""
    place = generator.choice(
        [n for n in content.places("RESERVE") if "alphas" in content.rows[n].facts["charges"]]
    )
    content.rows[place] = content.rows[place].saying(
        charges=generator.choice(({"search": 1, "alphas": 1}, {"search": 2}, {"alphas": 1}))
    )


def edit(content: Content, generator: random.Random) -> None:
    """Make the ledger say something better of itself."""
    what = generator.choice(("charge", "cap", "plan", "shares", "noise", "request", "raise", "words"))
    rows = content.rows
    if what == "charge":
        understate(content, generator)
    elif what == "cap":
        place = generator.choice(content.places("OPEN", "CAP"))
        epsilon = repr(generator.uniform(5.0, 9.0))
        rows[place] = rows[place].saying(cap=rows[place].facts["cap"] | {"epsilon": epsilon})
    elif what in ("plan", "shares"):
        places = content.places("PLAN")
        share = [["weights", "0.8"], ["architecture", "0.1"], ["fitness", "0.1"]]
        better = generator.choice(
            ({"noise_multiplier": "9.5"}, {"sampling_probability": "0.01"}, {"steps": 100}, {"steps": 400})
        )
        for place in places if what == "shares" else places[-1:]:
            plan = rows[place].facts["plan"]
            if what == "shares":
                plan["proportions"] = share
            else:
                plan["allowances"][0]["event"] |= better
            identity = hashlib.sha256(canonical_json(plan).encode()).hexdigest()
            rows[place] = rows[place].saying(plan=plan, id=identity)
    elif what == "noise":
        rows[0] = rows[0].saying(noise="seeded")
    elif what == "request":
        place = generator.choice(content.places("RESERVE"))
        rows[place] = rows[place].saying(digest=f"{generator.getrandbits(256):064x}", kind="other")
    elif what == "raise":
        del rows[content.places("CAP")[0]]
    else:
        place = content.places("DECLARE")[0]
        rows[place] = rows[place].saying(purpose="research", declared_size=10**6)


change("edit a fact")(edit)
change("edit a fact, chain anew", rechained=True)(edit)


@change("edit a fact, sign anew as a stranger", signed_by="stranger")
def _(content: Content, generator: random.Random) -> None:
    edit(content, generator)


@change("drop the last signature")
def _(content: Content, _: random.Random) -> None:
    del content.rows[-1]


@change("replace a signature by an older one, chain anew", rechained=True)
def _(content: Content, generator: random.Random) -> None:
    old, new = generator.sample(content.places("CHECKPOINT"), 2)
    content.rows[new] = content.rows[old]


@change("drop a signature, chain anew", rechained=True)
def _(content: Content, generator: random.Random) -> None:
    del content.rows[generator.choice(content.places("CHECKPOINT"))]


@change("name a stranger's key, chain anew", rechained=True)
def adopt(content: Content, _: random.Random) -> None:
    content.rows[0] = content.rows[0].saying(signer=STRANGER.public_key)


@change("write it anew under a stranger's key", signed_by="stranger", needs=OUTSIDE)
def _(content: Content, generator: random.Random) -> None:
    generator.choice((lambda *_: None, understate, hide))(content, generator)
    adopt(content, generator)


@change("write it anew with the owner's key", signed_by="owner", needs=OUTSIDE)
def _(content: Content, generator: random.Random) -> None:
    generator.choice((understate, hide))(content, generator)
