"""Weight by age, against its closed form."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.folding.staleness import damping


@given(age=st.integers(0, 10_000), half_life=st.floats(0.1, 1e4))
def test_after_each_half_life_an_update_counts_half(age: int, half_life: float) -> None:
    expected = math.exp(-math.log(2) * age / half_life)
    assert damping(age, half_life=half_life) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(age=st.integers(0, 10**9), half_life=st.floats(1e-3, 1e6))
def test_no_age_makes_an_update_count_nothing_or_more_than_all(age: int, half_life: float) -> None:
    assert 0 < damping(age, half_life=half_life) <= 1
    assert damping(age + 1, half_life=half_life) <= damping(age, half_life=half_life)


@pytest.mark.parametrize(("age", "half_life"), [(-1, 1.0), (1, 0.0), (1, math.nan)])
def test_nonsense_is_our_own_mistake(age: int, half_life: float) -> None:
    with pytest.raises(ValueError, match="age"):
        damping(age, half_life=half_life)
