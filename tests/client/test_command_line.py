"""An operator measures a device into the table that its site.toml declares."""

import tomllib

from typer.testing import CliRunner

from client.__main__ import cli
from fednas.devices import DeviceProfile


def test_the_measured_device_is_a_table_that_a_site_can_declare() -> None:
    answer = CliRunner().invoke(
        cli, ["device", "board", "--max-latency-ms", "5", "--memory-bytes", "1000000"]
    )
    assert answer.exit_code == 0, answer.output
    profile = DeviceProfile.from_dict(tomllib.loads(answer.stdout)["device"])
    assert (profile.tier, profile.max_latency_ms, profile.memory_bytes) == ("board", 5.0, 1_000_000)
