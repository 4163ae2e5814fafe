"""``edgefold compress``: a whole ONNX model in few bytes, with or without training.

Writes the weights as a payload and, if asked, the model as that decodes, and a compact model that
any onnxruntime loads as it is. With ``--fine-tune`` the weights learn to bear it, taught by the
model as it was. What is reported has been run, in onnxruntime, as decoded.
"""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.codec.budget import Budget
from models.codec.payload import compress, decompress, to_npz
from models.codec.sparse.selection import top_k
from models.errors import UsageError
from models.host.durable import atomic_write
from models.task.params import Vector
from tools.given_file import file_to_write

if TYPE_CHECKING:
    from onnx import ModelProto

    from tools.author.data.labeled_data import Dataset
    from tools.cli import Subparsers
    from tools.compress.compress_subject import Subject
    from tools.compress.compress_training import Plan, Samples
    from tools.progress import Tell

__all__ = ["register"]

REDUCTION = 0.95
RATE = 0.001  # of Adam, at its peak
EXAMPLES = """\
examples:
  edgefold compress birds.onnx --reduction 0.97 --out small.npz --restored small.onnx
  edgefold compress birds --data birds.npz --reduction 0.97     a bundle, with its accuracies
  edgefold compress birds --data birds.npz --bytes 20000 --fine-tune 10 --out small.npz

--data must fit the model as it is: your own ONNX file wants what it was exported for, infer.onnx
of a bundle (edgefold task create) takes the samples of your npz.
"""


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``compress``."""
    parser = subparsers.add_parser(
        "compress",
        help="a whole ONNX model in few bytes",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="an ONNX file or a bundle")
    parser.add_argument(
        "--out", type=file_to_write, metavar="FILE.npz", help="write the weights' payload"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--bytes", type=int, help="of the payload, at most")
    size.add_argument("--nmse", type=float, help="squared error over squared length, at most")
    size.add_argument(
        "--reduction", type=float, default=REDUCTION, help="of the weights (default: %(default)s)"
    )
    parser.add_argument("--keep", type=float, default=1.0, help="share of the weights, the largest")
    parser.add_argument(
        "--restored", type=file_to_write, metavar="OUT.onnx", help="write what it decodes to"
    )
    parser.add_argument(
        "--compact", type=file_to_write, metavar="OUT.onnx", help="write a codebook model"
    )
    parser.add_argument("--centers", type=int, default=16, help="of --compact (default: 16)")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="npz file with x and y, digits or fashion-mnist: shows accuracies; with --fine-tune "
        "the test rows only",
    )
    tuning = parser.add_argument_group("fine-tuning (needs --data)")
    tuning.add_argument("--fine-tune", type=int, metavar="EPOCHS", help="train under the limit")
    tuning.add_argument(
        "--method",
        choices=("transform", "prune"),
        default="prune",
        help="what is trained to bear: few weights, or the transform codec, which may be better "
        "below a reduction of 0.98 (default: %(default)s)",
    )
    tuning.add_argument("--lr", type=float, default=RATE, help="of Adam (default: %(default)s)")
    tuning.add_argument("--batch", type=int, default=64, help="samples per step (default: 64)")
    tuning.add_argument("--flip", action="store_true", help="also learn from mirrored images")
    tuning.add_argument(
        "--shift", type=int, default=0, metavar="PIXELS", help="and from moved ones"
    )
    tuning.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--report", type=file_to_write, metavar="FILE.json", help="write the figures there"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compress, and say what came out."""
    from tools.compress.compress_subject import read_subject
    from tools.progress import bar

    _check(arguments)
    data = _data(arguments)
    subject = read_subject(arguments.model, data if arguments.fine_tune else None)
    if data is not None:
        _check_data(subject, data)  # before the long work
    if arguments.fine_tune:
        assert data is not None
        payload, figures = _tuned(subject, data, arguments)
    else:
        with bar(shown=not arguments.json, what="compressing") as tell:
            tell(0.0, f"{subject.weights.size:,} weights")
            payload = compress(
                _kept(subject.weights, arguments.keep), subject.specs, _budget(arguments, subject)
            )
        figures = {}
    decoded = decompress(payload, subject.specs)
    if not decoded.any() and subject.weights.any():
        raise UsageError(
            f"of {subject.weights.size:,} weights nothing is left in {len(payload)} bytes: allow "
            "more (a larger --bytes, a smaller --reduction or --nmse)"
        )
    missed = float(np.square(subject.weights - decoded).sum() / np.square(subject.weights).sum())
    report: dict[str, Any] = {
        "weights": int(subject.weights.size),
        "dense_bytes": int(subject.weights.nbytes),
        "payload_bytes": len(payload),
        "reduction": round(1 - len(payload) / subject.weights.nbytes, 5),
        "not_zero": int(np.count_nonzero(decoded)),
        "nmse": round(missed, 5),
        **figures,
    }
    models = {"before": subject.model, "after": subject.with_weights(decoded)}
    if arguments.out:
        atomic_write(arguments.out, to_npz(payload))
    if arguments.restored:
        atomic_write(arguments.restored, models["after"].SerializeToString())
    if arguments.compact:
        from models.graph.compressed.compact import compact_model

        models["compact"] = compact_model(models["before"], centers=arguments.centers).model
        content = models["compact"].SerializeToString()
        atomic_write(arguments.compact, content)
        report["compact_bytes"] = len(content)
    if data is not None:
        with bar(shown=not arguments.json, what="measuring") as tell:
            samples = _reported(data, tuned=bool(arguments.fine_tune))
            report |= _accuracies(models, samples, tell)
    _say(report, arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.keep <= 1:
        raise UsageError(f"--keep {arguments.keep}: a share between 0 and 1")
    if arguments.nmse is not None and not 0 < arguments.nmse <= 1:
        raise UsageError(f"--nmse {arguments.nmse}: between 0 and 1")
    if not 0 < arguments.reduction < 1:
        raise UsageError(f"--reduction {arguments.reduction}: between 0 and 1")
    if arguments.bytes is not None and arguments.bytes < 1:
        raise UsageError(f"--bytes {arguments.bytes}: at least one")
    if arguments.fine_tune is None:
        return
    if arguments.data is None:
        raise UsageError("--fine-tune learns from --data: an npz file with x and y")
    if arguments.nmse is not None or arguments.keep < 1:
        raise UsageError("--fine-tune goes by --bytes or --reduction, not by --nmse or --keep")
    if min(arguments.fine_tune, arguments.batch) < 1 or not arguments.lr > 0:
        raise UsageError("--fine-tune, --batch and --lr are above zero")
    if arguments.shift < 0:
        raise UsageError(f"--shift {arguments.shift}: pixels, from 0")


def _data(arguments: argparse.Namespace) -> "Dataset | None":
    if arguments.data is None:
        return None
    from tools.author.data.datasets import load_dataset
    from tools.author.data.targets import understood

    data = load_dataset(arguments.data)
    if data.classes < 1:
        return data
    labels = understood(data.name, data.y, loss="cross_entropy", classes=data.classes)
    return data._replace(y=labels.y)


def _check_data(subject: "Subject", data: "Dataset") -> None:
    from tools.compress.compress_training import Classifier

    if not data.classes:
        raise UsageError(f"{data.name}: accuracies are of labels; y holds {data.y.dtype}")
    Classifier(subject.model).check(_reported(data, tuned=False), data.name)


def _kept(weights: Vector, share: float) -> Vector:
    if share == 1:
        return weights
    positions = top_k(weights, share)
    pruned = np.zeros_like(weights)
    pruned[positions] = weights[positions]
    return pruned


def _budget(arguments: argparse.Namespace, subject: "Subject") -> Budget:
    if arguments.nmse is not None:
        return Budget(nmse=arguments.nmse)
    return Budget(bytes=_most_bytes(arguments, subject))


def _most_bytes(arguments: argparse.Namespace, subject: "Subject") -> int:
    if arguments.bytes is not None:
        return int(arguments.bytes)
    return round(subject.weights.nbytes * (1 - float(arguments.reduction)))


def _tuned(
    subject: "Subject", data: "Dataset", arguments: argparse.Namespace
) -> tuple[bytes, dict[str, Any]]:
    """Return the payload of the fine-tuned model, and how it came about."""
    from tools.compress.compress_subject import split
    from tools.compress.compress_tuning import fine_tune
    from tools.progress import bar

    most = _most_bytes(arguments, subject)
    began = time.monotonic()
    with bar(shown=not arguments.json, what="fine-tuning") as on_progress:
        found = fine_tune(
            subject,
            split(data),
            most,
            _plan(arguments),
            method=arguments.method,
            on_progress=on_progress,
        )
    return found.payload, {
        "form": found.form,
        "epochs": arguments.fine_tune,
        "seconds": round(time.monotonic() - began),
        "accuracy_validation": round(found.validation_accuracy, 5),
    }


def _plan(arguments: argparse.Namespace) -> "Plan":
    from tools.compress.compress_training import Plan

    return Plan(
        epochs=arguments.fine_tune,
        learning_rate=arguments.lr,
        batch=arguments.batch,
        adam=True,
        flip=arguments.flip,
        shift=arguments.shift,
        seed=arguments.seed,
    )


def _reported(data: "Dataset", *, tuned: bool) -> "Samples":
    """Return the rows that accuracies are of: what was not learned from, if anything was."""
    from tools.compress.compress_training import Samples

    rows = slice(None) if data.test_is_ours and not tuned else data.test_rows
    return Samples(data.x[rows], data.y[rows])


def _accuracies(
    models: "dict[str, ModelProto]", samples: "Samples", tell: "Tell"
) -> dict[str, Any]:
    from tools.compress.compress_training import Classifier

    found: dict[str, Any] = {"samples": len(samples.y)}
    for done, (name, model) in enumerate(models.items()):
        tell(done / len(models), f"accuracy {name}, {len(samples.y):,} samples")
        found[f"accuracy_{name}"] = round(Classifier(model).accuracy(samples), 5)
    return found


def _say(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    text = json.dumps(report, indent=1)
    if arguments.report:
        atomic_write(arguments.report, text.encode() + b"\n")
    if arguments.json:
        print(text)
        return
    for key, value in report.items():
        print(f"{key}: {value}")
