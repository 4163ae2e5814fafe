"""Each loss and its gradient against torch, and what the weights of samples do."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from our_trainer import OurTrainer, small_step
from torch import nn
from torch.nn import functional as nnf
from torch_nets import batches, export, rename_transposed, tensors_of

from models.graph.reading.forward_graph import normalize_forward
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd


def test_samples_of_weight_zero_are_padding() -> None:
    ours, shape = small_step()
    xs, ys = batches(shape)
    x, y = xs[0], ys[0]
    start = dict(ours.state)
    real = ours.step(x[:5], y[:5], 0.1)
    ours.state = start
    padded = ours.step(x, y, 0.1, weight=np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32))
    for name, value in real.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_weights_count_relative_to_their_sum() -> None:
    ours, shape = small_step()
    xs, ys = batches(shape)
    x, y = xs[0], ys[0]
    start = dict(ours.state)
    twice = ours.step(np.concatenate([x, x[:2]]), np.concatenate([y, y[:2]]), 0.1)
    ours.state = start
    weighted = ours.step(x, y, 0.1, weight=np.array([6, 6, 3, 3, 3, 3, 3, 3], np.float32))
    for name, value in twice.items():
        np.testing.assert_allclose(weighted[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_batch_of_padding_alone_changes_nothing() -> None:
    ours, shape = small_step(optimizer=Sgd(momentum=0))
    xs, ys = batches(shape)
    before = dict(ours.state)
    out = ours.step(xs[0], ys[0], 0.1, weight=np.zeros(8, np.float32))
    assert out["loss"] == 0
    assert out["grad_norm"] == 0
    for name, value in before.items():
        np.testing.assert_array_equal(ours.state[name], value)


LOSS_ORACLES: dict[str, Callable[..., torch.Tensor]] = {
    "mse": lambda p, y: ((p - y) ** 2).flatten(1).mean(1),
    "bce": lambda p, y: nnf.binary_cross_entropy_with_logits(p, y, reduction="none").mean(1),
    "cross_entropy": lambda p, y: nnf.cross_entropy(p, y[:, 0].long(), reduction="none"),
    "cross_entropy of probabilities": lambda p, y: nnf.cross_entropy(p, y, reduction="none"),
}


FINALS = {"mse": None, "bce": nn.Sigmoid()}


@pytest.mark.parametrize("final", [False, True], ids=["of logits", "of probabilities"])
@pytest.mark.parametrize("loss", LOSS_ORACLES)
def test_each_loss_and_its_gradient_are_torch_s(loss: str, final: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5))
    last = FINALS.get(loss, nn.Softmax(-1))
    whole = nn.Sequential(net[0], last) if final and last is not None else net
    forward = normalize_forward(export(whole, (6,)))
    tensors = tensors_of(net)
    labels = loss == "cross_entropy"
    model = derive_training_graph(
        forward,
        trainable=list(tensors),
        loss=loss.split()[0],  # type: ignore[arg-type]
        optimizer=Sgd(momentum=0),
        y_dtype="uint8" if labels else "float32",
        y_shape=() if labels else (5,),
    )
    ours = OurTrainer(model, tensors, Sgd(momentum=0))
    generator = np.random.default_rng(0)
    x = (30 * generator.standard_normal((8, 6))).astype(np.float32)  # logits of 100: stable
    y = generator.integers(0, 2, (8, 5)).astype(np.float32)
    if loss == "cross_entropy of probabilities":
        y = generator.dirichlet(np.ones(5), 8).astype(np.float32)
    w = generator.uniform(0, 2, 8).astype(np.float32)
    each = LOSS_ORACLES[loss](net(torch.from_numpy(x)), torch.from_numpy(y))
    expected = (each * torch.from_numpy(w)).sum() / w.sum()
    expected.backward()
    out = ours.step(x, y[:, 0].astype(np.uint8) if labels else y, 1.0, weight=w)
    assert float(out["loss"]) == pytest.approx(expected.item(), rel=1e-5)
    for name, p in net.named_parameters():
        assert p.grad is not None
        moved = tensors[name] - ours.state[name]
        np.testing.assert_allclose(moved, p.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_a_label_per_position_is_averaged_over_the_positions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4))
    model = export(net, (7, 6))
    rename_transposed(model, net)
    forward = normalize_forward(model)
    tensors = tensors_of(net)
    training = derive_training_graph(
        forward,
        trainable=list(tensors),
        loss="cross_entropy",
        optimizer=Sgd(momentum=0),
        y_shape=(7,),
        classes=4,
    )
    ours = OurTrainer(training, tensors, Sgd(momentum=0))
    generator = np.random.default_rng(0)
    x = generator.standard_normal((3, 7, 6)).astype(np.float32)
    y = generator.integers(0, 4, (3, 7))
    out = ours.step(x, y, 1.0)
    expected = nnf.cross_entropy(
        net(torch.from_numpy(x)).reshape(-1, 4), torch.from_numpy(y).reshape(-1)
    )
    assert float(out["loss"]) == pytest.approx(expected.item(), rel=1e-5)
