"""Rare classes: how unlike the counts of classes are, and what each sample counts then. Pure."""

from collections.abc import Sequence

import numpy as np

from models.errors import UsageError
from tools.author.data.labeled_data import Array, Dataset

__all__ = ["about_balance", "balance_of", "class_weights"]

HEAVIEST = 20.0  # times the lightest weight of a class: a lone sample must not rule the rest

UNEVEN = 10  # times as many samples of one class as of another deserve a word


def class_weights(labels: Array, classes: int) -> tuple[float, ...]:
    """Return a weight for each class, by which all classes count alike; their mean over
    ``labels`` [n] is 1.

    As scikit-learn's "balanced", n / (classes * count), but of a rare class at most `HEAVIEST`
    times the weight of the most frequent one. A class without a sample here counts 1.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    weights = np.ones(classes)
    there = counts > 0
    weights[there] = 1 / np.maximum(counts[there], counts.max() / HEAVIEST)
    weights[there] *= counts.sum() / (weights[there] * counts[there]).sum()
    return tuple(float(weight) for weight in weights)


def about_balance(labels: Array, names: Sequence[str], classes: int) -> str:
    """Return a sentence if some classes have far more samples than others, else an empty text."""
    counts = np.bincount(labels.reshape(-1), minlength=classes)
    there = np.flatnonzero(counts)
    most, least = int(counts.argmax()), int(there[counts[there].argmin()])
    if counts[most] < UNEVEN * counts[least]:
        return ""
    shown = [f"{n} {names[n]}" if names else f"{n}" for n in (most, least)]
    return (
        f"the classes are uneven: class {shown[0]} has {counts[most]:,} training samples, class "
        f"{shown[1]} has {counts[least]:,}; --balance lets rare classes count more"
    )


def balance_of(
    data: Dataset, names: Sequence[str], classes: int, *, wanted: bool
) -> tuple[tuple[float, ...], str]:
    """Return what a training sample of each class counts, () for 1 each, and a sentence on it.

    Raises:
        UsageError: it is ``wanted``, and the data have no classes of samples.
    """
    is_single = classes > 0 and data.y.ndim == 1
    labels = data.y[data.train_rows]
    if not wanted:
        return (), about_balance(labels, names, classes) if is_single else ""
    if not is_single:
        what = "labels of positions" if classes else "0 and 1 of outputs, or numbers"
        raise UsageError(
            f"--balance weighs samples by their class, and y of {data.name} holds {what}: leave it "
            "away"
        )
    weights = class_weights(labels, classes)
    return weights, _about_weights(labels, names, weights)


def _about_weights(labels: Array, names: Sequence[str], weights: Sequence[float]) -> str:
    """Say what `class_weights` came to."""
    counts = np.bincount(labels, minlength=len(weights))
    there = [n for n in range(len(weights)) if counts[n]]
    shown = [
        f"{n} {names[n]}".strip() if names else f"{n}"
        for n in (min(there, key=lambda n: weights[n]), max(there, key=lambda n: weights[n]))
    ]
    least, most = (min(weights[n] for n in there), max(weights[n] for n in there))
    said = (
        f"--balance: in training a sample counts from {least:.3g} (class {shown[0]}) to {most:.3g} "
        f"(class {shown[1]}), 1 on average"
    )
    if most > 0.99 * HEAVIEST * least:
        said += f", at most {HEAVIEST:.0f} times another's"
    return said + ("; of a class without a sample here, 1" if len(there) < len(weights) else "")
