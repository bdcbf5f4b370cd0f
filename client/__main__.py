"""`python -m client`: what a site's operator runs on the device itself."""

from typing import Annotated

import tomli_w
import typer

from fednas.cli import run_cli

cli = typer.Typer(help="On a site's own device.", add_completion=False, pretty_exceptions_enable=False)


@cli.callback()
def explain() -> None:
    """On a site's own device: measure it into the profile that its site.toml declares."""


@cli.command("device")
def measure_device(
    tier: Annotated[str, typer.Argument(help="The name that devices of this kind share.")],
    max_latency_ms: Annotated[float, typer.Option(help="Target for one inference.")] = 10.0,
    upload_bytes: Annotated[int, typer.Option(help="What may be sent in one round.")] = 4_000_000,
    memory_bytes: Annotated[
        int | None, typer.Option(help="Memory for networks. Default: half of what is free.")
    ] = None,
) -> None:
    """Time a few small networks here and print the `[device]` table for site.toml; no record is read."""
    from client.device import suggest

    profile = suggest(
        tier=tier, max_latency_ms=max_latency_ms, upload_bytes=upload_bytes, memory_bytes=memory_bytes
    )
    print(tomli_w.dumps({"device": profile.as_dict()}), end="")  # noqa: T201


if __name__ == "__main__":
    run_cli(cli)
