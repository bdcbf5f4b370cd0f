"""The checks of a site's kit, in the order in which they stand on each other."""

from fednas.config import StudyConfig, load_site
from fednas.doctor import budget, dataset, files, ledger_service, listeners, machine, network
from fednas.doctor.endpoint import Endpoint
from fednas.doctor.findings import Checklist, Finding
from fednas.doctor.kit import LedgerServiceKit, SiteKitFile
from fednas.doctor.network import Clock
from fednas.operations import parse_address

_RENEW = "ask the server's operator for its ca.crt of today: python -m server prepare renews its certificate"


def examine_site(kit: SiteKitFile, study: StudyConfig | None, now: Clock) -> tuple[Finding, ...]:
    """Make every check of a site.

    Args:
        kit: as its kit.toml says.
        study: that it may take part in; None where nobody said.
        now: Unix time.
    """
    made = Checklist(kit.user)
    host, port = parse_address(kit.superlink, "superlink")
    server = Endpoint(host=host, port=port, authority=kit.authority)
    secrets = [kit.key, *([kit.ledger.key] if kit.ledger else [])]
    made.run("authority", lambda: files.authority(kit.authority, now(), _RENEW))
    made.run("secrets", lambda: files.private(secrets, kit.user))
    made.run("node key", lambda: files.pair(kit.key, kit.public_key))
    made.run("unit", lambda: files.unit(kit.unit, ("--auth-supernode-private-key", "--root-certificates")))
    made.run("connection", lambda: network.connection(server, now, _RENEW), needs=["authority"])
    made.run("health", lambda: network.health(server), needs=["connection"])
    made.run("clock", lambda: network.clock(server, now), needs=["health"])
    made.run("control API", lambda: network.control(server), needs=["connection"])
    made.run(
        "registration",
        lambda: network.node_known(server, kit.key, now),
        needs=["health", "clock", "node key"],
    )
    made.run("port", lambda: listeners.own_port(kit.port, str(kit.key)))
    made.run("time service", machine.synchronised)
    made.run("versions", machine.versions)
    made.run("site.toml", lambda: dataset.declared(kit.site))
    _examine_data(made, kit, study)
    if kit.ledger is not None:
        _examine_ledger_service(made, kit.ledger, now)
    return made.findings


def _examine_data(made: Checklist, kit: SiteKitFile, study: StudyConfig | None) -> None:
    """What only a valid site.toml leads to."""
    needs = ["site.toml"]
    made.run("server key", lambda: dataset.server_key(load_site(kit.site)), needs=needs)
    made.run("memory", lambda: machine.memory(load_site(kit.site).device.training_memory_bytes), needs=needs)
    made.run("disk sync", lambda: machine.disk_sync(load_site(kit.site).ledger.parent), needs=needs)
    made.run("disk space", lambda: machine.disk_space(load_site(kit.site).ledger.parent), needs=needs)
    made.run("data", lambda: dataset.schema(load_site(kit.site), study), needs=needs)
    made.run("consent", lambda: dataset.consent(load_site(kit.site), study), needs=needs)
    made.run("ledger", lambda: budget.ledger(load_site(kit.site)), needs=needs)
    made.run("budget", lambda: budget.budget(load_site(kit.site), study), needs=["ledger"])


def _examine_ledger_service(made: Checklist, kit: LedgerServiceKit, now: Clock) -> None:
    _, port = parse_address(kit.address, "address")
    made.run("ledger unit", lambda: files.unit(kit.unit, ("--client-ca",)))
    made.run("ledger port", lambda: listeners.own_port(port, str(kit.key)))
    made.run("ledger certificate", lambda: ledger_service.certificate(kit, now()))
    made.run(
        "ledger strangers", lambda: ledger_service.stranger(kit), needs=["ledger certificate", "ledger port"]
    )
