"""When to try again, and with which version."""

import random

from models.transport.reconnection import Decision, Ending, Reconnection, Waiting, reconnect_delay

UNREACHABLE = Ending("cannot reach it", None, is_reached=False)
HUNG_UP = Ending("connection lost", None)
LOST = Ending("connection lost", 5.0)
REFUSED = Ending("refused: Not authorized", None, is_refused=True)
OLD = Ending("refused: version", None, is_refused=True, is_old_broker=True)
IGNORED = Ending("no answer", None, is_ignored=True)
TAKEN_OVER = Ending("taken over", 1.0, is_taken_over=True)


def decisions(
    *endings: Ending, speaks_five: bool = True, is_auto: bool = True, seed: int = 0
) -> list[Decision]:
    """Return what is decided after each; the version follows the decisions."""
    reconnection = Reconnection(random.Random(seed).uniform, is_auto=is_auto)
    found = []
    for ending in endings:
        if ending.held_s is not None:
            reconnection.answered()
        found.append(reconnection.decide(ending, speaks_five=speaks_five))
        speaks_five = speaks_five != found[-1].switch_version
    return found


def switches(*endings: Ending, is_auto: bool = True) -> list[bool]:
    return [decision.switch_version for decision in decisions(*endings, is_auto=is_auto)]


def test_delays_grow_to_two_minutes_and_differ_between_devices() -> None:
    for attempt in range(12):
        delays = [reconnect_delay(attempt, random.Random(seed).uniform) for seed in range(200)]
        longest = min(120.0, 2.0**attempt)
        assert min(delays) >= 0.2
        assert max(delays) <= longest
        assert max(delays) > 0.9 * longest
        assert len(set(delays)) > 100
    assert reconnect_delay(3, random.Random(7).uniform) == reconnect_delay(
        3, random.Random(7).uniform
    )


def test_a_broker_that_says_so_is_spoken_to_in_3_1_1_at_once_and_for_good() -> None:
    first, *rest = decisions(OLD, LOST, HUNG_UP, HUNG_UP, HUNG_UP, UNREACHABLE)
    assert first == Decision(delay_s=0.0, switch_version=True, tell_owner=False)
    assert not any(decision.switch_version for decision in rest)


def test_a_broker_that_never_answered_is_tried_in_both_versions() -> None:
    assert switches(IGNORED, IGNORED, IGNORED) == [True, True, True]
    assert switches(HUNG_UP, HUNG_UP, HUNG_UP, HUNG_UP) == [False, True, False, True]
    assert switches(UNREACHABLE, UNREACHABLE, UNREACHABLE) == [False, False, False]


def test_a_bad_link_does_not_look_like_an_old_broker() -> None:
    assert not any(switches(LOST, HUNG_UP, HUNG_UP, HUNG_UP, IGNORED))
    assert not any(switches(REFUSED, HUNG_UP, HUNG_UP, IGNORED))


def test_a_broker_that_was_replaced_by_an_old_one_is_followed() -> None:
    assert switches(LOST, OLD) == [False, True]


def test_a_fixed_version_stays() -> None:
    assert not any(switches(OLD, IGNORED, HUNG_UP, HUNG_UP, is_auto=False))


def test_delays_grow_while_nobody_is_there_and_start_again_after_a_connection() -> None:
    def longest(*endings: Ending) -> float:
        return max(decisions(*endings, seed=seed)[-1].delay_s for seed in range(300))

    assert longest(LOST) <= 1.0
    assert 60 < longest(*[UNREACHABLE] * 8) <= 120.0
    assert longest(*[UNREACHABLE] * 8, LOST) <= 1.0


def test_a_refusal_is_not_knocked_at() -> None:
    assert all(10.0 <= decision.delay_s <= 60.0 for decision in decisions(*[REFUSED] * 20))


def test_duplicates_of_our_name_are_fought_with_ever_less_zeal() -> None:
    def longest(*endings: Ending) -> float:
        return max(decisions(*endings, seed=seed)[-1].delay_s for seed in range(300))

    assert longest(TAKEN_OVER) > 4.0
    assert longest(*[TAKEN_OVER] * 6) > 100.0
    assert longest(*[TAKEN_OVER] * 6, TAKEN_OVER._replace(held_s=3600.0)) <= 8.0


def test_the_owner_hears_of_each_loss_and_of_each_new_reason_once() -> None:
    told = [
        decision.tell_owner
        for decision in decisions(UNREACHABLE, UNREACHABLE, LOST, LOST, UNREACHABLE, UNREACHABLE)
    ]
    assert told == [True, False, True, True, True, False]


def test_the_owner_hears_of_a_broker_that_answers_no_version() -> None:
    told = [decision.tell_owner for decision in decisions(*[IGNORED] * 6)]
    assert told == [False, True, False, False, False, False]


def test_a_slow_broker_is_given_ever_more_time_and_not_hammered() -> None:
    """CONNACK comes late when a thousand boards return at once: then 6 s are not enough."""
    reconnection = Reconnection(random.Random(1).uniform, is_auto=True)
    patience, delays = [], []
    speaks_five = True
    for _ in range(8):
        patience.append(reconnection.patience_s)
        decision = reconnection.decide(IGNORED, speaks_five=speaks_five)
        speaks_five = not speaks_five
        delays.append(decision.delay_s)
    assert patience == [6.0, 6.0, 12.0, 12.0, 24.0, 24.0, 30.0, 30.0]
    assert delays[0::2] == [0.0] * 4
    assert min(delays[1::2]) >= 0.2
    reconnection.answered()
    assert reconnection.patience_s == 30.0


def test_a_publication_that_ends_every_connection_is_sent_ever_more_rarely() -> None:
    def longest(*endings: Ending) -> float:
        return max(decisions(*endings, seed=seed)[-1].delay_s for seed in range(300))

    over_it = LOST._replace(waiting=Waiting(7, "t", 9))
    assert longest(*[over_it] * 3) <= 1.0
    assert longest(*[over_it] * 12) > 60.0
    assert longest(*[over_it] * 12, HUNG_UP._replace(waiting=Waiting(7, "t", 9)), over_it) > 60.0
    assert longest(*[over_it] * 12, LOST._replace(waiting=Waiting(8, "t", 9))) <= 1.0
    assert longest(*[over_it] * 12, LOST) <= 1.0
    assert longest(*[LOST._replace(waiting=Waiting(7, "t", 9), held_s=3600.0)] * 12) <= 1.0
