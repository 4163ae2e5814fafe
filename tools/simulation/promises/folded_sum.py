"""Makes every fold of a simulated server once more, and compares the weights that came of it.

"Folded" is what a server says; that it added each update once, by its weight, and forgot nothing of
it over a restart shows in the parameters alone. What is computed here is the formula of
`aggregation_rules.py` for the rule ``mean``, from the payloads as the devices' books have them.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from broker.config import FoldPolicy
from models.errors import PayloadError
from models.protocol.manifest import decode_manifest
from models.protocol.npz import read_vector
from models.task.params import Vector
from tools.simulation.machines.virtual_disk import Database, untouched

__all__ = ["FoldedSum", "Share", "damping_by_formula"]

TOLERANCE = 1e-5  # of the length of a fold's step
ROUNDING = float(np.finfo(np.float32).eps)  # of the length of the parameters, which are float32


class Share(NamedTuple):
    """What one update brings to a fold, as its device had it."""

    delta: Vector
    base: int  # release
    samples: int
    is_folded: bool  # else it was refused in that fold


class FoldedSum:
    """x and p of `broker.releases.release_patches`, from release to release, for one task."""

    def __init__(self, artifacts: Path, size: int, policy: FoldPolicy) -> None:
        self.worst = 0.0  # relative error of a step
        self._artifacts = artifacts
        self._size = size
        self._policy = policy
        self._release = 0
        self._folded: Vector | None = None  # x
        self._published: Vector | None = None  # p

    def begin_anew(self) -> None:
        """The server was set back: what it has now is where it starts from."""
        self._release, self._folded = 0, None

    def look(self, database: Database, shares: Sequence[Share]) -> str:
        """Return what is wrong with the newest release, in which ``shares`` were settled; or ""."""
        row = database.execute("SELECT release, sha256 FROM folded").fetchone()
        if row is None:
            return ""
        release, digest = row
        if release == self._release:
            folded = sum(share.is_folded for share in shares)
            return f"{folded} updates are folded, and there is no release of them" * bool(folded)
        (text,) = database.execute(
            "SELECT manifest FROM releases WHERE number = ?", (release,)
        ).fetchone()
        before = self._folded, self._published
        try:
            self._folded = self._read(digest)
            self._published = self._read(decode_manifest(text).artifacts["parameters"].sha256)
        except (OSError, PayloadError) as error:
            return f"the parameters of release {release} are not what the registry names: {error}"
        self._release = release
        if before[0] is None or before[1] is None:
            return ""
        numbers = [n for (n,) in database.execute("SELECT number FROM releases")]
        return self._compared(before[0], before[1], shares, numbers)

    def _compared(
        self, folded: Vector, published: Vector, shares: Sequence[Share], numbers: Sequence[int]
    ) -> str:
        """Compare the newest of the releases ``numbers`` with its parent's x and p."""
        assert self._folded is not None
        assert self._published is not None
        step = self._step([share for share in shares if share.is_folded], shares, numbers)
        length, gap = _length(step), _length(self._folded - (folded + step))
        if length:
            self.worst = max(self.worst, gap / length)
        if gap > TOLERANCE * length + ROUNDING * _length(self._folded):
            moved = _length(self._folded.astype(np.float64) - folded)
            return (
                f"release {self._release} is not its parent and {len(shares)} updates: it moved "
                f"by {moved:.3g}, they by {length:.3g}, and the two differ by {gap:.3g}"
            )
        owed = _length(self._folded.astype(np.float64) - self._published)
        if length and owed and owed >= _length(self._folded.astype(np.float64) - published):
            return f"release {self._release} is no nearer to what was folded than its parent"
        return ""

    def _step(
        self, folded: Sequence[Share], offered: Sequence[Share], numbers: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """Return by how much ``folded`` move the parameters; the cap on a weight is all's.

        An update is as old as releases were made since its base: numbers that a restored server
        left out are no age.
        """
        policy, total, weights = self._policy, np.zeros(self._size), 0.0
        heaviest = policy.max_weight * median([share.samples for share in offered] or [1])
        for share in folded:
            weight = min(float(share.samples), heaviest)
            age = sum(share.base < number < self._release for number in numbers)
            total += share.delta * (weight * damping_by_formula(age, policy))
            weights += weight
        rate = 1.0 if policy.learning_rate == "auto" else policy.learning_rate
        return rate * total / (weights or 1.0)

    def _read(self, sha256: str) -> Vector:
        with untouched():
            data = (self._artifacts / sha256).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise PayloadError("damaged")
        return read_vector(data, size=self._size)


def _length(vector: npt.NDArray[np.floating]) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))


def damping_by_formula(age: int, policy: FoldPolicy) -> float:
    """Return by how much an update ``age`` releases old counts, as docs/server.md has it."""
    if policy.staleness == "constant":
        return 1.0
    if policy.staleness == "polynomial":
        return math.exp(-policy.staleness_exponent * math.log1p(age))
    if policy.staleness == "hinge":
        late = age - policy.staleness_after
        return 1.0 if late <= 0 else 1.0 / (policy.staleness_slope * late + 1.0)
    return math.exp2(-age / policy.half_life)
