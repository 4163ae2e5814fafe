"""Fine-tuning under a limit of bytes, and the choice of the payload that answers best."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from models.codec.budget import Budget
from models.codec.payload import compress, decompress
from models.errors import UsageError
from models.graph.facts.shape_facts import infer_facts
from models.graph.training.model_end import model_end
from models.task.params import Vector
from tools.compress.compress_pruning import Pruning
from tools.compress.compress_recoding import Recoding
from tools.compress.compress_subject import Split, Subject
from tools.compress.compress_training import Classifier, Descent, Plan, descend

__all__ = ["Tuned", "fine_tune"]

Method = Literal["transform", "prune"]


class Tuned(NamedTuple):
    """A fine-tuned model as a payload."""

    payload: bytes
    kept: int  # weights that are not zero
    form: str  # how it is coded
    validation_accuracy: float


def fine_tune(
    subject: Subject,
    data: Split,
    most_bytes: int,
    plan: Plan,
    *,
    method: Method = "prune",
    on_progress: Callable[[float, str], None] | None = None,
) -> Tuned:
    """Return ``subject`` in at most ``most_bytes``, trained to bear that.

    It learns to answer as ``subject`` does (or the labels, if that answers probabilities instead of
    logits). ``method``: with the transform codec in the loop, or with ever fewer weights. Of the
    result and of ``subject`` coded without any training, the one is returned that is right more
    often on the validation rows.

    Raises:
        UsageError: it is no classifier of these data, training diverged, or too few bytes.
    """
    original = Classifier(subject.model)
    answers = original(data.validation.x[:64])
    classes = answers.shape[1]
    if data.learning.y.ndim != 1 or int(data.learning.y.max()) >= classes:
        raise UsageError(f"the model tells {classes} classes apart, the data have others")
    end = model_end(subject.model, "cross_entropy", infer_facts(subject.model))
    probable = end.answers == "probabilities"
    descent = Descent(
        subject.model, subject.specs, classes=classes, teacher=None if probable else original
    )
    constrain = (
        Recoding(subject.specs, most_bytes, subject.weights)
        if method == "transform"
        else Pruning(subject.specs, most_bytes)
    )
    moved = descend(
        descent, subject.weights, data.learning, plan, constrain=constrain, on_progress=on_progress
    )
    candidates = {
        f"fine-tuned: {method}": constrain.fit(moved),
        "not fine-tuned": compress(subject.weights, subject.specs, Budget(bytes=most_bytes)),
    }
    best: Tuned | None = None
    for form, payload in candidates.items():
        weights: Vector = decompress(payload, subject.specs)
        accuracy = Classifier(subject.with_weights(weights)).accuracy(data.validation)
        if best is None or accuracy > best.validation_accuracy:
            best = Tuned(payload, int(np.count_nonzero(weights)), form, accuracy)
    assert best is not None
    return best
