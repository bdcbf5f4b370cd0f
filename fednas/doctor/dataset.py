"""Checks of what a site's owner wrote and holds: site.toml, consent, and whether the records fit a study."""

from pathlib import Path

from fednas.config import SiteConfig, StudyConfig, load_site
from fednas.doctor.findings import Finding, fail, ok, skip, warn
from fednas.errors import SitePausedError
from fednas.site.consent import Consent


def declared(path: Path) -> Finding:
    """Whether a site.toml is complete."""
    config = load_site(path)
    return ok(f"{config.name}, dataset {config.dataset}, epsilon {config.epsilon:g}", "a valid site.toml")


def server_key(config: SiteConfig) -> Finding:
    """Whether the site knows its server by a key, and does nothing that another asks."""
    bound = "server_key is the text of the server's server.pub"
    if config.server_key is None:
        return fail(
            "the site does what anybody asks who reaches it",
            bound,
            "ask the server's operator for server.pub, and write its text into site.toml as server_key",
        )
    return ok(f"server_key {config.server_key[:12]}", bound)


def schema(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """Whether the records fit a study; how many there are is shown by `fednas site check` alone.

    Args:
        config: of the site.
        study: whose schema it is; None where nobody said.
    """
    if isinstance(config.data, Path) and not config.data.exists():
        return fail(f"{config.data} is not there", "the site's records", "set data in site.toml to them")
    if study is None:
        return skip("no study was given", "--study study.toml, from the operator")
    from fednas.site.datasets import load  # NumPy, and what reads a table, only now

    load(config, study.data)
    shape = "x".join(str(size) for size in study.data.input_shape)
    return ok(f"the data fit {study.name}", f"features of shape {shape}, {study.data.num_classes} classes")


def consent(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """Whether the owner lets the site answer.

    Args:
        config: of the site.
        study: that may be vetoed.
    """
    bound = "the owner lets the site answer"
    again = "fednas site resume site.toml, if that is what the owner wants"
    try:
        said = Consent.of(config)
    except SitePausedError as error:
        return fail(str(error), bound, again)
    if said.left or said.paused:
        return warn(f"the site {'has left' if said.left else 'is paused'}", bound, again)
    if study is not None and study.name in said.vetoed:
        return warn(f"{study.name} is vetoed", bound, f"fednas site veto site.toml {study.name} --permit")
    return ok("the site answers", bound)
