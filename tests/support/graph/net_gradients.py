"""One training step of an exported net beside torch's: loss, gradient norm, gradients by name."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from newer_exporter import export_newer
from our_trainer import run
from sessions import session_of
from torch import nn
from torch.nn import functional as nnf

from models.graph.reading.forward_graph import normalize_forward, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd

Export = Callable[[nn.Module, tuple[int, ...]], onnx.ModelProto]


def older(
    net: nn.Module, shape: tuple[int, ...], *, dynamic: bool = False, opset: int = 17
) -> onnx.ModelProto:
    """Export as people do it: constants folded, the batch fixed to 1 or dynamic."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(2 if dynamic else 1, *shape),),
            buffer,
            opset_version=opset,
            dynamo=False,
            input_names=["input"],
            dynamic_axes={"input": {0: "batch"}} if dynamic else None,
        )
    return onnx.load_from_string(buffer.getvalue())


def newer(
    net: nn.Module, shape: tuple[int, ...], *, dynamic: bool = False, opset: int | None = None
) -> onnx.ModelProto:
    """Export by torch's default exporter, the batch fixed to 1 or dynamic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export_newer(
            net.eval(),
            (torch.zeros(2 if dynamic else 1, *shape),),
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
        )


EXPORTS: dict[str, Export] = {
    "older, fixed": older,
    "older, dynamic": lambda net, shape: older(net, shape, dynamic=True),
    "newer, fixed": newer,
    "newer, dynamic": lambda net, shape: newer(net, shape, dynamic=True),
}
# The newer exporter takes a second or more.
EXPORT_PARAMETERS = [
    pytest.param(name, marks=[pytest.mark.slow] if name.startswith("newer") else [])
    for name in EXPORTS
]


def assert_torch_s_step(
    net: nn.Module, model: onnx.ModelProto, shape: tuple[int, ...], *, flat_ones_too: bool = True
) -> None:
    """Compare at two batch sizes with the same graph.

    The norm over all gradients is that of torch however an exporter joined, turned or sorted the
    weights; those that kept name and shape are compared one by one. Without ``flat_ones_too``
    tensors whose values are all equal stay frozen.
    """
    forward = normalize_forward(model)
    tensors = {
        name: value
        for name, value in weights(forward).items()
        if flat_ones_too or np.ptp(value) > 0
    }
    training = derive_training_graph(
        forward, trainable=list(tensors), loss="cross_entropy", optimizer=Sgd(momentum=0.9)
    )
    trainer, user = session_of(training), session_of(forward)
    parameters = dict(net.named_parameters())
    generator = np.random.default_rng(4)
    for batch in (3, 7):
        x = generator.standard_normal((batch, *shape)).astype(np.float32)
        y = generator.integers(0, 4, batch)
        net.zero_grad()
        answer = net(torch.from_numpy(x))
        loss = nnf.cross_entropy(answer, torch.from_numpy(y))
        loss.backward()
        given = answer.detach().numpy()
        np.testing.assert_allclose(user.run(None, {"x": x})[0], given, rtol=1e-4, atol=1e-5)
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        feed = {"x": x, "y": y, "sample_weight": np.ones(batch, np.float32)}
        slots = {f"momentum/{name}": np.zeros_like(value) for name, value in tensors.items()}
        out = run(trainer, {**tensors, **slots, **feed, "lr": np.array(0.1, np.float32)})
        np.testing.assert_allclose(out["loss"], loss.item(), rtol=1e-4)
        np.testing.assert_allclose(out["grad_norm"], norm, rtol=2e-4)
        for name, value in tensors.items():
            gradient = parameters[name].grad if name in parameters else None
            if gradient is not None and gradient.shape == value.shape:
                np.testing.assert_allclose(
                    out[f"new/momentum/{name}"], gradient.numpy(), rtol=1e-3, atol=1e-5
                )
