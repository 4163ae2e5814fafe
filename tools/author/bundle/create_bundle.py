"""Bundles on the author's machine: made from a net or an ONNX file, read, exported.

What the commands of ``edgefold task`` do, as functions; ``edgefold demo`` calls them too.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import onnx

from models.errors import PayloadError, UsageError
from models.graph.contract.input_contract import Converted, convert_input
from models.graph.contract.input_layout import checked_order
from models.graph.reading.forward_graph import (
    input_array,
    output_array,
)
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.losses import LossName
from models.graph.training.optimizers import Adam, Optimizer, Sgd, slot_names
from models.learning import training_loop
from models.learning.onnx_session import open_session, run_session
from models.protocol.manifest import TrainingPlan
from models.samples.pictures import pixels_in
from models.task.bundle import Bundle, bundle_of
from models.task.spec import USUAL_MOMENTUM, ArraySpec, Role, TaskSpec, decode_spec, encode_spec
from tools.author.bundle.export_model import read_tensors, replace_tensors
from tools.author.bundle.task_options import TaskOptions
from tools.author.bundle.tensor_roles import tensor_specs
from tools.author.bundle.understanding import about_tied, tied_weights
from tools.author.data.class_balance import balance_of
from tools.author.data.class_names import names_of_classes, relabeled
from tools.author.data.columns import about_columns
from tools.author.data.labeled_data import Dataset
from tools.author.data.targets import fitted_to, understood
from tools.author.model.given_model import read_given_model
from tools.author.model.one_sentence import in_one_sentence
from tools.author.model.output_contract import check_answers, with_loss_output
from tools.author.model.resize import check_pictures, with_resized_input

__all__ = ["Made", "create_task", "make_task", "pretrained"]

ROWS_TO_LOOK_AT = 64  # of the data, where the graph alone does not say what the model answers


class Made(NamedTuple):
    """A bundle, and what it was made of: enough to check it by."""

    bundle: Bundle
    given: onnx.ModelProto  # somebody's file as it is, or a net of the zoo as torch exports it
    converted: Converted  # the model behind the input conversion, before the loss's own output
    optimizer: Optimizer
    data: Dataset  # with y as the task has it


def create_task(
    task: str,
    data: Dataset,
    options: TaskOptions,
    *,
    on_epoch: Callable[[int, float], None] | None = None,
    on_step: Callable[[str], None] = lambda words: None,
    on_warning: Callable[[str], None] = lambda words: None,
) -> Bundle:
    """Return the bundle of ``task`` for samples like ``data``: see `make_task`.

    Pretraining runs the training graph of the bundle itself on the training rows, by onnxruntime
    in this process; torch only builds and initializes the nets of the zoo.

    Raises:
        UsageError: options, model and data do not fit together; says what to do.
    """
    bundle = make_task(task, data, options, on_step=on_step, on_warning=on_warning).bundle
    return pretrained(bundle, data, options, on_epoch) if options.pretrain > 0 else bundle


def make_task(
    task: str,
    data: Dataset,
    options: TaskOptions,
    *,
    on_step: Callable[[str], None] = lambda words: None,
    on_warning: Callable[[str], None] = lambda words: None,
) -> Made:
    """Return the bundle of ``task`` for samples like ``data``, without pretraining.

    ``on_step`` is told what the bundle does to ``x``, ``on_warning`` what its author may not know.

    Raises:
        UsageError: options, model and data do not fit together; says what to do.
    """
    if options.model is None:
        return _made(task, data, options, on_step, on_warning)
    with in_one_sentence(str(options.model)):
        return _made(task, data, options, on_step, on_warning)


def _made(
    task: str,
    data: Dataset,
    options: TaskOptions,
    on_step: Callable[[str], None],
    on_warning: Callable[[str], None],
) -> Made:
    tied: dict[str, list[str]] = {}
    # Whatever order the samples have, a net of the zoo is made for it.
    on_note = on_warning if options.model else (lambda words: None)
    if options.net:
        data, loss, columns = _targets(data, options, None, on_warning)
        given = _zoo_model(data, options, loss, columns)
        converted = _converted(given, data, options, on_step, on_note)
    else:
        given = _given_model(options)
        tied = tied_weights(given)
        forward = given
        if options.resize:
            forward = with_resized_input(given, data.x.shape[1:], on_step, output=options.output)
        converted = _converted(forward, data, options, on_step, on_note)
        data, loss, _ = _targets(data, options, output_array(converted.model).shape, on_warning)
    made = with_loss_output(
        converted.model, loss, y_shape=data.y.shape[1:], class_axis=options.class_axis
    )
    infer = made.model
    for words in made.words if options.model else ():
        on_warning(words)
    check_answers(made, data.x[:ROWS_TO_LOOK_AT])
    tensors = tensor_specs(infer, options, on_warning)
    trainable = [
        tensor.name
        for tensor in tensors
        if tensor.role != Role.FROZEN and tensor.kind != "statistic"
    ]
    for words in about_tied({name: tied[name] for name in trainable if name in tied}):
        on_warning(words)
    optimizer = _optimizer(options)
    answer = output_array(infer)
    classes = _class_count(data, answer.shape, loss)
    names = names_of_classes(data, options.class_names, classes)
    y = ArraySpec(dtype=_dtype(data.y), shape=data.y.shape[1:])
    if not (options.mean or options.std):
        for words in about_columns(data.x[data.train_rows]):
            on_warning(words)
    balanced, words = balance_of(data, names, classes, wanted=options.balance)
    if words:
        on_warning(words)
    spec = TaskSpec(
        format=1,
        task=task,
        net=options.net or (options.model.name if options.model else ""),
        tensors=tensors,
        x=ArraySpec(dtype=_dtype(data.x), shape=data.x.shape[1:]),
        y=y,
        classes=classes,
        loss=loss,
        metric="mse" if loss == "mse" else "accuracy",
        optimizer=options.optimizer,
        proximal=options.proximal,
        infer_input=input_array(infer).name,
        infer_output=answer.name,
        slots=slot_names(optimizer, trainable),
        class_names=names,
        class_weights=balanced,
        resize_images=options.resize or options.resize_on_devices,
        pixels="plain" if data.are_pictures else pixels_in(data.x),
        answers=made.answers,
        momentum=_unusual_momentum(optimizer),
    )
    train = _training_graph(infer, spec, optimizer)
    spec = _valid(spec)
    bundle = bundle_of(spec, infer.SerializeToString(), train.SerializeToString())
    return Made(bundle, given, converted, optimizer, data)


def _training_graph(
    infer: onnx.ModelProto, spec: TaskSpec, optimizer: Optimizer
) -> onnx.ModelProto:
    return derive_training_graph(
        infer,
        trainable=[tensor.name for tensor in spec.learned],
        loss=spec.loss,
        optimizer=optimizer,
        proximal=spec.proximal,
        classes=spec.classes,
        y_dtype=spec.y.dtype,
        y_shape=spec.y.shape,
        adaptive=[tensor.name for tensor in spec.trainable if tensor not in spec.learned],
    )


def _class_count(data: Dataset, answer: Sequence[int], loss: LossName) -> int:
    """Return how many classes the model answers with, 0 where it answers with numbers."""
    classes = answer[-1] if loss == "cross_entropy" else 0
    if classes and data.classes > classes:
        raise UsageError(
            f"{data.name} has labels up to {data.classes - 1}, the model knows {classes} classes"
        )
    return classes


def _optimizer(options: TaskOptions) -> Optimizer:
    if options.optimizer == "adam":
        return Adam(weight_decay=options.weight_decay)
    return Sgd(momentum=options.momentum, weight_decay=options.weight_decay)


def _unusual_momentum(optimizer: Optimizer) -> float | None:
    """Return the momentum where a spec has to tell it: older software reads no spec that does."""
    if isinstance(optimizer, Adam) or optimizer.momentum in (0.0, USUAL_MOMENTUM):
        return None
    return optimizer.momentum


def pretrained(
    bundle: Bundle,
    data: Dataset,
    options: TaskOptions,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Bundle:
    """Return ``bundle`` with weights that were trained on the training rows of ``data``.

    Raises:
        UsageError: the loss became NaN or infinite.
    """
    plan = TrainingPlan(
        open=True,
        epochs=options.pretrain,
        batch=options.batch,
        learning_rate=options.learning_rate,
        max_steps=1_000_000,
    )
    data = fitted_to(data, bundle.spec)
    rows = data.train_rows
    result = training_loop.train(
        bundle.train,
        bundle.spec,
        read_tensors(bundle),
        data.x[rows],
        data.y[rows],
        plan,
        seed=options.seed,
        on_epoch=on_epoch,
    )
    return bundle._replace(infer=replace_tensors(bundle.infer, result.tensors))


def _zoo_model(
    data: Dataset, options: TaskOptions, loss: LossName, columns: int
) -> onnx.ModelProto:
    from models.nets.catalog import build_net, input_shape
    from models.nets.export import calibrate_norms, export_net

    assert options.net is not None
    if options.resize:
        check_pictures(data.x.shape[1:])
    names = options.class_names or data.class_names
    outputs = (
        options.classes or max(len(names), data.classes, columns)
        if loss == "cross_entropy"
        else int(np.prod(data.y.shape[1:]))
    )
    stored = data.x.shape[1:]
    if options.transpose:
        stored = tuple(stored[axis] for axis in checked_order(stored, options.transpose))
    shape = input_shape(options.net, stored)
    net = build_net(options.net, shape, outputs, seed=options.seed)
    rows = np.random.default_rng(options.seed).permutation(data.train_rows)[:1024]
    convert = _converted(_identity_model(shape), data, options).model
    session = open_session(convert.SerializeToString())
    calibrate_norms(net, run_session(session, None, {"x": data.x[rows]})[0])
    return export_net(net, shape)


def _given_model(options: TaskOptions) -> onnx.ModelProto:
    assert options.model is not None
    if options.classes:
        raise UsageError(
            "--classes COUNT is for nets of the zoo, an ONNX file has its classes; their names "
            "can be given: --classes NAME,NAME,..."
        )
    return read_given_model(options.model)


def _identity_model(shape: Sequence[int]) -> onnx.ModelProto:
    """Return the model that answers its input: what the conversion alone makes of samples."""
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])
        for name in ("x", "logits")
    )
    node = onnx.helper.make_node("Identity", ["x"], ["logits"])
    graph = onnx.helper.make_graph([node], "identity", [x], [y])
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )


def _converted(
    forward: onnx.ModelProto,
    data: Dataset,
    options: TaskOptions,
    on_step: Callable[[str], None] = lambda words: None,
    on_note: Callable[[str], None] = lambda words: None,
) -> Converted:
    converted = convert_input(
        forward,
        dtype=data.x.dtype.name,
        sample_shape=data.x.shape[1:],
        transpose=options.transpose or None,
        scale=options.scale,
        mean=options.mean or None,
        std=options.std or None,
        output=options.output,
        on_step=on_step,
        on_note=on_note,
    )
    if options.scale is None and converted.conversion.scale != 1.0:
        for option, given in (("mean", options.mean), ("std", options.std)):
            if max(map(abs, given), default=0.0) > 1:
                shown = " ".join(f"{value / 255:.4g}" for value in given)
                raise UsageError(
                    f"--{option} {' '.join(f'{value:g}' for value in given)}: x is divided by 255 "
                    f"before, and goes from 0 to 1: give --{option} {shown}, or --input-scale 1, "
                    "by which x goes from 0 to 255"
                )
    return converted


def _targets(
    data: Dataset,
    options: TaskOptions,
    output: Sequence[int] | None,
    on_warning: Callable[[str], None],
) -> tuple[Dataset, LossName, int]:
    """Return ``data`` with its y as the task has it, the loss, and the columns that y had.

    See `tools.author.data.targets`.
    """
    if data.are_names and options.class_names:
        data = _relabeled(data, options.class_names)
    names = options.class_names or data.class_names
    found = understood(
        data.name,
        data.y,
        loss=options.loss,
        output=output,
        classes=options.classes or (max(len(names), data.classes) if names else None),
        are_names=data.are_names,
    )
    for words in found.words:
        on_warning(words)
    data = data._replace(y=found.y)
    theirs, ours = set(data.class_names), set(options.class_names)
    if found.kind == "classes" and theirs & ours:  # else the option gives labels other names
        if theirs != ours:
            raise UsageError(
                f"--classes names {', '.join(options.class_names)}, and {data.name} has the names "
                f"{', '.join(data.class_names)}: leave one of them away, or give both the same"
            )
        data = _relabeled(data, options.class_names)
    return data, found.loss, found.columns


def _relabeled(data: Dataset, names: tuple[str, ...]) -> Dataset:
    """Return ``data`` with labels that count in ``names``."""
    return data._replace(y=relabeled(data.name, data.y, data.class_names, names), class_names=names)


def _dtype(array: npt.NDArray[Any]) -> Literal["float32", "uint8", "int64", "int32"]:
    return cast(Literal["float32", "uint8", "int64", "int32"], array.dtype.name)


def _valid(spec: TaskSpec) -> TaskSpec:
    """Return the spec as a reader would get it, or say what no reader would accept."""
    try:
        return decode_spec(encode_spec(spec))
    except PayloadError as error:
        raise UsageError(f"this task cannot be written down: {error}") from None
