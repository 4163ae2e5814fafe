"""The peers' local job in torch: the nets of the zoo that are compared, and one client's training.

Plain torch, as a user of these frameworks writes it; the state's names are those of our tensors.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tools.bench.peers.programs.peer_notes import Job

__all__ = ["NETS", "build", "learn"]


def cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


NETS = {"cnn": cnn}


def build(job: Job, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the net with the parameters ``state``."""
    net = NETS[job.net](job.input_shape, job.classes)
    net.load_state_dict(dict(state))
    return net


def learn(job: Job, net: nn.Module, x: Any, y: Any, *, seed: int) -> float:
    """Train ``net`` on ``x`` (uint8) and the labels ``y``; return the last epoch's mean loss."""
    inputs = torch.from_numpy(x).reshape(len(y), *job.input_shape).float() / 255
    labels = torch.from_numpy(y).long()
    optimizer = torch.optim.SGD(net.parameters(), lr=job.learning_rate, momentum=job.momentum)
    random = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(job.epochs):
        total = 0.0
        for rows in torch.randperm(len(y), generator=random).split(job.batch):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(rows)
    return total / len(y)
