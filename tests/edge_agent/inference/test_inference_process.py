"""The process that answers applications, as the agent sees it: started, fed, and borne."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_fleet import Files, install

from edge_agent.board.problems import Problems
from edge_agent.inference import inference_process
from edge_agent.inference.inference_process import InferenceProcess, OwnValues
from edge_agent.releases.model_slots import Slots
from models.errors import TransientError

HOUR = 3600.0


class Running:
    """A child whose answers a test decides."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.refusal: dict[str, object] = {}
        self.loads = 0
        self.problem = ""
        self.own = OwnValues()
        self.asked: list[tuple[object, object, object]] = []
        self.cannot_run = ""  # refuses what it serves
        self.unreadable = ""  # a file that is damaged
        self.crashes_on = 0  # a release

    def poll(self) -> int | None:
        return self.code

    def launched(self, *_: object, **__: object) -> "Running":
        self.code = None if self.crashes_on else self.code
        return self

    def kill(self) -> None:
        return

    def call(
        self, path: Path, head: Mapping[str, object], *, timeout_s: float
    ) -> tuple[dict[str, object], bytes]:
        if head["do"] == "ping":
            return {"ok": True, "rss_mb": 50.0, "problem": self.problem}, b""
        self.loads += 1
        self.asked.append((head["release"], head["serves"], head["is_trial"]))
        if self.unreadable and self.unreadable in (head["personal"], head["parameters"]):
            return {"ok": False, "error": "damaged"}, b""
        if self.crashes_on == head["release"]:
            self.code = -11
            raise TransientError("the line broke")
        if head["serves"] == self.cannot_run:
            return {"ok": False, "error": "numbers that are not finite"}, b""
        return ({"ok": False, **self.refusal} if self.refusal else {"ok": True}), b""


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Running:
    running = Running()
    monkeypatch.setattr(inference_process, "call", running.call)
    return running


@pytest.fixture
def problems() -> Problems:
    return Problems()


@pytest.fixture
def process(tmp_path: Path, child: Running, problems: Problems) -> InferenceProcess:
    slots = Slots(tmp_path)
    install(slots, Files(1))
    return InferenceProcess(
        control=tmp_path / "control.sock",
        arguments=(),
        slots=slots,
        own=lambda _: child.own,
        launch=child.launched,
        problems=problems,
        rng=random.Random(1),
    )


def run(process: InferenceProcess, start: float, seconds: float) -> None:
    now = start
    while now < start + seconds:
        now = max(process.tick(now), now + 0.01)


def test_a_release_that_does_not_load_is_tried_again_ever_more_rarely(
    process: InferenceProcess, child: Running
) -> None:
    child.refusal = {"error": "its file is damaged"}
    run(process, 0.0, 24 * HOUR)
    assert 24 <= child.loads <= 40
    child.refusal = {}
    run(process, 24 * HOUR, 1.1 * HOUR)
    before = child.loads
    run(process, 26 * HOUR, 24 * HOUR)
    assert child.loads == before


def test_a_process_that_is_busy_says_nothing_of_the_release(
    process: InferenceProcess, child: Running
) -> None:
    run(process, 0.0, 60.0)
    child.refusal = {"error": "32 clients are connected already", "transient": True}
    with pytest.raises(TransientError, match="32 clients"):
        process.load(Files(2).manifest)
    child.refusal = {"error": "it has no tensor W"}
    assert process.load(Files(2).manifest) == "it has no tensor W"


def test_a_process_that_cannot_start_is_borne_for_ever(
    process: InferenceProcess, child: Running
) -> None:
    """As with an illegal instruction: after 1024 failures a float has no more doublings."""
    child.code = -4
    run(process, 0.0, 6 * 24 * HOUR)
    assert process.backoff.failures > 1024


def test_a_process_that_ends_at_once_is_never_rested_from_longer_than_it_says(
    process: InferenceProcess, child: Running
) -> None:
    now, rests = 0.0, []
    for _ in range(60):
        process.tick(now)
        child.code = 1
        now += 1.0
        until = process.tick(now)
        rests.append(until - now)
        child.code, now = None, until
    assert max(rests) <= inference_process.LONGEST_REST_S
    assert rests[0] <= inference_process.FIRST_REST_S


def test_what_is_wrong_with_the_applications_socket_is_a_problem_until_it_is_mended(
    process: InferenceProcess, child: Running, problems: Problems
) -> None:
    child.problem = "there is no group 'x' on this device"
    run(process, 0.0, 60.0)
    assert problems.most_urgent == "there is no group 'x' on this device"
    assert child.loads == 1
    child.problem = ""
    run(process, 60.0, 60.0)
    assert problems.most_urgent == ""


@pytest.mark.parametrize(("code", "said"), [(0, False), (-15, False), (-9, True), (1, True)])
def test_a_process_that_was_told_to_stop_is_started_again_without_a_problem(
    process: InferenceProcess, child: Running, problems: Problems, code: int, said: bool
) -> None:
    """When systemd stops a service it tells all its processes, and this one may go first."""
    run(process, 0.0, 60.0)
    child.code = code
    process.tick(100.0)
    assert bool(problems.most_urgent) is said
    child.code = None
    run(process, 100.0, 60.0)
    assert child.loads == 2


def test_a_release_is_tried_beside_the_tuned_model_that_goes_on_answering(
    process: InferenceProcess, child: Running
) -> None:
    child.own = OwnValues(tuned=Path("tuned-3.npz"))
    run(process, 0.0, 20.0)
    assert child.asked == [(1, "tuned", False)]
    assert process.load(Files(2).manifest) == ""
    assert child.asked[1:] == [(2, "released", True), (2, "tuned", False)]
    child.cannot_run = "released"
    assert process.load(Files(3).manifest) == "numbers that are not finite"
    assert child.asked[3:] == [(3, "released", True)]


def test_where_the_tuned_model_does_not_run_the_release_answers(
    process: InferenceProcess, child: Running, problems: Problems
) -> None:
    child.own, child.cannot_run = OwnValues(tuned=Path("tuned-3.npz")), "tuned"
    run(process, 0.0, HOUR)
    assert child.asked == [(1, "tuned", False), (1, "released", False)]
    assert "the tuned model does not run" in problems.most_urgent
    child.own, child.cannot_run = OwnValues(tuned=Path("tuned-4.npz")), ""
    run(process, HOUR, 20.0)
    assert child.asked[2:] == [(1, "tuned", False)]
    assert problems.most_urgent == ""


def test_where_personal_values_do_not_run_those_of_the_release_answer(
    process: InferenceProcess, child: Running, problems: Problems
) -> None:
    child.own, child.unreadable = OwnValues(personal=Path("personal-3.npz")), "personal-3.npz"
    run(process, 0.0, HOUR)
    assert len(child.asked) == 2
    assert "personal values do not run: damaged" in problems.most_urgent
    assert process.load(Files(2).manifest) == "", "no reason to refuse a release"
    child.own = OwnValues(Path("personal-3.npz"), Path("tuned-3.npz"))
    assert process.load(Files(3).manifest) == ""
    child.own = OwnValues(personal=Path("personal-4.npz"))
    run(process, HOUR, 20.0)
    assert problems.most_urgent == ""


def test_a_release_that_does_not_run_is_to_blame_itself(
    process: InferenceProcess, child: Running, problems: Problems
) -> None:
    child.own = OwnValues(personal=Path("personal-3.npz"))
    run(process, 0.0, 20.0)
    child.cannot_run = "released"
    assert process.load(Files(2).manifest) == "numbers that are not finite"
    assert problems.most_urgent == ""
    child.cannot_run = ""
    run(process, 20.0, 20.0)
    assert len(child.asked) == 3, "the old one goes on answering"


def test_a_release_that_crashes_the_process_is_refused_whatever_is_this_devices_own(
    process: InferenceProcess, child: Running
) -> None:
    child.own = OwnValues(Path("personal-3.npz"), Path("tuned-3.npz"))
    run(process, 0.0, 20.0)
    child.crashes_on = 2
    now, reason = 20.0, ""
    for _ in range(5):
        try:
            reason = process.load(Files(2).manifest)
            break
        except TransientError:
            run(process, now, HOUR)
            now += HOUR
            assert child.asked[-1] == (1, "tuned", False)
    assert reason == "the inference process crashed on it"
