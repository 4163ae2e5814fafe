"""Columns of a table that an author should look at, and tables that are as they should be."""

import numpy as np
import pytest

from tools.author.data.columns import about_columns

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (X * [1, 1, 1e6, 1], "unlike scales: 2 goes from -3.1"),
        (X * [1, 1, 1e6, 1] + [0, 0, 2e6, 0], "the usual spread is"),
        (X + np.array([0, 1.7e9, 0, 0]), "1 goes from 1.7e+09 to 1.7e+09"),
        (X * [1, 0, 1, 0], "columns 1, 3 of x never change in the training rows"),
        (np.round(X * [1, 1, 1, 0]).astype(int), "column 3 of x never change"),
    ],
)
def test_what_is_odd_is_said(x: np.ndarray, says: str) -> None:
    assert says in " / ".join(about_columns(x))


@pytest.mark.parametrize(
    "x", [X, X * [1, 5, 20, 100], X > 0, np.zeros((9, 4)), np.ones((9, 8, 8)), X[:, :1] * 1e9]
)
def test_other_tables_and_pictures_need_no_word(x: np.ndarray) -> None:
    assert about_columns(x) == []
