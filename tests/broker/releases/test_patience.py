"""Everybody is asked to train while releases get better, and again when there is more to learn."""

import math
from collections.abc import Sequence

import pytest

from broker.releases.patience import FIRST_PAUSE, NEVER, Measured, next_round_at, score_of

HOUR = 3600.0
POLICY = {"patience": 3, "min_gain": 0.01, "pause_s": HOUR}


def told(
    scores: Sequence[float | None], *, samples: int = 100, every_s: float = HOUR
) -> list[bool]:
    """Return whom each of a task's releases asks, one every ``every_s``: True for everybody."""
    made: list[Measured] = []
    for number, score in enumerate(scores):
        new = Measured(score, number > 0, True, samples, number * every_s)
        asks = next_round_at([*made, new], **POLICY) <= new.created
        made.append(new._replace(asks_everybody=asks))
    return [release.asks_everybody for release in made]


def release(score: float | None, at_h: float, *, asks: bool = True, samples: int = 100) -> Measured:
    return Measured(score, True, asks, samples, at_h * HOUR)


def test_while_releases_gain_everybody_is_asked() -> None:
    assert all(told([0.1, 0.5, 0.8, 0.82, 0.84]))


def test_after_a_round_without_a_gain_the_next_one_waits_twice_as_long_each_time() -> None:
    made = [release(0.8, 0)]
    pause_h = FIRST_PAUSE
    for at_h in (1.0, 10.0):
        made.append(release(0.8, at_h, asks=False))
        assert next_round_at(made, **POLICY) == (at_h + pause_h) * HOUR
        made.append(Measured(None, False, True, 100, (at_h + pause_h) * HOUR))
        pause_h *= 2
    made.append(release(0.8, 100, asks=False))
    assert next_round_at(made, **POLICY) == NEVER


def test_small_gains_add_up() -> None:
    """The measure is the last release that gained, not the one before."""
    assert next_round_at([release(0.5 + 0.004 * n, n) for n in range(99)], **POLICY) < math.inf
    assert next_round_at([release(0.5 + 0.003 * n, n) for n in range(4)], **POLICY) == NEVER


def test_releases_of_the_few_with_new_samples_are_no_rounds() -> None:
    few = [release(0.8, 2 + n, asks=False) for n in range(50)]
    made = [release(0.8, 0), release(0.8, 1, asks=False), *few]
    assert next_round_at(made, **POLICY) == (1 + FIRST_PAUSE) * HOUR


@pytest.mark.parametrize(
    ("score", "is_anew"), [(0.809, False), (0.81, True), (0.781, False), (0.779, True)]
)
def test_what_the_few_made_better_or_clearly_worse_is_for_everybody(
    score: float, is_anew: bool
) -> None:
    rounds = [release(0.8, n) for n in range(3)]
    made = [*rounds, release(0.8, 3, asks=False), release(score, 4)]
    assert (next_round_at(made, **POLICY) == -math.inf) is is_anew


def test_what_got_worse_is_mended_or_given_up() -> None:
    made = [release(0.8, n) for n in range(3)] + [release(0.8, 3, asks=False)]
    made += [release(0.5, 4 + n) for n in range(3)]
    assert next_round_at(made, **POLICY) < math.inf
    made.append(release(0.5, 9))
    assert next_round_at(made, **POLICY) == NEVER


@pytest.mark.parametrize(("samples", "is_anew"), [(100, False), (150, False), (151, True)])
def test_many_new_samples_begin_it_anew(samples: int, is_anew: bool) -> None:
    rounds = [release(0.8, n, samples=110 + n) for n in range(1, 4)]
    made = [release(0.9, 0), *rounds, release(0.8, 5, asks=False, samples=115)]
    assert next_round_at(made, **POLICY) == NEVER
    made[1] = release(0.8, 1, samples=100)
    new = Measured(None, False, True, samples, 9 * HOUR)
    assert (next_round_at([*made, new], **POLICY) == -math.inf) is is_anew


def test_patience_0_asks_for_ever() -> None:
    made = [release(0.5, n) for n in range(50)]
    assert next_round_at(made, patience=0, min_gain=0.01, pause_s=HOUR) == -math.inf


def test_what_was_not_measured_counts_for_nothing() -> None:
    assert all(told([None] * 50))
    assert told([0.5, None, None, 0.52, None]) == [True] * 5


def test_a_release_of_the_same_weights_is_no_round() -> None:
    made = [release(0.5, 0)] + [Measured(0.5, False, True, 100, n * HOUR) for n in range(1, 9)]
    assert next_round_at(made, **POLICY) == -math.inf


def test_of_a_loss_a_gain_is_relative() -> None:
    assert score_of("mse", 0.99) - score_of("mse", 1.0) == pytest.approx(0.01, rel=0.01)
    assert score_of("mse", 99.0) - score_of("mse", 100.0) == pytest.approx(0.01, rel=0.01)
    assert score_of("accuracy", 0.25) == 0.25
    assert score_of("mse", math.nan) == score_of("accuracy", math.nan) == -math.inf
    assert score_of("mse", 0.0) > score_of("mse", 1e-20)


def test_a_task_that_falls_apart_does_not_rest_on_its_ruins_for_ever() -> None:
    """What is not a number is no gain, and everybody is asked a few times more, ever later."""
    made = [release(0.5, 0)] + [release(-math.inf, n) for n in range(1, 4)]
    assert next_round_at(made, **POLICY) == NEVER
    assert next_round_at(made[:3], **POLICY) < math.inf


def test_an_average_that_is_switched_off_leaves_no_score_to_be_reached() -> None:
    """Parameters score less than their average, and are learned all the same."""
    made = [release(0.6 + 0.04 * n, n)._replace(is_average=n > 0) for n in range(6)]
    made += [Measured(0.75, False, True, 100, 6 * HOUR)]  # has new settings
    made += [release(0.75 + 0.015 * n, 6 + n) for n in range(1, 4)]  # none above 0.8
    assert next_round_at(made, **POLICY) == -math.inf
    made += [release(0.79, 10 + n) for n in range(4)]
    assert next_round_at(made, **POLICY) == NEVER


def test_an_average_that_is_switched_on_begins_at_the_parameters() -> None:
    made = [release(0.8, n) for n in range(3)]
    made += [release(0.8, n)._replace(is_average=True) for n in (3, 4)]
    assert next_round_at(made, **POLICY) == NEVER
