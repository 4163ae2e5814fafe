"""What ``task create`` understood of a model and data: as values, and in sentences for people.

Pure. `Understanding` is for machines (``--json``) and for later checks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from models.task.spec import Role, TaskSpec
from tools.author.data.labeled_data import Dataset
from tools.author.model.model_words import ModelWords, shown

__all__ = [
    "ClassCount",
    "Understanding",
    "about_tied",
    "sentences",
    "tied_weights",
    "understand",
]

CLASSES_SHOWN = 12
TIED_SHOWN = 2
DARK = 63  # uint8 that never gets higher hardly counts to 255
BY_255 = "divided by 255"


@dataclass(frozen=True)
class ClassCount:
    """One class of the data."""

    label: int
    name: str  # "" where nobody named it
    samples: int  # of training and test rows together


@dataclass(frozen=True)
class Understanding:
    """All of it; ``metric_*`` only where there was pretraining."""

    task: str
    net: str
    loss: str
    metric: str
    train_rows: int
    test_rows: int
    test_is_ours: bool  # the data named no test rows: a fifth was drawn
    x_dtype: str
    x_shape: tuple[int, ...]
    input_steps: tuple[str, ...]  # what the bundle does to x, in order
    classes: tuple[ClassCount, ...]  # () for numbers
    shared: int  # parameters
    personal: int
    frozen: int
    infer_bytes: int
    train_bytes: int
    answers: str = ""  # what the model's outputs mean, and by which node
    loss_reason: str = ""
    constants_trained: tuple[str, ...] = ()  # such as are no layer's weights
    constants_left: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()  # what was tried on the bundle and holds
    warnings: tuple[str, ...] = ()
    batch_norms: int = 0
    norms: Literal["frozen", "personal", "shared"] = "frozen"
    norms_were_asked_for: bool = False
    metric_before: float | None = None
    metric_after: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def understand(
    spec: TaskSpec,
    data: Dataset,
    steps: Sequence[str],
    *,
    infer_bytes: int,
    train_bytes: int,
    model: ModelWords | None = None,
    checked: Sequence[str] = (),
    warnings: Sequence[str] = (),
    norms_were_asked_for: bool = False,
) -> Understanding:
    """Put together what is known of a task that was just made for ``data``."""

    def size(role: Role) -> int:
        return sum(tensor.size for tensor in spec.with_role(role))

    classes: tuple[ClassCount, ...] = ()
    if spec.classes and data.classes:
        found = Counter(int(label) for label in data.y.reshape(-1))
        names = spec.class_names or ("",) * spec.classes
        classes = tuple(ClassCount(n, names[n], found.get(n, 0)) for n in range(spec.classes))
    return Understanding(
        task=spec.task,
        net=spec.net,
        loss=spec.loss,
        metric=spec.metric,
        train_rows=len(data.train_rows),
        test_rows=len(data.test_rows),
        test_is_ours=data.test_is_ours,
        x_dtype=spec.x.dtype,
        x_shape=spec.x.shape,
        input_steps=tuple(steps),
        classes=classes,
        shared=size(Role.SHARED),
        personal=size(Role.PERSONAL),
        frozen=size(Role.FROZEN),
        infer_bytes=infer_bytes,
        train_bytes=train_bytes,
        answers=model.answers if model else "",
        loss_reason=model.loss if model else spec.loss,
        constants_trained=model.trained if model else (),
        constants_left=model.left if model else (),
        checked=tuple(checked),
        warnings=(*_about_numbers(data, steps), *_about_classes(data, classes), *warnings),
        batch_norms=model.norms if model else 0,
        norms=_norms(spec),
        norms_were_asked_for=norms_were_asked_for,
    )


def sentences(found: Understanding) -> list[str]:
    """Return what a person should read, a line each; warnings begin with "note: "."""
    ours = " (a fifth, drawn by a fixed seed)" if found.test_is_ours else ""
    shape = list(found.x_shape)
    steps = ", ".join(found.input_steps) or "taken as it is"
    frozen = f", {found.frozen:,} frozen" if found.frozen else ""
    personal = f", {found.personal:,} personal" if found.personal else ""
    lines = [
        f"rows   {found.train_rows:,} for training, {found.test_rows:,} for test{ours}",
        f"x      {found.x_dtype} {shape}: {steps}",
    ]
    if found.classes:
        lines.append(f"y      {len(found.classes)} classes: {_classes(found.classes)}")
    if found.answers:
        lines.append(f"model  answers with {found.answers}")
    constants = []
    if found.constants_trained:
        constants.append(f"also constants that are no layer's: {shown(found.constants_trained)}")
    if found.constants_left:
        constants.append(f"left alone: {shown(found.constants_left)}")
    lines += [
        "; ".join(
            [
                f"learns {found.shared:,} parameters shared{personal}{frozen}",
                *constants,
                found.loss_reason or found.loss,
            ]
        ),
        *_about_norms(found),
        f"files  infer.onnx {found.infer_bytes:,} bytes, train.onnx {found.train_bytes:,} bytes",
    ]
    if found.checked:
        lines.append(f"check  {'; '.join(found.checked)}")
    if found.metric_after is not None and found.metric_before is not None:
        before, after = (
            f"{100 * value:.1f} %" if found.metric == "accuracy" else f"{value:.4g}"
            for value in (found.metric_before, found.metric_after)
        )
        lines.append(f"pretrained: {found.metric} {before} -> {after} on the test rows")
    return lines + [f"note: {warning}" for warning in found.warnings]


def _norms(spec: TaskSpec) -> Literal["frozen", "personal", "shared"]:
    if not spec.norms_adapt:
        return "frozen"
    own = {tensor.role for tensor in spec.trainable if tensor.kind == "statistic"}
    return "personal" if Role.PERSONAL in own else "shared"


def _about_norms(found: Understanding) -> list[str]:
    """Say how batch norm learns, or what the choice is where nobody made one."""
    if not found.batch_norms:
        return []
    if found.norms != "frozen":
        where = "stay on each device" if found.norms == "personal" else "are averaged"
        return [
            f"norms  {found.norms}: batch norm normalizes by the batch; its scales, shifts and "
            f"statistics {where}"
        ]
    if found.norms_were_asked_for:
        return []
    return [
        "norms  batch norm keeps the statistics that it came with (--norms frozen): the quickest "
        "step; right where the data of devices are alike",
        "       --norms personal: each device keeps batch norm of its own (FedBN); right where "
        "their data differ by sensor or place; a step takes up to 1.4 times as long",
    ]


def tied_weights(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Return the other names of each weight that an exporter merged with equal ones.

    The file has one tensor then, and Identity nodes with the names of the others. Where all its
    values are equal, each layer gets its own again (`models.graph.reading.merged_constants`).
    """
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and np.prod(tensor.dims or [1]) > 1
        and np.ptp(numpy_helper.to_array(tensor)) != 0
    }
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in weights:
            found.setdefault(node.input[0], []).append(node.output[0])
    return found


def about_tied(tied: Mapping[str, Sequence[str]]) -> list[str]:
    """Say that weights are trained tied which look separate, if there are such (`tied_weights`)."""
    if not tied:
        return []
    shown = "; ".join(
        f"{name} is also {', '.join(others[:TIED_SHOWN])}"
        + (f" and {len(others) - TIED_SHOWN} more" if len(others) > TIED_SHOWN else "")
        for name, others in list(tied.items())[:TIED_SHOWN]
    )
    count = sum(len(others) for others in tied.values())
    more = f"; {len(tied)} such tensors in all" if len(tied) > TIED_SHOWN else ""
    return [
        f"the exporter wrote {count} weights as copies of others because they were equal ({shown}"
        f"{more}): they are trained tied. If they are weights of their own, train the model a "
        "little before its export, so that they differ"
    ]


def _about_numbers(data: Dataset, steps: Sequence[str]) -> list[str]:
    said = []
    if BY_255 in steps and 0 < (highest := int(data.x.max())) <= DARK:
        said.append(
            f"x is divided by 255, and nothing in it is above {highest}: if {highest} is its "
            f"largest value, --input-scale {1 / highest:.4g}"
        )
    is_scaled = any(word.startswith(("times", "minus", "divided")) for word in steps)
    if data.x.dtype == np.float32 and data.x.ndim > 2 and not is_scaled and _are_bytes(data.x):
        said.append(
            f"x holds whole numbers from {data.x.min():g} to {data.x.max():g} of type float, and "
            f"is taken as it is; if the model takes 0 to 1, --input-scale {1 / 255:.4g}"
        )
    return said


def _are_bytes(x: npt.NDArray[Any]) -> bool:
    """Return whether floats look like the pixels of bytes."""
    some = x[:: max(1, len(x) // 256)]  # enough to tell
    return bool(some.min() >= 0 and DARK < some.max() <= 255 and (some == np.round(some)).all())


def _about_classes(data: Dataset, classes: Sequence[ClassCount]) -> list[str]:
    if not classes:
        return []
    empty = [str(one.label) for one in classes if not one.samples]
    said = []
    if empty and empty == [str(n) for n in range(int(data.y.min()))] and not classes[-1].name:
        low, high = int(data.y.min()), int(data.y.max())
        said.append(
            f"labels go from {low} to {high}, and classes count from 0: the model has "
            f"{len(classes)}, and class {', '.join(empty)} has no sample; if these are "
            f"{high - low + 1} classes, save y - {low}"
        )
    elif empty:
        word = "class" if len(empty) == 1 else "classes"
        more = f" and {len(empty) - CLASSES_SHOWN} more" if len(empty) > CLASSES_SHOWN else ""
        said.append(f"no sample of {word} {', '.join(empty[:CLASSES_SHOWN])}{more}")
    numbers = [one for one in classes if one.name.isdecimal() and one.name != str(one.label)]
    if numbers:
        one = numbers[0]
        said.append(
            f"class {one.label} is called {one.name}: in the y of other files integers are labels, "
            f"0 to {len(classes) - 1}, and only texts ('{one.name}') are names"
        )
    trained = set(np.unique(data.y[data.train_rows]).tolist())
    if unseen := [one for one in classes if one.samples and one.label not in trained]:
        shown = ", ".join(f"{one.label} {one.name}".strip() for one in unseen[:CLASSES_SHOWN])
        more = f" and {len(unseen) - CLASSES_SHOWN} more" if len(unseen) > CLASSES_SHOWN else ""
        word = "class" if len(unseen) == 1 else "classes"
        said.append(f"all samples of {word} {shown}{more} are test rows: none is trained on")
    if not classes[0].name:
        said.append(
            "the classes have no names: give them in the order of their labels, --classes "
            "NAME,NAME,..., or as an array classes of strings in the npz"
        )
    return said


def _classes(classes: Sequence[ClassCount]) -> str:
    shown = ", ".join(
        f"{one.label} {one.name}".strip() + f" ({one.samples:,})" for one in classes[:CLASSES_SHOWN]
    )
    more = len(classes) - CLASSES_SHOWN
    return shown + (f" and {more} more" if more > 0 else "")
