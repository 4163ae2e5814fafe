"""Outbox, inbox, install and intake are old or new, whatever system call they die or fail at.

EDGEFOLD_FAULTS=full (`make faults`) injects EIO and EROFS, too.

And the next run goes on: the same step, repeated, comes to the same end.
"""

import itertools
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import writer_programs
from syscall_faults import each_fault, restore
from writer_programs import FOUND, PROGRAMS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_strace"), pytest.mark.timeout(600)]
# what fsync cannot reach, an error cannot be injected into: reads and closes are left out
ERRORS = ("EIO", "ENOSPC", "EROFS") if os.environ.get("EDGEFOLD_FAULTS") == "full" else ("ENOSPC",)


def faults(name: str, tmp_path: Path, *errors: str | None) -> Counter[object]:
    """Return how often which state was found; an update that is not whole fails the test."""
    prepare, change = PROGRAMS[name]
    read, allowed, goal = FOUND[name]
    saved, state = tmp_path / "saved", tmp_path / "state"
    saved.mkdir()
    prepare(saved)
    command = [sys.executable, "-S", writer_programs.__file__, name, "CHANGE", str(state)]
    command[1:2] = []  # site-packages are needed: msgspec
    found: Counter[object] = Counter()
    for outcome in each_fault(command, state, prepare=lambda: restore(saved, state), errors=errors):
        left = read(state)
        assert left in allowed, f"{outcome.fault}: {left}\n{outcome.output}"
        if outcome.status == 0:
            assert left == goal, f"{outcome.fault} was not noticed"
        found[left] += 1
        change(state)
        assert read(state) == goal, f"after {outcome.fault} the next run does not go on"
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_kill_at_every_system_call_leaves_old_or_new(name: str, tmp_path: Path) -> None:
    found = faults(name, tmp_path, None)
    print(name, sum(found.values()), "kills:", dict(found))
    assert sum(found.values()) >= 15
    assert len(found) >= 2  # some came before, some after


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_error_of_every_write_and_sync_leaves_old_or_new(name: str, tmp_path: Path) -> None:
    found = faults(name, tmp_path, *ERRORS)
    print(name, sum(found.values()), "errors:", dict(found))
    assert sum(found.values()) >= 15


def test_every_program_reaches_its_goal_without_faults(tmp_path: Path) -> None:
    for number, (name, (prepare, change)) in zip(itertools.count(), PROGRAMS.items(), strict=False):
        directory = tmp_path / str(number)
        directory.mkdir()
        prepare(directory)
        change(directory)
        read, _, goal = FOUND[name]
        assert read(directory) == goal
        change(directory)  # a repeated step changes nothing
