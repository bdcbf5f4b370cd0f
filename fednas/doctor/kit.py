"""kit.toml: what the kit of a server or a site says of itself, so that it can be examined."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fednas.errors import ConfigurationError
from fednas.operations import parse_address, write_whole

FILE: Final = "kit.toml"


def _address(text: str) -> str:
    try:
        parse_address(text, "it")
    except ConfigurationError as error:
        raise ValueError("expected HOST:PORT") from error
    return text


Port = Annotated[int, Field(ge=1, le=65535)]
Address = Annotated[str, AfterValidator(_address)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LedgerServiceKit(_Part):
    """A site's ledger service.

    Args:
        address: HOST:PORT at which auditors reach it.
        certificate: PEM, from the operator; not there before he issued it.
        key: PEM.
        authority: the auditors' authority, likewise from the operator.
        unit: of systemd.
    """

    address: Address
    certificate: Path
    key: Path
    authority: Path
    unit: Path


class SiteKitFile(_Part):
    """A site's kit.

    Args:
        kind: which form this is.
        format: of the file.
        user: under whom its services run.
        site: the site.toml.
        superlink: HOST:PORT at which the server's fleet is reached.
        port: of the SuperNode, on the loopback interface.
        authority: certificate by which the server is known.
        key: the device's private key.
        public_key: what the operator registers.
        unit: of systemd.
        ledger: its ledger service, if it has one.
    """

    kind: Literal["site"] = "site"
    format: Literal[1] = 1
    user: str
    site: Path
    superlink: Address
    port: Port
    authority: Path
    key: Path
    public_key: Path
    unit: Path
    ledger: LedgerServiceKit | None = None


class ServerKitFile(_Part):
    """A server's kit.

    Args:
        kind: which form this is.
        format: of the file.
        user: under whom its services run.
        hosts: DNS names and IP addresses by which devices reach it.
        port: of the SuperLink, on the loopback interface.
        public_port: at which the reverse proxy listens.
        authority: certificate that every device gets.
        certificate: of the server.
        key: of that certificate.
        secrets: folder of what nobody else may read.
        signing_key: with it the server signs what it asks.
        public_key: the text by which sites know that.
        runs: folder of run directories.
        proxy: what nginx includes.
        units: of systemd.
    """

    kind: Literal["server"] = "server"
    format: Literal[1] = 1
    user: str
    hosts: tuple[str, ...] = Field(min_length=1)
    port: Port
    public_port: Port
    authority: Path
    certificate: Path
    key: Path
    secrets: Path
    signing_key: Path
    public_key: Path
    runs: Path
    proxy: Path
    units: tuple[Path, ...]


_KINDS: Final[Mapping[str, type[SiteKitFile] | type[ServerKitFile]]] = {
    "site": SiteKitFile,
    "server": ServerKitFile,
}
_Any = TypeVar("_Any")


def write_kit(kit: SiteKitFile | ServerKitFile, folder: Path) -> None:
    """Write what `read_kit` reads; files of the folder are written relative to it.

    Raises:
        OSError: the disk refuses.
    """
    document = _relative(kit.model_dump(exclude_none=True), folder.resolve())
    write_whole(folder / FILE, tomli_w.dumps(document).encode())


def read_kit(folder: Path) -> SiteKitFile | ServerKitFile:
    """What a kit says of itself; its paths come back absolute.

    Raises:
        ConfigurationError: there is no kit, or its file is of another form.
    """
    path = folder / FILE
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise ConfigurationError(
            f"this user may not read {path}; run it as the user of the service: sudo -u fednas"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}; give the folder that `python -m server prepare` or "
            "`python -m client prepare` made"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML; prepare the kit again, its keys stay") from error
    model = _KINDS.get(str(value.get("kind")))
    if model is None:
        raise ConfigurationError(f"{path}: expected kind as site or server; prepare the kit again")
    try:
        return _resolved(model.model_validate(value), folder.resolve())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        setting = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"{path}: {setting}: {first['msg']}; prepare the kit again, its keys stay"
        ) from error


def _relative(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _relative(part, folder) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_relative(part, folder) for part in value]
    if isinstance(value, Path):
        return str(value.relative_to(folder) if value.is_relative_to(folder) else value)
    return value


def _resolved(part: _Any, folder: Path) -> _Any:
    made: Any = part
    if isinstance(part, Path):
        made = folder / part
    elif isinstance(part, tuple):
        made = tuple(_resolved(item, folder) for item in part)
    elif isinstance(part, _Part):
        values = {name: _resolved(getattr(part, name), folder) for name in type(part).model_fields}
        made = part.model_copy(update=values)
    return made  # type: ignore[no-any-return]
