"""Which model runs: McNemar's rule, its boundaries, and who may choose."""

import math

import pytest

from edge_agent.personal.model_choice import (
    LEAST,
    Comparison,
    Serve,
    Serves,
    comparison,
    decides,
    serve_of,
    serves_after,
    why,
)


def counted(b: int, c: int, ties: int = LEAST) -> Comparison:
    return comparison([1.0] * b + [-1.0] * c + [0.0] * ties)


@pytest.mark.parametrize("b", range(12))
@pytest.mark.parametrize("c", range(12))
@pytest.mark.parametrize("before", ["released", "tuned"])
def test_of_hits_and_misses_it_is_mcnemars_rule(b: int, c: int, before: Serves) -> None:
    expected = before
    if b - c > math.sqrt(b + c):
        expected = "tuned"
    elif c - b > math.sqrt(b + c):
        expected = "released"
    found = counted(b, c)
    assert (found.better, found.worse, found.samples) == (b, c, b + c + LEAST)
    assert serves_after(found, before) == expected


def test_a_hold_out_that_is_too_small_changes_nothing() -> None:
    few = counted(LEAST - 1, 0, ties=0)
    assert serves_after(few, "released") == "released"
    assert serves_after(counted(0, LEAST - 1, ties=0), "tuned") == "tuned"
    assert serves_after(None, "tuned") == "tuned"
    assert "are needed" in why("auto", "released", few)


def test_of_errors_it_is_the_paired_z() -> None:
    gains = [0.5, -0.1, 0.2, 0.4, -0.3, 0.1, 0.2, 0.3, -0.2, 0.6]
    found = comparison(gains)
    assert found.z == pytest.approx(sum(gains) / math.sqrt(sum(g * g for g in gains)))
    assert serves_after(found, "released") == "tuned"
    assert serves_after(comparison([-g for g in gains]), "tuned") == "released"
    one_outlier = comparison([1000.0, *[-1e-9] * LEAST])
    assert serves_after(one_outlier, "released") == "released"


def test_what_is_no_number_decides_nothing() -> None:
    assert comparison([math.nan, math.inf]) == Comparison(0, 0, 0, 0.0)


@pytest.mark.parametrize(
    ("owner", "plan", "expected"),
    [
        (None, None, "auto"),
        (None, "released", "released"),
        ("auto", "released", "auto"),
        ("released", None, "released"),
    ],
)
def test_the_owner_of_a_device_overrides_the_task(
    owner: Serve | None, plan: None, expected: Serve
) -> None:
    assert serve_of(owner, plan) == expected


def test_samples_decide_or_report_by_their_number() -> None:
    assert [decides(number) for number in range(4)] == [True, False, True, False]


def test_people_are_told_why() -> None:
    assert why("released", "released", counted(9, 0)) == "as the settings say"
    assert why("auto", "released", None) == "nothing was tuned and compared yet"
    assert why("auto", "tuned", counted(9, 1)).endswith("better on 9, the release on 1")
    assert why("auto", "released", counted(9, 1)).endswith("until the next training")
    assert why("auto", "tuned", counted(1, 1)).endswith("too close, so tuned stays")
