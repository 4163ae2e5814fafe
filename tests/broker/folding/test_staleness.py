"""Weight by age, against the closed forms of the papers."""

import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config import FoldPolicy
from broker.folding.staleness import FORMS, damping
from tools.simulation.promises.formulas import damping_by_formula

POLICIES = st.builds(
    FoldPolicy,
    staleness=st.sampled_from(sorted(FORMS)),
    half_life=st.floats(1e-3, 1e6),
    staleness_exponent=st.floats(0, 100),
    staleness_slope=st.floats(0, 1e6),
    staleness_after=st.integers(0, 1000),
)


def test_the_settings_name_every_form() -> None:
    named = typing.get_args(typing.get_type_hints(FoldPolicy)["staleness"])
    assert set(named) == set(FORMS)


@given(age=st.integers(0, 10_000), half_life=st.floats(0.1, 1e4))
def test_after_each_half_life_an_update_counts_half(age: int, half_life: float) -> None:
    expected = math.exp(-math.log(2) * age / half_life)
    found = damping(age, FoldPolicy(half_life=half_life))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert found == max(0.5 ** (age / half_life), 5e-324)  # the bits of the versions before


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("constant", {0: 1, 1: 1, 99: 1}),
        ("polynomial", {0: 1, 3: 1 / 2, 8: 1 / 3, 99: 1 / 10}),  # FedAsync: a = 0.5
        ("hinge", {0: 1, 4: 1, 5: 1 / 11, 6: 1 / 21, 14: 1 / 101}),  # a = 10, b = 4
        ("half_life", {0: 1, 4: 1 / 2, 8: 1 / 4}),
    ],
)
def test_the_defaults_are_those_of_the_papers(form, expected: dict[int, float]) -> None:
    policy = FoldPolicy(staleness=form)
    assert {age: damping(age, policy) for age in expected} == pytest.approx(expected)


@given(age=st.integers(0, 10**6), policy=POLICIES)
def test_no_age_makes_an_update_count_nothing_or_more_than_all(age, policy: FoldPolicy) -> None:
    assert 0 < damping(age, policy) <= 1
    assert damping(age + 1, policy) <= damping(age, policy)


@given(age=st.integers(0, 10**6), policy=POLICIES)
def test_the_books_of_the_simulator_have_the_same_formula(age, policy: FoldPolicy) -> None:
    expected = damping_by_formula(age, policy)
    assert damping(age, policy) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("form", FORMS)
def test_nonsense_is_our_own_mistake(form) -> None:
    with pytest.raises(ValueError, match="age"):
        damping(-1, FoldPolicy(staleness=form))
