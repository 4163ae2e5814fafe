"""The commands of the server beside ``run``: what they say, and whom they let."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.__main__ import EXAMPLES, main
from broker.assembly import lock_directory
from broker.config import load_config
from broker.records.device_records import DeviceRecords
from broker.records.registry import DATABASE, Registry
from broker.reports.fleet_table import ONLY, SORTED_BY
from models.errors import UsageError

GOOD = """
[fleet]
name = "orchard"
broker = "mqtt://localhost"
[storage]
directory = "state"
[[task]]
bundle = "bundle"
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "broker.toml"
    path.write_text(text)
    return path


def test_the_version_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "broker", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"edgefold-broker (\d+\.\d+\.\d+.*|unknown)\n", done.stdout)


def test_status_takes_what_the_view_offers(tmp_path: Path) -> None:
    config = str(write(tmp_path, GOOD))
    lock_directory(tmp_path / "state")
    Registry(tmp_path / "state" / DATABASE, load_config(Path(config)).fleet.name).close()
    for option, values in (("--only", ONLY), ("--sort", SORTED_BY)):
        for value in values:
            assert main(["status", option, value, "--config", config]) == 0
        with pytest.raises(SystemExit):
            main(["status", option, "nonsense", "--config", config])


def test_one_directory_is_named_everywhere() -> None:
    """In the unit, in the help and in every document."""
    root = Path(__file__).parents[2]
    unit = (root / "systemd" / "edge-broker.service").read_text()
    (name,) = re.findall("^StateDirectory=(.*)$", unit, re.MULTILINE)
    named = {"help": EXAMPLES}
    for path in (root / "README.md", *(root / "docs").rglob("*.md")):
        named[path.name] = path.read_text()
    found = {
        (where, directory)
        for where, text in named.items()
        for directory in re.findall(r"/var/lib/(edge[a-z-]*broker)\b", text)
    }
    assert {directory for _, directory in found} == {name}
    assert {"help", "server.md"} <= {where for where, _ in found}


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that everybody may enter, as those of pytest are not, with all that a server has."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        config = write(directory, GOOD)
        os.close(lock_directory(directory / "state"))
        Registry(directory / "state" / DATABASE, load_config(config).fleet.name).close()
        assert main(["status", "--config", str(config)]) == 0  # and all is imported
        yield directory


@contextmanager
def somebody_else() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("forbidden", ["broker.toml", "state", f"state/{DATABASE}"])
@pytest.mark.parametrize("command", [["status"], ["releases"], ["forget", "dev-1"]])
def test_no_permission_is_told_from_nothing_there(
    directory: Path, forbidden: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / forbidden).chmod(0o700 if forbidden == "state" else 0o600)
    with somebody_else():
        assert main([*command, "--config", str(directory / "broker.toml")]) == 4
    error = capsys.readouterr().err
    said = "Permission denied: it belongs to the service: run this with sudo"
    if forbidden == "broker.toml":
        said = "no permission to read it: run this with sudo"
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_server_is_not_started_by_whoever_may_not(directory: Path) -> None:
    with somebody_else(), pytest.raises(UsageError, match="run this with sudo"):
        lock_directory(directory / "state")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_look_but_not_write_cannot_forget(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(directory / "broker.toml")
    registry = Registry(directory / "state" / DATABASE, "orchard")
    DeviceRecords(registry).introduce("dev-1")
    registry.close()
    for path in (directory / "state").iterdir():
        path.chmod(0o644)
    with somebody_else():
        assert main(["forget", "dev-1", "--config", config]) == 4
    error = capsys.readouterr().err
    assert "run this with sudo" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["forget"],
        ["forget", "nobody"],
        ["forget", "--older-than", "soon"],
        ["releases", "--export", "x", "model.onnx"],
        ["releases", "--export", "\u00b2", "model.onnx"],
    ],
)
def test_what_is_wrong_with_the_command_line_is_exit_code_2(
    directory: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, "--config", str(directory / "broker.toml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
