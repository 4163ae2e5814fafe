"""What an author may not know of the columns of a table: constant ones, and very unlike scales."""

import numpy as np

from tools.author.data.labeled_data import Array

__all__ = ["about_columns"]


UNLIKE = 1000.0  # times the spread of the median column: the others hardly count then
FAR = 1000.0  # spreads from 0: a step of usual size is lost in the mean
SHOWN = 6


def about_columns(x: Array) -> list[str]:
    """Return sentences on a table ``x`` [n, columns]; none on samples of other kinds."""
    if x.ndim != 2 or x.dtype == np.uint8 or x.shape[1] < 2 or len(x) < 2:
        return []
    means, spreads = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    still = np.flatnonzero(x.min(axis=0) == x.max(axis=0))
    said = []
    if 0 < len(still) < x.shape[1]:
        word = "column" if len(still) == 1 else "columns"
        said.append(f"{word} {_listed(still)} of x never change in the training rows")
    moving = np.flatnonzero(x.min(axis=0) != x.max(axis=0))
    if not len(moving):
        return said
    usual = float(np.median(spreads[moving]))
    is_far = np.abs(means[moving]) > FAR * spreads[moving].clip(1e-30)
    odd = moving[(spreads[moving] > UNLIKE * usual) | is_far | (np.abs(means[moving]) > 1e4)]
    if len(odd):
        worst = int(odd[np.abs(x[:, odd]).max(axis=0).argmax()])
        said.append(
            f"columns of x have very unlike scales: {worst} goes from {x[:, worst].min():.4g} to "
            f"{x[:, worst].max():.4g}, the usual spread is {usual:.3g}; --mean and --std, with "
            f"{x.shape[1]} numbers each, bring them to one scale inside the model"
        )
    return said


def _listed(columns: Array) -> str:
    shown = ", ".join(map(str, columns[:SHOWN]))
    return shown + (f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else "")
