"""What a simulated fleet really learns: a bundle and data, with the trainer's own code, in process.

Each device gets its share of the training rows, in files that arrive over the time that is played;
it takes them in, trains with train.onnx and codes with the product's codec, exactly as on a board.
The server measures every release on the test rows. Only the clock is not the machine's: a step
takes what the board of the settings says.
"""

import contextlib
import io
import math
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from broker.releases.hold_out import Evaluator, HoldOut
from models.codec.payload import decompress
from models.errors import UsageError
from models.learning.measurement import evaluate_each
from models.learning.scoring import Score
from models.learning.training_loop import train
from models.samples.sample_check import samples_of
from models.task.bundle import read_bundle
from models.task.params import Vector
from tools.author.data.datasets import load_dataset
from tools.author.data.device_split import split_devices
from tools.author.data.targets import fitted_to
from tools.simulation.learning.light_learning import Learned, carry_out
from tools.simulation.scenario.fleet_settings import Settings

__all__ = ["RealLearning"]

MOST_FILES = 50  # that a device gets over the whole time
SMALLEST_FILE = 8  # samples


class RealLearning:
    """`Learning` for real.

    Raises:
        UsageError: no bundle, no data, or the two do not fit.
    """

    def __init__(self, settings: Settings, *, seed: int) -> None:
        if not settings.data:
            raise UsageError(f"--task {settings.task} needs --data: an npz, or a built-in name")
        self.bundle = read_bundle(Path(settings.task))
        data = fitted_to(load_dataset(settings.data), self.bundle.spec)
        x, y = samples_of(self.bundle.spec, data.x, data.y)
        data = data._replace(x=x, y=y)
        alpha = 0.3
        if settings.split != "user":
            kind, _, share = settings.split.partition(":")
            try:
                alpha = float(share or alpha)
            except ValueError:
                alpha = 0.0
            if kind != "dirichlet" or not alpha > 0:
                raise UsageError(f"--split {settings.split}: user, or dirichlet:ALPHA (0.3)")
            data = data._replace(user=None)
        parts = split_devices(data, settings.devices, seed=seed, alpha=alpha)
        self._rows = [np.concatenate([part.train, part.holdout]) for part in parts]
        for number, rows in enumerate(self._rows):  # the intake holds out the last of each file
            np.random.default_rng([seed, number]).shuffle(rows)
        self._x, self._y = data.x, data.y
        self._files = max(1, math.ceil(settings.hours * 3600 / settings.sample_every_s))
        self._ms_per_step = settings.board.step_ms
        test = data.test_rows
        self._evaluator = Evaluator(
            self.bundle.infer,
            self.bundle.spec,
            HoldOut(x[test], y[test]),
        )

    def codec(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def samples(self, device: int, number: int) -> bytes | None:
        """Return the next of equal shares of the device's rows."""
        rows = self._rows[device]
        files = max(1, min(self._files, MOST_FILES, len(rows) // SMALLEST_FILE))
        if number >= files:
            return None
        chosen = np.array_split(rows, files)[number]
        file = io.BytesIO()
        np.savez(file, x=self._x[chosen], y=self._y[chosen])
        return file.getvalue()

    def train(self, device: int, job: Path, learned: Learned) -> None:
        carry_out(job, train, evaluate_each, learned, ms_per_step=self._ms_per_step)

    def evaluate(self, parameters: Vector) -> Score:
        return self._evaluator(parameters)

    def decompress(self, payload: bytes, *, context: Vector | None) -> Vector:
        return decompress(payload, self.bundle.spec.shared, context=context)
