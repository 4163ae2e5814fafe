"""The whole chain against torch: export, input conversion, training graph, loop, for each net."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from models.learning.onnx_session import open_session
from models.learning.training_loop import Stepper
from models.nets.catalog import NETS, build_net, input_shape
from models.protocol.manifest import TrainingPlan
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.export_model import named_tensors, read_tensors
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset

STEPS = 50
BATCH = 8
CLASSES = 3
SHAPES = {  # small, so that 50 steps take a moment; each net meets its own kind of data
    "mlp": (6, 6),
    "cnn": (12, 12),
    "cnn_norm": (16, 16),
    "lenet": (16, 16),
    "ds_cnn": (16, 8),
    "har_cnn": (3, 24),
    "mobilenet_small": (8, 8, 3),
    "resnet18": (3, 8, 8),
}
RATES = {
    # Where an activation lies within rounding of the bend of a ReLU, the two sides take different
    # gradients, and a deep net amplifies that: its steps are small here, but do lower the loss.
    "mlp": 0.01,
    "cnn": 0.01,
    "cnn_norm": 0.005,
    "lenet": 0.01,
    "ds_cnn": 0.0005,
    "har_cnn": 0.02,
    "mobilenet_small": 3e-5,
    "resnet18": 2e-6,
}
SLOW = {"resnet18", "mobilenet_small", "ds_cnn"}


def samples(shape: tuple[int, ...]) -> Dataset:
    """Stripes in the direction of the class, with noise: all nets can learn them."""
    random = np.random.default_rng(5)
    y = np.arange(64) % CLASSES
    grid = np.indices(shape).reshape(len(shape), -1)
    ways = random.normal(size=(CLASSES, len(shape)))
    waves = np.sin(ways @ grid).reshape(CLASSES, *shape)
    x = (128 + 80 * waves[y] + random.integers(-40, 40, (64, *shape))).astype(np.uint8)
    return Dataset("stripes", x, y, None, np.zeros(64, bool), test_is_ours=True)


def batches(data: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(6)
    for _ in range(STEPS):
        rows = random.permutation(len(data.x))[:BATCH]
        weight = random.random(BATCH).astype(np.float32)
        weight[-1] = 0  # padding
        yield data.x[rows], data.y[rows], weight


def torch_curve(name: str, data: Dataset, infer: bytes, learning_rate: float) -> list[float]:
    shape = input_shape(name, data.x.shape[1:])
    net = build_net(name, shape, CLASSES, seed=99)
    values = {key: torch.from_numpy(value) for key, value in named_tensors(infer).items()}
    missing, _ = net.load_state_dict(values, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=learning_rate, momentum=0.9, weight_decay=0.001
    )
    losses = []
    for x, y, weight in batches(data):
        inputs = torch.from_numpy(x.astype(np.float32) / 255)
        if inputs.dim() == 4 and inputs.shape[1:] != shape:
            inputs = inputs.permute(0, 3, 1, 2)
        each = torch.nn.functional.cross_entropy(
            net(inputs.reshape(BATCH, *shape)), torch.from_numpy(y), reduction="none"
        )
        weights = torch.from_numpy(weight)
        loss = (weights * each).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NETS]
)
def test_fifty_steps_have_the_losses_of_torch(name: str) -> None:
    torch.set_num_threads(1)
    data = samples(SHAPES[name])
    options = TaskOptions(net=name, momentum=0.9, weight_decay=0.001, seed=1)
    bundle = create_task("zoo", data, options)
    plan = TrainingPlan(open=True, epochs=1, batch=BATCH, learning_rate=RATES[name])
    stepper = Stepper(open_session(bundle.train), bundle.spec, read_tensors(bundle), BATCH, plan)
    ours = [stepper.step(*batch) for batch in batches(data)]
    expected = torch_curve(name, data, bundle.infer, RATES[name])
    assert np.mean(expected[-10:]) < np.mean(expected[:10]), "it must be about learning"
    np.testing.assert_allclose(ours, expected, atol=1e-3, rtol=0)
