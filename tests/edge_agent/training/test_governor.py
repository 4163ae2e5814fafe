"""When to train: every reason not to, and hysteresis for heat."""

import pytest

from edge_agent.training.governor import (
    COOL_BY,
    NOTHING_NEW,
    USED_UP,
    Situation,
    TrainingLimits,
    Verdict,
    Vitals,
    strain,
    wish,
)

LIMITS = TrainingLimits(
    enabled=True,
    min_samples=16,
    min_new_samples=8,
    max_celsius=80.0,
    min_free_mb=120.0,
    max_load=4.0,
)
FRESH = Situation(
    release=3,
    is_open=True,
    repeats=True,
    is_changed=True,
    samples=100,
    new_samples=100,
    is_owed=False,
    holdout=20,
    trained_release=2,
    evaluated_release=2,
    has_room=True,
    rest_s=0.0,
)
WELL = Vitals(50.0, False, 400.0, 0.5, 30.0, 31.0)


def test_a_new_release_and_enough_samples_are_trained() -> None:
    assert wish(FRESH, LIMITS).do == "train"


@pytest.mark.parametrize(
    ("changes", "limits", "reason"),
    [
        ({"release": 0}, {}, "no release"),
        ({"samples": 15}, {}, "needs 16"),
        ({"has_room": False}, {}, "not answered"),
        ({"is_open": False}, {}, "not open"),
        ({"is_changed": False, "new_samples": 7}, {}, "nobody else has changed release 2; 7 new"),
        ({"repeats": False, "new_samples": 7}, {}, "no longer gain; 7 new samples"),
        ({"rest_s": 90.0}, {}, "in 2 minutes"),
        ({"rest_s": 90.0, "short_of": "all used up", "short_s": 99.0}, {}, "all used up"),
        ({"rest_s": 90.0, "short_of": "all used up", "short_s": 80.0}, {}, "in 2 minutes"),
        ({}, {"enabled": False}, "switched off"),
    ],
)
def test_each_reason_not_to_train(
    changes: dict[str, object], limits: dict[str, object], reason: str
) -> None:
    situation = FRESH._replace(evaluated_release=3, **changes)  # type: ignore[arg-type]
    verdict = wish(situation, LIMITS._replace(**limits))  # type: ignore[arg-type]
    assert verdict.do == "wait"
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"trained_release": 3, "is_changed": False, "new_samples": 8},
        {"repeats": False, "new_samples": 8},
        {"new_samples": 0},
        {"is_changed": False, "new_samples": 0, "is_owed": True},
        {"trained_release": 0, "repeats": False, "is_changed": False, "new_samples": 0},
    ],
    ids=[
        "new samples",
        "new samples at rest",
        "a release that others changed",
        "refused work",
        "never trained",
    ],
)
def test_there_is_something_to_learn(changes: dict[str, object]) -> None:
    assert wish(FRESH._replace(**changes), LIMITS).do == "train"  # type: ignore[arg-type]


def test_nothing_new_is_a_state_of_its_own_and_a_rest_says_when_it_ends() -> None:
    measured = FRESH._replace(evaluated_release=3)
    nothing = wish(measured._replace(is_changed=False, new_samples=0, rest_s=9.0), LIMITS)
    assert (nothing.do, nothing.state, nothing.again_in_s) == ("wait", NOTHING_NEW, None)
    resting = wish(measured._replace(rest_s=9.0), LIMITS)
    assert (resting.do, resting.state, resting.again_in_s) == ("wait", "", 9.0)


def test_a_release_that_is_not_trained_is_measured_once() -> None:
    closed = FRESH._replace(is_open=False)
    assert wish(closed, LIMITS).do == "evaluate"
    assert wish(closed._replace(evaluated_release=3), LIMITS).do == "wait"
    assert wish(closed._replace(holdout=0), LIMITS).do == "wait"
    assert wish(closed._replace(short_of="used up", short_s=9.0), LIMITS).do == "wait"


def test_who_is_short_of_something_says_so_and_looks_again_when_it_is_over() -> None:
    verdict = wish(FRESH._replace(short_of="used up", short_s=9.0), LIMITS)
    assert verdict == Verdict("wait", "used up", USED_UP, 9.0)


def test_as_much_memory_must_be_free_as_the_last_training_took_and_a_fifth() -> None:
    needs = strain(WELL, LIMITS, was_hot=False, took_mb=350.0)[0]
    assert needs.startswith("400 MB of memory free, training needs 420: the last one took 350")
    assert strain(WELL, LIMITS, was_hot=False, took_mb=330.0) == ("", False)
    anything = LIMITS._replace(min_free_mb=0)
    assert strain(WELL, anything, was_hot=False, took_mb=350.0) == ("", False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"celsius": 80.0}, "°C"),
        ({"throttled": True}, "power supply"),
        ({"free_mb": 119.0}, "119 MB"),
        ({"load": 4.1}, "load 4.1"),
    ],
)
def test_each_strain_is_said(changes: dict[str, object], reason: str) -> None:
    assert reason in strain(WELL._replace(**changes), LIMITS, was_hot=False)[0]  # type: ignore[arg-type]


def test_a_healthy_board_may_train_and_one_without_sensors_too() -> None:
    assert strain(WELL, LIMITS, was_hot=False) == ("", False)
    assert strain(WELL._replace(celsius=None), LIMITS, was_hot=False) == ("", False)


def test_a_hot_board_must_cool_down_first() -> None:
    """Without hysteresis it would start and stop at the limit for hours."""
    warm = WELL._replace(celsius=80.0 - COOL_BY)
    assert strain(WELL._replace(celsius=81.0), LIMITS, was_hot=False)[1]
    assert strain(warm, LIMITS, was_hot=True)[1]
    assert not strain(warm, LIMITS, was_hot=False)[1]
    assert not strain(warm._replace(celsius=69.9), LIMITS, was_hot=True)[1]


def test_a_model_of_this_device_alone_keeps_to_the_budget_too() -> None:
    now = FRESH._replace(is_changed=False, new_samples=0, evaluated_release=3, alone_owed=10)
    assert wish(now, LIMITS).do == "alone"
    assert wish(now._replace(short_of="used up", short_s=60.0), LIMITS).do == "wait"
