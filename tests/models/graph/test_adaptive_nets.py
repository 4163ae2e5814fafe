"""Of the hundred nets those with batch norm: adaptive, they lose and move as torch's do."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hundred_nets import HUNDRED, built, exported, samples, targets
from sessions import session_of
from torch import nn
from torch_check import logits_of, loss_of

from models.graph.reading.forward_graph import normalize_forward, statistics, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd

BATCH = 5
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def norms_of(net: nn.Module) -> Iterator[nn.Module]:
    return (module for module in net.modules() if isinstance(module, NORMS))


WITH_NORMS = [name for name, brought in HUNDRED.items() if any(norms_of(built(brought)))]


def test_there_are_such_nets() -> None:
    assert len(WITH_NORMS) >= 8


@pytest.mark.parametrize("name", WITH_NORMS)
def test_a_step_has_torch_s_loss_gradient_and_statistics(name: str) -> None:
    brought = HUNDRED[name]._replace(folding=False)
    net = built(brought)
    forward = normalize_forward(exported(net, brought, dynamo=False, dynamic=True))
    x = samples(brought, BATCH)
    y = targets(brought, net(x))
    trained, running = list(weights(forward)), statistics(forward)
    assert len(running) == 2 * len(list(norms_of(net)))
    model = derive_training_graph(
        forward,
        trainable=trained,
        loss=brought.loss,
        optimizer=Sgd(momentum=0),
        y_dtype=y.dtype.name,
        y_shape=y.shape[1:],
        adaptive=list(running),
    )
    session = session_of(model)
    feed = {
        "x": x.numpy(),
        "y": y,
        "sample_weight": np.ones(BATCH, np.float32),
        "lr": np.array(0, np.float32),
        **weights(forward),
        **running,
    }
    names = [value.name for value in session.get_outputs()]
    out = dict(zip(names, session.run(names, feed), strict=True))

    before = {key: value.clone() for key, value in net.named_buffers()}
    learner = logits_of(net) if brought.loss != "mse" else net
    for module in norms_of(net):
        module.train()
    loss = loss_of(brought, learner(x), y)
    loss.backward()
    assert float(out["loss"]) == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    gradients = [p.grad.norm() for p in net.parameters() if p.grad is not None]
    assert float(out["grad_norm"]) == pytest.approx(torch.stack(gradients).norm().item(), rel=1e-3)
    after = dict(net.named_buffers())
    for own, value in running.items():
        (key,) = [k for k, v in before.items() if np.array_equal(v.numpy(), value)]
        np.testing.assert_allclose(out[f"new/{own}"], after[key].numpy(), rtol=1e-4, err_msg=key)
