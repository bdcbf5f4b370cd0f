"""`fednas ledger serve` and `fednas ledger pull`: show a ledger to auditors, fetch and verify a fleet."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednas.cli.tables import Json, number_text, print_json, print_line, table
from fednas.errors import ConfigurationError
from fednas.operations import parse_address

if TYPE_CHECKING:
    from fednas.ledger_service.fleet import Pulled, Target

Certificate = Annotated[Path, typer.Option(help="This side's certificate, PEM.")]
Key = Annotated[Path, typer.Option(help="The private key of that certificate, PEM.")]


def serve_ledger(
    ledger: Annotated[Path, typer.Argument(help="A ledger file, or the site.toml that names it.")],
    certificate: Certificate,
    key: Key,
    client_ca: Annotated[Path, typer.Option(help="The authority whose client certificates are let in, PEM.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one.")] = (
        "127.0.0.1:9443"
    ),
) -> None:
    """Show a site's ledger to auditors over gRPC, read-only: TLS with certificates on both sides, always.

    LEDGER is the file, or the site.toml that names it; run it beside the site. It ends on SIGTERM or Ctrl-C.
    """
    import signal
    import threading

    from fednas.ledger_service import require_extra

    require_extra()
    from fednas.config import load_site
    from fednas.ledger_service.server import serve

    parse_address(listen, "--listen", least_port=0)
    path = load_site(ledger).ledger if ledger.suffix == ".toml" else ledger
    if not path.is_file():
        raise ConfigurationError(f"there is no ledger {path}; start the site first, or give another file")
    server, port = serve(ledger=path, address=listen, certificate=certificate, key=key, client_ca=client_ca)
    print_line(f"serving {path.name} on {listen.rpartition(':')[0]}:{port}")
    sys.stdout.flush()
    end = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: end.set())
    try:
        end.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        server.stop(5.0).wait()


def pull_ledgers(
    out: Annotated[
        Path, typer.Option(help="Folder for ledgers, statements and marks.json; kept between pulls.")
    ],
    certificate: Certificate,
    key: Key,
    ca: Annotated[Path, typer.Option(help="The authority of the sites' server certificates, PEM.")],
    site: Annotated[
        list[str] | None, typer.Argument(help="HOST:PORT of a site, or HOST:PORT=DATASET.")
    ] = None,
    sites: Annotated[
        Path | None, typer.Option(help="A file with one site a line; # begins a comment.")
    ] = None,
    marks: Annotated[
        Path | None,
        typer.Option(
            help="A server's marks.json: each ledger must go on from the state that the server saw."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch and verify the ledgers of a fleet; exit code 1 if one does not hold or is not reachable.

    SITE is HOST:PORT, or HOST:PORT=DATASET where the dataset is known. What holds is kept in --out; a later
    pull finds a ledger that was cut back, replaced, or signed under another key since.
    """
    from fednas.ledger_service import require_extra

    require_extra()
    from rich.console import Console
    from rich.progress import Progress

    from fednas.cli.ledgers import read_marks
    from fednas.ledger_service.client import Identity
    from fednas.ledger_service.fleet import pull

    targets = _targets([*(site or []), *_lines(sites)])
    identity = Identity.read(certificate=certificate, key=key, ca=ca)
    known = None if marks is None else read_marks(marks)
    shown = not as_json and sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("ledgers", total=len(targets))
        ends = pull(targets, identity, out, marks=known, done=lambda: bar.advance(task))
    if as_json:
        print_json([_row(end) for end in ends])
    else:
        held = sum(end.ok for end in ends)
        table(
            "ledgers, pulled and recomputed from their own events",
            ["site", "dataset", "entries", "epsilon", "cap", "signed under", "verdict"],
            [_cells(end) for end in ends],
            caption=f"{held} of {len(ends)} hold; kept in {out}, with marks.json for the next pull",
        )
    if not all(end.ok for end in ends):
        raise typer.Exit(1)


def request_identity(
    name: Annotated[str, typer.Argument(help="Of the auditor: small letters, digits, - and _.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.key and NAME.csr.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make an auditor's key, and the request for a certificate that a server's operator signs.

    NAME names both files. The operator answers with a certificate and auditors.crt: `fednas ledger pull`
    takes them as --certificate and --ca.
    """
    from fednas.certificates import check_auditor, request_certificate

    check_auditor(name, "as NAME")
    key, request = out / f"{name}.key", out / f"{name}.csr"
    try:
        out.mkdir(parents=True, exist_ok=True)
        request_certificate(key, request, name=name)
    except OSError as error:
        raise ConfigurationError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    if as_json:
        print_json({"key": str(key), "request": str(request)})
        return
    table(
        f"an auditor's request for {name}",
        ["file", "what it is for"],
        [[str(request), "for the operator: python -m server issue"], [str(key), "nobody else may read it"]],
    )


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"cannot read {path}; give a file with one HOST:PORT a line") from error
    return [line for line in (part.split("#")[0].strip() for part in text.splitlines()) if line]


def _targets(sites: list[str]) -> "list[Target]":
    from fednas.ledger_service.client import DATASET
    from fednas.ledger_service.fleet import Target

    found: dict[str, Target] = {}
    for site in sites:
        address, given, dataset = site.partition("=")
        parse_address(address, "`pull`, or HOST:PORT=DATASET")
        if given and not DATASET.fullmatch(dataset):
            raise ConfigurationError(f"expected a site as HOST:PORT or HOST:PORT=DATASET, got {site!r:.120}")
        if address in found:
            raise ConfigurationError(f"{address} is given twice; name each site once")
        found[address] = Target(address=address, dataset=dataset or None)
    if not found:
        raise ConfigurationError("give at least one site as HOST:PORT, or a file of them with --sites")
    return list(found.values())


def _row(end: "Pulled") -> dict[str, Any]:
    claim = end.statement["claim"] if end.statement is not None else {}
    return {
        "site": end.address,
        "verdict": end.verdict,
        "finding": end.finding,
        "dataset": end.dataset or None,
        "epsilon": claim.get("epsilon"),
        "delta": claim.get("delta"),
        "cap": claim.get("cap"),
        "entries": None if end.mark is None else end.mark.entries,
        "head": None if end.mark is None else end.mark.head,
        "signer": None if end.mark is None else end.mark.signer,
    }


def _cells(end: "Pulled") -> list[str]:
    from rich.markup import escape

    row = _row(end)
    verdict = "[green]holds[/]" if end.ok else f"[red]{end.verdict}[/]: {escape(end.finding)}"
    if end.mark is None:
        return [escape(end.address), escape(end.dataset), "", "", "", "", verdict]
    figures = [float("inf") if value == "infinite" else value for value in (row["epsilon"], row["cap"])]
    return [
        escape(end.address),
        end.dataset,
        str(end.mark.entries),
        number_text(figures[0]),
        f"{figures[1]:g}",
        end.mark.signer[:12],
        verdict,
    ]
