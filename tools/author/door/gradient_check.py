"""Whether a training graph goes down its loss: one tiny step, and gradients against differences.

The gradient is taken from what train.onnx does to its tensors and slots, the loss from what
infer.onnx answers with other weights. In float32 a difference is only as good as its step: each is
taken at several, and a gradient is called wrong only where several steps agree on another. Kinks
(ReLU, max pooling, a norm at 0) have no one slope: what lies between those of both sides is right.
"""

import time
from typing import NamedTuple

import numpy as np
import onnx

from models.errors import UsageError
from models.learning.onnx_session import open_session
from models.task.params import Tensor
from tools.author.door.bundle_run import Array, BundleRun, Rows, run_quietly, with_open_weights
from tools.author.door.steady_gradients import LEAST_RATE, STEEP, SteadyGradients, gradients_of
from tools.author.door.trained_form import trained_form
from tools.author.door.weight_check import LONGEST, RIGHT, SHARES, Loss, check_weights

__all__ = ["Found", "check_gradients"]

QUICK = 0.2  # seconds: a batch whose step takes longer is made smaller
NOISE = 2e-6  # of float32 answers, relative
LEARNED = 1e-5  # a loss that leaves nothing to learn
DROPS = (1e-2, 1e-3, 1e-4, 1e-5)  # of the loss, that a step is made for
# Flat almost everywhere: their gradient is 0, and differences see their stairs.
STAIRS = {"ArgMax", "Ceil", "Floor", "QuantizeLinear", "Round", "Sign"}
LARGEST_MOVE = 0.05  # of all weights, that such a step may be


class Found(NamedTuple):
    """What holds, in a few words each, and what the author may not know."""

    words: tuple[str, ...]
    notes: tuple[str, ...]


def check_gradients(
    run: BundleRun,
    rows: Rows,
    *,
    weight_decay: float,
    seed: int,
    seconds_per_step: float,
) -> Found:
    """Check one step and some gradients of the bundle on ``rows``, on fewer where that is slow.

    Raises:
        UsageError: a gradient is not finite or wrong, or a step does not lower the loss.
    """
    safe = np.flatnonzero(run.measurable(run.trained_answers(rows.x), rows.y))
    least = 2 if run.spec.norms_adapt else 1  # one sample has no variance
    if len(safe) < least:
        note = (
            "the model is so sure of wrong answers on the rows that were tried that its gradients "
            "could not be checked"
        )
        return Found((), (note,))
    is_whole = len(safe) == len(rows.x)
    safe = safe[: max(least, int(len(safe) * QUICK / max(seconds_per_step, QUICK)))]
    rows = rows.only([int(number) for number in safe])
    all_gradients = SteadyGradients(run, rows, weight_decay, seed)
    gradients = all_gradients.values
    for name, gradient in gradients.items():
        if not np.isfinite(run.tensors[name]).all():
            raise UsageError(
                f"tensor {name!r} holds values that are not finite, so it is a constant, as a mask "
                "is, and cannot be trained: leave it out, --trainable PATTERN names the others"
            )
        if not np.isfinite(gradient).all():
            raise UsageError(
                f"the gradient of tensor {name!r} is not finite{_bad_row(run, rows, name)}: one "
                "such sample ends training; look for a division by, or a root or logarithm of, "
                "something that is 0 there, and leave the row out or add a small number"
            )
    _check_norm(run, all_gradients)
    loss = _loss_by_weights(run, rows)
    silent = [name for name, gradient in gradients.items() if not gradient.any()]
    is_learned = loss(run.learned)[0] < LEARNED
    notes = () if is_learned or not is_whole else _about_silence(silent, len(gradients))
    if all_gradients.norm > STEEP:
        notes = (
            *notes,
            f"the gradient of these rows has a norm of {all_gradients.norm:.1g}, with which "
            "training diverges at any usual learning rate: scale x or y, or start from weights "
            "that learned",
        )
    if len(silent) == len(gradients):
        return Found((), notes)
    operators = {node.op_type for node in onnx.load_from_string(run.bundle.infer).graph.node}
    compared = 0
    if not operators & STAIRS:
        compared = check_weights(run.learned, all_gradients, loss, seed)
    if not compared and not is_learned:
        notes = (*notes, _about_nothing_compared(operators))
    went_down = _check_step(run, rows, all_gradients, loss, decays=weight_decay > 0)
    words = []
    if went_down:
        words.append("a small step lowers the loss")
    if compared:
        words.append(f"gradients agree with differences ({compared} weight{'s' * (compared > 1)})")
    return Found(tuple(words), notes)


def _about_nothing_compared(operators: set[str]) -> str:
    """Say why no gradient was held against differences of the loss."""
    stairs = sorted(operators & STAIRS)
    why = (
        f"{', '.join(stairs)} make{'s' * (len(stairs) == 1)} steps, which differences see"
        if stairs
        else "of this model and these rows float32 cannot tell them, or not in a few seconds"
    )
    return f"no gradient was compared with differences: {why}"


def _about_silence(silent: list[str], count: int) -> tuple[str, ...]:
    if not silent:
        return ()
    if len(silent) == count:
        return (
            "no gradient reaches any tensor on the rows that were tried: the model will not learn "
            "from such samples",
        )
    more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
    return (f"no gradient reaches {', '.join(silent[:3])}{more} on the rows that were tried",)


def _check_norm(run: BundleRun, found: SteadyGradients) -> None:
    """Check the norm that train.onnx tells: devices and servers judge updates by it."""
    told, gradients = found.norm, found.values
    norm = sum(float(np.square(value).sum()) for value in gradients.values()) ** 0.5
    size = sum(float(np.square(value).sum()) for value in run.tensors.values()) ** 0.5
    if abs(told - norm) > RIGHT * max(told, norm) + NOISE * (1 + size):
        raise UsageError(
            f"train.onnx tells a gradient of norm {told:.4g}, but moves its tensors by one of norm "
            f"{norm:.4g}: it is not a training step of this model; please report it, with the model"
        )


def _bad_row(run: BundleRun, rows: Rows, name: str) -> str:
    bad = []
    for number in range(len(rows.x)):
        gradients = gradients_of(run, rows.only([number]), 0.0)[0]
        if not np.isfinite(gradients[name]).all():
            bad.append(f" for row {rows.numbers[number]} of the data")
    return bad[0] if 0 < len(bad) < len(rows.x) else ""


def _loss_by_weights(run: BundleRun, rows: Rows) -> Loss:
    """Return the loss as a function of the tensors that learn, and its float32 noise."""
    model = trained_form(run.bundle.infer, run.spec)
    session = open_session(with_open_weights(model, list(run.learned)))
    there = {entry.name for entry in session.get_inputs()}

    def loss(tensors: dict[str, Tensor]) -> tuple[float, float]:
        feeds = {name: value for name, value in tensors.items() if name in there}
        (answers,) = run_quietly(session, [run.spec.infer_output], {run.input: rows.x, **feeds})
        found = run.loss_of(answers, rows.y)
        largest = float(np.abs(answers).max(initial=0))
        if run.spec.loss == "mse":
            noise = NOISE * (2 * largest * found**0.5 + found)
        else:
            noise = NOISE * (found + max(1.0, largest))
        return found, noise

    return loss


def _check_step(
    run: BundleRun,
    rows: Rows,
    all_gradients: SteadyGradients,
    loss: Loss,
    *,
    decays: bool,
) -> bool:
    """Check that a step at a tiny rate lowers the loss; False where that cannot be told."""
    gradients, direction = all_gradients.values, all_gradients.direction
    _, noise = loss(run.learned)
    start = float(run.step(rows, rate=0.0)["loss"])
    slope = sum(float((gradients[name] * direction[name]).sum()) for name in gradients)
    if decays and slope <= 0:
        return False  # the decay is stronger than what the data say
    length = sum(float(np.square(value).sum()) for value in direction.values()) ** 0.5
    weight = sum(float(np.square(value).sum()) for value in run.learned.values()) ** 0.5
    if not length or start <= 10 * noise:
        return False
    told = False
    found = start
    began = time.monotonic()
    for drop in DROPS:
        if time.monotonic() > began + LONGEST:
            return False
        rate = min(drop * start / max(abs(slope), 1e-30), LARGEST_MOVE * (weight + 1e-3) / length)
        expected = rate * abs(slope)
        if expected < 10 * noise or rate < LEAST_RATE:
            continue
        told = True
        stepped = run.step(rows, rate=rate)
        after = float(
            run.step(
                rows, rate=0.0, tensors={name: stepped[f"new/{name}"] for name in run.tensors}
            )["loss"]
        )
        if after < start - 0.2 * expected:
            return True
        found = after
    if not told or not all_gradients.is_steady():
        return False
    if _goes_down(run.learned, direction, loss, slope, length, weight):
        return False
    raise UsageError(
        f"a tiny training step does not lower the loss of its own batch ({start:.6g} before, "
        f"{found:.6g} after): train.onnx is not a training step of this model; please report it, "
        "with the model, and freeze layers with --trainable until then"
    )


def _goes_down(
    tensors: dict[str, Tensor],
    direction: dict[str, Array],
    loss: Loss,
    slope: float,
    length: float,
    weight: float,
) -> bool:
    """Return whether the loss of infer.onnx falls along ``direction``, or that cannot be told."""
    at_all = False
    for share in SHARES:
        step = 0.1 * share * (weight + 1e-3) / length
        ahead, noise = loss(
            {n: (v - step * direction[n]).astype(np.float32) for n, v in tensors.items()}
        )
        behind, _ = loss(
            {n: (v + step * direction[n]).astype(np.float32) for n, v in tensors.items()}
        )
        fall = (behind - ahead) / 2
        if abs(fall) < 5 * noise and step * abs(slope) < 10 * noise:
            continue
        at_all = True
        if fall > 0.3 * step * abs(slope) > 0 and slope > 0:
            return True
    return not at_all
