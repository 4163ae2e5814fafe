"""What systemd/install.sh refuses before it has changed anything; test_first_day.py runs it."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "systemd/install.sh"


def refused(*arguments: str) -> str:
    done = subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


def test_an_unknown_role_is_answered_with_the_ones_there_are() -> None:
    said = refused("agent", "sensor")
    assert said.startswith(
        "install: 'sensor' is nothing to install; usage: sudo systemd/install.sh"
    )
    assert said.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_is_told_to_use_sudo() -> None:
    done = subprocess.run(
        ["sh", "-s", "agent"],
        input=SCRIPT.read_text(),
        capture_output=True,
        text=True,
        check=False,
        user=65534,
        cwd="/",
    )
    assert (done.returncode, done.stderr) == (
        1,
        "install: needs root: sudo systemd/install.sh agent\n",
    )
