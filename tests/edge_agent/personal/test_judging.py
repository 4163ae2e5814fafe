"""Which samples decide, which report, and what is noted of it."""

import math

import numpy as np
import pytest

from edge_agent.personal.judging import is_worth_keeping, scores_of
from edge_agent.personal.model_choice import LEAST, Comparison
from edge_agent.personal.own_models import noted_of
from edge_agent.personal.own_scores import Scores
from edge_agent.updates.outbox_facts import OutboxFacts

COUNT = 4 * LEAST
RELEASED = np.arange(COUNT) % 4 == 3  # right on half of those that report, and on none that decide
TUNED = np.arange(COUNT) % 4 == 0  # right on half of those that decide, and on none that report


def test_what_is_reported_was_not_decided_by() -> None:
    each = {"released": RELEASED.astype(float), "tuned": TUNED.astype(float)}
    found = scores_of(range(COUNT), chooses=True, lower_is_better=False, **each)
    assert (found.samples, found.released, found.tuned) == (COUNT // 2, 0.5, 0.0)
    assert found.comparison == Comparison(COUNT // 2, LEAST, 0, pytest.approx(np.sqrt(LEAST)))
    shifted = scores_of(range(1, COUNT + 1), chooses=True, lower_is_better=False, **each)
    assert shifted.comparison is not None  # by the samples' numbers, not by their places
    assert (shifted.comparison.better, shifted.comparison.worse) == (0, LEAST)


def test_all_samples_report_where_none_decides() -> None:
    each = {"released": RELEASED.astype(float), "tuned": TUNED.astype(float)}
    for numbers, chooses in ((range(COUNT), False), (range(2 * LEAST - 2), True)):
        count = len(numbers)
        found = scores_of(
            numbers,
            chooses=chooses,
            lower_is_better=False,
            **{name: values[:count] for name, values in each.items()},
        )
        assert (found.samples, found.comparison) == (count, None)
        assert found.released == pytest.approx(RELEASED[:count].mean())
    assert is_worth_keeping(range(COUNT))
    assert not is_worth_keeping(range(2 * LEAST - 2))


def test_of_errors_the_lower_is_the_better() -> None:
    errors = {"released": np.full(COUNT, 2.0), "tuned": np.full(COUNT, 1.0)}
    found = scores_of(range(COUNT), chooses=True, lower_is_better=True, **errors)
    assert found.comparison is not None
    assert found.comparison.better == COUNT // 2


def test_the_accuracy_that_is_told_is_of_what_runs() -> None:
    won = Scores(40, 0.5, 0.6, 0.9, comparison=Comparison(40, 20, 2, 3.8))
    facts = noted_of(won, OutboxFacts(), may_choose=True, has_trained=True)
    assert (facts["serves_tuned"], facts["accuracy"]) == (1, 0.9)
    assert (facts["accuracy_shared"], facts["accuracy_after"]) == (0.5, 0.9)
    assert (facts["compared"], facts["compared_better"], facts["compared_worse"]) == (40, 20, 2)
    kept_not = noted_of(won, OutboxFacts(serves_tuned=1), may_choose=False, has_trained=True)
    assert (kept_not["serves_tuned"], kept_not["accuracy"]) == (0, 0.6)


def test_an_old_model_that_is_measured_again_is_not_what_came_of_a_training() -> None:
    lost = Scores(40, 0.5, 0.95, 0.9, comparison=Comparison(40, 2, 20, -3.8))
    facts = noted_of(lost, OutboxFacts(serves_tuned=1), may_choose=True, has_trained=False)
    assert (facts["serves_tuned"], facts["accuracy"]) == (0, 0.95)
    assert "accuracy_after" not in facts


@pytest.mark.parametrize("nothing", [math.nan, math.inf])
def test_a_model_without_an_answer_to_some_samples_is_worse_on_them(nothing: float) -> None:
    """They were left out, so that it won by the others."""
    released, tuned = np.full(40, 0.5), np.full(40, 0.49)
    tuned[:12] = nothing
    found = scores_of(
        range(40), chooses=True, lower_is_better=True, released=released, tuned=tuned
    ).comparison
    assert found is not None
    assert (found.better, found.worse) == (14, 6)
    assert found.z < -1


def test_a_small_squared_error_travels_as_a_number_and_not_as_zero() -> None:
    scores = Scores(samples=9, shared=3.21456e-6, released=3.2e-6, tuned=0.123456)
    facts = noted_of(scores, OutboxFacts(), may_choose=False, has_trained=True)
    assert (facts["accuracy_shared"], facts["accuracy_after"]) == (3.215e-6, 0.1235)
