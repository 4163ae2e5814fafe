"""Batch norm of a device's own, from its training by way of its files to what applications hear."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.inference.inference_model import Model
from edge_agent.inference.inference_requests import Load
from edge_agent.samples.sample_store import segment_name
from edge_agent.training.trainer import carry_out
from edge_agent.training.training_job import PAYLOAD, Job
from models.codec.payload import decompress
from models.errors import UsageError
from models.learning.measurement import evaluate
from models.protocol.manifest import CodecPlan, TrainingPlan
from models.protocol.npz import read_vector, write_vector
from models.task.params import flatten, unflatten
from models.task.spec import Role
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.export_model import read_tensors
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset

RANDOM = np.random.default_rng(1)
Y = np.arange(90) % 3
WAVES = np.sin(np.arange(3)[:, None, None] + np.indices((16, 16)).sum(axis=0) * 0.7)
X = (WAVES[Y] + 0.3 * RANDOM.normal(size=(90, 16, 16))).astype(np.float32)
DATA = Dataset("waves", X, Y, None, np.zeros(90, bool), test_is_ours=True)
ELSEWHERE = 4 * X + 3  # the same waves through another sensor
BUNDLE = create_task("waves", DATA, TaskOptions(net="cnn_norm", norms="personal", pretrain=8))
SPEC = BUNDLE.spec
OWN = SPEC.with_role(Role.PERSONAL)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    shared = flatten(read_tensors(BUNDLE), SPEC.shared)
    files = {
        "spec.json": BUNDLE.spec_json,
        "train.onnx": BUNDLE.train,
        "infer.onnx": BUNDLE.infer,
        "parameters.npz": write_vector(shared),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    segments = []
    for part, rows in enumerate((slice(60), slice(60, 90))):
        name = segment_name(60 * part, len(Y[rows]), "a" * 16, part)
        segments.append(str(tmp_path / name))
        np.savez(segments[-1], x=ELSEWHERE[rows], y=Y[rows])
    return Job(
        do="train",
        number=1,
        release=1,
        spec=str(tmp_path / "spec.json"),
        train_model=str(tmp_path / "train.onnx"),
        infer_model=str(tmp_path / "infer.onnx"),
        parameters=str(tmp_path / "parameters.npz"),
        samples=tuple(segments[:1]),
        holdout=tuple(segments[1:]),
        plan=TrainingPlan(open=True, epochs=10, batch=16, learning_rate=0.01),
        codec=CodecPlan(),
        max_sample_bytes=10**8,
        seed=5,
        new_residual=str(tmp_path / "residual-1.npz"),
        new_personal=str(tmp_path / "personal-1.npz"),
        evaluate_after=True,
    )


def test_statistics_stay_on_the_device_and_serve_what_it_answers(job: Job, tmp_path: Path) -> None:
    result = carry_out(job, tmp_path)
    assert result.metric is not None
    assert result.metric_after is not None
    assert result.metric_after >= result.metric
    assert decompress((tmp_path / PAYLOAD).read_bytes(), SPEC.shared).shape == (SPEC.shared_size,)
    size = sum(tensor.size for tensor in OWN)
    content = Path(job.new_personal).read_bytes()
    own = unflatten(read_vector(content, size=size, name="personal"), OWN)
    before = read_tensors(BUNDLE)
    for tensor in SPEC.trainable:
        if tensor.kind == "statistic":
            assert np.abs(own[tensor.name] - before[tensor.name]).max() > 0.1

    load = Load(
        infer=job.infer_model,
        spec=job.spec,
        parameters=job.parameters,
        release=1,
        personal=job.new_personal,
    )
    shared = read_vector(Path(job.parameters).read_bytes(), size=SPEC.shared_size)
    tensors = unflatten(shared, SPEC.shared) | own
    held = ELSEWHERE[60:]
    answers = Model(load).run(held)
    assert evaluate(BUNDLE.infer, SPEC, tensors, held, Y[60:]).metric == pytest.approx(
        float((answers.argmax(axis=1) == Y[60:]).mean())
    )
    without = Model(msgspec.structs.replace(load, personal=None)).run(held)
    assert np.abs(answers - without).max() > 0.1

    again = msgspec.structs.replace(
        job, do="evaluate", personal=job.new_personal, evaluate_after=False
    )
    assert carry_out(again, tmp_path).metric == pytest.approx(
        float((answers.argmax(axis=1) == Y[60:]).mean())
    )


def test_a_device_goes_on_from_its_own_statistics(job: Job, tmp_path: Path) -> None:
    once = carry_out(job, tmp_path)
    twice = msgspec.structs.replace(
        job, personal=job.new_personal, new_personal=str(tmp_path / "personal-2.npz")
    )
    assert once.metric is not None
    assert carry_out(twice, tmp_path).loss_first < once.loss_first
    size = sum(tensor.size for tensor in OWN)
    first, second = (
        read_vector(Path(name).read_bytes(), size=size, name="personal")
        for name in (job.new_personal, twice.new_personal)
    )
    assert not np.array_equal(first, second)


def test_a_device_with_one_sample_is_told_that_it_needs_two(job: Job, tmp_path: Path) -> None:
    name = str(tmp_path / segment_name(0, 1, "b" * 16, 9))
    np.savez(name, x=X[:1], y=Y[:1])
    with pytest.raises(UsageError, match=r"waves .*a single sample.*at least 2 samples"):
        carry_out(msgspec.structs.replace(job, samples=(name,)), tmp_path)
