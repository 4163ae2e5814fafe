"""The child process of ``edgefold task train``: numpy and onnxruntime, nothing of the author's.

It is given JOB.json, says on stdout what happens, one JSON object in a line, and leaves the trained
tensors in a file. It measures its own peak memory, which is that of training, not of the command
that started it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_agent.board.children import peak_rss_mb
from models.errors import EdgefoldError
from models.learning.measurement import evaluate
from models.learning.training_loop import train
from models.protocol.manifest import TrainingPlan
from models.task.params import flatten, unflatten
from models.task.spec import decode_spec

__all__ = ["Job", "main"]


class Job(msgspec.Struct, frozen=True):
    """What to do; all paths in ``directory``, where the data are ``*.npy``."""

    bundle: str
    directory: str
    plan: TrainingPlan
    seed: int
    threads: int


def main(arguments: list[str]) -> int:
    """Run the job of the file ``arguments[0]``; the exit code is 1 after an error was said."""
    try:
        _run(msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Job))
    except (EdgefoldError, OSError) as error:
        _say(error=str(error))
        return 1
    except MemoryError:
        _say(error="not enough memory: use a smaller --batch")
        return 1
    return 0


def _run(job: Job) -> None:
    began = time.perf_counter()
    bundle, directory = Path(job.bundle), Path(job.directory)
    spec = decode_spec((bundle / "spec.json").read_bytes())
    infer, step = (bundle / "infer.onnx").read_bytes(), (bundle / "train.onnx").read_bytes()
    x, y, test_x, test_y = (
        np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("x", "y", "test_x", "test_y")
    )
    tensors = unflatten(np.load(directory / "tensors.npy"), spec.trainable)
    batch = min(job.plan.batch, 64)
    before = evaluate(infer, spec, {}, test_x, test_y, batch=batch, threads=job.threads)
    _say(event="before", metric=before.metric, loss=before.loss)
    result = train(
        step,
        spec,
        tensors,
        x,
        y,
        job.plan,
        seed=job.seed,
        threads=job.threads,
        on_epoch=lambda number, loss: _say(event="epoch", number=number, loss=loss),
        numbers=np.load(directory / "rows.npy"),
    )
    after = evaluate(infer, spec, result.tensors, test_x, test_y, batch=batch, threads=job.threads)
    np.save(directory / "trained.npy", flatten(result.tensors, spec.trainable))
    _say(
        event="done",
        before=before._asdict(),
        after=after._asdict(),
        steps=result.steps,
        loss_first=result.loss_first,
        loss_last=result.loss_last,
        ms_per_step=result.ms_per_step,
        peak_rss_mb=peak_rss_mb(),
        wall_s=time.perf_counter() - began,
    )


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
