"""The average that devices run: its formula, its warm-up, and its bits."""

import numpy as np
import pytest

from models.codec.average import averaged


def chain(count: int, size: int = 50) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(size).astype(np.float32) for _ in range(count)]


def test_it_is_an_exponential_average_with_a_warm_up() -> None:
    average, exact = None, np.zeros(50)
    for number, published in enumerate(chain(60), start=1):
        average = averaged(average, published, number, decay=0.9)
        weight = max(0.1, 9 / (number + 8))
        exact += weight * (published - exact)
        np.testing.assert_allclose(average, exact, atol=2e-6)
        assert average.dtype == np.float32


def test_the_first_is_the_model_itself_and_a_copy() -> None:
    (published,) = chain(1)
    first = averaged(None, published, 1, decay=0.9)
    np.testing.assert_array_equal(first, published)
    assert not np.shares_memory(first, published)


def test_each_operation_rounds_to_float32() -> None:
    """As one subtraction, one multiplication and one addition, value by value."""
    before, after = chain(2)
    found = averaged(before, after, 100, decay=0.9)
    for a, p, result in zip(before, after, found, strict=True):
        gap = np.float32(np.float64(p) - np.float64(a))
        product = np.float32(np.float64(gap) * np.float64(np.float32(0.1)))
        assert result == np.float32(np.float64(a) + np.float64(product))


def test_a_number_that_does_not_fit_is_refused() -> None:
    before, after = chain(2)
    for average, number in ((before, 1), (None, 2), (before, 0)):
        with pytest.raises(ValueError, match="average number"):
            averaged(average, after, number, decay=0.9)
