"""Training where batch norm adapts: which batches there are, and what becomes of statistics."""

from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models.errors import UsageError
from models.learning.measurement import evaluate
from models.learning.training_loop import train, training_rows
from models.protocol.manifest import TrainingPlan
from models.task.bundle import Bundle
from models.task.spec import Role
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.export_model import read_tensors
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset

SHAPE = (16, 16)
RANDOM = np.random.default_rng(0)
Y = np.arange(64) % 2
X = (RANDOM.normal(size=(64, *SHAPE)) + Y[:, None, None]).astype(np.float32)
DATA = Dataset("noise", X, Y, None, np.zeros(64, bool), test_is_ours=True)
PLAN = TrainingPlan(open=True, epochs=1, batch=8, learning_rate=0.01)


def made(**options: Any) -> Bundle:
    return create_task("norms", DATA, TaskOptions(net="cnn_norm", **options))


PERSONAL, FROZEN = made(norms="personal"), made()


@pytest.mark.parametrize(
    ("samples", "batch", "per_epoch"),
    [
        (22, 8, 3),  # the last has 6
        (20, 8, 3),  # 4: just half
        (19, 8, 2),  # 3: left out
        (5, 2, 2),  # 1: has no variance
        (3, 8, 1),  # is the only one
        (2, 8, 1),
        (16, 8, 2),
        (10, 3, 3),  # 1 of 3
        (11, 3, 4),  # 2 of 3
    ],
)
def test_a_last_batch_of_few_samples_is_left_out(samples: int, batch: int, per_epoch: int) -> None:
    plan = msgspec.structs.replace(PLAN, batch=batch, epochs=3, max_steps=1000)
    rows = training_rows(PERSONAL.spec, X[:samples], Y[:samples], plan)
    assert rows.per_epoch == per_epoch
    result = train(
        PERSONAL.train,
        PERSONAL.spec,
        read_tensors(PERSONAL),
        X[:samples],
        Y[:samples],
        plan,
        seed=0,
    )
    assert result.steps == 3 * per_epoch
    frozen = training_rows(FROZEN.spec, X[:samples], Y[:samples], plan)
    assert frozen.per_epoch == -(-samples // min(batch, samples))


@pytest.mark.parametrize(
    ("samples", "batch", "weight", "says"),
    [
        (1, 8, [1], "a single sample"),
        (9, 1, [1] * 9, "a batch of 1"),
        (3, 8, [0, 1, 0], "a single sample"),
    ],
)
def test_one_sample_has_no_variance_and_that_is_said(
    samples: int, batch: int, weight: list[int], says: str
) -> None:
    plan = msgspec.structs.replace(PLAN, batch=batch)
    rows: Any = (X[:samples], Y[:samples], plan)
    weights = np.array(weight, np.float32)
    tensors = read_tensors(PERSONAL)
    with pytest.raises(UsageError, match=rf"norms.*{says}.*at least 2 samples"):
        train(PERSONAL.train, PERSONAL.spec, tensors, *rows, sample_weight=weights, seed=0)
    train(FROZEN.train, FROZEN.spec, read_tensors(FROZEN), *rows, sample_weight=weights, seed=0)


def test_training_is_torch_s_in_training_mode_and_so_is_what_it_answers_then() -> None:
    """Some epochs on data that lie elsewhere than those the model was made for."""
    x = 3 * X[:48] + 2
    plan = msgspec.structs.replace(PLAN, epochs=4, batch=16, learning_rate=1e-3, max_steps=1000)
    result = train(PERSONAL.train, PERSONAL.spec, read_tensors(PERSONAL), x, Y[:48], plan, seed=3)
    net = torch_net(PERSONAL)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
    net.train()
    shuffle = np.random.default_rng(3)
    for _ in range(4):
        order = shuffle.permutation(48)
        for start in range(0, 48, 16):
            rows = order[start : start + 16]
            optimizer.zero_grad()
            answers = net(torch.from_numpy(x[rows])[:, None])
            nn.functional.cross_entropy(answers, torch.from_numpy(Y[rows])).backward()
            optimizer.step()
    for name, value in net.state_dict().items():
        if value.dim():
            np.testing.assert_allclose(result.tensors[name], value.numpy(), rtol=2e-3, atol=2e-4)
    adapted = evaluate(PERSONAL.infer, PERSONAL.spec, result.tensors, x, Y[:48])
    with torch.no_grad():
        answers = net.eval()(torch.from_numpy(x)[:, None])
    expected = nn.functional.cross_entropy(answers, torch.from_numpy(Y[:48]))
    assert adapted.loss == pytest.approx(float(expected), rel=1e-3)


def torch_net(bundle: Bundle) -> nn.Module:
    from models.nets.catalog import build_net

    net = build_net("cnn_norm", (1, *SHAPE), 2, seed=0)
    values = {name: torch.from_numpy(value.copy()) for name, value in read_tensors(bundle).items()}
    missing, strange = net.load_state_dict(values, strict=False)
    assert all(name.endswith("tracked") for name in missing)
    assert not strange
    return net


def test_statistics_are_personal_and_have_no_slots_anchors_or_decay() -> None:
    bundle = made(norms="personal", proximal=True, weight_decay=0.5)
    spec = bundle.spec
    kinds = {tensor.name: (tensor.role, tensor.kind) for tensor in spec.tensors}
    assert kinds["1.running_var"] == (Role.PERSONAL, "statistic")
    assert kinds["5.bias"] == (Role.PERSONAL, "norm")
    assert kinds["4.weight"] == (Role.SHARED, "weight")
    assert spec.norms_adapt
    assert len(spec.learned) == len(spec.trainable) - 4 == len(spec.slots)
    inputs = {value.name for value in onnx.load_from_string(bundle.train).graph.input}
    assert {tensor.name for tensor in spec.trainable} <= inputs
    assert {name for name in inputs if "/" in name} == {
        f"{kind}/{tensor.name}" for kind in ("anchor", "momentum") for tensor in spec.learned
    }


def test_shared_norms_travel_as_all_else_does() -> None:
    """FedAvg's averaged statistics: for experiments only, no command makes such a task."""
    spec = made(norms="shared").spec
    assert spec.shared == spec.trainable
    assert spec.shared_size == PERSONAL.spec.shared_size + 4 * (16 + 32)
    assert len(spec.learned) == len(spec.trainable) - 4


def test_a_value_that_only_statistics_cannot_take_is_found_and_not_the_learning_rate() -> None:
    x = X.copy()
    x[5] = 1e30
    bundle = create_task("norms", DATA, TaskOptions(net="cnn_norm", norms="personal"))
    with pytest.raises(UsageError, match=r"row 5 .*broke") as caught:
        train(bundle.train, bundle.spec, read_tensors(bundle), x, Y, PLAN, seed=1)
    assert "lower" not in str(caught.value)


def test_a_spec_tells_a_momentum_that_is_not_the_usual_one() -> None:
    assert made(momentum=0.5).spec.local_momentum == 0.5
    for momentum in (0.0, 0.9):
        bundle = made(momentum=momentum)
        assert b'"momentum"' not in bundle.spec_json
        assert bundle.spec.local_momentum == momentum
    assert made(optimizer="adam").spec.local_momentum == 0


def test_a_frozen_task_is_made_as_it_always_was() -> None:
    assert b"kind" not in FROZEN.spec_json
    assert b'momentum":' not in FROZEN.spec_json
    assert not FROZEN.spec.norms_adapt
    assert FROZEN.spec.learned == FROZEN.spec.trainable
