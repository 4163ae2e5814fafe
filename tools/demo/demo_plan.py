"""What the command line asks of a demo, and the settings of its task."""

from pathlib import Path
from typing import NamedTuple

__all__ = ["BATCH", "SERVER_RATE", "DemoPlan"]

BATCH = 8  # of the devices: they have few samples


SERVER_RATE = 0.8  # below 1, because some updates come one release late


FOLD_AFTER_S = 5.0  # the server waits so long for the slowest of the devices, or longer


FOLD_PAUSE_S = 1.0  # between two folds; a real fleet has an hour


# One that is alone may have several updates waiting, each of them enough for a release: the server
# is stopped after the last round before the next one is due.
ALONE_PAUSE_S = 4.0


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
    compression: float
    dense: bool  # whether to learn again with dense updates, to compare
    quiet: bool
    json: bool

    @property
    def training(self) -> dict[str, float]:
        """The section [task.training]."""
        return {"epochs": self.epochs, "batch": BATCH, "learning_rate": self.learning_rate}

    @property
    def aggregation(self) -> dict[str, float]:
        """The section [task.aggregation]."""
        return {
            "updates": self.devices,
            "seconds": max(FOLD_AFTER_S, FOLD_AFTER_EACH_S * self.devices),
            "min_seconds": FOLD_PAUSE_S if self.devices > 1 else ALONE_PAUSE_S,
            "patience": 0,  # it is to make as many rounds as are asked for
            "learning_rate": SERVER_RATE,
        }
