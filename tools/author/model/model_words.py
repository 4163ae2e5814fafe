"""What ``task create`` understood of a model itself: its answers, its loss, its constants. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

import onnx

from models.graph.facts.constants import STATISTIC_INPUTS, constants, inputs_of
from models.graph.facts.shape_facts import infer_facts
from models.graph.reading.forward_graph import output_array
from models.graph.training.model_end import final_activation
from models.task.spec import Role, TaskSpec

__all__ = ["ModelWords", "model_words", "shown"]

SHOWN = 3
LOSS_WORDS = {
    "cross_entropy": "y holds labels",
    "mse": "y holds numbers",
    "bce": "y holds 0 and 1",
}


class ModelWords(NamedTuple):
    """All of it in words; each may be "" or ()."""

    answers: str  # what the outputs mean, and by which node
    loss: str  # why this loss
    trained: tuple[str, ...]  # constants that are no layer's weights, and are trained
    left: tuple[str, ...]  # constants of the model that are left alone, with the reason
    norms: int  # how many batch norms there are


def model_words(
    infer: bytes, spec: TaskSpec, given: onnx.ModelProto, *, loss_was_asked_for: bool
) -> ModelWords:
    """Return what a person should know of a bundle's model; ``given`` is what it was made of."""
    model = onnx.load_from_string(infer)
    reason = "as --loss says" if loss_was_asked_for else f"since {LOSS_WORDS[spec.loss]}"
    trained, left = _constants(model, spec, given)
    theirs = {node.name for node in given.graph.node}
    norms = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    answers = _answers(model, spec, theirs)
    return ModelWords(answers, f"{spec.loss}, {reason}", trained, left, norms)


def _answers(model: onnx.ModelProto, spec: TaskSpec, theirs: set[str]) -> str:
    output = output_array(model)
    meaning = spec.answers or "numbers"
    what = f"{meaning} of {spec.classes} classes" if spec.classes else meaning
    by, node = "", final_activation(model, infer_facts(model)).node
    if node is not None:  # a name of ours tells nobody anything
        by = f", by {node.op} {node.name!r}" if node.name in theirs else f", by {node.op}"
    return f"{what}, {list(output.shape)}{by}"


def _constants(
    model: onnx.ModelProto, spec: TaskSpec, given: onnx.ModelProto
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    trainable = {tensor.name for tensor in spec.trainable}
    theirs = {tensor.name for tensor in given.graph.initializer} | {
        node.output[0] for node in given.graph.node if node.op_type == "Constant"
    }
    statistics = inputs_of(model.graph, STATISTIC_INPUTS)
    trained, left = [], []
    for constant in constants(model):
        name, said = constant.name, f"{constant.name} {list(constant.shape)}"
        if name in trainable and constant.is_doubtful:
            trained.append(said)
            continue
        is_theirs = name in theirs or name.removeprefix("net/") in theirs
        if is_theirs and not constant.is_trained and name not in statistics:
            left.append(f"{said} ({constant.why})")
    if still := statistics - trainable:
        left.insert(0, f"{len(still)} batch-norm statistics")
    frozen = [t for t in spec.with_role(Role.FROZEN) if t.name not in statistics]
    if frozen:
        left.insert(0, f"{len(frozen)} weights that --trainable does not name")
    return tuple(trained), tuple(left)


def shown(names: Sequence[str]) -> str:
    """Return the first few of ``names``, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
