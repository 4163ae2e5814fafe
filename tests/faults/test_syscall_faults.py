"""`models.host.durable` survives a kill and an error at every system call."""

import sys
from pathlib import Path

import pytest
from syscall_faults import each_fault

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_strace")]
ROOT = Path(__file__).parents[2]
OLD, NEW = b"old" * 5000, b"new" * 7000

CAREFUL = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from models.host.durable import atomic_write
atomic_write(Path({path!r}), b"new" * 7000)
"""
CARELESS = """
import os
with open({path!r}, "wb") as file:
    file.write(b"new" * 7000)
"""


def command(program: str, path: Path) -> list[str]:
    code = program.format(root=str(ROOT), path=str(path))
    return [sys.executable, "-I", "-S", "-c", code]


def states(program: str, tmp_path: Path, *errors: str | None) -> list[tuple[bytes, int]]:
    state = tmp_path / "state"
    state.mkdir()
    path = state / "value"

    def prepare() -> None:
        for file in state.iterdir():
            file.unlink()
        path.write_bytes(OLD)

    return [
        (path.read_bytes(), outcome.status)
        for outcome in each_fault(command(program, path), state, prepare=prepare, errors=errors)
    ]


def test_an_atomic_write_is_old_or_new_when_killed_at_every_system_call(tmp_path: Path) -> None:
    found = states(CAREFUL, tmp_path, None)
    assert len(found) >= 5  # two opens, a write, two fsyncs, a rename
    assert {content for content, _ in found} == {OLD, NEW}


def test_an_atomic_write_that_fails_says_so_and_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    found = states(CAREFUL, tmp_path, "EIO", "ENOSPC", "EROFS")
    assert len(found) >= 12
    assert {content for content, _ in found} <= {OLD, NEW}
    assert all(status != 0 for _, status in found)


def test_the_harness_finds_a_writer_that_truncates_first(tmp_path: Path) -> None:
    assert {content for content, _ in states(CARELESS, tmp_path, None)} - {OLD, NEW}
