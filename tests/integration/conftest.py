"""One SuperLink behind one nginx, for all tests of what is reached from outside."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.kit import ServerKit
from simulations.flower_command import FlowerCommand, free_port
from tests.doctor.kits import OWNER

APP_DIR = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FlowerCommand, ServerKit, Path]]:
    """A SuperLink behind nginx, which listens at the kit's public port."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("proxy")
    kit = ServerKit.prepare(folder / "kit", [], port=free_port(), public_port=free_port(), user=OWNER)
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {folder}/{name};" for name in paths)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} include {kit.folder}/nginx.conf; }}\n"
    )
    with ExitStack() as stack:
        scratch = folder / "scratch"
        scratch.mkdir()
        flower = FlowerCommand.prepare(
            APP_DIR,
            {},
            home=folder / "flower",
            scratch=scratch,
            deadline=time.monotonic() + 600.0,
            port=kit.port,
            certificate=kit.authority,
        )
        stack.callback(flower.end_all)
        superlink = stack.enter_context(flower.process(kit.superlink, folder / "superlink.log"))
        proxy = stack.enter_context(subprocess.Popen([nginx, "-c", str(config)]))
        stack.callback(proxy.terminate)
        flower.wait_until_healthy(superlink, folder / "superlink.log")
        yield flower, kit, folder
