"""Gradients of single weights, compared with differences of the loss."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from models.errors import UsageError
from models.task.params import Tensor
from tools.author.door.bundle_run import Array
from tools.author.door.steady_gradients import SteadyGradients

__all__ = ["LONGEST", "RIGHT", "SHARES", "Loss", "check_weights"]

SECONDS = 3.0  # for weights; the first one is looked at in any case, but not
LONGEST = 8.0  # seconds long; nor does the step take longer
MOST_TENSORS = 8  # of which one weight each is looked at
TRIES = 4  # weights of one tensor, until one is right
ENOUGH = 2  # of them, where several steps agree on another gradient, to call it wrong
SHARES = (0.3, 0.1, 0.03, 0.01, 0.003)  # of a tensor's own size: steps of differences
RIGHT = 0.03  # relative: a gradient that is as good as its difference can tell
WRONG = 0.15
Loss = Callable[[dict[str, Tensor]], tuple[float, float]]


def check_weights(
    tensors: dict[str, Tensor],
    all_gradients: SteadyGradients,
    loss: Loss,
    seed: int,
) -> int:
    """Compare single weights with differences; return how many could be told and are right."""
    began = time.monotonic()
    random = np.random.default_rng(seed)
    gradients = all_gradients.values
    here = loss(tensors)
    right = 0
    for turn, name in enumerate(map(str, random.permutation(sorted(gradients)))):
        if turn >= MOST_TENSORS or (turn and time.monotonic() > began + SECONDS):
            break
        wrong = []
        for place in _places(gradients[name], random):
            if time.monotonic() > began + LONGEST:
                return right
            gradient = float(gradients[name].flat[place])
            verdict = _verdict(tensors, name, place, gradient, loss, here)
            if verdict.is_right:
                right += 1
                break
            if verdict.is_right is False and all_gradients.is_steady_at(name, place):
                wrong.append(verdict)
        else:
            if len(wrong) < ENOUGH:
                continue
            worst = wrong[0]
            raise UsageError(
                f"the gradient of tensor {name!r} is {worst.gradient:.3g} at one weight, where the "
                f"model's answers say {worst.difference:.3g}: train.onnx would train it wrong; "
                "please report it, with the model, and leave the tensor out (--trainable) until "
                "then"
            )
    return right


def _places(gradient: Array, random: np.random.Generator) -> Iterator[int]:
    """Return weights of one tensor to look at: first such that matter, then any."""
    order = np.argsort(-np.abs(gradient.reshape(-1)))
    best = order[: max(1, len(order) // 10)]
    for turn in range(TRIES):
        yield int(random.choice(best if turn < TRIES - 1 else order))


class _Verdict(NamedTuple):
    is_right: bool | None  # None: that cannot be told
    gradient: float
    difference: float


def _verdict(
    tensors: dict[str, Tensor],
    name: str,
    place: int,
    gradient: float,
    loss: Loss,
    start: tuple[float, float],
) -> _Verdict:
    """Compare the gradient of one weight with differences of several steps."""
    value = tensors[name]
    size = max(float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))), 0.03)
    here, noise = start

    def slopes(step: float) -> tuple[float, float, float]:
        """Return the slope behind, the slope ahead, and the noise of both."""
        changed = value.copy()
        found = []
        for sign in (-1, 1):
            changed.flat[place] = value.flat[place] + sign * step
            moved = float(changed.flat[place]) - float(value.flat[place])
            found.append((loss({**tensors, name: changed})[0] - here) / moved)
        return found[0], found[1], noise / step

    wrong, central = 0, 0.0
    for share in SHARES:
        behind, ahead, shaky = slopes(share * size)
        middle = (behind + ahead) / 2
        most = max(abs(middle), abs(gradient))
        if shaky > 0.1 * max(abs(behind), abs(ahead), abs(gradient)):
            continue  # nothing to be seen at this step
        if abs(middle - gradient) <= RIGHT * most + shaky:
            return _Verdict(True, gradient, middle)
        margin = WRONG * max(abs(behind), abs(ahead), abs(gradient)) + 3 * shaky
        if min(behind, ahead) - margin <= gradient <= max(behind, ahead) + margin:
            wrong = 0
            continue
        agrees = abs(middle - central) <= WRONG * abs(middle) + shaky
        wrong, central = (wrong + 1 if agrees else 1), middle
    return _Verdict(False if wrong >= 2 else None, gradient, central)
