"""A job of a child program: one child, a folder of its own, a deadline, and how it ended."""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent.board.child_job import ChildJob, Ended
from edge_agent.board.children import DISK_FAILED


class FakeChild:
    """Ends when told."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.was_killed = False

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.was_killed = True
        self.code = -signal.SIGKILL


class Board:
    """Launches `FakeChild`."""

    def __init__(self, folder: Path) -> None:
        self.children: list[FakeChild] = []
        self.asked: list[tuple[str, list[str]]] = []
        self.job = ChildJob(self.launch, folder / "job", program="a.program")

    def launch(self, module: str, arguments: Sequence[str], *, log: Path | str | None) -> FakeChild:
        assert log is not None
        Path(log).write_text("first\nno room for it\n")
        self.asked.append((module, list(arguments)))
        self.children.append(FakeChild())
        return self.children[-1]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    board = Board(tmp_path)
    board.job.prepare()
    return board


def test_a_child_that_works_is_told_of_once(board: Board) -> None:
    board.job.begin(["x"], 10.0, 5.0)
    assert board.asked == [("a.program", ["x"])]
    assert board.job.is_running
    assert board.job.poll(11.0) is None
    board.children[0].code = 0
    assert board.job.poll(12.0) == Ended(0)
    assert not board.job.is_running
    assert board.job.poll(13.0) is None


def test_a_child_is_ended_at_its_deadline_and_not_before(board: Board) -> None:
    board.job.begin([], 10.0, 5.0)
    assert board.job.poll(14.9) is None
    ended = board.job.poll(15.0)
    assert ended is not None
    assert ended.is_overdue
    assert not ended.worked
    assert board.children[0].was_killed


def test_a_child_that_ended_in_time_is_not_overdue_when_asked_late(board: Board) -> None:
    board.job.begin([], 10.0, 5.0)
    board.children[0].code = 0
    assert board.job.poll(100.0) == Ended(0)
    assert not board.children[0].was_killed


@pytest.mark.parametrize(
    ("code", "is_disk", "is_killed"),
    [(1, False, False), (DISK_FAILED, True, False), (-signal.SIGKILL, False, True)],
)
def test_exit_codes_have_a_meaning(board: Board, code: int, is_disk: bool, is_killed: bool) -> None:
    board.job.begin([], 0.0, 5.0)
    board.children[0].code = code
    ended = board.job.poll(1.0)
    assert ended is not None
    assert (ended.worked, ended.is_overdue) == (False, False)
    assert (ended.is_disk, ended.is_killed) == (is_disk, is_killed)
    assert ended.reason == "no room for it"


def test_a_silent_failure_has_its_code_for_a_reason() -> None:
    assert Ended(7).reason == "exit code 7"


def test_kill_ends_the_child_and_tells_nobody(board: Board) -> None:
    board.job.kill()  # of none
    board.job.begin([], 0.0, 5.0)
    board.job.kill()
    assert board.children[0].was_killed
    assert not board.job.is_running
    assert board.job.poll(1.0) is None


def test_prepare_empties_the_folder_and_clear_removes_it(board: Board) -> None:
    folder = Path(board.job.folder)
    (folder / "left").write_text("by a crash")
    board.job.prepare()
    assert list(folder.iterdir()) == []
    board.job.clear()
    assert not folder.exists()
    board.job.clear()
