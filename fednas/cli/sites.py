"""`fednas site`: what the owner of a dataset allows, and whether the data fit a study."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednas.cli.tables import Json, print_json, table
from fednas.errors import ConfigurationError, SitePausedError

if TYPE_CHECKING:
    from fednas.site.consent import Consent

group = typer.Typer(
    help="What the owner of a site allows: pause, leave, veto a study, at any time; check the data.",
    no_args_is_help=True,
)

SiteFile = Annotated[Path, typer.Argument(help="The site.toml.")]
Study = Annotated[str, typer.Argument(help="Name of the study, as its study.toml says it.")]


@group.command("show")
def show_site(site: SiteFile, as_json: Json = False) -> None:
    """Show what the owner of SITE allows."""
    _say(site, lambda consent: consent, as_json)


@group.command("pause")
def pause_site(site: SiteFile, as_json: Json = False) -> None:
    """Answer nothing from now on, until `fednas site resume`; studies go on without SITE.

    A request that is being worked on stays charged, and its answer does not leave.
    """
    _say(site, lambda consent: consent.pause(), as_json)


@group.command("leave")
def leave_site(site: SiteFile, as_json: Json = False) -> None:
    """Answer nothing any more: servers stop asking SITE.

    What has left the site before cannot be taken back.
    """
    _say(site, lambda consent: consent.leave(), as_json)


@group.command("resume")
def resume_site(site: SiteFile, as_json: Json = False) -> None:
    """Answer again after a pause, or after leaving; vetoes of SITE stay."""
    _say(site, lambda consent: consent.resume(), as_json)


@group.command("veto")
def veto_study(
    site: SiteFile,
    study: Study,
    permit: Annotated[bool, typer.Option("--permit", help="Take the veto back.")] = False,
    as_json: Json = False,
) -> None:
    """Answer nothing of STUDY from now on; SITE takes part in others."""
    _say(site, lambda consent: consent.permit(study) if permit else consent.veto(study), as_json)


@group.command("check")
def check_site(
    site: SiteFile,
    study: Annotated[Path, typer.Option(help="The study.toml that it is asked to take part in.")],
    as_json: Json = False,
) -> None:
    """Read the data of SITE as a study would, and say whether they fit it.

    Nothing is spent and nothing leaves.
    """
    from fednas.config import load_site, load_study
    from fednas.site.datasets import load

    config, asked = load_site(site), load_study(study)
    data = load(config, asked.data)
    if as_json:
        print_json({"site": config.name, "records": len(data.y), "left_out": data.left_out})
        return
    table(
        f"{config.name}: the data fit {asked.name}",
        ["records that take part", "records that break the schema"],
        [[str(len(data.y)), str(data.left_out)]],
        caption="private: for the owner of the data only",
    )


def _say(site: Path, change: "Callable[[Consent], Consent]", as_json: bool) -> None:
    """Write down what the owner says, if it changes anything, and show what holds now."""
    from fednas.config import load_site
    from fednas.site.consent import Consent

    config = load_site(site)
    try:
        before = Consent.of(config)
    except SitePausedError:
        before = None  # unreadable: nothing was answered, and nothing is until the owner says so
    consent = change(before or Consent(paused=True))
    if consent != before:
        try:
            consent.keep(config)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write beside {config.ledger}: {error.strerror}; stop the device's service instead"
            ) from error
    if as_json:
        print_json(
            {
                "site": config.name,
                "paused": consent.paused,
                "left": consent.left,
                "vetoed": list(consent.vetoed),
            }
        )
        return
    answers = "left" if consent.left else "paused" if consent.paused else "takes part"
    table(
        f"site {config.name}",
        ["dataset", "state", "vetoed studies"],
        [[config.dataset, answers, ", ".join(consent.vetoed) or "none"]],
    )
