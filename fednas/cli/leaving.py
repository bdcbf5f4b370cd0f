"""`fednas wire`: every byte that leaves a site, by name, and why it says nothing of a record."""

from dataclasses import asdict

from fednas.cli.tables import Json, print_json, table


def show_wire(as_json: Json = False) -> None:
    """Show every byte that a site sends: its name, where it comes from, and why no record is in it."""
    from fednas.wire_schema import schema_rows

    rows = schema_rows()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table(
        "what leaves a site",
        ["message", "field", "bytes", "from", "why"],
        [[row.message, row.name, row.size, row.origin.value, row.why] for row in rows],
        caption="only `release` depends on records, and is paid for; `timing` is a side channel, not covered",
    )
