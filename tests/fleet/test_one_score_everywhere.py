"""The same answers get the same numbers on a device, on the server and from the author's tools.

The model of each case answers with its input, so that the test chooses the answers. Each side is
asked as it works: the device's trainer by a job, the server by its hold-out file, the author by the
child of ``edgefold task train``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from onnx import TensorProto, helper, numpy_helper

import tools.author.task_child
from broker.releases.hold_out import Evaluator, load_hold_out
from edge_agent.samples.sample_files import read_npz
from edge_agent.training.trainer import carry_out
from edge_agent.training.training_job import Job
from models.errors import UsageError
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd
from models.learning.measurement import evaluate
from models.learning.training_loop import train
from models.protocol.manifest import CodecPlan, TrainingPlan
from models.protocol.npz import write_vector
from models.task.bundle import Bundle, bundle_of
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec
from tools.author.bundle.bundle_directory import write_bundle

COUNT = 130  # three batches on the server, five on a device
PLAN = TrainingPlan(open=True, epochs=0.01, batch=16, learning_rate=1e-6, max_steps=1)


class Case(NamedTuple):
    loss: str
    answers: str  # as in the spec
    shape: tuple[int, ...]  # of one answer
    y_shape: tuple[int, ...]
    made_of: Callable[[torch.Tensor], torch.Tensor] = lambda z: z  # the answers, of logits


CASES = {
    "bce": Case("bce", "probabilities", (1,), (1,), torch.sigmoid),
    "bce, upside down": Case("bce", "probabilities", (1,), (1,), lambda z: torch.sigmoid(-z)),
    "bce, several": Case("bce", "probabilities", (4,), (4,), torch.sigmoid),
    "bce, of an old spec": Case("bce", "", (1,), (), torch.sigmoid),
    "bce, logits": Case("bce", "logits", (1,), (1,)),
    "logits": Case("cross_entropy", "logits", (5,), ()),
    "softmax": Case("cross_entropy", "probabilities", (5,), (), lambda z: z.softmax(-1)),
    "log-softmax": Case("cross_entropy", "logits", (5,), (), lambda z: z.log_softmax(-1)),
    "logits of an old spec": Case("cross_entropy", "", (5,), ()),
    "softmax of an old spec": Case("cross_entropy", "", (5,), (), lambda z: z.softmax(-1)),
    "a sequence": Case("cross_entropy", "logits", (7, 5), (7,)),
    "as many moments as classes": Case("cross_entropy", "logits", (5, 5), (5,)),
    "an image": Case("cross_entropy", "probabilities", (4, 3, 5), (4, 3), lambda z: z.softmax(-1)),
    "a number": Case("mse", "", (1,), (1,)),
    "several numbers": Case("mse", "", (3, 2), (3, 2)),
}


def spec_of(case: Case) -> TaskSpec:
    is_classes = case.loss == "cross_entropy"
    return TaskSpec(
        format=1,
        task="task",
        net="answers with its input",
        tensors=(TensorSpec("w", case.shape, Role.SHARED),),
        x=ArraySpec("float32", case.shape),
        y=ArraySpec("int64" if is_classes else "float32", case.y_shape),
        classes=case.shape[-1] if is_classes else 0,
        loss=case.loss,  # type: ignore[arg-type]
        metric="mse" if case.loss == "mse" else "accuracy",
        optimizer="sgd",
        proximal=False,
        infer_input="x",
        infer_output="p",
        slots=(),
        answers=case.answers,  # type: ignore[arg-type]
    )


def answering_bundle(spec: TaskSpec) -> Bundle:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *spec.x.shape])
        for name in ("x", "p")
    ]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["p"], "add")],
        "answers",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(np.zeros(spec.x.shape, np.float32), "w")],
    )
    infer = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    train = derive_training_graph(
        infer,
        trainable=["w"],
        loss=spec.loss,
        optimizer=Sgd(momentum=0),
        y_dtype=spec.y.dtype,
        y_shape=spec.y.shape,
    )
    return bundle_of(spec, infer.SerializeToString(), train.SerializeToString())


def labels_of(case: Case, seed: int = 1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if case.loss == "cross_entropy":
        return generator.integers(0, case.shape[-1], (COUNT, *case.y_shape))
    if case.loss == "bce":
        return generator.integers(0, 2, (COUNT, *case.y_shape)).astype(np.float32)
    return generator.normal(size=(COUNT, *case.y_shape)).astype(np.float32)


def on_a_device(tmp_path: Path, bundle: Bundle, x: np.ndarray, y: np.ndarray) -> float | None:
    names = {"spec": tmp_path / "bundle/spec.json", "infer": tmp_path / "bundle/infer.onnx"}
    (tmp_path / "parameters.npz").write_bytes(
        write_vector(np.zeros(bundle.spec.shared_size, np.float32))
    )
    np.savez(tmp_path / "segment.npz", x=x, y=y.astype(bundle.spec.y.dtype))
    job = Job(
        do="evaluate",
        number=1,
        release=1,
        spec=str(names["spec"]),
        train_model=str(tmp_path / "bundle/train.onnx"),
        infer_model=str(names["infer"]),
        parameters=str(tmp_path / "parameters.npz"),
        samples=(),
        holdout=(str(tmp_path / "segment.npz"),),
        plan=PLAN,
        codec=CodecPlan(),
        max_sample_bytes=10**8,
        seed=0,
    )
    return carry_out(job, tmp_path).metric


def on_the_author_s_machine(
    tmp_path: Path, x: np.ndarray, y: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    for name, array in {"x": x, "y": y, "test_x": x, "test_y": y}.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "tensors.npy", np.zeros(x[0].size, np.float32))
    np.save(tmp_path / "rows.npy", np.arange(len(y)))
    job = tools.author.task_child.Job(str(tmp_path / "bundle"), str(tmp_path), PLAN, 0, 1)
    (tmp_path / "job.json").write_bytes(msgspec.json.encode(job))
    assert tools.author.task_child.main([str(tmp_path / "job.json")]) == 0
    said = capsys.readouterr().out.splitlines()
    return dict(json.loads(said[0]))


def by_torch(case: Case, answers: torch.Tensor, y: np.ndarray) -> tuple[float, float]:
    """Metric and loss."""
    target = torch.tensor(y)
    if case.loss == "mse":
        error = nnf.mse_loss(answers.reshape(target.shape), target).item()
        return error, error
    if case.loss == "bce":
        p = torch.sigmoid(answers) if case.answers == "logits" else answers
        p = p.reshape(target.shape)
        right = (p > 0.5) == (target > 0.5)
        return right.double().mean().item(), nnf.binary_cross_entropy(p, target).item()
    is_softmax = bool(torch.allclose(answers.sum(-1), torch.ones(1)))
    logs = (answers.log() if is_softmax else answers.log_softmax(-1)).reshape(-1, case.shape[-1])
    hits = (answers.argmax(-1) == target).double().mean().item()
    return hits, nnf.nll_loss(logs, target.reshape(-1)).item()


@pytest.mark.parametrize("name", CASES)
def test_device_server_and_author_agree_with_torch(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    answers = case.made_of(torch.randn(COUNT, *case.shape, generator=torch.manual_seed(0)) * 2)
    x, y = answers.numpy(), labels_of(case)
    bundle = answering_bundle(spec_of(case))
    write_bundle(bundle, tmp_path / "bundle")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    hold_out = load_hold_out(tmp_path / "data.npz", bundle.spec)
    zeros = np.zeros(bundle.spec.shared_size, np.float32)

    metric, loss = by_torch(case, answers, y)
    server = Evaluator(bundle.infer, bundle.spec, hold_out)(zeros)
    assert server == pytest.approx((metric, loss, COUNT), rel=1e-5)
    author = on_the_author_s_machine(tmp_path, x, y, capsys)
    assert (author["metric"], author["loss"]) == pytest.approx(server[:2], rel=1e-12)
    assert on_a_device(tmp_path, bundle, x, y) == pytest.approx(server.metric, rel=1e-12)


ROWS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
LABELS = np.arange(6) % 5
NO_SAMPLES: dict[str, tuple[np.ndarray, np.ndarray, str]] = {
    "pixels": (np.full((6, 5), 200, np.uint8), LABELS, "x is uint8"),
    "not a number": (np.full_like(ROWS, np.nan), LABELS, "x: row 0"),
    "a class too many": (ROWS, LABELS + 1, "label 5 in row 4"),
    "half a class": (ROWS, LABELS + 0.5, "label 0.5 in row 0"),
    "fewer values": (ROWS[:, :4], LABELS, "x has shape (6, 4)"),
}


@pytest.mark.parametrize("name", NO_SAMPLES)
def test_inbox_training_and_hold_out_refuse_the_same_in_the_same_words(
    name: str, tmp_path: Path
) -> None:
    x, y, says = NO_SAMPLES[name]
    bundle = answering_bundle(spec_of(CASES["logits"]))
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y)
    tensors = {"w": np.zeros(5, np.float32)}
    words = []
    for refused in (
        lambda: read_npz(path.read_bytes(), bundle.spec, max_bytes=10**6),
        lambda: train(bundle.train, bundle.spec, tensors, x, y, PLAN, seed=0),
        lambda: evaluate(bundle.infer, bundle.spec, tensors, x, y),
        lambda: load_hold_out(path, bundle.spec),
    ):
        with pytest.raises(UsageError) as error:
            refused()
        words.append(str(error.value).removeprefix(f"evaluation data {path}: "))
    assert words == [words[0]] * 4
    assert says in words[0]


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("column", [False, True])
def test_inbox_training_and_hold_out_take_the_same_labels(
    kind: type[np.generic], column: bool, tmp_path: Path
) -> None:
    bundle = answering_bundle(spec_of(CASES["logits"]))
    y = LABELS.astype(kind)[:, np.newaxis] if column else LABELS.astype(kind)
    path = tmp_path / "data.npz"
    np.savez(path, x=ROWS.astype(np.float64), y=y)
    taken = read_npz(path.read_bytes(), bundle.spec, max_bytes=10**6).y
    held_out = load_hold_out(path, bundle.spec).y
    for labels in (taken, held_out):
        assert (labels.dtype, labels.tolist()) == (np.int64, LABELS.tolist())
    tensors = {"w": np.zeros(5, np.float32)}
    trained = train(bundle.train, bundle.spec, tensors, ROWS, y, PLAN, seed=0)
    assert trained.tensors["w"].tolist() == (
        train(bundle.train, bundle.spec, tensors, ROWS, LABELS, PLAN, seed=0).tensors["w"].tolist()
    )
