"""Whether our training graph of a net gives torch's output, loss and gradients."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hundred_nets import built, exported, samples, targets
from sessions import session_of
from small_net import Brought
from torch import nn
from torch.nn import functional as nnf
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from models.graph.reading.forward_graph import normalize_forward, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd

BATCH = 3
TOLERANCE = 1e-4  # of the largest element of a gradient, and of the largest gradient of the net
RATE = 2.0**20  # so high that the new weights are the gradient


class Expected(NamedTuple):
    output: np.ndarray
    loss: float
    pairs: list[tuple[str, np.ndarray, np.ndarray]]  # name, weight, gradient


def loss_of(brought: Brought, output: torch.Tensor, y: np.ndarray) -> torch.Tensor:
    target = torch.from_numpy(y)
    if brought.loss == "mse":
        return nnf.mse_loss(output, target)
    if brought.loss == "bce":
        return nnf.binary_cross_entropy_with_logits(output, target)
    return nnf.cross_entropy(output.flatten(0, -2), target.flatten())


def logits_of(net: nn.Module) -> nn.Module:
    """Return the net without the activation that the loss contains."""
    if isinstance(net, nn.Sequential) and isinstance(
        net[-1], nn.Softmax | nn.LogSoftmax | nn.Sigmoid
    ):
        return net[:-1]
    return net


def fused(net: nn.Module) -> nn.Module:
    """Return the net with batch norms folded into what is before them, as exporters do it."""
    net = copy.deepcopy(net)
    for chain in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        for i in range(len(chain) - 1):
            one, norm = chain[i], chain[i + 1]
            if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                continue
            if isinstance(one, nn.Conv1d | nn.Conv2d):
                chain[i], chain[i + 1] = fuse_conv_bn_eval(one, norm), nn.Identity()
            elif isinstance(one, nn.Linear):
                chain[i], chain[i + 1] = fuse_linear_bn_eval(one, norm), nn.Identity()
    return net.requires_grad_()


def expected(brought: Brought, net: nn.Module, x: torch.Tensor) -> tuple[Expected, np.ndarray]:
    output = net(x)
    logits = logits_of(net) if brought.loss != "mse" else net
    y = targets(brought, output)
    pairs = []
    for which in (logits, fused(logits)):
        found = dict(which.named_parameters())
        loss = loss_of(brought, which(x), y)
        gradients = torch.autograd.grad(loss, list(found.values()), allow_unused=True)
        for (name, weight), gradient in zip(found.items(), gradients, strict=True):
            known = torch.zeros_like(weight) if gradient is None else gradient
            pairs.append((name, weight.detach().numpy(), known.numpy()))
        pairs += list(packed(which, pairs))
    return Expected(output.detach().numpy(), loss.item(), pairs), y


def packed(net: nn.Module, pairs: list[Any]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The weights of recurrences as ONNX packs them: gates in its order, directions stacked."""
    orders = {nn.LSTM: (0, 3, 1, 2), nn.GRU: (1, 0, 2), nn.RNN: (0,)}
    known = {name: (weight, gradient) for name, weight, gradient in pairs}

    def ordered(value: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([np.split(value, len(order))[i] for i in order])

    for path, module in net.named_modules():
        if type(module) not in orders:
            continue
        order = orders[type(module)]
        lead = f"{path}." if path else ""
        for layer in range(module.num_layers):
            ends = [f"l{layer}"] + [f"l{layer}_reverse"] * module.bidirectional
            for kinds in (("weight_ih",), ("weight_hh",), ("bias_ih", "bias_hh")):
                both = [
                    np.stack(
                        [
                            np.concatenate(
                                [ordered(known[f"{lead}{kind}_{end}"][i], order) for kind in kinds]
                            )
                            for end in ends
                        ]
                    )
                    for i in (0, 1)
                ]
                yield f"{lead}{kinds[0]}_{layer}", both[0], both[1]


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def counterpart(
    weight: np.ndarray, gradient: np.ndarray, pairs: list[Any]
) -> tuple[str, np.ndarray, np.ndarray] | None:
    """Return which of torch's parameters this weight is: its name, both gradients in its shape.

    It may be transposed, reshaped, or a third of one: an exporter cuts the projections of an
    attention in three.
    """
    thirds = [
        (f"{name}[{i}]", *(np.split(part, 3)[i] for part in (value, known)))
        for name, value, known in pairs
        for i in range(3)
        if value.ndim and len(value) % 3 == 0
    ]
    for name, value, known in [*pairs, *thirds]:
        if same(weight, value):
            return name, gradient, known
        if value.ndim == 2 and same(weight, value.T):
            return name, gradient.T, known
        if weight.size == value.size and same(weight.reshape(-1), value.reshape(-1)):
            return name, gradient.reshape(value.shape), known
    return None


def check(brought: Brought, *, dynamo: bool, dynamic: bool, x: torch.Tensor | None = None) -> None:
    """Compare with torch, on random samples or on ``x``.

    Raises:
        UsageError: it is refused.
        AssertionError: another output, loss or gradient.
    """
    net = built(brought)
    x = samples(brought, BATCH) if x is None else x
    theirs, y = expected(brought, net, x)
    forward = normalize_forward(exported(net, brought, dynamo=dynamo, dynamic=dynamic))
    found = session_of(forward).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, theirs.output, rtol=1e-4, atol=1e-5)
    initial = weights(forward)
    model = derive_training_graph(
        forward,
        trainable=list(initial),
        loss=brought.loss,
        optimizer=Sgd(momentum=0),
        y_dtype=y.dtype.name,
        y_shape=y.shape[1:],
    )
    session = session_of(model)
    feed = {
        "x": x.numpy(),
        "y": y,
        "sample_weight": np.ones(len(x), np.float32),
        "lr": np.array(RATE, np.float32),
        **initial,
    }
    names = [value.name for value in session.get_outputs()]
    out = dict(
        zip(
            names,
            session.run(names, {v.name: feed[v.name] for v in session.get_inputs()}),
            strict=True,
        )
    )
    assert float(out["loss"]) == pytest.approx(theirs.loss, rel=1e-4, abs=1e-6)
    largest = max(np.abs(known).max() for _, _, known in theirs.pairs)
    squares = 0.0
    found_of: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for own, value in initial.items():
        gradient = (value - out[f"new/{own}"]) / RATE
        squares += float(np.square(gradient, dtype=np.float64).sum())
        other = counterpart(value, gradient, theirs.pairs)
        assert other is not None, f"{own} {value.shape} is none of torch's parameters"
        name, turned, known = other
        before = found_of.get(name, (0, known))[0]
        found_of[name] = (before + turned, known)  # an exporter may make two weights of one
    for name, (gradient, known) in found_of.items():
        scale = max(np.abs(known).max(), 1e-3 * largest)
        assert np.abs(gradient - known).max() / scale < TOLERANCE, name
    assert float(out["grad_norm"]) == pytest.approx(squares**0.5, rel=1e-4)
