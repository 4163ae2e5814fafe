"""What a server remembers of devices, followed from fold to fold: laws L2, L3 and its part of L5.

docs/reliability.md has them: (L2) a memory is beta times what was decoded and folded since it
began; (L3) S is the sum of n h over the memories that there are; (L5) the step is the formula's.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from broker.config import FoldPolicy
from broker.learning_policy import LearningPolicy
from models.task.params import Vector
from tools.simulation.machines.virtual_disk import Database
from tools.simulation.promises.formulas import Doubles, length
from tools.simulation.promises.share import Share

__all__ = ["Kept", "ServerMemory"]

TOLERANCE = 1e-5  # of all that was said: float32
EXACT = 1e-9  # of the sum of the lengths: float64


class Kept(NamedTuple):
    """A memory as the formula has it."""

    history: Doubles
    samples: float
    said: float  # lengths of all that is in it
    release: int  # that its last update was folded into


class _Row(NamedTuple):
    """One of the registry's."""

    device: str
    sha256: str
    samples: float
    release: int


class ServerMemory:
    """The memories of all devices of one task."""

    def __init__(self, size: int, policy: FoldPolicy, learning: LearningPolicy) -> None:
        self._size = size
        self._policy = policy
        self._learning = learning
        self._kept: dict[str, Kept] = {}

    @property
    def devices(self) -> int:
        return len(self._kept)

    @property
    def beta(self) -> float:
        return {"memory": 1.0, "gd-sec": self._learning.beta}[self._learning.feedback]

    def begin_anew(self, database: Database, read: Callable[[str], Vector]) -> None:
        """Take what the server has for what it should have: it was set back."""
        self._kept = {
            row.device: Kept(
                read(row.sha256).astype(np.float64),
                row.samples,
                length(read(row.sha256)),
                row.release,
            )
            for row in _rows(database)
        }

    def forget(self, database: Database, devices: Sequence[str]) -> None:
        """Forget ``devices``, but for those whose memory is still there as it was."""
        rows = {row.device: row.release for row in _rows(database)}
        for device in devices:
            kept = self._kept.get(device)
            if kept is not None and rows.get(device) != kept.release:
                del self._kept[device]

    def step(self, folded: Sequence[Share], offered: Sequence[Share], release: int) -> Doubles:
        """Return the step of a fold of ``folded`` into ``release``; remember them."""
        middle = median([share.samples for share in offered] or [1])
        usual = median([kept.samples for kept in self._kept.values()] or [0.0]) or middle
        fresh = np.zeros(self._size)  # gd-sec: what the step has beyond S
        for share in folded:
            before = self._kept.get(share.device)
            samples = min(float(share.samples), self._policy.max_weight * usual)
            said = share.delta.astype(np.float64)
            base, lengths = np.zeros(self._size), 0.0
            if share.memory and before is not None:
                base, lengths = before.history, before.said
            history = base + self.beta * said
            self._kept[share.device] = Kept(history, samples, lengths + length(said), release)
            if self._learning.feedback == "gd-sec":
                fresh += samples * (base + said - history)
        total = sum((kept.samples * kept.history for kept in self._kept.values()), fresh)
        weight = sum(kept.samples for kept in self._kept.values())
        step: Doubles = total / (weight or 1.0)
        return step

    def rate(self, folded: int) -> float:
        """Return the rate of the step of ``folded`` updates."""
        policy = self._policy
        if policy.learning_rate != "auto":
            return policy.learning_rate
        if policy.optimizer in ("adam", "yogi"):
            return 0.01
        return 1.0 if policy.updates == "all" else min(1.0, 3.0 * folded / max(self.devices, 1))

    def look(
        self,
        database: Database,
        read: Callable[[str], Vector],
        read_sum: Callable[[str], Doubles],
        state: dict[str, object],
    ) -> str:
        """Return what is wrong with the memories behind the newest release, whose ``state`` it is.

        Devices that were forgotten are forgotten here too.
        """
        rows = {row.device: row for row in _rows(database)}
        self._kept = {device: kept for device, kept in self._kept.items() if device in rows}
        total, lengths = np.zeros(self._size), 0.0
        for device, row in rows.items():
            found, kept = read(row.sha256), self._kept.get(device)
            if kept is None:
                return f"{device} is remembered, and nothing was folded of it"
            gap = length(found - kept.history)
            if gap > TOLERANCE * max(kept.said, 1e-9):
                return f"the memory of {device} is {gap:.3g} off beta times what was folded of it"
            total += row.samples * found.astype(np.float64)
            lengths += row.samples * length(found)
        if state.get("devices", 0) != len(rows):
            return ""  # an operator has forgotten one since: the next fold sums anew
        named = state.get("remembered")
        if not isinstance(named, dict):
            return "" if not rows else "memories, and no sum of them"
        gap = length(read_sum(str(named["sha256"])) - total)
        if gap > EXACT * max(lengths, 1e-9):
            return f"the sum of memories is {gap:.3g} off the memories that there are"
        return ""


def _rows(database: Database) -> list[_Row]:
    rows = database.execute("SELECT device, sha256, samples, release FROM memories ORDER BY device")
    return [_Row(*row) for row in rows]
