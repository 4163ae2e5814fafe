"""``edgefold bench train``: our training graph on onnxruntime against torch eager, side by side.

Each measurement runs in a fresh process with one thread; the two sides take turns, so that what
else the machine does hits both. Times are CPU times, equal to wall times on a machine that does
nothing else; the report has both. Torch's step is written by hand (SGD with momentum on plain
tensors), which costs it less time and memory than ``torch.optim``. All sides start from the same
parameters and see the same batches. With ``--norms personal`` batch norm normalizes by the batch on
both, and a third side is our graph with frozen norms: what it is worth to keep them.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from models.errors import UsageError
from tools.given_file import file_to_write

if TYPE_CHECKING:
    from tools.cli import Subparsers

__all__ = ["CASES", "compare", "register"]

Norms = Literal["frozen", "personal"]
CLASSES = 10
MOMENTUM = 0.9
LEARNING_RATE = 0.01
WARM_UP = 5  # steps, not counted
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
CASES: dict[str, tuple[int, ...]] = {  # net -> shape of a sample
    "cnn": (28, 28),
    "cnn_norm": (28, 28),
    "ds_cnn": (64, 32),
    "har_cnn": (9, 128),
    "mobilenet_small": (3, 32, 32),
}
HAVE_NORMS = ("cnn_norm", "ds_cnn", "mobilenet_small")


class Measured(NamedTuple):
    """One run of one side."""

    ms: list[float]  # CPU time per step
    wall_ms: list[float]
    rss_mb: float  # peak
    loss: float  # of the last step: both sides must have computed the same


def compare(
    net: str, *, batch: int, steps: int, repeats: int, norms: Norms = "frozen"
) -> dict[str, Any]:
    """Return the figures of one net, torch and ours, from ``repeats`` interleaved runs."""
    runs: dict[str, list[Measured]] = {"torch": [], "edgefold": []}
    if norms == "personal":
        runs["frozen"] = []
    with tempfile.TemporaryDirectory(prefix="edgefold-bench-") as name:
        _prepare(net, Path(name), batch, steps, norms)
        for _ in range(repeats):
            for side, found in runs.items():
                found.append(_run(side, Path(name), net))
    figures: dict[str, Any] = {"net": net, "batch": batch, "steps": steps, "repeats": repeats}
    for side, found in runs.items():
        every = [ms for run in found for ms in run.ms]
        figures[side] = {
            "wall_ms_min": round(min(min(run.wall_ms) for run in found), 3),
            "ms_min": round(min(every), 3),
            "ms_median": round(statistics.median(every), 3),
            "rss_mb": round(min(run.rss_mb for run in found), 1),
            "loss": found[0].loss,
        }
    ours, torch = figures["edgefold"], figures["torch"]
    figures["time_ratio"] = round(ours["ms_min"] / torch["ms_min"], 3)
    figures["time_ratio_median"] = round(ours["ms_median"] / torch["ms_median"], 3)
    figures["rss_ratio"] = round(ours["rss_mb"] / torch["rss_mb"], 3)
    if frozen := figures.get("frozen"):
        figures["norms_time_ratio"] = round(ours["ms_min"] / frozen["ms_min"], 3)
        figures["norms_rss_ratio"] = round(ours["rss_mb"] / frozen["rss_mb"], 3)
    return figures


def _prepare(net: str, work: Path, batch: int, steps: int, norms: Norms) -> None:
    """Write the bundles, the parameters and the batches that all sides use."""
    import numpy as np

    from models.task.params import flatten
    from tools.author.bundle.bundle_directory import write_bundle
    from tools.author.bundle.create_bundle import create_task
    from tools.author.bundle.export_model import named_tensors, read_tensors
    from tools.author.bundle.task_options import TaskOptions
    from tools.author.data.labeled_data import Dataset

    random = np.random.default_rng(0)
    count = batch * 8
    data = Dataset(
        name="noise",
        x=random.normal(size=(count, *CASES[net])).astype(np.float32),
        y=np.arange(count) % CLASSES,
        user=None,
        test=np.zeros(count, bool),
        test_is_ours=True,
    )
    made: dict[str, Norms] = {"edgefold": norms}
    if norms == "personal":
        made["frozen"] = "frozen"
    for side, how in made.items():
        bundle = create_task("bench", data, TaskOptions(net=net, momentum=MOMENTUM, norms=how))
        write_bundle(bundle, work / side)
        np.save(work / f"{side}.npy", flatten(read_tensors(bundle), bundle.spec.trainable))
    np.savez(work / "values.npz", allow_pickle=False, **named_tensors(bundle.infer))
    np.save(work / "x.npy", data.x)
    np.save(work / "y.npy", data.y)
    (work / "plan.json").write_text(json.dumps({"batch": batch, "steps": steps}))


def _run(side: str, work: Path, net: str) -> Measured:
    from tools.bench.measured_child import run_child

    arguments = [side, str(work), net]
    figures = run_child(
        "tools.bench.bench_train", arguments, environment=ONE_THREAD, what=f"bench {side} {net}"
    )
    return Measured(**figures)


def _measure(side: str, work: Path, net: str) -> Measured:
    """Run one side in this process."""
    import numpy as np

    from edge_agent.board.children import peak_rss_mb

    plan = json.loads((work / "plan.json").read_text("utf-8"))
    x, y = np.load(work / "x.npy"), np.load(work / "y.npy")
    step = _torch_step(work, net) if side == "torch" else _edgefold_step(work, side, plan["batch"])
    cpu, wall, loss = [], [], float("nan")
    for number in range(WARM_UP + plan["steps"]):
        start = number * plan["batch"] % len(x)
        rows = slice(start, start + plan["batch"])
        began, began_cpu = time.perf_counter(), time.process_time()
        loss = step(x[rows], y[rows])
        cpu.append((time.process_time() - began_cpu) * 1e3)
        wall.append((time.perf_counter() - began) * 1e3)
    return Measured(cpu[WARM_UP:], wall[WARM_UP:], peak_rss_mb(), loss)


def _edgefold_step(work: Path, side: str, batch: int) -> Any:
    import numpy as np

    from models.learning.onnx_session import open_session
    from models.learning.training_loop import Stepper
    from models.protocol.manifest import TrainingPlan
    from models.task.params import unflatten
    from models.task.spec import decode_spec

    spec = decode_spec((work / side / "spec.json").read_bytes())
    session = open_session((work / side / "train.onnx").read_bytes())
    tensors = unflatten(np.load(work / f"{side}.npy"), spec.trainable)
    plan = TrainingPlan(open=True, epochs=1, batch=batch, learning_rate=LEARNING_RATE)
    stepper = Stepper(session, spec, tensors, batch, plan)
    weight = np.ones(batch, np.float32)
    return lambda x, y: stepper.step(x, y, weight)


def _torch_step(work: Path, net: str) -> Any:
    import numpy as np
    import torch

    from models.nets.catalog import build_net, input_shape
    from models.task.spec import decode_spec

    torch.set_num_threads(1)
    spec = decode_spec((work / "edgefold/spec.json").read_bytes())
    shape = input_shape(net, spec.x.shape)
    module = build_net(net, shape, CLASSES, seed=0)
    with np.load(work / "values.npz") as values:
        module.load_state_dict({n: torch.from_numpy(values[n]) for n in values}, strict=False)
    module.train(spec.norms_adapt)
    weights = list(module.parameters())
    momentum = [torch.zeros_like(value) for value in weights]

    def step(x: Any, y: Any) -> float:
        for value in weights:
            value.grad = None
        logits = module(torch.from_numpy(x).reshape(len(x), *shape))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.asarray(y)))
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for value, velocity in zip(weights, momentum, strict=True):
                assert value.grad is not None
                velocity.mul_(MOMENTUM).add_(value.grad)
                value.sub_(velocity, alpha=LEARNING_RATE)
        return float(loss.detach())

    return step


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add ``bench train``."""
    train = subparsers.add_parser("train", help="a training step: our graph against torch eager")
    train.add_argument("--nets", nargs="+", metavar="NET", help=f"of {', '.join(CASES)}")
    train.add_argument("--batch", type=int, default=32, help="samples per step (default 32)")
    train.add_argument("--steps", type=int, default=30, help="counted steps per run (default 30)")
    train.add_argument("--repeats", type=int, default=3, help="runs of each side (default 3)")
    train.add_argument(
        "--norms",
        choices=("frozen", "personal"),
        default="frozen",
        help="batch norm: frozen (default), or by the batch on both sides, beside our frozen form",
    )
    train.add_argument(
        "--report", type=file_to_write, metavar="FILE.json", help="write the figures there"
    )
    train.add_argument("--json", action="store_true", help="print the figures as JSON")
    train.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from models.host.durable import atomic_write
    from tools.progress import bar

    nets = arguments.nets or (CASES if arguments.norms == "frozen" else HAVE_NORMS)
    if unknown := [net for net in nets if net not in CASES]:
        raise UsageError(f"bench train does not know {unknown[0]!r}; it has {', '.join(CASES)}")
    if min(arguments.batch, arguments.steps, arguments.repeats) < 1:
        raise UsageError("--batch, --steps and --repeats start at 1")
    results = []
    if not arguments.json:
        print(f"one thread, batch {arguments.batch}; CPU ms per step: minimum (median); peak MB")
        print(f"{'net':16} {'torch eager':>18} {'edgefold':>18} {'time':>6} "
              f"{'torch':>8} {'edgefold':>9} {'memory':>7}")  # fmt: skip
    for done, net in enumerate(nets):
        with bar(shown=not arguments.json, what="bench train") as tell:
            tell(done / len(nets), net)
            figures = compare(
                net,
                batch=arguments.batch,
                steps=arguments.steps,
                repeats=arguments.repeats,
                norms=arguments.norms,
            )
        results.append(figures)
        if not arguments.json:
            print(_row(figures), flush=True)
    report = json.dumps({"bench": "train", "threads": 1, "results": results}, indent=1)
    if arguments.report:
        atomic_write(arguments.report, report.encode() + b"\n")
    if arguments.json:
        print(report)
    return 0


def _row(figures: dict[str, Any]) -> str:
    sides = [figures["torch"], figures["edgefold"]]
    times = [f"{side['ms_min']:.2f} ({side['ms_median']:.2f})" for side in sides]
    memory = [f"{side['rss_mb']:.0f}" for side in sides]
    row = (f"{figures['net']:16} {times[0]:>18} {times[1]:>18} {figures['time_ratio']:>6.2f} "
           f"{memory[0]:>8} {memory[1]:>9} {figures['rss_ratio']:>7.2f}")  # fmt: skip
    if frozen := figures.get("frozen"):
        row += (f"; with frozen norms {frozen['ms_min']:.2f} ({frozen['ms_median']:.2f}), "
                f"{frozen['rss_mb']:.0f}: {figures['norms_time_ratio']:.2f} and "
                f"{figures['norms_rss_ratio']:.2f} times that")  # fmt: skip
    return row


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3])._asdict()))
