"""The arena is the fleet without files and clocks: the same events give the same releases."""

import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from broker.config import TaskConfig
from broker.records.registry import DATABASE
from edge_agent.samples.segment_reading import read_samples
from edge_agent.training.training_job import Job, decode_job
from models.learning.training_loop import training_rows
from models.protocol.manifest import Manifest, decode_manifest
from models.protocol.npz import read_vector
from models.task.bundle import Bundle
from tools.author.bundle.create_bundle import make_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.experiments.arena import Arena, Member
from tools.experiments.arena_server import Plans, Sent
from tools.simulation.fleet_world import prepared
from tools.simulation.learning.real_learning import RealLearning
from tools.simulation.scenario.fleet_configs import served
from tools.simulation.scenario.fleet_settings import Settings

DEVICES = 3


class Trained(NamedTuple):
    """One training as the simulated device did it."""

    job: Job
    x: np.ndarray
    y: np.ndarray
    has_parent: bool  # the release before was still in the other slot


class Lived(NamedTuple):
    """What a simulated fleet did."""

    config: TaskConfig
    bundle: Bundle
    manifests: list[Manifest]
    trained: dict[int, list[Trained]]  # by device
    folds: dict[int, list[tuple[int, int]]]  # by release: device and number of the update, in order
    read: Any  # sha256 -> vector


def lived(directory: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Lived:
    """Play a fleet; note each training with its samples, and each fold with its updates."""
    trained: dict[int, list[Trained]] = {number: [] for number in range(DEVICES)}
    train = RealLearning.train

    def noted(self: RealLearning, device: int, path: Path, learned: Any) -> None:
        job = decode_job(path.read_bytes())
        if job.do == "train":
            x, y = read_samples(job.samples, self.bundle.spec, max_bytes=job.max_sample_bytes)
            has_parent = job.previous is not None and Path(job.previous).exists()
            trained[device].append(Trained(job, x, y, has_parent))
        train(self, device, path, learned)

    monkeypatch.setattr(RealLearning, "train", noted)
    with prepared(0, settings) as world:
        world.live()
        at = world.fleet.server.disk.at
        vectors = {path.name: path.read_bytes() for path in (at / "artifacts").iterdir()}
        database = sqlite3.connect(at / DATABASE)
        manifests = [
            decode_manifest(row)
            for (row,) in database.execute("SELECT manifest FROM releases ORDER BY number")
        ]
        folds: dict[int, list[tuple[int, int]]] = {}
        for device, sequence, release in database.execute(
            "SELECT device, sequence, release FROM updates WHERE state = 'folded' ORDER BY id"
        ):
            number = int(device.removeprefix("device-"))
            folds.setdefault(release, []).append((number, sequence))
        bundle = world.learning.bundle
        size = bundle.spec.shared_size
        return Lived(
            served(settings),
            bundle,
            manifests,
            trained,
            folds,
            lambda sha256: read_vector(vectors[sha256], size=size),
        )


def replayed(fleet: Lived) -> list[tuple[Manifest, Arena]]:
    """Let the arena make the same trainings and folds; yield it after each release."""
    first = fleet.manifests[0]
    plans = Plans(
        first.training,
        learning=first.plan,
        codec=first.codec,
        policy=fleet.config.aggregation,
        downlink=fleet.config.downlink,
    )
    rows = np.zeros(1, np.int64)
    x, y = fleet.trained[0][0].x, fleet.trained[0][0].y
    arena = Arena(fleet.bundle, x, y, [Member(rows, rows, 1.0)] * DEVICES, plans)
    done = dict.fromkeys(range(DEVICES), 0)
    sent: dict[tuple[int, int], Sent] = {}
    found = []
    for manifest in fleet.manifests[1:]:
        waiting = []
        for key in fleet.folds[manifest.release]:
            number, _ = key
            device = arena.devices[number]
            while key not in sent:
                job, x, y, has_parent = fleet.trained[number][done[number]]
                done[number] += 1
                device.rows = training_rows(fleet.bundle.spec, x, y, job.plan)
                release = arena.server.release(job.release)
                device.held = release
                device.before = arena.server.release(job.release - 1) if has_parent else None
                made = arena.train(device, release, seed=job.seed, plan=job.plan)
                sent[number, done[number]] = made
            waiting.append(sent[key])
        for one, is_folded in arena.server.fold(waiting):
            assert is_folded
            arena.devices[one.device].settled(one, is_folded=True)
        found.append((manifest, arena))
        assert arena.server.digest() == manifest.artifacts["parameters"].sha256
    return found


@pytest.mark.parametrize(
    "policy",
    [
        (),
        (("codec.bytes", 400), ("aggregation.half_life", 1.0)),
    ],
)
def test_the_same_events_give_releases_of_the_same_digests(
    policy: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_dataset("digits")
    bundle = make_task("digits", data, TaskOptions(net="mlp", seed=1)).bundle
    directory = tmp_path / "digits"
    directory.mkdir()
    for name, content in (
        ("infer.onnx", bundle.infer),
        ("train.onnx", bundle.train),
        ("spec.json", bundle.spec_json),
    ):
        (directory / name).write_bytes(content)
    settings = Settings(
        devices=DEVICES,
        hours=3.0,
        fold_updates=2,
        min_minutes=10.0,
        sample_every_s=900.0,
        max_staleness=0,
        is_planning=True,
        settles=False,
        task=str(directory),
        data="digits",
        split="dirichlet:0.5",
        policy=policy,
    )
    fleet = lived(tmp_path, settings, monkeypatch)
    assert len(fleet.manifests) >= 4
    assert sum(len(fold) for fold in fleet.folds.values()) >= 6
    replayed(fleet)
