"""What a test starts ends with it, whatever that started itself, and however the test ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guarded_program import GUARD

# A daemon of its own session whose parent is gone, a child that hears no SIGTERM, and the program.
PROGRAM = (
    "(setsid sleep 987 & echo $! >>PIDS); (trap '' TERM; sleep 987) & echo $! >>PIDS; "
    "echo $$ >>PIDS; : >READY; sleep 987"
)


def is_there(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_program_whose_test_was_killed(
    how: signal.Signals, tmp_path: Path
) -> None:
    test = (
        "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True).wait()",
        sys.executable,
        str(GUARD),
        "/bin/sh",
        "-c",
        PROGRAM,
    )
    process = subprocess.Popen([sys.executable, "-c", *test], cwd=tmp_path)
    deadline = time.monotonic() + 20.0
    while not (tmp_path / "READY").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = [int(number) for number in (tmp_path / "PIDS").read_text().split()]
    assert len(started) == 3
    assert all(map(is_there, started))
    os.kill(process.pid, how)
    process.wait()
    while any(map(is_there, started)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_exit_code_is_that_of_the_program() -> None:
    assert subprocess.run([sys.executable, str(GUARD), "/bin/sh", "-c", "exit 7"]).returncode == 7
