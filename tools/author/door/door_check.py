"""A new bundle is run before ``task create`` says that all is well.

Both graphs in onnxruntime at two batch sizes, each row alone and among others, the answers against
those of the given model, the loss against the answers, one training step, and gradients against
differences. What does not hold is a `UsageError`: one sentence with the node and the remedy. What
cannot be decided in float32, or would take too long, is never held against a model.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from models.errors import PayloadError, UsageError
from models.learning.onnx_session import open_session
from models.learning.onnxruntime_errors import runtime_sentence
from models.task.bundle import Bundle
from models.task.params import Tensor
from tools.author.bundle.create_bundle import Made
from tools.author.bundle.export_model import read_tensors, replace_tensors
from tools.author.data.labeled_data import Dataset
from tools.author.door.bundle_run import Array, BundleRun, Rows
from tools.author.door.first_difference import first_bad_value, first_batch_dependence
from tools.author.door.given_answers import Given, compare_with_given
from tools.author.door.gradient_check import check_gradients
from tools.author.door.trained_form import trained_form

__all__ = ["Checked", "check_made"]

BATCHES = (3, 7)  # sizes that no exporter has ever been shown
SAME = 1e-4  # relative to the largest value of an answer
SAME_LOSS = 1e-3
SLOW = 0.5  # seconds that a step of the larger batch takes: from there not every row is run alone


class Checked(NamedTuple):
    """What was found to hold, in a few words each, and what its author may not know."""

    words: tuple[str, ...]
    notes: tuple[str, ...]


def check_made(made: Made, given: Given | None = None, *, seed: int = 0) -> Checked:
    """Run what was made on rows of its data; ``given`` is the model that it should answer as.

    Raises:
        UsageError: something does not hold.
    """
    rows = _rows(made.data, seed)
    tensors = read_tensors(made.bundle)
    run = _opened(made.bundle, tensors)
    sized = _check_sizes(run, rows)
    answers = sized.answers
    _check_rows_alone(run, rows, answers, count=2 if sized.seconds > SLOW else len(rows.x))
    words = [f"both graphs run with {BATCHES[0]} and {BATCHES[1]} samples at a time"]
    notes: list[str] = []
    if given is not None:
        said = compare_with_given(given, made, rows, answers)
        (words if said.holds else notes).append(said.words)
    _check_loss(run, rows, sized)
    found = check_gradients(
        run,
        rows,
        weight_decay=made.optimizer.weight_decay,
        seed=seed,
        seconds_per_step=sized.seconds,
    )
    return Checked((*words, *found.words), (*notes, *found.notes))


def _rows(data: Dataset, seed: int) -> Rows:
    """Return as many training rows as the larger batch has; repeated where there are fewer."""
    chosen = np.random.default_rng(seed).permutation(data.train_rows)[: max(BATCHES)]
    chosen = np.resize(chosen, max(BATCHES))
    return Rows(np.ascontiguousarray(data.x[chosen]), np.ascontiguousarray(data.y[chosen]), chosen)


def _opened(bundle: Bundle, tensors: Mapping[str, Tensor]) -> BundleRun:
    # Devices and servers write other weights over those of the file: each must stand there raw.
    if replace_tensors(bundle.infer, tensors) != bundle.infer:
        raise UsageError(
            "infer.onnx, made of this model, does not take its own weights back: please report it, "
            "with the model"
        )
    sessions = []
    models = [("infer.onnx", bundle.infer), ("train.onnx", bundle.train)]
    if bundle.spec.norms_adapt:
        models.append(("infer.onnx", trained_form(bundle.infer, bundle.spec)))
    for name, model in models:
        try:
            sessions.append(open_session(model))
        except PayloadError as error:
            raise UsageError(f"{name}, made of this model: {error}") from None
    return BundleRun(
        bundle,
        sessions[0],
        sessions[1],
        sessions[-1] if bundle.spec.norms_adapt else sessions[0],
        dict(tensors),
    )


class _Sized(NamedTuple):
    """What both graphs gave at both batch sizes."""

    answers: Array  # for all rows
    losses: dict[int, float]  # of the training graph, by batch size
    seconds: float  # that a training step of all rows takes


def _check_sizes(run: BundleRun, rows: Rows) -> _Sized:
    """Run both graphs at both batch sizes."""
    losses = {}
    for count in BATCHES:
        some = rows.first(count)
        try:
            answers = run.answers(some.x)
        except Exception as error:  # onnxruntime's own have no other class
            raise UsageError(_batch_words("infer.onnx", run, rows, count, error)) from None
        if answers.shape[:1] != (count,):
            raise UsageError(
                f"for {count} samples the model answers with shape {list(answers.shape)}: its "
                "output does not have the batch as first axis; export it with a dynamic batch"
            )
        if not np.isfinite(answers).all():
            bad = int(np.argwhere(~np.isfinite(answers))[0][0])
            node = first_bad_value(run.bundle.infer, {run.input: some.x})
            raise UsageError(
                f"for row {rows.numbers[bad]} of the data the model answers with numbers that are "
                f"not finite{node}: scale x (--input-scale, --mean, --std) to what the model "
                "learned from, or mend the model"
            )
        began = time.monotonic()
        try:
            results = run.step(some, rate=0.0)
        except Exception as error:  # likewise
            raise UsageError(_batch_words("train.onnx", run, rows, count, error)) from None
        seconds = time.monotonic() - began
        losses[count] = float(results["loss"])
        if not np.isfinite(losses[count]):
            raise UsageError(
                f"the loss of {count} rows of the data is {losses[count]}, though the "
                "model's answers are finite: they are too large for this loss, or y is"
            )
    return _Sized(answers, losses, seconds)


def _batch_words(name: str, run: BundleRun, rows: Rows, count: int, error: Exception) -> str:
    said = f"{name} fails with {count} samples at a time: {runtime_sentence(error)}"
    for number in range(count):
        try:
            if name == "infer.onnx":
                run.answers(rows.x[number : number + 1])
            else:
                run.step(rows.only([number]), rate=0.0)
        except Exception as alone:  # likewise
            return (
                f"{name} fails for row {rows.numbers[number]} of the data: "
                f"{runtime_sentence(alone)}; the model does not take such values of x"
            )
    return f"{said}; it works for one batch size only: export the model with a dynamic batch"


def _check_rows_alone(run: BundleRun, rows: Rows, answers: Array, *, count: int) -> None:
    """Check that what the model says of a row does not depend on the rows beside it."""
    again = run.answers(rows.x)
    size = _size(answers)
    if np.abs(again - answers).max(initial=0) > SAME * size:
        raise UsageError(
            "the model answers differently when it is asked again: something in it is random; "
            "export it in evaluation mode"
        )
    for number in range(count):
        try:
            alone = run.answers(rows.x[number : number + 1])
        except Exception as error:  # onnxruntime's own have no other class
            raise UsageError(
                f"infer.onnx fails with one sample alone: {runtime_sentence(error)}; export the "
                "model with a dynamic batch"
            ) from None
        difference = np.abs(alone[0] - answers[number]).max(initial=0)
        if difference > SAME * size:
            node = first_batch_dependence(run.bundle.infer, run.input, rows.x, number)
            raise UsageError(
                f"the model answers differently for a row alone and among {len(rows.x)} (by "
                f"{difference:.2g}){node}: it mixes the samples of a batch; export it in "
                "evaluation mode and with a dynamic batch"
            )


def _check_loss(run: BundleRun, rows: Rows, sized: _Sized) -> None:
    """Check that the training graph's loss is that of the answers, at both batch sizes."""
    answers = run.trained_answers(rows.x) if run.spec.norms_adapt else sized.answers
    safe = run.measurable(answers, rows.y)
    for count in BATCHES:
        chosen = [number for number in range(count) if safe[number]]
        if not chosen:
            continue
        some = rows.only(chosen)
        found = (
            sized.losses[count] if len(chosen) == count else float(run.step(some, rate=0.0)["loss"])
        )
        trained = run.trained_answers(some.x) if run.spec.norms_adapt else answers[chosen]
        expected = run.loss_of(trained, some.y)
        if abs(found - expected) > SAME_LOSS * max(abs(expected), 0.1):
            raise UsageError(
                f"train.onnx finds a loss of {found:.4g} where the answers of infer.onnx have "
                f"{expected:.4g} ({run.bundle.spec.loss}): what stands between the model's last "
                f"activation and its output {run.bundle.spec.infer_output!r} was not understood; "
                "export the model so that it ends in that activation, or without it"
            )


def _size(answers: Array) -> float:
    return 1.0 + float(np.abs(answers).max(initial=0))
