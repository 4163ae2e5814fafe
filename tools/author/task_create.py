"""``edgefold task create``: a bundle from a model and data, and what was understood of both."""

import argparse
import contextlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from models.errors import UsageError
from models.protocol.names import checked_name
from tools.author.number_arguments import (
    batch_size,
    finite,
    image_size,
    not_negative,
    not_zero,
    positive,
)

if TYPE_CHECKING:
    from models.task.bundle import Bundle
    from tools.author.bundle.create_bundle import Made
    from tools.author.bundle.task_options import TaskOptions
    from tools.author.bundle.understanding import Understanding
    from tools.author.data.labeled_data import Dataset
    from tools.author.door.given_answers import Given
    from tools.cli import Subparsers

__all__ = ["register_create"]

EXAMPLES = """\
examples:
  edgefold task create digits --net mlp --data digits --out digits
  edgefold task create words --net ds_cnn --data logmel.npz --pretrain 3 --out words
  edgefold task create birds --onnx birds.onnx --data birds.npz --trainable 'head.*' --out birds
  edgefold task create gates --net cnn --data gates.npz --classes open,closed,blocked --out gates
  edgefold task create scans --net cnn_norm --data scans.npz --norms personal --out scans

nets of the zoo, and the shape of one sample:
  mlp                          any shape
  cnn, ds_cnn                  image of 4x4 or more: [height, width], [channels, height, width] or
  mobilenet_small, resnet18    (8x8 or more) [height, width, channels] with 1, 3 or 4 channels
  cnn_norm                     likewise, 16x16 or more; batch norm, which may adapt: --norms
  har_cnn                      window of sensor values: [channels, time], time 8 or more

data: an npz file with x (samples, ...) and y, and, if you have them, user (whose sample it is),
test (0: train, > 0: test) and classes (their names, as strings, in the order of their labels).
Or a folder with a folder of pictures for each class, FOLDER/CLASS/*.jpg, or below train and test.
Built in: digits, fashion-mnist. docs/data.md has an example of each.

y: labels from 0, or names (sorted, they are the classes), or one-hot rows: learned as classes by
cross_entropy; several 0 and 1 in a row: several labels at once, by bce; numbers: by mse. What was
understood is said; what could be two things is refused until --loss says which.
"""


def register_create(actions: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``task create``."""
    create = actions.add_parser(
        "create",
        help="make a task from a model and data",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    create.add_argument("name", metavar="NAME", help="of the task: a-z, 0-9 and -")
    model = create.add_mutually_exclusive_group(required=True)
    model.add_argument("--net", help="of the zoo, see below")
    model.add_argument("--onnx", type=Path, metavar="FILE", help="your own model")
    create.add_argument(
        "--data", required=True, help="npz file, folder of pictures, digits or fashion-mnist"
    )
    create.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle")
    _add_learning(create)
    start = create.add_argument_group("pretraining, by the task's own training graph")
    start.add_argument("--pretrain", type=positive, metavar="EPOCHS")
    start.add_argument("--lr", type=positive, default=None, help="default 0.01, adam 0.001")
    start.add_argument("--batch", type=batch_size, default=32)
    start.add_argument("--seed", type=int, default=0, help="of initialization and shuffling")
    _add_conversion(create)
    create.add_argument(
        "--force",
        action="store_true",
        help="replace the bundle in DIR unasked, and keep nothing of it",
    )
    create.add_argument("--json", action="store_true", help="print what was understood as JSON")
    create.set_defaults(run=_create)


def _add_learning(create: argparse.ArgumentParser) -> None:
    learning = create.add_argument_group("learning")
    learning.add_argument(
        "--loss",
        choices=("cross_entropy", "mse", "bce"),
        help="for classes, numbers, or 0 and 1 in several places (default: as y is understood)",
    )
    learning.add_argument(
        "--classes",
        metavar="COUNT|NAME,NAME,...",
        help="how many a zoo net has, if more than the data show; or what they are called, in the "
        "order of their labels",
    )
    learning.add_argument(
        "--trainable",
        action="append",
        metavar="PATTERN",
        help="only tensors of such names are trained, e.g. 'head.*' (default: all; repeatable)",
    )
    learning.add_argument(
        "--personal",
        action="append",
        metavar="PATTERN",
        help="of those, tensors that never leave a device (repeatable)",
    )
    learning.add_argument(
        "--norms",
        choices=("frozen", "personal"),
        help="batch norm: as it came with the model (default), or normalizing by the batch, with "
        "scales, shifts and statistics that are each device's own (FedBN)",
    )
    learning.add_argument(
        "--balance",
        action="store_true",
        help="in training, here and on devices, samples of rare classes count more",
    )
    learning.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    learning.add_argument("--momentum", type=not_negative, default=0.9)
    learning.add_argument("--weight-decay", type=not_negative, default=0.0)
    learning.add_argument("--proximal", action="store_true", help="allow FedProx (a proximal term)")


def _add_conversion(create: argparse.ArgumentParser) -> None:
    conversion = create.add_argument_group("input, made part of the model")
    conversion.add_argument(
        "--input-scale", type=not_zero, help="x is multiplied by it (default: 1/255 for uint8)"
    )
    conversion.add_argument("--mean", type=finite, nargs="+", help="then subtracted, per channel")
    conversion.add_argument("--std", type=positive, nargs="+", help="then divided by")
    conversion.add_argument(
        "--transpose",
        type=int,
        nargs="+",
        metavar="AXIS",
        help="the axes of a sample in the order that FILE wants, as numpy.transpose takes them, "
        "e.g. 2 0 1 (default: as stored, or the one order that fits)",
    )
    conversion.add_argument(
        "--resize",
        action="store_true",
        help="images: x to what FILE takes; devices scale their pictures to the size of x",
    )
    conversion.add_argument(
        "--size",
        type=image_size,
        metavar="HEIGHTxWIDTH",
        help="of a folder of pictures: scale them to this, here and on devices",
    )
    conversion.add_argument("--output", metavar="NAME", help="which output of FILE is learned")
    conversion.add_argument(
        "--class-axis",
        type=int,
        metavar="N",
        help="which axis of that output are the classes, if several may be: 1 as torch has them, "
        "-1 the last",
    )


def _create(arguments: argparse.Namespace) -> int:
    from tools.author.bundle.bundle_directory import check_replaceable, write_bundle
    from tools.author.bundle.create_bundle import make_task
    from tools.author.bundle.understanding import sentences, understand
    from tools.author.data.datasets import load_dataset
    from tools.author.data.targets import fitted_to
    from tools.author.door.door_check import check_made
    from tools.author.model.model_words import model_words
    from tools.author.model.one_sentence import bounded_memory

    checked_name("task name", arguments.name)
    check_replaceable(arguments.out)
    data = load_dataset(arguments.data, size=arguments.size)
    options = _options(arguments)
    steps: list[str] = []
    warnings: list[str] = []
    with bounded_memory() if arguments.onnx else contextlib.nullcontext():
        made = make_task(
            arguments.name, data, options, on_step=steps.append, on_warning=warnings.append
        )
        bundle = made.bundle
        checked = check_made(made, _given(made, options), seed=options.seed)
    data = fitted_to(data, bundle.spec)
    found = understand(
        bundle.spec,
        data,
        steps,
        infer_bytes=len(bundle.infer),
        train_bytes=len(bundle.train),
        model=model_words(
            bundle.infer,
            bundle.spec,
            made.given,
            loss_was_asked_for=options.loss is not None,
        ),
        norms_were_asked_for=arguments.norms is not None,
        checked=checked.words,
        warnings=(*_about_shape(arguments, data), *warnings, *checked.notes),
    )
    writing, is_new = _Writing(True), True
    if arguments.pretrain:  # asked before the long work
        writing = _writing(arguments.out, force=arguments.force, compare=False)
        if writing.may:
            bundle, found = _pretrained(bundle, data, options, arguments, found)
    elif _is_same(bundle, arguments.out):
        is_new = False
    else:
        writing = _writing(arguments.out, force=arguments.force, compare=True)
    if not writing.may:
        return 1
    if is_new:
        write_bundle(bundle, arguments.out, aside=writing.aside)
    if arguments.json:
        where = {"directory": str(arguments.out)}
        if writing.aside is not None:
            where["replaced"] = str(writing.aside)
        print(json.dumps(found.as_json() | where, indent=1))
        return 0
    was_there = "" if is_new else ", which was there already, the same"
    print(f"task {found.task} in {arguments.out}{was_there}: {found.net}, {found.loss}")
    if writing.aside is not None:
        print(f"kept   the bundle that was there is now {writing.aside}")
    print("\n".join(sentences(found)))
    print(f"next: edgefold task train {arguments.out} --data {arguments.data} --epochs 5")
    print(f'then: bundle = "{arguments.out}" in the [[task]] of broker.toml (docs/server.md)')
    return 0


def _options(arguments: argparse.Namespace) -> "TaskOptions":
    from tools.author.bundle.task_options import TaskOptions

    count, names = _classes(arguments.classes)
    return TaskOptions(
        net=arguments.net,
        model=arguments.onnx,
        loss=arguments.loss,
        classes=count,
        class_names=names,
        trainable=tuple(arguments.trainable or ["*"]),
        personal=tuple(arguments.personal or ()),
        norms=arguments.norms or "frozen",
        optimizer=arguments.optimizer,
        momentum=arguments.momentum,
        weight_decay=arguments.weight_decay,
        proximal=arguments.proximal,
        scale=arguments.input_scale,
        mean=tuple(arguments.mean or ()),
        std=tuple(arguments.std or ()),
        transpose=tuple(arguments.transpose or ()),
        resize=arguments.resize,
        resize_on_devices=arguments.resize or arguments.size is not None,
        balance=arguments.balance,
        output=arguments.output,
        class_axis=arguments.class_axis,
        pretrain=0.0,  # afterwards, so that it can be measured before and after
        learning_rate=arguments.lr or (0.001 if arguments.optimizer == "adam" else 0.01),
        batch=arguments.batch,
        seed=arguments.seed,
    )


def _classes(text: str | None) -> tuple[int | None, tuple[str, ...]]:
    """Return the count or the names that ``--classes`` gives."""
    from tools.author.data.class_names import checked_names

    if text is None:
        return None, ()
    if re.fullmatch(r"[+-]?\d+", text.strip()):
        if int(text) < 1:
            raise UsageError(f"--classes {text}: at least 1")
        return int(text), ()
    try:
        return None, checked_names(text.split(","))
    except UsageError as error:
        raise UsageError(f"--classes {text}: {error}") from None


def _given(made: "Made", options: "TaskOptions") -> "Given":
    from tools.author.door.given_answers import Given

    name = f"the net {options.net}" if options.model is None else str(options.model)
    return Given(made.given, name, options.output, options.resize)


def _about_shape(arguments: argparse.Namespace, data: "Dataset") -> list[str]:
    """Say how samples were read where both ways are possible."""
    shape = data.x.shape[1:]
    if arguments.net != "har_cnn" or arguments.transpose or len(shape) != 2 or shape[0] < shape[1]:
        return []
    return [
        f"a sample is read as {shape[0]} channels of {shape[1]} moments; if it is the other "
        "way round, --transpose 1 0"
    ]


def _is_same(bundle: "Bundle", directory: Path) -> bool:
    from models.errors import EdgefoldError
    from models.task.bundle import read_bundle

    try:
        return read_bundle(directory) == bundle
    except (EdgefoldError, OSError):  # none, or a damaged one
        return False


class _Writing(NamedTuple):
    """What becomes of the bundle that was made, and of the one that was there."""

    may: bool  # False: a person said no
    aside: Path | None = None  # where the one that was there is kept


def _writing(out: Path, *, force: bool, compare: bool) -> _Writing:
    """Return what may be done with ``out``: a person is asked, if there is one.

    Raises:
        UsageError: nobody can be asked, and there is no place for the bundle that is there.
    """
    from tools.author.bundle.bundle_directory import place_aside

    if force or not out.is_dir() or not any(out.iterdir()):
        return _Writing(True)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return _Writing(True, place_aside(out))
    what = "another bundle" if compare else "a bundle"
    print(f"{out} holds {what}{_named(out)}. Replace it? [y/N] ", end="", file=sys.stderr)
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return _Writing(True)
    print("edgefold: nothing was changed", file=sys.stderr)
    return _Writing(False)


def _named(directory: Path) -> str:
    from models.errors import EdgefoldError
    from models.task.bundle import read_bundle

    try:
        spec = read_bundle(directory).spec
    except EdgefoldError:
        return ", a damaged one"
    return f" (task {spec.task}, {spec.net})"


def _pretrained(
    bundle: "Bundle",
    data: "Dataset",
    options: "TaskOptions",
    arguments: argparse.Namespace,
    found: "Understanding",
) -> "tuple[Bundle, Understanding]":
    """Train the bundle here; return it with what is known of it now."""
    from dataclasses import replace

    from models.learning.measurement import evaluate
    from tools.author.bundle.create_bundle import pretrained
    from tools.progress import bar

    rows = data.test_rows

    def metric(model: bytes) -> float:
        x, y = data.x[rows], data.y[rows]
        return evaluate(model, bundle.spec, {}, x, y, batch=min(options.batch, 64)).metric

    with bar(shown=not arguments.json, what="pretraining") as tell:
        before = metric(bundle.infer)

        def advance(number: int, loss: float) -> None:
            tell(number / arguments.pretrain, f"epoch {number}, loss {loss:.4f}")

        plan = replace(options, pretrain=arguments.pretrain)
        trained = pretrained(bundle, data, plan, advance)
        after = metric(trained.infer)
    return trained, replace(found, metric_before=before, metric_after=after)
