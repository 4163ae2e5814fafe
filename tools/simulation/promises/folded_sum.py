"""Makes every fold of a simulated server once more, and compares the weights that came of it.

"Folded" is what a server says; that it added each update once, by its weight, and forgot nothing of
it over a restart shows in the parameters alone. What is computed here is the formula of the rule
``mean``, of the memories and of the optimizers (`formulas.py`, `server_memory.py`), from the
payloads as the devices' books have them; and the average, bit for bit. Laws L2, L3, L5 and L7.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np

from broker.config import FoldPolicy, TaskConfig
from models.errors import PayloadError
from models.protocol.manifest import Manifest, decode_manifest
from models.protocol.npz import read_vector
from models.task.params import Vector
from tools.simulation.machines.virtual_disk import Database, untouched
from tools.simulation.promises.formulas import (
    Doubles,
    Moments,
    average_by_formula,
    damping_by_formula,
    length,
)
from tools.simulation.promises.server_memory import ServerMemory
from tools.simulation.promises.share import Share

__all__ = ["FoldedSum"]

TOLERANCE = 1e-5  # of the length of a fold's step
ROUNDING = float(np.finfo(np.float32).eps)  # of the length of the parameters, which are float32


class FoldedSum:
    """x, p and a of `broker.folding.server_step`, from release to release, for one task."""

    def __init__(self, artifacts: Path, size: int, task: TaskConfig) -> None:
        self.worst = 0.0  # relative error of a step
        self._artifacts = artifacts
        self._size = size
        self._policy: FoldPolicy = task.aggregation
        self._moments = Moments(task.aggregation, size)
        self._memory = (
            ServerMemory(size, task.aggregation, task.learning)
            if task.learning.has_memory
            else None
        )
        self._release = 0
        self._folded: Vector | None = None  # x
        self._published: Vector | None = None  # p
        self._average: Vector | None = None  # a
        self._averaged = 0

    def begin_anew(self) -> None:
        """The server was set back: what it has now is where it starts from."""
        self._release, self._folded = 0, None
        self._moments.begin_anew()

    def forget(self, database: Database, devices: Sequence[str]) -> None:
        """The server forgot ``devices`` since the last fold, if that was committed."""
        if self._memory is not None:
            self._memory.forget(database, devices)

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
        manifest = decode_manifest(text)
        before = self._folded, self._published
        try:
            self._folded = self._read(digest)
            self._published = self._read(manifest.artifacts["parameters"].sha256)
            self._release = release
            if before[0] is None or before[1] is None:
                self._begin(database, manifest)
                return ""
            numbers = [n for (n,) in database.execute("SELECT number FROM releases")]
            wrong = self._compared(before[0], before[1], shares, numbers)
            # What the memories are says more than the step that came of them.
            wrong = self._look_at_memories(database) or wrong
            return wrong or self._look_at_average(manifest, before[1])
        except (OSError, PayloadError) as error:
            return f"what release {release} is made of is not what the registry names: {error}"

    def _begin(self, database: Database, manifest: Manifest) -> None:
        """Take what is there for what should be."""
        self._averaged = manifest.averaged
        self._average = None
        if manifest.averaged:
            self._average = self._read(manifest.artifacts["average"].sha256)
        if self._memory is not None:
            self._memory.begin_anew(database, self._read)

    def _compared(
        self, folded: Vector, published: Vector, shares: Sequence[Share], numbers: Sequence[int]
    ) -> str:
        """Compare the newest of the releases ``numbers`` with its parent's x and p: L5."""
        assert self._folded is not None
        assert self._published is not None
        step = np.zeros(self._size)
        if any(share.is_folded for share in shares):
            step = self._step([share for share in shares if share.is_folded], shares, numbers)
        size, gap = length(step), length(self._folded - (folded + step))
        if size:
            self.worst = max(self.worst, gap / size)
        if gap > TOLERANCE * size + ROUNDING * length(self._folded):
            moved = length(self._folded.astype(np.float64) - folded)
            return (
                f"release {self._release} is not its parent and {len(shares)} updates: it moved "
                f"by {moved:.3g}, they by {size:.3g}, and the two differ by {gap:.3g}"
            )
        owed = length(self._folded.astype(np.float64) - self._published)
        if size and owed and owed >= length(self._folded.astype(np.float64) - published):
            return f"release {self._release} is no nearer to what was folded than its parent"
        return ""

    def _step(
        self, folded: Sequence[Share], offered: Sequence[Share], numbers: Sequence[int]
    ) -> Doubles:
        """Return by how much ``folded`` move the parameters; the cap on a weight is all's.

        An update is as old as releases were made since its base: numbers that a restored server
        left out are no age.
        """
        policy = self._policy
        if self._memory is not None:
            step = self._memory.step(folded, offered, self._release)
            return self._moments.move(step, 1.0, self._memory.rate(len(folded)))
        total, weights, dampings = np.zeros(self._size), 0.0, []
        heaviest = policy.max_weight * median([share.samples for share in offered] or [1])
        for share in folded:
            weight = min(float(share.samples), heaviest)
            age = sum(share.base < number < self._release for number in numbers)
            dampings.append(damping_by_formula(age, policy))
            total += share.delta * (weight * dampings[-1])
            weights += weight
        usual = 0.01 if policy.optimizer in ("adam", "yogi") else 1.0
        rate = usual if policy.learning_rate == "auto" else policy.learning_rate
        return self._moments.move(total / (weights or 1.0), fmean(dampings), rate)

    def _look_at_memories(self, database: Database) -> str:
        """L2 and L3."""
        if self._memory is None:
            return ""
        (text,) = database.execute("SELECT state FROM server_state").fetchone()
        return self._memory.look(database, self._read, self._read_sum, json.loads(text))

    def _look_at_average(self, manifest: Manifest, published: Vector) -> str:
        """L7: the average moves when p does, and then as the formula says, bit for bit."""
        assert self._published is not None
        decay = manifest.plan.average
        if not decay:
            return ""
        if not np.array_equal(published, self._published):
            self._averaged += 1
            self._average = average_by_formula(
                self._average, self._published, self._averaged, decay
            )
        if manifest.averaged != self._averaged:
            return (
                f"release {manifest.release} says that its average was moved "
                f"{manifest.averaged} times, {self._averaged} were due"
            )
        if self._averaged:
            assert self._average is not None
            found = self._read(manifest.artifacts["average"].sha256)
            if found.tobytes() != self._average.tobytes():
                gap = length(found - self._average)
                return f"the average of release {manifest.release} is {gap:.3g} off its formula"
        return ""

    def _read(self, sha256: str) -> Vector:
        return read_vector(self._content(sha256), size=self._size)

    def _read_sum(self, sha256: str) -> Doubles:
        with np.load(io.BytesIO(self._content(sha256)), allow_pickle=False) as arrays:
            found: Doubles = arrays["remembered"]
        return found

    def _content(self, sha256: str) -> bytes:
        with untouched():
            data = (self._artifacts / sha256).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise PayloadError("damaged")
        return data
