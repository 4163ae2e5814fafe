"""``edgefold bench compress``: accuracy over bytes of a whole model, with and without training.

Fashion-MNIST's cnn (421,642 parameters). One base is trained here, by the task's own graph, and
all figures are of that base. Choices are made on the last 5,000 training images, which nothing is
trained on; what is reported is the accuracy of decoded payloads on the 10,000 test images.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from models.errors import UsageError
from models.host.durable import atomic_write
from models.task.params import Vector
from tools.given_file import file_to_write

if TYPE_CHECKING:
    from tools.author.data.labeled_data import Dataset
    from tools.cli import Subparsers
    from tools.compress.compress_subject import Split, Subject
    from tools.compress.compress_training import Samples

__all__ = ["measure", "register"]

HELD_OUT = 5000  # of the training images
REDUCTIONS = (0.95, 0.97, 0.98, 0.985, 0.99)  # without training
TUNED = ("0.99:10",)  # reduction : epochs


class Setting(NamedTuple):
    """How long, how fast."""

    base_epochs: int = 14
    base_rate: float = 0.05  # of SGD
    rate: float = 0.001  # of Adam, in fine-tuning
    batch: int = 64
    method: Literal["transform", "prune"] = "prune"


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``bench compress``."""
    parser = subparsers.add_parser("compress", help="accuracy over bytes of a whole model")
    parser.add_argument(
        "--base",
        type=Path,
        default=Path("fashion-base.npz"),
        help="weights of the dense model; trained and written there if missing (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--reductions", nargs="*", type=float, default=list(REDUCTIONS), metavar="SHARE"
    )
    parser.add_argument(
        "--fine-tune",
        nargs="*",
        default=list(TUNED),
        metavar="SHARE:EPOCHS",
        help=f"reduction and epochs (default: {' '.join(TUNED)})",
    )
    parser.add_argument("--method", choices=("transform", "prune"), default="prune")
    parser.add_argument("--seed", type=int, default=0, help="of fine-tuning")
    parser.add_argument("--report", type=file_to_write, metavar="FILE.json")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write the report."""
    from tools.author.data.datasets import load_dataset

    wishes = [_wish(text) for text in arguments.fine_tune]
    for share in arguments.reductions:
        if not 0 < share < 1:
            raise UsageError(f"--reductions {share}: between 0 and 1")
    data = load_dataset("fashion-mnist")
    subject, parts = _base(data, arguments.base, Setting())
    setting = Setting(method=arguments.method)
    report = measure(subject, parts, arguments.reductions, wishes, setting, seed=arguments.seed)
    if arguments.report:
        atomic_write(arguments.report, json.dumps(report, indent=1).encode() + b"\n")
    if arguments.json:
        print(json.dumps(report, indent=1))
        return 0
    print(f"dense: {report['dense_bytes']:,} bytes, {100 * report['accuracy']:.2f} %")
    print(f"{'epochs':>6} {'bytes':>8} {'reduction':>9} {'accuracy':>8} {'points':>7}")
    for row in report["rows"]:
        print(
            f"{row['epochs']:>6} {row['bytes']:>8,} {100 * row['reduction']:>8.2f}% "
            f"{100 * row['accuracy']:>8.2f} {row['points']:>+7.2f}"
        )
    return 0


def measure(
    subject: "Subject",
    parts: "Split",
    reductions: Sequence[float],
    wishes: Sequence[tuple[float, int]],
    setting: Setting,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return accuracy and bytes of each payload, run as decoded."""
    from models.codec.budget import Budget
    from models.codec.payload import compress, decompress
    from tools.compress.compress_training import Classifier, Plan
    from tools.compress.compress_tuning import fine_tune
    from tools.progress import bar

    dense = subject.weights.nbytes
    before = Classifier(subject.model).accuracy(parts.test)
    rows: list[dict[str, Any]] = []

    def add(payload: bytes, epochs: int, **more: Any) -> None:
        decoded = decompress(payload, subject.specs)
        accuracy = Classifier(subject.with_weights(decoded)).accuracy(parts.test)
        rows.append(
            {
                "epochs": epochs,
                "bytes": len(payload),
                "reduction": round(1 - len(payload) / dense, 5),
                "accuracy": round(accuracy, 5),
                "points": round(100 * (accuracy - before), 2),
                "not_zero": int(np.count_nonzero(decoded)),
                **more,
            }
        )

    for share in reductions:
        add(compress(subject.weights, subject.specs, Budget(bytes=round(dense * (1 - share)))), 0)
    for share, epochs in wishes:
        plan = Plan(epochs, setting.rate, setting.batch, adam=True, flip=True, seed=seed)
        began = time.monotonic()
        with bar(what=f"{epochs} epochs at {100 * share:g} %") as on_progress:
            found = fine_tune(
                subject,
                parts,
                round(dense * (1 - share)),
                plan,
                method=setting.method,
                on_progress=on_progress,
            )
        add(
            found.payload,
            epochs,
            form=found.form,
            validation=round(found.validation_accuracy, 5),
            seconds=round(time.monotonic() - began),
        )
    return {"dense_bytes": dense, "accuracy": round(before, 5), "rows": rows}


def _base(data: "Dataset", path: Path, setting: Setting) -> "tuple[Subject, Split]":
    """Return the dense model, trained here unless its weights are in ``path``, and the images."""
    import onnx

    from models.protocol.npz import read_vector, write_array
    from models.task.params import flatten
    from tools.author.bundle.create_bundle import create_task
    from tools.author.bundle.export_model import read_tensors
    from tools.author.bundle.task_options import TaskOptions
    from tools.compress.compress_subject import Split, Subject
    from tools.compress.compress_training import Descent, Plan, descend
    from tools.progress import bar

    bundle = create_task("fashion", data, TaskOptions(net="cnn"))
    specs = bundle.spec.trainable
    start = Subject(
        onnx.load_from_string(bundle.infer), specs, flatten(read_tensors(bundle), specs)
    )
    learned, held = data.train_rows[:-HELD_OUT], data.train_rows[-HELD_OUT:]
    parts = Split(_samples(data, learned), _samples(data, held), _samples(data, data.test_rows))
    if path.exists():
        weights: Vector = read_vector(path.read_bytes(), size=start.weights.size)
    else:
        plan = Plan(
            setting.base_epochs,
            setting.base_rate,
            setting.batch,
            weight_decay=5e-4,
            flip=True,
            shift=1,
        )
        descent = Descent(start.model, specs, classes=bundle.spec.classes)
        with bar(what="the net to compress") as on_progress:
            weights = descend(descent, start.weights, parts.learning, plan, on_progress=on_progress)
        atomic_write(path, write_array("parameters", weights))
    return start._replace(weights=weights, model=start.with_weights(weights)), parts


def _samples(data: "Dataset", rows: Any) -> "Samples":
    from tools.compress.compress_training import Samples

    return Samples(data.x[rows], data.y[rows])


def _wish(text: str) -> tuple[float, int]:
    try:
        share, epochs = text.split(":")
        wish = float(share), int(epochs)
    except ValueError:
        raise UsageError(f"--fine-tune {text}: write SHARE:EPOCHS, such as 0.99:10") from None
    if not 0 < wish[0] < 1 or wish[1] < 1:
        raise UsageError(f"--fine-tune {text}: a share between 0 and 1, and epochs from 1")
    return wish
