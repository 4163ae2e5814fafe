"""A child that is kept: job after job, and whatever ends it costs at most the job it is at."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edge_agent.board.child_job import ChildJob, Ended
from edge_agent.board.children import Child, last_line
from edge_agent.board.warm_children import LOOK_S, MOST_BYTES, WarmChildren

PROGRAM = "a_small_job"
# A child program: what its first argument says.
SOURCE = """
import os, socket, sys, time
from pathlib import Path
from edge_agent.board.children import peak_rss_mb
from models.errors import PayloadError


def work(arguments):
    what, result, *rest = arguments
    print(f"it is at {what}", file=sys.stderr)
    Path(result + ".begun").write_text(str(os.getpid()))
    if what == "wait":
        while not Path(rest[0]).exists():
            time.sleep(0.01)
    elif what == "a full disk":
        raise OSError(28, "No space left on device")
    elif what == "a bad file":
        raise PayloadError("the file is damaged")
    elif what == "a mistake":
        raise ZeroDivisionError("of ours")
    elif what == "nonsense":
        for name in os.listdir("/proc/self/fd"):
            try:
                socket.socket(fileno=os.dup(int(name))).send(b"done 77")
            except OSError:
                pass
        time.sleep(60)
    elif what == "a circle":
        class Circle:
            pass
        circle = Circle()
        circle.me, circle.weight = circle, bytearray(b"x" * 30_000_000)
    elif what == "much memory":
        bytearray(b"x" * 100_000_000)
    Path(result).write_text(f"{os.getpid()} {peak_rss_mb()}")


if __name__ == "__main__":
    from edge_agent.board.children import settle_in, worked_off
    settle_in()
    sys.exit(worked_off("a_small_job", work, sys.argv[1:]))
"""


class Kept:
    """Children that are kept, and where their jobs write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.free_mb = 500.0
        self.woken = threading.Event()
        self.children = WarmChildren(
            frozenset({PROGRAM}),
            free_mb=lambda: self.free_mb,
            min_free_mb=120,
            wake=self.woken.set,
            idle_s=10.0,
        )
        self.jobs = 0

    def begin(self, what: str, *more: str) -> tuple[Child, Path]:
        """Give a job; return its child and its result. Its log is beside it."""
        self.jobs += 1
        result = self.folder / f"result-{self.jobs}"
        return self.children(PROGRAM, [what, str(result), *more], log=log_of(result)), result

    def do(self, what: str = "nothing") -> Path:
        """Have a job done that works; return its result."""
        child, result = self.begin(what)
        assert code_of(child) == 0, log_of(result).read_text()
        return result


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    (tmp_path / f"{PROGRAM}.py").write_text(SOURCE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kept = Kept(tmp_path)
    yield kept
    kept.children.stop()


def log_of(result: Path) -> Path:
    return result.with_suffix(".log")


def until(claim: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def code_of(child: Child) -> int | None:
    until(lambda: child.poll() is not None)
    return child.poll()


def begun(result: Path) -> int:
    """Wait until a job is at work; return its process."""
    note = Path(f"{result}.begun")
    until(lambda: note.exists() and note.read_text() != "")
    return int(note.read_text())


def process_of(result: Path) -> int:
    return int(result.read_text().split()[0])


def processes() -> int:
    return len(psutil.Process().children())


def test_job_after_job_is_done_by_one_process(kept: Kept) -> None:
    before = processes()
    pids = {process_of(kept.do()) for _ in range(20)}
    assert pids == {kept.children.pid}
    assert processes() == before + 1


def test_each_job_has_its_own_log(kept: Kept) -> None:
    for what in ("one thing", "another"):
        assert log_of(kept.do(what)).read_text() == f"it is at {what}\n"


@pytest.mark.parametrize(
    ("what", "ended", "sentence"),
    [
        ("a full disk", "is_disk", "No space left on device"),
        ("a bad file", "reason", "the file is damaged"),
        ("a mistake", "reason", "ZeroDivisionError: of ours"),
    ],
)
def test_a_job_that_fails_says_why_and_is_the_last_of_its_process(
    kept: Kept, what: str, ended: str, sentence: str
) -> None:
    first = process_of(kept.do())
    child, result = kept.begin(what)
    found = Ended(code_of(child), last_line(log_of(result)))
    assert sentence in found.reason
    assert getattr(found, ended)
    assert not found.worked
    until(lambda: not psutil.pid_exists(first))
    assert process_of(kept.do()) != first


@pytest.mark.parametrize("jobs_before", [0, 1])
def test_a_child_that_is_killed_in_a_job_costs_that_job(kept: Kept, jobs_before: int) -> None:
    for _ in range(jobs_before):
        kept.do()
    child, result = kept.begin("wait", "for ever")
    os.kill(begun(result), signal.SIGKILL)
    code = code_of(child)
    assert Ended(code).is_killed
    assert not result.exists()
    kept.do()


def test_a_child_that_is_killed_between_two_jobs_costs_none(kept: Kept) -> None:
    first = process_of(kept.do())
    os.kill(first, signal.SIGKILL)
    until(lambda: psutil.Process(first).status() == psutil.STATUS_ZOMBIE)
    assert process_of(kept.do()) != first
    assert kept.children.tick(0.0) == LOOK_S


def test_a_job_that_takes_too_long_is_ended_with_its_child(kept: Kept) -> None:
    kept.do()
    job = ChildJob(kept.children, kept.folder / "job", program=PROGRAM)
    job.prepare()
    job.begin(["wait", str(kept.folder / "result"), "for ever"], 100.0, 5.0)
    pid = begun(kept.folder / "result")
    assert job.poll(104.9) is None
    ended = job.poll(105.0)
    assert ended is not None
    assert ended.is_overdue
    assert not psutil.pid_exists(pid)
    kept.do()


def test_a_job_does_not_wait_for_another(kept: Kept) -> None:
    kept.do()
    long, first = kept.begin("wait", str(kept.folder / "now"))
    pid = begun(first)
    short = kept.do()
    assert process_of(short) != pid
    assert long.poll() is None
    (kept.folder / "now").touch()
    assert code_of(long) == 0
    assert process_of(first) == pid == kept.children.pid
    until(lambda: not psutil.pid_exists(process_of(short)))


def test_a_child_without_work_is_ended(kept: Kept) -> None:
    pid = process_of(kept.do())
    assert kept.children.tick(100.0) == 100.0 + LOOK_S
    assert kept.children.tick(109.5) == 110.0
    assert kept.children.tick(109.9) == 110.0
    assert psutil.pid_exists(pid)
    assert kept.children.tick(110.0) == math.inf
    assert not psutil.pid_exists(pid)
    assert kept.children.tick(111.0) == math.inf


def test_a_child_at_work_is_not_idle(kept: Kept) -> None:
    kept.do()
    kept.children.tick(100.0)
    child, result = kept.begin("wait", str(kept.folder / "now"))
    begun(result)
    assert kept.children.tick(1000.0) == math.inf
    (kept.folder / "now").touch()
    assert code_of(child) == 0
    assert kept.children.tick(2000.0) == 2000.0 + LOOK_S


def test_a_child_without_work_gives_way_where_memory_is_short(kept: Kept) -> None:
    pid = process_of(kept.do())
    kept.children.tick(100.0)
    kept.free_mb = 119.0
    assert kept.children.tick(101.0) == math.inf
    assert not psutil.pid_exists(pid)


def test_a_child_at_work_is_left_alone_where_memory_is_short(kept: Kept) -> None:
    kept.free_mb = 10.0
    child, result = kept.begin("wait", str(kept.folder / "now"))
    begun(result)
    assert kept.children.tick(0.0) == math.inf
    (kept.folder / "now").touch()
    assert code_of(child) == 0


def test_stop_ends_a_child_in_the_middle_of_a_job(kept: Kept) -> None:
    child, result = kept.begin("wait", "for ever")
    pid = begun(result)
    kept.children.stop()
    assert not psutil.pid_exists(pid)
    assert code_of(child) == -signal.SIGKILL


OWNER = """
import sys, time
from edge_agent.board.warm_children import WarmChildren

folder, *arguments = sys.argv[1:]
children = WarmChildren(
    frozenset({"a_small_job"}), free_mb=lambda: 1e9, min_free_mb=0, wake=lambda: None
)
child = children("a_small_job", arguments, log=folder + "/log")
time.sleep(60)
"""


@pytest.mark.parametrize("what", ["wait", "nothing"])
def test_a_child_ends_with_its_agent(kept: Kept, what: str) -> None:
    """At work or without work, and the agent gets no chance to say a word."""
    result = kept.folder / "result"
    command = [sys.executable, "-c", OWNER, str(kept.folder), what, str(result), "for ever"]
    owner = subprocess.Popen(command)
    pid = begun(result)
    if what == "nothing":
        until(result.exists)
    owner.kill()
    owner.wait()
    until(lambda: not psutil.pid_exists(pid), 5.0)


def test_an_answer_that_makes_no_sense_is_a_failure_and_ends_the_child(kept: Kept) -> None:
    kept.do()
    child, result = kept.begin("nonsense")
    assert code_of(child) == 1
    assert last_line(log_of(result)) == "its child answered b'done 77', which makes no sense"
    assert not result.exists()
    assert not psutil.pid_exists(begun(result))
    kept.do()


def test_the_peak_of_memory_is_that_of_the_job(kept: Kept) -> None:
    before, much, after = (
        float(kept.do(what).read_text().split()[1]) for what in ("little", "much memory", "little")
    )
    assert much > before + 90
    assert after < before + 20


def test_what_one_job_leaves_in_circles_is_found_by_the_next(kept: Kept) -> None:
    """Jobs that follow each other at once: it was put with the libraries, as no garbage."""
    for _ in range(10):
        kept.do("a circle")
    time.sleep(1.0)  # it rests, looks for garbage, and gives back what it found
    assert psutil.Process(kept.children.pid).memory_info().rss / 1e6 < 150


def test_a_child_is_nice_named_after_its_job_and_the_first_to_go(kept: Kept) -> None:
    child, result = kept.begin("wait", str(kept.folder / "now"))
    process = psutil.Process(begun(result))
    assert process.nice() == psutil.Process().nice() + 10
    assert process.name() == PROGRAM
    score = Path(f"/proc/{process.pid}/oom_score_adj").read_text()
    assert int(score) >= 800
    (kept.folder / "now").touch()
    assert code_of(child) == 0
    assert process.name() == "warm_program"


@pytest.mark.parametrize("what", ["nothing", "a bad file"])
def test_the_end_of_a_job_wakes_who_waits_for_it(kept: Kept, what: str) -> None:
    """Whether the kept child does it, or one of its own."""
    busy, first = kept.begin("wait", str(kept.folder / "now"))
    begun(first)
    kept.woken.clear()
    beside, _ = kept.begin(what)
    assert kept.woken.wait(20)
    until(lambda: beside.poll() is not None, 0.5)
    kept.woken.clear()
    (kept.folder / "now").touch()
    assert kept.woken.wait(20)
    assert busy.poll() == 0


def test_a_job_that_is_too_long_to_tell_is_done_by_a_process_of_its_own(kept: Kept) -> None:
    pid = process_of(kept.do())
    result = kept.folder / "result"
    much = ["x" * 100_000] * (2 * MOST_BYTES // 100_000)
    child = kept.children(PROGRAM, ["nothing", str(result), *much], log=log_of(result))
    assert code_of(child) == 0
    assert process_of(result) != pid


def test_other_programs_are_launched_anew(kept: Kept) -> None:
    child = kept.children("edge_agent", ["--version"], log=kept.folder / "log")
    assert code_of(child) == 0
    assert kept.children.pid == 0


def test_a_log_that_cannot_be_written_is_the_launchers_own_error(kept: Kept) -> None:
    with pytest.raises(FileNotFoundError):
        kept.children(PROGRAM, ["nothing", "x"], log=kept.folder / "nowhere" / "log")
