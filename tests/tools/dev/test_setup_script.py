"""tools/dev/setup.sh on a machine whose package registry does not have everything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "tools/dev/setup.sh"
PROGRAMS = {
    "dpkg-query": "exit 1",  # nothing is installed
    "apt-get": 'echo "$*" >>LOG; case "$*" in *nats-server*) echo "E: none" >&2; exit 100;; esac',
    "systemctl": "exit 0",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="it installs as root only")
def test_a_package_that_a_system_does_not_have_costs_itself_only(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    (tmp_path / "venv/bin").mkdir(parents=True)
    programs.mkdir()
    for place, text in {
        **{programs / name: text for name, text in PROGRAMS.items()},
        tmp_path / "venv/bin/python": "exit 0",
    }.items():
        place.write_text(f"#!/bin/sh\n{text.replace('LOG', str(tmp_path / 'log'))}\n")
        place.chmod(0o755)
    done = subprocess.run(
        [str(SCRIPT), sys.executable, str(tmp_path / "venv")],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = (tmp_path / "log").read_text().splitlines()
    alone = [line.split()[-1] for line in said if len(line.split()) == 5]
    assert "mosquitto" in alone
    assert "rabbitmq-server" in alone
    assert "could not install nats-server; last line: E: none" in done.stdout
    assert "could not install mosquitto" not in done.stdout
