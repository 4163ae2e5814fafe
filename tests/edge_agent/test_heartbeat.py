"""The status: told when something that matters changed, and silent otherwise."""

import msgspec

from edge_agent.heartbeat import LEAST_APART_S, Heartbeat
from models.payload.messages import Status

STATUS = Status(online=True, task="leaves", release=3, samples=100)


def test_the_first_status_is_told_at_once_and_again_after_a_lost_connection() -> None:
    heart = Heartbeat()
    assert heart.due(STATUS, 0.0)
    heart.told(STATUS, 0.0)
    assert not heart.due(STATUS, 1e9)
    heart.forget()
    assert heart.due(STATUS, 0.0)


def test_what_changes_all_the_time_is_not_worth_a_message() -> None:
    heart = Heartbeat()
    heart.told(STATUS, 0.0)
    for change in ({"bytes_up": 10**6}, {"rss_mb": 33.1}, {"samples": 109}):
        assert not heart.due(msgspec.structs.replace(STATUS, **change), 1e9)


def test_what_matters_is_told_but_not_in_bursts() -> None:
    heart = Heartbeat()
    heart.told(STATUS, 100.0)
    for change in ({"release": 4}, {"problem": "disk full"}, {"samples": 111}, {"accuracy": 0.5}):
        changed = msgspec.structs.replace(STATUS, **change)
        assert heart.next_at(changed) == 100.0 + LEAST_APART_S
        assert not heart.due(changed, 100.0 + LEAST_APART_S - 0.1)
        assert heart.due(changed, 100.0 + LEAST_APART_S)
    assert heart.next_at(STATUS) is None
