"""The gradients of a batch, and whether float32 can tell them at all."""

import functools

import numpy as np

from tools.author.door.bundle_run import Array, BundleRun, Rows

__all__ = ["LEAST_RATE", "STEEP", "SteadyGradients", "gradients_of"]

LEAST_RATE = 1e-30  # below it float32 has no digits left


STEEP = 1e8  # a norm of the gradient that no usual learning rate goes with


JITTER = 1e-6  # relative


UNSTEADY = 0.1  # a change of the gradient by it that such a jitter makes


class SteadyGradients:
    """The gradients of a batch, and how steady they are: only what float32 can tell is judged.

    A net whose weights are all equal, or whose values sit on a kink, has gradients that are mere
    rounding: they are others as soon as the weights move by their last digits.
    """

    def __init__(self, run: BundleRun, rows: Rows, weight_decay: float, seed: int) -> None:
        self._run, self._rows, self._decay, self._seed = run, rows, weight_decay, seed
        self.values, self.direction, self.norm = gradients_of(run, rows, weight_decay)

    @functools.cached_property
    def nearby(self) -> dict[str, Array]:
        """The gradients for weights that differ by a few units of their last digits."""
        random = np.random.default_rng(self._seed)
        moved = {
            name: (value * (1 + JITTER * random.standard_normal(value.shape))).astype(np.float32)
            for name, value in self._run.tensors.items()
        }
        return gradients_of(self._run._replace(tensors=moved), self._rows, self._decay)[0]

    def is_steady_at(self, name: str, place: int) -> bool:
        """Return whether one gradient is more than rounding."""
        here, there = float(self.values[name].flat[place]), float(self.nearby[name].flat[place])
        return abs(here - there) <= UNSTEADY * max(abs(here), abs(there))

    def is_steady(self) -> bool:
        """Return whether all of them together are."""
        pairs = [(value, self.nearby[name]) for name, value in self.values.items()]
        change = sum(float(np.square(here - there).sum()) for here, there in pairs) ** 0.5
        size = sum(float(np.square(here).sum()) for here, _ in pairs) ** 0.5
        return bool(change <= UNSTEADY * size)


def gradients_of(
    run: BundleRun, rows: Rows, weight_decay: float
) -> tuple[dict[str, Array], dict[str, Array], float]:
    """Return the gradient of the loss, the step's direction (w - w')/lr, and the norm it tells."""
    rate = 1024.0  # large, so that the weights themselves do not drown what is subtracted
    results = run.step(rows, rate=rate)
    gradients, direction = {}, {}
    for name, value in run.learned.items():
        before = value.astype(np.float64)
        moved = (before - results[f"new/{name}"].astype(np.float64)) / rate
        direction[name] = moved
        if f"new/momentum/{name}" in results:
            gradient = results[f"new/momentum/{name}"].astype(np.float64)
        elif f"new/adam_m/{name}" in results:
            gradient = results[f"new/adam_m/{name}"].astype(np.float64) / (1 - 0.9)
        else:
            gradient = moved
        gradients[name] = gradient - weight_decay * before
    return gradients, direction, float(results["grad_norm"])
