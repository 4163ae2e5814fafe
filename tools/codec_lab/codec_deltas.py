"""Real deltas for `edgefold bench codec`: federated fine-tuning on non-IID data, recorded.

Author side (torch). See `Round` for what a file holds.
``base/<name>``, ``d<i>/<name>`` for each device of the round, ``own<i>/<name>`` (what the same
device sent the last time, zeros if never) and ``prev/<name>`` (the previous aggregate).
"""

import gzip
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.errors import UsageError
from models.nets.har_cnn import har_cnn
from models.task.params import Vector
from models.task.spec import Role, TensorSpec
from tools.author.data.built_in_data import read_digits
from tools.codec_lab import codec_inertial as inertial

__all__ = [
    "SCENARIOS",
    "Data",
    "Federation",
    "Round",
    "Scenario",
    "cnn",
    "digits",
    "fashion_mnist",
    "har",
    "make",
    "mlp",
    "read_round",
    "rounds",
    "synthetic_inertial",
    "write_round",
]

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Data(NamedTuple):
    """Samples as float32 and their labels."""

    x: Floats
    y: Labels
    test_x: Floats
    test_y: Labels
    user: Labels | None = None  # whose samples x are: devices are users; None: dealt by class


class Scenario(NamedTuple):
    """One federated run: who learns what, how."""

    net: Callable[[], nn.Module]
    data: Callable[[], Data]
    images: int  # of the training set, over all devices
    devices: int
    per_round: int
    epochs: int
    learning_rate: float
    batch: int = 32


def cnn() -> nn.Module:
    """421,642 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    """17,226 parameters."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def fashion_mnist() -> Data:
    """Read Debian's copy of Fashion-MNIST.

    Raises:
        UsageError: it is not installed.
    """

    def read(name: str, offset: int) -> npt.NDArray[np.uint8]:
        path = FASHION / name
        if not path.exists():
            raise UsageError(f"{path} is missing: apt install dataset-fashion-mnist")
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset)

    def images(name: str) -> Floats:
        return (read(name, 16).reshape(-1, 1, 28, 28) / np.float32(255)).astype(np.float32)

    return Data(
        images("train-images-idx3-ubyte.gz"),
        read("train-labels-idx1-ubyte.gz", 8).astype(np.int64),
        images("t10k-images-idx3-ubyte.gz"),
        read("t10k-labels-idx1-ubyte.gz", 8).astype(np.int64),
    )


def digits() -> Data:
    """Return scikit-learn's handwritten digits, the last 400 for testing."""
    levels, labels = read_digits()
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = (levels.reshape(-1, 64)[order] / 16).astype(np.float32), labels[order]
    return Data(x[:-400], y[:-400], x[-400:], y[-400:])


def har() -> nn.Module:
    """24,518 parameters."""
    return har_cnn((9, inertial.SAMPLES), len(inertial.ACTIVITIES))


def synthetic_inertial() -> Data:
    """Return windows of 24 users to learn from and of 6 others to test on. Not real recordings."""
    known = inertial.inertial_windows(24, 400, seed=0)
    others = inertial.inertial_windows(6, 200, seed=1)
    return Data(known.x, known.y, others.x, others.y, known.user)


SCENARIOS = {
    "fm_e1": Scenario(cnn, fashion_mnist, 60_000, 20, 5, 1, 0.02),
    "fm_e5": Scenario(cnn, fashion_mnist, 16_000, 20, 5, 5, 0.02),
    "fm_small": Scenario(cnn, fashion_mnist, 16_000, 20, 5, 1, 0.02),
    "har_e1": Scenario(har, synthetic_inertial, 9600, 24, 5, 1, 0.05, 16),
    "har_e5": Scenario(har, synthetic_inertial, 9600, 24, 5, 5, 0.05, 16),
    "digits_e1": Scenario(mlp, digits, 1397, 10, 5, 1, 0.1, batch=16),
    "digits_e5": Scenario(mlp, digits, 1397, 10, 5, 5, 0.1, batch=16),
}


class Federation:
    """Devices and the training of one of them.

    Each has the samples of one user where the data know users, else Dirichlet(0.3) shares of the
    classes.
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        torch.manual_seed(seed)
        self._scenario = scenario
        self.rng = np.random.default_rng(seed)
        data = scenario.data()
        chosen = self.rng.permutation(len(data.y))[: scenario.images]
        self._x, self._y = torch.from_numpy(data.x[chosen]), torch.from_numpy(data.y[chosen])
        self._test_x, self._test_y = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
        self.homes = (
            _dirichlet(data.y[chosen], scenario.devices, self.rng)
            if data.user is None
            else [np.flatnonzero(data.user[chosen] == user) for user in range(scenario.devices)]
        )
        self._net = scenario.net()
        self._tensors = list(self._net.parameters())
        self.specs = tuple(
            TensorSpec(name, tuple(tensor.shape), Role.SHARED)
            for name, tensor in self._net.named_parameters()
        )
        self.start: Vector = self._read()

    def draw(self) -> list[int]:
        """Return the devices of the next round."""
        drawn = self.rng.choice(self._scenario.devices, self._scenario.per_round, replace=False)
        return [int(device) for device in drawn]

    def train(self, parameters: Vector, device: int) -> Vector:
        """Return the delta after local epochs of SGD (momentum 0.9)."""
        self._write(parameters)
        optimizer = torch.optim.SGD(self._tensors, lr=self._scenario.learning_rate, momentum=0.9)
        home = self.homes[device]
        for _ in range(self._scenario.epochs):
            shuffled = self.rng.permutation(home)
            batches = math.ceil(len(home) / self._scenario.batch)
            for batch in np.array_split(shuffled, batches):
                loss = nn.functional.cross_entropy(self._net(self._x[batch]), self._y[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return self._read() - parameters

    def accuracy(self, parameters: Vector, most: int = 10_000) -> float:
        """Return the share of right answers on (at most ``most``) test images."""
        self._write(parameters)
        with torch.no_grad():
            answers = torch.cat([self._net(x) for x in torch.split(self._test_x[:most], 500)])
        return float((answers.argmax(1) == self._test_y[:most]).float().mean())

    def _read(self) -> Vector:
        with torch.no_grad():
            flat: Vector = torch.cat([t.reshape(-1) for t in self._tensors]).numpy().copy()
        return flat

    def _write(self, parameters: Vector) -> None:
        with torch.no_grad():
            values = torch.from_numpy(parameters.copy())
            for tensor, part in zip(
                self._tensors, torch.split(values, [t.numel() for t in self._tensors]), strict=True
            ):
                tensor.copy_(part.reshape(tensor.shape))


class Round(NamedTuple):
    """What one round of federated averaging recorded."""

    number: int
    base: Vector
    deltas: list[Vector]
    own: list[Vector]  # the last delta of the same devices before
    previous: Vector  # the last aggregate before


def rounds(federation: Federation, count: int) -> Iterator[Round]:
    """Run federated averaging without compression."""
    base, previous = federation.start, np.zeros_like(federation.start)
    last: dict[int, Vector] = {}
    for number in range(1, count + 1):
        devices = federation.draw()
        deltas = [federation.train(base, device) for device in devices]
        own = [last.get(device, np.zeros_like(base)) for device in devices]
        yield Round(number, base, deltas, own, previous)
        last |= zip(devices, deltas, strict=True)
        sizes = [len(federation.homes[device]) for device in devices]
        previous = np.average(deltas, axis=0, weights=sizes).astype(np.float32)
        base = base + previous


def make(directory: Path, names: list[str], *, keep: tuple[int, ...] = (1, 20)) -> None:
    """Write the rounds ``keep`` of the scenarios ``names`` as ``<name>_r<round>.npz``."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        federation = Federation(SCENARIOS[name], seed=1)
        for one in rounds(federation, max(keep)):
            if one.number in keep:
                write_round(directory / f"{name}_r{one.number:02}.npz", federation.specs, one)


def write_round(path: Path, specs: tuple[TensorSpec, ...], one: Round) -> None:
    """Write what a round recorded: flat vectors, and the shapes that they have."""
    arrays: dict[str, Any] = {"base": one.base, "previous": one.previous}
    arrays |= {f"shape/{spec.name}": np.array(spec.shape, np.int64) for spec in specs}
    for index, (delta, own) in enumerate(zip(one.deltas, one.own, strict=True)):
        arrays |= {f"delta/{index}": delta, f"own/{index}": own}
    np.savez(path, **arrays)


def read_round(path: Path) -> tuple[tuple[TensorSpec, ...], Round]:
    """Read what `write_round` wrote.

    Raises:
        UsageError: the file is not there or not one of those.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            specs = tuple(
                TensorSpec(name[6:], tuple(int(n) for n in file[name]), Role.SHARED)
                for name in file.files
                if name.startswith("shape/")
            )
            devices = range(sum(name.startswith("delta/") for name in file.files))
            number = int(path.stem.rpartition("_r")[2])
            return specs, Round(
                number,
                file["base"],
                [file[f"delta/{i}"] for i in devices],
                [file[f"own/{i}"] for i in devices],
                file["previous"],
            )
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is no recorded round: {error}") from None


def _dirichlet(
    labels: Labels, devices: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Return who has which samples: shares of each class drawn from Dirichlet(0.3)."""
    homes: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet([0.3] * devices)
        cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for home, part in zip(homes, np.split(members, cuts), strict=True):
            home.append(part)
    return [np.sort(np.concatenate(home)) for home in homes]
