"""The status: told when something that matters changed, and silent otherwise."""

import msgspec

from edge_agent.reports.heartbeat import LEAST_APART_S, SETTLES_S, Heartbeat, settling_time
from models.protocol.messages import STILL_HERE_S, Status

STATUS = Status(online=True, task="leaves", release=3, samples=100, samples_ever=100)


def test_the_first_status_is_told_at_once_and_again_after_a_lost_connection() -> None:
    heart = Heartbeat()
    assert heart.due(STATUS, 0.0)
    heart.sent(STATUS, 0.0)
    assert not heart.due(STATUS, 1e9)
    heart.forget()
    assert heart.due(STATUS, 0.0)


def test_what_changes_all_the_time_is_not_worth_a_message() -> None:
    heart = Heartbeat()
    heart.sent(STATUS, 0.0)
    for change in ({"bytes_up": 10**6}, {"rss_mb": 33.1}, {"samples_ever": 109}):
        assert not heart.due(msgspec.structs.replace(STATUS, **change), 1e9)


def test_what_matters_is_told_but_not_in_bursts() -> None:
    heart = Heartbeat()
    heart.sent(STATUS, 100.0)
    for change in (
        {"release": 4},
        {"problem": "disk full"},
        {"samples_ever": 111},
        {"accuracy": 0.5},
    ):
        changed = msgspec.structs.replace(STATUS, **change)
        assert heart.next_at(changed) == 100.0 + LEAST_APART_S
        assert not heart.due(changed, 100.0 + LEAST_APART_S - 0.1)
        assert heart.due(changed, 100.0 + LEAST_APART_S)
    assert heart.next_at(STATUS) is None


def changed(**changes: object) -> Status:
    return msgspec.structs.replace(STATUS, **changes)


def test_at_the_pace_of_a_fleet_what_a_release_changes_is_one_message() -> None:
    heart = Heartbeat(SETTLES_S)
    heart.sent(STATUS, 0.0)
    fetched = changed(state="downloading")
    assert not heart.due(fetched, 1000.0)
    assert heart.next_at(fetched) == 1000.0 + SETTLES_S - LEAST_APART_S
    installed = changed(release=4, state="evaluating")
    assert not heart.due(installed, 1010.0)
    measured = changed(release=4, accuracy=0.5)
    assert not heart.due(measured, 1020.0)
    assert heart.due(measured, 1030.0)


def test_a_state_that_passes_is_not_told_and_one_that_stays_is() -> None:
    heart = Heartbeat(SETTLES_S)
    heart.sent(STATUS, 0.0)
    assert not heart.due(changed(state="training"), 100.0)
    assert not heart.due(STATUS, 110.0)
    assert not heart.due(changed(state="training"), 125.0), "it counts from here"
    assert heart.due(changed(state="training"), 152.0)


def test_a_problem_does_not_wait_for_anything_else() -> None:
    heart = Heartbeat(SETTLES_S)
    heart.sent(STATUS, 0.0)
    assert heart.due(changed(problem="disk full"), LEAST_APART_S)


def test_what_settles_follows_the_pace() -> None:
    assert settling_time(0.0) == LEAST_APART_S
    assert settling_time(3600.0) == settling_time(1e9) == SETTLES_S


def test_a_device_at_rest_says_that_it_is_still_here() -> None:
    heart = Heartbeat()
    assert heart.still_here_at is None, "the status comes first"
    heart.sent(STATUS, 100.0)
    assert heart.still_here_at == 100.0 + STILL_HERE_S
    heart.spoke(500.0)
    assert heart.still_here_at == 500.0 + STILL_HERE_S
    heart.forget()
    assert heart.still_here_at is None
