"""``edgefold task``: make a task from a model and data, train it right here, show and export it."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.errors import PayloadError, UsageError
from tools.author.number_arguments import batch_size, not_negative, positive
from tools.author.task_create import register_create
from tools.child_environment import child_environment
from tools.given_file import file_to_write, given

if TYPE_CHECKING:
    from models.protocol.manifest import TrainingPlan
    from models.task.params import Tensor
    from tools.author.data.labeled_data import Dataset
    from tools.cli import Subparsers

__all__ = ["TaskTraining", "register", "train_task"]

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
EXPORT_EXAMPLE = """\
example:
  edgefold task export birds --parameters parameters.npz --out birds-now.onnx

For a release of a server: edgefold-broker releases --export 7 birds-7.onnx
"""
TRAIN_EXAMPLES = """\
example:
  edgefold task train digits --data digits --epochs 5 --report report.json --out trained.onnx

Training runs in a process of its own, by onnxruntime and without torch, as on a device.
"""


class TaskTraining(NamedTuple):
    """What `train_task` found. ``metric`` is accuracy (0..1) or mse, on the test rows."""

    tensors: "dict[str, Tensor]"
    facts: dict[str, Any]  # the report, see docs/bundle.md


def train_task(
    directory: Path,
    data: "Dataset",
    *,
    epochs: float,
    learning_rate: float = 0.01,
    batch: int = 16,
    mu: float = 0.0,
    seed: int = 0,
    threads: int = 1,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> TaskTraining:
    """Train the bundle in ``directory`` on the training rows of ``data``, in a child process.

    ``on_event`` gets what the child says: ``{"event": "before" | "epoch" | "done", ...}``.

    Raises:
        UsageError: the data do not fit the task, or training diverged.
    """
    import msgspec
    import numpy as np

    from models.samples.sample_check import samples_of
    from models.task.bundle import read_bundle
    from models.task.params import flatten, unflatten
    from tools.author.bundle.export_model import read_tensors
    from tools.author.data.targets import fitted_to
    from tools.author.task_child import Job

    bundle = read_bundle(directory)
    data = fitted_to(data, bundle.spec)
    x, y = samples_of(bundle.spec, data.x, data.y)
    plan = _plan(epochs=epochs, batch=batch, learning_rate=learning_rate, mu=mu)
    with tempfile.TemporaryDirectory(prefix="edgefold-task-") as name:
        work = Path(name)
        rows = {"": data.train_rows, "test_": data.test_rows}
        for prefix, chosen in rows.items():
            np.save(work / f"{prefix}x.npy", x[chosen])
            np.save(work / f"{prefix}y.npy", y[chosen])
        np.save(work / "rows.npy", data.train_rows)  # by which the user knows them
        np.save(work / "tensors.npy", flatten(read_tensors(bundle), bundle.spec.trainable))
        job = Job(str(directory.resolve()), name, plan, seed, threads)
        (work / "job.json").write_bytes(msgspec.json.encode(job))
        done = _run_child(work / "job.json", on_event or (lambda event: None))
        tensors = unflatten(np.load(work / "trained.npy"), bundle.spec.trainable)
    metric = bundle.spec.metric
    facts = {
        "task": bundle.spec.task,
        "net": bundle.spec.net,
        "parameters": sum(tensor.size for tensor in bundle.spec.trainable),
        "data": data.name,
        "samples": len(rows[""]),
        "test_samples": done["after"]["samples"],
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "threads": threads,
        "steps": done["steps"],
        f"{metric}_before": done["before"]["metric"],
        f"{metric}_after": done["after"]["metric"],
        "test_loss_before": done["before"]["loss"],
        "test_loss_after": done["after"]["loss"],
        "loss_first": done["loss_first"],
        "loss_last": done["loss_last"],
        "ms_per_step": round(done["ms_per_step"], 3),
        "peak_rss_mb": round(done["peak_rss_mb"], 1),
        "data_mb": round(sum(part[data.train_rows].nbytes for part in (data.x, data.y)) / 1e6, 1),
        "wall_s": round(done["wall_s"], 2),
    }
    return TaskTraining(tensors, facts)


def _plan(**values: float) -> "TrainingPlan":
    import msgspec

    from models.protocol.manifest import TrainingPlan

    try:
        return msgspec.convert(values | {"open": True, "max_steps": 1_000_000}, TrainingPlan)
    except msgspec.ValidationError as error:
        raise UsageError(f"training plan: {error}") from None


def _run_child(job: Path, on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run the child to its end; return its last event."""
    event: dict[str, Any] = {}
    with subprocess.Popen(
        [sys.executable, "-m", "tools.author.task_child", str(job)],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(_ONE_THREAD),
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                event = json.loads(line)
                if "error" in event:
                    raise UsageError(event["error"])
                on_event(event)
        except BaseException:
            child.kill()
            raise
    if child.returncode or event.get("event") != "done":
        raise PayloadError(f"the training process ended with exit code {child.returncode}")
    return event


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add ``task`` and what it can do."""
    task = subparsers.add_parser("task", help="make, train, show and export tasks")
    actions = task.add_subparsers(title="actions", metavar="ACTION", required=True)
    register_create(actions)
    train = actions.add_parser(
        "train",
        help="train a task here, as a device would",
        epilog=TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("directory", type=Path, metavar="DIR", help="the bundle")
    train.add_argument(
        "--data", required=True, help="npz file, folder of pictures, digits or fashion-mnist"
    )
    train.add_argument("--epochs", type=positive, required=True)
    train.add_argument("--lr", type=positive, default=0.01, help="learning rate (default 0.01)")
    train.add_argument("--batch", type=batch_size, default=16, help="samples per step (default 16)")
    train.add_argument("--mu", type=not_negative, default=0.0, help="weight of the proximal term")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--threads", type=int, default=1, choices=range(1, 17), metavar="N")
    train.add_argument(
        "--report", type=file_to_write, metavar="FILE.json", help="write the figures there"
    )
    train.add_argument(
        "--out", type=file_to_write, metavar="MODEL.onnx", help="write the trained model"
    )
    train.add_argument("--json", action="store_true", help="print the figures as JSON")
    train.set_defaults(run=_train)
    export = actions.add_parser(
        "export",
        help="write the parameters of a release as a model",
        epilog=EXPORT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("directory", type=Path, metavar="DIR", help="the bundle")
    export.add_argument("--parameters", type=Path, required=True, metavar="FILE.npz")
    export.add_argument("--personal", type=Path, metavar="FILE.npz", help="and those of one device")
    export.add_argument("--out", type=file_to_write, required=True, metavar="MODEL.onnx")
    export.set_defaults(run=_export)
    show = actions.add_parser("show", help="what a bundle consists of")
    show.add_argument("directory", type=Path, metavar="DIR", help="the bundle")
    show.add_argument("--all", action="store_true", help="list frozen tensors too")
    show.add_argument("--json", action="store_true", help="print spec.json")
    show.set_defaults(run=_show)


def _train(arguments: argparse.Namespace) -> int:
    from models.host.durable import atomic_write
    from models.task.bundle import read_bundle
    from tools.author.bundle.export_model import replace_tensors
    from tools.author.data.datasets import load_dataset
    from tools.progress import bar

    bundle = read_bundle(arguments.directory)
    data = load_dataset(arguments.data, like=bundle.spec)
    with bar(shown=not arguments.json, what="train") as tell:

        def hear(event: dict[str, Any]) -> None:
            if event["event"] == "epoch":
                tell(event["number"] / arguments.epochs, f"training, loss {event['loss']:.4f}")

        training = train_task(
            arguments.directory,
            data,
            epochs=arguments.epochs,
            learning_rate=arguments.lr,
            batch=arguments.batch,
            mu=arguments.mu,
            seed=arguments.seed,
            threads=arguments.threads,
            on_event=hear,
        )
    if arguments.out:
        atomic_write(arguments.out, replace_tensors(bundle.infer, training.tensors))
    facts = training.facts
    report = json.dumps(facts, indent=1)
    if arguments.report:
        atomic_write(arguments.report, report.encode() + b"\n")
    if arguments.json:
        print(report)
        return 0
    metric = bundle.spec.metric
    unit = ".1%" if metric == "accuracy" else ".4g"
    note = " (a fifth of the data: the file has no test rows)" if data.test_is_ours else ""
    print(f"{metric} {facts[f'{metric}_before']:{unit}} -> {facts[f'{metric}_after']:{unit}} "
          f"on {facts['test_samples']:,} test samples{note}")  # fmt: skip
    print(f"{facts['steps']:,} steps of {facts['batch']}, {facts['ms_per_step']:.2f} ms each, "
          f"peak memory {facts['peak_rss_mb']:.0f} MB, {facts['wall_s']:.1f} s in all")  # fmt: skip
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from models.host.durable import atomic_write
    from models.task.bundle import read_bundle
    from tools.author.bundle.export_model import export_model

    bundle = read_bundle(arguments.directory)
    with given(arguments.parameters):
        parameters = arguments.parameters.read_bytes()
        model = export_model(bundle, parameters)
    if arguments.personal:
        with given(arguments.personal):
            model = export_model(bundle, parameters, arguments.personal.read_bytes())
    atomic_write(arguments.out, model)
    print(f"{arguments.out}: {len(model):,} bytes")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from models.task.bundle import read_bundle
    from models.task.spec import Role, encode_spec

    bundle = read_bundle(arguments.directory)
    spec = bundle.spec
    if arguments.json:
        print(encode_spec(spec).decode(), end="")
        return 0
    print(f"task {spec.task}: {spec.net}, {spec.loss}, {spec.optimizer}"
          + (", proximal" if spec.proximal else ""))  # fmt: skip
    print(f"x  {spec.x.dtype} {list(spec.x.shape)}    y  {spec.y.dtype} {list(spec.y.shape)}"
          + (f", {spec.classes} classes" if spec.classes else ""))  # fmt: skip
    if spec.class_names:
        print("classes  " + ", ".join(f"{n} {name}" for n, name in enumerate(spec.class_names)))
    frozen = spec.with_role(Role.FROZEN)
    listed = (*spec.trainable, *(frozen if arguments.all else ()))
    width = max(len(tensor.name) for tensor in listed)
    kinds = {tensor.name: "" if tensor.kind == "weight" else tensor.kind for tensor in listed}
    widest = max(map(len, kinds.values()))
    for tensor in listed:
        shape = "x".join(map(str, tensor.shape)) or "1"
        kind = f"{kinds[tensor.name]:{widest}}  " if widest else ""
        print(f"  {tensor.name:{width}}  {tensor.role:8}  {kind}{shape:>14}  {tensor.size:>12,}")
    if frozen and not arguments.all:
        size = sum(tensor.size for tensor in frozen)
        print(f"  and {len(frozen)} frozen tensors of {size:,} values (--all lists them)")
    trained = sum(tensor.size for tensor in spec.trainable)
    print(f"{trained:,} trainable parameters, {spec.shared_size:,} of them shared")
    print(f"infer.onnx {len(bundle.infer):,} bytes, train.onnx {len(bundle.train):,} bytes")
    return 0
