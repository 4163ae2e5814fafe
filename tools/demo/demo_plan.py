"""What the command line asks of a demo, and the settings of its task."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from broker.config import TaskConfig
from tools.simulation.scenario.policy import with_policy

__all__ = ["BATCH", "FIRST_SHARE", "HOLDOUT", "SERVER_RATE", "DemoPlan"]

BATCH = 8  # of the devices: they have few samples


SERVER_RATE = 0.8  # below 1, because some updates come one release late


HOLDOUT = 0.15  # of a device's samples, kept from it, to measure with


FIRST_SHARE = 0.6  # of its samples, there from the start; the rest arrives while it runs


SMALLEST_UPDATE = 200  # bytes


# Bytes of an update for each root of the number of parameters: 1 kB for the digits' mlp, where half
# of that costs 3 points in 12 rounds, and 5 kB for cnn, where five times as many gain nothing.
UPDATE_PER_ROOT = 8.0


FOLD_AFTER_S = 5.0  # the server waits so long for the slowest of the devices, or longer


# Where nothing goes wrong on purpose, every device comes, and the server waits for all of them.
FOLD_WITH_ALL_S = 3600.0


FOLD_PAUSE_S = 1.0  # between two folds; a real fleet has an hour


# One that is alone may have several updates waiting, each of them enough for a release: the server
# is stopped after the last round before the next one is due.
ALONE_PAUSE_S = 4.0


# An average of ten releases lags behind a dozen that each gain much: 4 points with the defaults.
# Dense updates, and other frameworks, are compared with what is averaged no more than they are.
NO_AVERAGE = 0.0


FOLD_AFTER_EACH_S = 0.7  # for each, since many take turns on the cores of one machine


class DemoPlan(NamedTuple):
    """What the command line asks for."""

    data: str
    net: str
    devices: int
    rounds: int
    broker: str
    report: Path
    picture: Path
    keep: Path | None
    seed: int
    samples: int | None
    epochs: float
    learning_rate: float
    compression: float | None  # float32 bytes over those of an update; None: `UPDATE_PER_ROOT`
    dense: bool  # whether to learn again with dense updates, to compare
    quiet: bool
    json: bool
    batch: int = BATCH
    server_rate: float = SERVER_RATE
    holdout: float | None = None  # of a device's samples; None: `HOLDOUT`, and the agent's default
    first_share: float = FIRST_SHARE
    troubles: bool = True  # whether something goes wrong on purpose; without, a fold waits for all
    policy: tuple[tuple[str, Any], ...] = ()  # settings of [[task]] in the place of the demo's own

    @property
    def training(self) -> dict[str, float]:
        """The section [task.training]."""
        return {"epochs": self.epochs, "batch": self.batch, "learning_rate": self.learning_rate}

    @property
    def aggregation(self) -> dict[str, float]:
        """The section [task.aggregation]."""
        return {
            "updates": self.devices,
            "seconds": max(FOLD_AFTER_S, FOLD_AFTER_EACH_S * self.devices)
            if self.troubles
            else FOLD_WITH_ALL_S,
            "min_seconds": FOLD_PAUSE_S if self.devices > 1 else ALONE_PAUSE_S,
            "patience": 0,  # it is to make as many rounds as are asked for
            "learning_rate": self.server_rate,
        }

    def task(self, parameters: int) -> TaskConfig:
        """Return the section ``[[task]]`` for a net of so many ``parameters``, without its files.

        Raises:
            UsageError: a setting of ``policy`` that does not go with the others.
        """
        values = {
            "bundle": "",
            "releases": self.rounds + 1,  # the first one is what they start from
            "aggregation": self.aggregation,
            "training": self.training,
            "codec": {"bytes": self.update_bytes(parameters)},
            "learning": {"average": NO_AVERAGE},
        }
        return with_policy(msgspec.convert(values, TaskConfig), self.policy)

    def update_bytes(self, parameters: int) -> int:
        """Return how many bytes an update of so many parameters may have."""
        if self.compression is None:
            return max(SMALLEST_UPDATE, int(UPDATE_PER_ROOT * math.sqrt(parameters)))
        return max(SMALLEST_UPDATE, int(4 * parameters / self.compression))
