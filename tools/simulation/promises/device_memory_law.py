"""What a device carries with a memory, followed from update to update: laws L1 and L4.

(L1) Its h is the server's, bit for bit, while nothing of it is unanswered; while one update is, the
server's is that, or what the device will carry once its receipt has come. One that began anew is
zeros on one side until its next update is folded. (L4) gd-sec: what is owed and the sum of what was
folded are the sum of what the folded trainings wanted beyond the memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from models.codec.feedback import history_digest
from models.task.params import Vector
from tools.simulation.machines.virtual_disk import Database
from tools.simulation.promises.formulas import Doubles, length

__all__ = ["DeviceMemoryLaw"]

TOLERANCE = 1e-5  # of all that the folded trainings wanted
Read = Callable[[str], Vector]  # a file of ``codec/``


class _Said(NamedTuple):
    """An update that waits for its answer."""

    delta: Doubles  # d
    history: Doubles  # h, when it was made
    said: Vector  # c
    next_history: str  # the file that is h once it is folded


class DeviceMemoryLaw:
    """Of one device."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: dict[int, _Said] = {}
        self._due: Doubles = np.zeros(size)  # sum of d - h over what was folded
        self._folded: Doubles = np.zeros(size)  # sum of c
        self._scale = 1e-9
        self.is_broken_off = False  # its files were damaged, or it was given a new outbox

    def committed(
        self,
        seq: int,
        delta: Vector,
        said: Vector,
        history: str | None,
        next_history: str,
        read: Read,
    ) -> None:
        """A training was committed, and its update waits as ``seq``."""
        known = _readable(history, read)
        before = np.zeros(self._size) if known is None else known.astype(np.float64)
        self._waiting[seq] = _Said(delta.astype(np.float64), before, said, next_history)

    def look(self, database: Database, remembered: int | None, read: Read, *, owes: bool) -> str:
        """Return what is wrong with what the device carries; ``remembered``: the server's digest.

        ``owes``: whether the method keeps what a payload leaves out. ``remembered`` None: the
        server cannot be asked, or was set back.

        Raises:
            OSError, PayloadError: a file that the outbox names cannot be read.
        """
        history, residual = database.execute("SELECT history, residual FROM codec").fetchone()
        rows = database.execute("SELECT seq, state, next_history FROM updates").fetchall()
        here = {seq for seq, _, _ in rows}
        for seq in [seq for seq in self._waiting if seq not in here]:
            gone = self._waiting.pop(seq)
            if history == gone.next_history:
                self._due += gone.delta - gone.history
                self._folded += gone.said
                self._scale += length(gone.delta) + length(gone.history)
        unanswered = [name for _, state, name in rows if state != "queued" and name is not None]
        if len(unanswered) > 1:
            return f"{len(unanswered)} updates against one memory are unanswered"
        own = history_digest(_readable(history, read))
        if remembered and own:
            allowed = {own, *(history_digest(_readable(name, read)) for name in unanswered)}
            if remembered not in allowed:
                return f"its memory {own:08x} is not the server's, {remembered:08x}"
        if owes:
            owed = np.zeros(self._size) if residual is None else read(residual)
            gap = length(owed + self._folded - self._due)
            if gap > TOLERANCE * self._scale and not self.is_broken_off:
                return f"owed and folded differ from what was wanted by {gap / self._scale:.2g}"
        return ""


def _readable(name: str | None, read: Read) -> Vector | None:
    """Return a memory; None for zeros, which is what one that a bad block took counts for."""
    try:
        return read(name) if name else None
    except FileNotFoundError:
        return None
