"""The job that all arms do: data dealt to the clients, the initial weights, files for the peers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from broker.releases.hold_out import Evaluator, HoldOut
from models.errors import UsageError
from models.nets.catalog import input_shape
from models.task.bundle import Bundle
from models.task.params import Vector, flatten
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.export_model import read_tensors
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.author.data.device_split import split_devices
from tools.author.data.labeled_data import Dataset
from tools.demo.demo_plan import DemoPlan

__all__ = ["PEERS_NETS", "JobPlan", "PreparedJob", "prepare"]

PEERS_NETS = ("cnn",)  # that tools.bench.peers.programs.torch_job has
DRAW_SEED = 20261129  # of the samples that are taken from a larger set
MOMENTUM = TaskOptions().momentum


class JobPlan(NamedTuple):
    """What the command line asks for."""

    data: str
    net: str
    devices: int
    rounds: int
    epochs: int
    batch: int
    learning_rate: float
    samples: int  # to train on, of all devices together; at most
    test_samples: int
    seed: int


class PreparedJob(NamedTuple):
    """A job whose files are in ``directory``: job.npz for edgefold, the others for the peers."""

    plan: JobPlan
    directory: Path
    bundle: Bundle
    sizes: tuple[int, ...]  # samples of each client
    held_out: HoldOut

    @property
    def dense_bytes(self) -> int:
        """Of the parameters in float32."""
        return 4 * self.bundle.spec.shared_size

    def accuracy(self, parameters: Mapping[str, Any] | Vector) -> float:
        """Return the accuracy of a peer's model, by our own inference graph."""
        spec = self.bundle.spec
        if isinstance(parameters, Mapping):
            tensors = {name: np.asarray(value, np.float32) for name, value in parameters.items()}
            parameters = flatten(tensors, spec.shared)
        evaluate = Evaluator(self.bundle.infer, spec, self.held_out)
        return float(evaluate(np.asarray(parameters, np.float32)).metric)

    def demo(self, directory: Path, update_bytes: int) -> DemoPlan:
        """Return what edgefold's demo is asked for, so that it does this job and no other."""
        plan = self.plan
        return DemoPlan(
            data=str(self.directory / "job.npz"),
            net=plan.net,
            devices=plan.devices,
            rounds=plan.rounds,
            broker="auto",
            report=directory / "report.json",
            picture=directory / "accuracy.png",
            keep=directory / "fleet",
            seed=plan.seed,
            samples=None,
            epochs=float(plan.epochs),
            learning_rate=plan.learning_rate,
            compression=self.dense_bytes / update_bytes,
            dense=False,
            quiet=True,
            json=False,
            batch=plan.batch,
            server_rate=1.0,
            holdout=0.0,
            first_share=1.0,
            troubles=False,
        )


def prepare(plan: JobPlan, directory: Path) -> PreparedJob:
    """Draw and deal the samples, and write the files of the job.

    Raises:
        UsageError: the data are not labeled bytes, or too few for so many devices.
    """
    full = load_dataset(plan.data)
    if not full.classes or full.x.dtype != np.uint8:
        raise UsageError(f"{plan.data}: the comparison needs labels and an x of uint8")
    small, owners = _dealt(full, plan)
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(
        directory / "job.npz", x=small.x, y=small.y, user=owners, test=small.test.astype(np.uint8)
    )
    sizes = []
    for number in range(plan.devices):
        rows = np.flatnonzero(owners == number)
        sizes.append(len(rows))
        np.savez(directory / f"client-{number + 1}.npz", x=small.x[rows], y=small.y[rows])
    bundle = create_task("demo", small, TaskOptions(net=plan.net, seed=plan.seed))
    tensors = read_tensors(bundle)
    shapes = [(tensor.name, list(tensor.shape)) for tensor in bundle.spec.shared]
    initial: dict[str, Any] = {name: tensors[name] for name, _ in shapes}
    np.savez(directory / "init.npz", **initial)
    job = {
        "net": plan.net,
        "input_shape": input_shape(plan.net, small.x.shape[1:]),
        "classes": small.classes,
        "clients": plan.devices,
        "rounds": plan.rounds,
        "epochs": plan.epochs,
        "batch": plan.batch,
        "learning_rate": plan.learning_rate,
        "momentum": MOMENTUM,
        "shapes": shapes,
    }
    (directory / "job.json").write_text(json.dumps(job, indent=1) + "\n")
    test = small.test_rows
    held_out = HoldOut(small.x[test], small.y[test])
    return PreparedJob(plan, directory, bundle, tuple(sizes), held_out)


def _dealt(full: Dataset, plan: JobPlan) -> tuple[Dataset, Any]:
    """Return so many samples of ``full``, and whose each of them is; -1: nobody's."""
    random = np.random.default_rng(DRAW_SEED)
    train = np.sort(random.permutation(full.train_rows)[: plan.samples])
    test = np.sort(random.permutation(full.test_rows)[: plan.test_samples])
    rows = np.concatenate([train, test])
    small = full._replace(
        x=full.x[rows],
        y=full.y[rows],
        user=None if full.user is None else full.user[rows],
        test=np.arange(len(rows)) >= len(train),
    )
    owners = np.full(len(rows), -1)
    for number, part in enumerate(
        split_devices(small, plan.devices, seed=plan.seed, holdout_share=0.0)
    ):
        owners[part.train] = number
    return small, owners
