"""What a given model itself answers, and whether a bundle made of it answers the same.

The model runs as it was given, at the batch size that it has, on rows that numpy converted: none of
our graphs takes part.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from models.errors import EdgefoldError, UsageError
from models.graph.contract.input_contract import Conversion
from models.graph.reading.sklearn_nodes import without_maps
from models.learning.onnx_session import open_session
from models.learning.onnxruntime_errors import runtime_sentence
from tools.author.bundle.create_bundle import Made
from tools.author.door.bundle_run import Rows, run_quietly
from tools.author.door.first_difference import first_difference

__all__ = ["Compared", "Given", "compare_with_given", "converted_rows", "resized_rows"]

Array = npt.NDArray[Any]
SAME = 1e-4
SAME_HALF = 1e-2  # of a model that computes in float16
NEWEST_IR = 10  # that every onnxruntime here takes
NUMPY = {
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


class Given(NamedTuple):
    """A model as somebody gave it."""

    model: onnx.ModelProto
    name: str  # what to call it
    output: str | None  # which is learned; None: the first
    is_resized: bool  # images are resized before


class Compared(NamedTuple):
    """Whether the two answer the same; False: that could not be found out."""

    holds: bool
    words: str


def compare_with_given(given: Given, made: Made, rows: Rows, answers: Array) -> Compared:
    """Compare what infer.onnx answers for ``rows`` with what the given model does.

    Raises:
        UsageError: they answer differently; says by how much and where first.
    """
    x = converted_rows(rows.x, made.converted.conversion)
    try:
        session = _session(given.model)
        feeds, theirs = _run(session, x, given)
    except Exception as error:  # onnxruntime's own have no other class
        reason = str(error) if isinstance(error, EdgefoldError) else runtime_sentence(error)
        return Compared(
            False, f"the answers could not be compared with {given.name} itself: {reason}"
        )
    spec = made.bundle.spec
    is_half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in given.model.graph.initializer)
    same = SAME_HALF if is_half else SAME
    finite = np.isfinite(theirs).all()
    if not finite:
        raise UsageError(f"{given.name} itself answers with numbers that are not finite")
    forms = _forms(theirs, spec.loss)
    difference = min(_difference(form, answers, same) for form in forms.values())
    if difference > same:
        node = first_difference(
            made.bundle.infer,
            {spec.infer_input: rows.x[:1]},
            _runnable(given.model).SerializeToString(),
            {name: value[:1] for name, value in feeds.items()},
        )
        raise UsageError(
            f"the bundle answers differently from {given.name} (by {difference:.2g} of its largest "
            f"answer){node}: the model was not understood and would be trained wrong; try another "
            "export (opset 17 or later, dynamic batch, no optimization)"
        )
    if spec.loss == "bce" and _difference(theirs, answers, same) > same:
        _refuse_second_sigmoid(session, x, given)
    return Compared(True, f"answers as {given.name} does")


def converted_rows(x: Array, conversion: Conversion) -> Array:
    """Return what the model gets for the stored samples ``x``, by numpy."""
    layout = conversion.layout
    moved = x.transpose(0, *(axis + 1 for axis in layout.order)).reshape(len(x), *layout.shape)
    value = moved.astype(conversion.dtype)
    if conversion.dtype == "float32":
        value = value * np.float32(conversion.scale)
        value = value if conversion.mean is None else value - conversion.mean
        value = value if conversion.std is None else value / conversion.std
    return np.ascontiguousarray(value, conversion.dtype)


def resized_rows(images: Array, channels: int, height: int, width: int) -> Array:
    """Return ``images`` [n, c, h, w] in another size: bilinear, pixels as areas (half_pixel)."""
    value = images.repeat(channels, axis=1) if images.shape[1] < channels else images
    for axis, size in ((2, height), (3, width)):
        had = value.shape[axis]
        place = ((np.arange(size) + 0.5) * had / size - 0.5).clip(0, had - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, had - 1)
        share = (place - low).reshape([-1 if a == axis else 1 for a in range(4)])
        value = value.take(low, axis) * (1 - share) + value.take(high, axis) * share
    return np.ascontiguousarray(value, np.float32)


def _runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` as onnxruntime takes it, with tensors for outputs.

    The IR is only a format, and may be too new.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(model.ir_version, NEWEST_IR)
    without_maps(copy.graph)
    return copy


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    return open_session(_runnable(model).SerializeToString())


def _run(session: ort.InferenceSession, x: Array, given: Given) -> tuple[dict[str, Array], Array]:
    """Return the feeds and the answers for all rows, in parts of the batch that the model has."""
    (entry,) = session.get_inputs()
    if given.is_resized:
        x = resized_rows(x, *(int(side) for side in entry.shape[1:]))
    x = x.astype(NUMPY[entry.type])
    fixed = entry.shape[0] if isinstance(entry.shape[0], int) else len(x)
    name = given.output or session.get_outputs()[0].name
    parts = []
    for start in range(0, len(x), fixed):
        part = x[start : start + fixed]
        padded = np.concatenate([part, part[-1:].repeat(fixed - len(part), axis=0)])
        (found,) = run_quietly(session, [name], {entry.name: padded})
        answer = np.asarray(found, np.float64)
        if answer.shape[:1] != (fixed,):  # as of a net that squeezes all axes of one
            answer = answer.reshape(fixed, -1)
        parts.append(answer[: len(part)])
    return {entry.name: x}, np.concatenate(parts)


def _forms(theirs: Array, loss: str) -> dict[str, Array]:
    """Return the forms in which the same answer may stand in a bundle of this loss."""
    forms = {"as it is": theirs}
    if loss == "bce":
        forms["probabilities"] = 1 / (1 + np.exp(-theirs.clip(-80, 80)))
    if loss == "cross_entropy" and theirs.ndim > 2:
        forms["classes last"] = np.moveaxis(theirs, 1, -1)
    if loss == "cross_entropy":
        for name, value in list(forms.items()):
            shifted = np.exp(value - value.max(axis=-1, keepdims=True))
            forms[f"{name}, probabilities"] = shifted / shifted.sum(axis=-1, keepdims=True)
    return forms


def _difference(theirs: Array, ours: Array, same: float) -> float:
    """Return the largest difference, as a share of the largest value plus 1."""
    left, right = theirs.reshape(len(theirs), -1), ours.reshape(len(ours), -1)
    if left.shape != right.shape:
        return float("inf")
    return float(np.abs(left - right).max(initial=0) / (1 + np.abs(left).max(initial=0)))


def _refuse_second_sigmoid(session: ort.InferenceSession, x: Array, given: Given) -> None:
    """Refuse a bundle that put a sigmoid behind answers which never leave 0..1.

    Logits leave that range for inputs that are large enough; probabilities never do.
    """
    seen = []
    for factor in (1, -1, 10, -10, 100, -100) if x.dtype.kind == "f" else (1,):
        _, answers = _run(session, x * x.dtype.type(factor), given)
        seen.append(answers[np.isfinite(answers)])
    values = np.concatenate([answers.reshape(-1) for answers in seen])
    if values.size and values.min() >= 0 and values.max() <= 1 and np.ptp(values) > 0:
        raise UsageError(
            f"{given.name} answers with values from 0 to 1, which look like probabilities, and the "
            "bundle would put a second sigmoid behind them: export the model so that its last "
            "operator is Sigmoid, or so that it answers with logits"
        )
