"""Exact k-means in one dimension, against every possible clustering."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.codec.sparse.coreset import kmeans_centers, nearest


def error(values, weights, centers) -> float:
    return float((weights[:, None] * (values[:, None] - centers) ** 2).min(axis=1).sum())


def least_error(values, weights, count: int) -> float:
    """Try every division of the sorted values into ``count`` runs."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    least = np.inf
    for cuts in itertools.combinations(range(1, values.size), min(count, values.size) - 1):
        edges = [0, *cuts, values.size]
        runs = [slice(a, b) for a, b in itertools.pairwise(edges)]
        centers = np.array([np.average(values[r], weights=weights[r]) for r in runs])
        least = min(least, error(values, weights, centers))
    return least


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=9), st.integers(1, 5), st.data())
def test_centers_are_as_good_as_the_best_of_all_clusterings(values, count, data) -> None:
    points = np.array(values, float)
    weights = np.array(data.draw(st.lists(st.floats(0.1, 9), min_size=len(values), max_size=9)))
    weights = np.resize(weights, points.size)
    centers = kmeans_centers(points, count, weights=weights)
    assert centers.size <= count
    assert error(points, weights, centers) == pytest.approx(
        least_error(points, weights, count), abs=1e-3
    )


def test_few_distinct_values_are_met_exactly() -> None:
    values = np.repeat(np.array([-1.5, 0.25, 3.0], np.float32), 40_000)
    assert kmeans_centers(values, 8).tolist() == [-1.5, 0.25, 3.0]


def test_the_histogram_loses_less_than_a_thousandth_on_many_values() -> None:
    """Lloyd's iteration over all values, from these centers, finds next to nothing more."""
    values = np.random.default_rng(0).laplace(size=50_000).astype(np.float32)
    centers = kmeans_centers(values, 16)
    found = error(values, np.ones(values.size), centers)
    for _ in range(20):
        number = nearest(values, centers)
        centers = np.array([values[number == i].mean() for i in range(16)], np.float32)
    assert found <= 1.001 * error(values, np.ones(values.size), centers)


def test_the_middle_between_two_centers_may_go_to_either_and_all_else_to_the_nearest() -> None:
    centers = np.array([-1, 0, 4], np.float32)
    assert nearest(np.array([-9, -0.6, -0.4, 1.9, 2.1, 99]), centers).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 3e38])
def test_tiny_and_huge_values_neither_vanish_nor_overflow(scale: float) -> None:
    values = np.array([-1, -0.5, 0.5, 1], np.float32) * np.float32(scale)
    centers = kmeans_centers(values, 4)
    np.testing.assert_array_equal(centers, values)


def test_no_value_has_no_center_and_a_value_that_is_not_finite_is_refused() -> None:
    assert kmeans_centers(np.zeros(0), 3).size == 0
    with pytest.raises(ValueError, match="finite"):
        kmeans_centers(np.array([1.0, np.nan]), 3)
    with pytest.raises(ValueError, match="0 centers"):
        kmeans_centers(np.array([1.0]), 0)
