"""What systemd/install.sh refuses before it has changed anything; test_first_day.py runs it."""

import os
import shutil
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


def commands(folder: Path, **scripts: str) -> dict[str, str]:
    """Return an environment in which each of ``scripts`` takes a command's place."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.mark.skipif(os.geteuid() != 0, reason="it asks for root first")
def test_programs_of_32_bits_on_a_kernel_of_64_are_refused(tmp_path: Path) -> None:
    """As on 32-bit Raspberry Pi OS, where `uname -m` says aarch64."""
    environment = commands(
        tmp_path,
        uname="echo aarch64",
        systemctl="exit 0",
        python3="case $2 in *maxsize*) exit 1 ;; esac",
        mktemp="echo it goes on >&2; exit 1",
    )
    done = subprocess.run(
        [str(SCRIPT), "agent"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert done.stderr.startswith("install: this system's programs have 32 bits")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs folders of its own"
)
@pytest.mark.parametrize(
    ("state", "stops"), [("active", True), ("activating", True), ("failed", False)]
)
def test_a_service_that_is_starting_is_stopped_for_an_upgrade_too(
    tmp_path: Path, state: str, stops: bool
) -> None:
    """Everything that the script changes lies in memory, and what it calls only takes note."""
    said = tmp_path / "said"
    environment = commands(
        tmp_path,
        uname="echo x86_64",
        systemctl=(
            f"echo $* >>{said}\n[ $1 = is-active ] || exit 0\necho {state}; [ {state} = active ]"
        ),
        groupadd="exit 0",
        python3=(
            'case "$*" in *venv*) mkdir -p /opt/edgefold/bin; '
            "ln -s /bin/true /opt/edgefold/bin/python ;; esac"
        ),
    )
    places = "/opt /etc/systemd/system /usr/local/bin /etc/edgefold"
    lines = f"for p in {places}; do mkdir -p $p; mount -t tmpfs none $p; done; {SCRIPT} agent"
    settings = Path("/etc/edgefold")
    was_there = settings.exists()
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", lines],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if not was_there:
        settings.rmdir()  # the place alone, with nothing in it
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no mounts here")
    assert done.returncode == 0, done.stderr
    calls = said.read_text().splitlines()
    assert ("stop edge-agent" in calls) is stops
    assert ("start --no-block edge-agent" in calls) is stops
