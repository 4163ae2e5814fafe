"""From files to a running release: what is fetched, tried, refused, tried again."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny_fleet import TASK, Files, install, launch_here, put, tiny_spec

from edge_agent.board.problems import Problems
from edge_agent.releases.model_slots import Slots
from edge_agent.releases.patching import Patching
from edge_agent.releases.release_installer import ReleaseInstaller
from edge_agent.releases.release_life import ReleaseState, TrackedRelease
from edge_agent.releases.release_pace import ReleasePace
from models.errors import TransientError, TrustError
from models.protocol.manifest import Manifest

S = ReleaseState


class Desk:
    """An installer over slots in a directory; ``answer`` is what the inference process says."""

    def __init__(self, directory: Path) -> None:
        self.slots = Slots(directory)
        self.problems = Problems()
        self.answer: Callable[[], str] = lambda: ""
        self.now = 0.0
        self.installer = ReleaseInstaller(
            task=TASK,
            slots=self.slots,
            models=self,
            patching=Patching(
                launch=launch_here, slots=self.slots, directory=directory / "patching"
            ),
            problems=self.problems,
            uniform=random.Random(1).uniform,
            pace=ReleasePace(),
        )

    def load(self, manifest: Manifest) -> str:
        return self.answer()

    def follow(self, files: Files) -> TrackedRelease:
        self.installer.follow(files.manifest)
        return TrackedRelease(files.manifest)

    def advance(self, release: TrackedRelease) -> ReleaseState:
        """Take one step, when that is due."""
        assert self.installer.missing(release) == ()
        self.now = max(self.now, self.installer.rest.at)
        self.installer.advance(release, self.now)
        return release.state


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_release_takes_its_steps_one_by_one(desk: Desk) -> None:
    files = Files(1)
    release = desk.follow(files)
    put(desk.slots, files)
    assert [desk.advance(release) for _ in range(3)] == [S.FETCHING, S.WHOLE, S.ACTIVE]
    assert desk.slots.active == files.manifest


@pytest.mark.parametrize("changes", [{"classes": 4}, {"task": "others"}])
def test_a_spec_that_does_not_fit_refuses_before_another_file_is_asked_for(
    desk: Desk, changes: dict[str, Any]
) -> None:
    install(desk.slots, Files(1))
    files = Files(2, spec=tiny_spec(**changes))
    files.manifest = msgspec.structs.replace(files.manifest, task=TASK)
    release = desk.follow(files)
    spec = files.manifest.artifacts["spec"]
    assert desk.installer.missing(release) == (spec,)
    desk.slots.add(spec, [files.files["spec"]])
    with pytest.raises(TrustError, match="release 2: "):
        desk.advance(release)


def test_an_inference_process_that_starts_is_waited_for_and_in_the_end_said(desk: Desk) -> None:
    def starting() -> str:
        raise TransientError("not up yet")

    install(desk.slots, Files(1))
    release = desk.follow(Files(2))
    put(desk.slots, Files(2))
    desk.answer = starting
    states = [desk.advance(release) for _ in range(6)]
    assert states == [S.FETCHING, *[S.WHOLE] * 5]
    assert desk.problems.most_urgent == ""
    assert desk.slots.release == 1
    desk.advance(release)
    assert desk.problems.most_urgent == "release 2 waits: not up yet"
    desk.answer = lambda: ""
    assert desk.advance(release) is S.ACTIVE
    assert desk.slots.release == 2


def test_a_release_that_does_not_run_leaves_the_active_one(desk: Desk) -> None:
    install(desk.slots, Files(1))
    release = desk.follow(Files(2))
    put(desk.slots, Files(2))
    desk.answer = lambda: "no such operator"
    for _ in range(2):
        desk.advance(release)
    with pytest.raises(TrustError, match="does not run here: no such operator"):
        desk.advance(release)
    assert desk.slots.release == 1


def test_a_file_that_goes_while_the_disk_fails_is_fetched_again(desk: Desk) -> None:
    files = Files(1)
    release = desk.follow(files)
    put(desk.slots, files)
    for _ in range(2):
        desk.advance(release)
    assert release.state is S.WHOLE
    infer = files.manifest.artifacts["infer"]
    Path(desk.slots.file(infer)).unlink()
    assert desk.installer.missing(release) == (infer,)
    assert release.state is S.FETCHING


def test_patches_are_chosen_until_one_arrived_damaged_twice(desk: Desk) -> None:
    install(desk.slots, Files(1))
    files = Files(2)
    files.offer({1: b"p"})
    desk.slots.add(files.manifest.artifacts["spec"], [files.files["spec"]])
    release = desk.follow(files)
    desk.advance(release)
    patch, parameters = files.manifest.patches[1], files.manifest.artifacts["parameters"]
    assert desk.installer.missing(release) == (patch,)
    desk.installer.arrived_damaged(patch)
    assert desk.installer.missing(release) == (patch,)
    desk.installer.arrived_damaged(patch)
    assert desk.installer.missing(release) == (parameters,)
    desk.installer.arrived_damaged(parameters)  # no patch: nothing to choose
    assert "twice" in desk.problems.most_urgent


def test_patches_that_lead_elsewhere_are_given_up(desk: Desk) -> None:
    install(desk.slots, Files(1))
    files = Files(2)
    files.offer({1: b"p"})
    release = desk.follow(files)
    desk.slots.add(files.manifest.patches[1], [b"p"])
    assert [desk.advance(release) for _ in range(2)] == [S.FETCHING, S.PATCHING]
    assert desk.advance(release) is S.PATCHING  # the child has begun
    assert desk.advance(release) is S.FETCHING
    assert desk.installer.missing(release) == (files.manifest.artifacts["parameters"],)
    assert "fetched whole" in desk.problems.most_urgent
