"""The systemd units: understood by systemd without a word, and hardened."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "systemd").glob("*.service"))
MOST_EXPOSED = 1.5  # of 10, as systemd-analyze security counts

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def installed(unit: Path, tmp_path: Path) -> Path:
    """Return a copy of ``unit`` whose program exists on this machine."""
    command = f"ExecStart={sys.executable} "
    lines = [
        command + line.partition(" ")[2] if line.startswith("ExecStart=") else line
        for line in unit.read_text().splitlines()
    ]
    copy = tmp_path / unit.name
    copy.write_text("\n".join(lines) + "\n")
    return copy


def test_there_is_a_unit_for_the_agent_and_one_for_the_server() -> None:
    assert [unit.name for unit in UNITS] == ["edge-agent.service", "edge-broker.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_every_line(unit: Path, tmp_path: Path) -> None:
    """It exits with 0 on unknown keys too: what it prints is what counts."""
    copy = installed(unit, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_secret_that_is_not_there_does_not_keep_a_unit_from_starting(unit: Path) -> None:
    """systemd 252 and 257 refuse to start without the file, and an empty SetCredential= as well."""
    lines = unit.read_text().splitlines()
    loaded = [line.split("=")[1].split(":")[0] for line in lines if line.startswith("LoadCred")]
    program = unit.name.removeprefix("edge-").removesuffix(".service")
    assert loaded == [f"{program}.{what}" for what in ("toml", "password", "key")]
    assert [f"SetCredential={name}:\\n" in lines for name in loaded] == [True] * 3


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_hardened(unit: Path, tmp_path: Path) -> None:
    copy = installed(unit, tmp_path)
    threshold = f"--threshold={MOST_EXPOSED * 10:.0f}"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", threshold, str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:]
