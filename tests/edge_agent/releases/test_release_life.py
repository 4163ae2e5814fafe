"""The life of a release as a table: what leads where, and that nothing else does."""

import pytest
from tiny_fleet import Files

from edge_agent.releases.release_life import (
    RELEASE_LIFE,
    ReleaseEvent,
    ReleaseState,
    TrackedRelease,
)

MANIFEST = Files(1).manifest
S, E = ReleaseState, ReleaseEvent
# What a device sees, and where that leaves the release.
COURSES = {
    "a newcomer": ((E.FITS, E.FILES_HERE, E.WRITTEN, E.RUNS), S.ACTIVE),
    "by patches": ((E.FITS, E.PATCHES_HERE, E.PATCHED, E.WRITTEN, E.RUNS), S.ACTIVE),
    "patches given up": ((E.FITS, E.PATCHES_HERE, E.UNPATCHED, E.FILES_HERE), S.WHOLE),
    "a disk that loses a file": ((E.FITS, E.FILES_HERE, E.LOST, E.FILES_HERE), S.WHOLE),
    "an inference process that starts": (
        (E.FITS, E.FILES_HERE, E.WRITTEN, E.POSTPONED, E.WRITTEN, E.RUNS),
        S.ACTIVE,
    ),
    "of another task": ((E.REJECTED,), S.REFUSED),
    "one that does not run": ((E.FITS, E.FILES_HERE, E.WRITTEN, E.REJECTED), S.REFUSED),
    "overtaken": ((E.FITS, E.GIVES_WAY), S.GONE),
}
STEPS = {(step.state, step.event): step.then for step in RELEASE_LIFE.steps}


@pytest.mark.parametrize("course", COURSES)
def test_a_release_goes_where_its_course_leads(course: str) -> None:
    events, end = COURSES[course]
    release = TrackedRelease(MANIFEST)
    assert release.state is S.ANNOUNCED
    for event in events:
        release.happened(event)
    assert release.state is end


def test_what_was_active_is_kept_takes_over_and_goes_in_the_end() -> None:
    release = TrackedRelease(MANIFEST, S.ACTIVE)
    for event, then in (
        (E.REPLACED, S.PASSIVE),
        (E.TAKES_OVER, S.ACTIVE),
        (E.REPLACED, S.PASSIVE),
        (E.BROKEN, S.DAMAGED),
        (E.GIVES_WAY, S.GONE),
    ):
        release.happened(event)
        assert release.state is then


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", E)
def test_nothing_happens_that_the_table_does_not_have(
    state: ReleaseState, event: ReleaseEvent
) -> None:
    release = TrackedRelease(MANIFEST, state)
    if (state, event) in STEPS:
        release.happened(event)
        assert release.state is STEPS[state, event]
    else:
        with pytest.raises(RuntimeError, match="cannot happen"):
            release.happened(event)
        assert release.state is state


def test_only_a_release_in_the_passive_slot_becomes_active() -> None:
    """What was not written there and synced before must not run."""
    ways = {(step.state, step.event) for step in RELEASE_LIFE.steps if step.then is S.ACTIVE}
    assert ways == {(S.STAGED, E.RUNS), (S.PASSIVE, E.TAKES_OVER)}


def test_the_active_release_never_simply_goes() -> None:
    """A device always has a model: the active one is replaced, or found damaged."""
    assert {step.then for step in RELEASE_LIFE.steps if step.state is S.ACTIVE} == {
        S.PASSIVE,
        S.DAMAGED,
    }
    release = TrackedRelease(MANIFEST, S.ACTIVE)
    release.gives_way()
    assert release.state is S.ACTIVE


def test_every_state_is_reached_and_ends() -> None:
    reached = {RELEASE_LIFE.first}
    while grown := {s.then for s in RELEASE_LIFE.steps if s.state in reached} - reached:
        reached |= grown
    assert reached == set(S)
    assert RELEASE_LIFE.ends() == {S.REFUSED, S.GONE}
