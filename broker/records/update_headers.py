"""What the headers of updates say that are still here: of the last hundred thousand or so."""

from typing import NamedTuple

from broker.records.registry import Registry
from broker.records.update_key import UpdateKey
from models.protocol.update import Extras, decode_extras
from models.protocol.update_life import ReceiptState

__all__ = ["FoldedUpdate", "Reported", "UpdateHeaders"]


class FoldedUpdate(NamedTuple):
    """An update that a release has."""

    key: UpdateKey
    base: int
    samples: int
    release: int


class Reported(NamedTuple):
    """What the newest update of a device says of itself."""

    received: float  # Unix seconds
    extras: Extras


class UpdateHeaders:
    """Reads the table updates of one registry; `UpdateRecords` writes it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def folded(self, task: str) -> list[FoldedUpdate]:
        """Return the folded updates of ``task`` whose headers are still here, as they came."""
        rows = self._registry.query(
            "SELECT base, samples, release, device, installation, sequence FROM updates "
            f"WHERE task = ? AND state = '{ReceiptState.FOLDED}' ORDER BY id",
            task,
        )
        return [
            FoldedUpdate(UpdateKey(*key), base, samples, release)
            for base, samples, release, *key in rows
        ]

    def reports(self, task: str) -> dict[str, Reported]:
        """Return the newest extras of each device of ``task`` that sends any, by device."""
        rows = self._registry.query(
            "SELECT device, received, extras FROM device_reports WHERE task = ?", task
        )
        return {device: Reported(received, decode_extras(data)) for device, received, data in rows}

    def steps(self, task: str) -> tuple[float, int, int] | None:
        """Return the mean, least and most local steps behind the last fold; None: there is none."""
        rows = self._registry.query(
            "SELECT AVG(steps), MIN(steps), MAX(steps) FROM updates WHERE task = ?1 AND release = "
            "(SELECT number FROM releases WHERE task = ?1 AND updates > 0 "
            f"ORDER BY number DESC LIMIT 1) AND state = '{ReceiptState.FOLDED}'",
            task,
        )
        mean, least, most = rows[0]
        return None if mean is None else (mean, least, most)

    def resets(self, task: str, since: float) -> int:
        """Return how many updates that came after ``since`` (Unix seconds) met another memory."""
        rows = self._registry.query(
            "SELECT COUNT(*) FROM extras JOIN updates USING (id) "
            "WHERE reset = 1 AND task = ? AND received > ?",
            task,
            since,
        )
        return int(rows[0][0])

    def last_received(self) -> dict[str, float]:
        """Return when the last update came whose header is still here (Unix seconds), by device."""
        return dict(
            self._registry.query("SELECT device, MAX(received) FROM updates GROUP BY device")
        )

    def local_scores(self, task: str, *, since: int) -> dict[int, tuple[float | None, float]]:
        """Return what devices measured of each release from ``since`` on: accuracy and loss.

        Of the updates that were trained on it and whose headers are still here, weighted by
        samples: the accuracy on their own hold-outs, None where none has one, and the training
        loss before the training. A refused one says nothing: its header may be nonsense.
        """
        rows = self._registry.query(
            "SELECT base, SUM(accuracy * samples) / TOTAL(CASE WHEN accuracy IS NULL THEN 0 ELSE "
            "samples END), SUM(loss_first * samples) / TOTAL(samples) FROM updates "
            f"WHERE task = ? AND base >= ? AND state != '{ReceiptState.REFUSED}' GROUP BY base",
            task,
            since,
        )
        return {base: (accuracy, loss) for base, accuracy, loss in rows}

    def local_accuracies(self, task: str) -> dict[int, tuple[float | None, int]]:
        """Return what devices measured of each release on their own hold-outs, and how many did.

        The mean is weighted by samples, over the updates whose headers are still here.
        """
        rows = self._registry.query(
            "SELECT base, SUM(accuracy * samples) / SUM(samples), COUNT(*) FROM updates "
            "WHERE task = ? AND accuracy IS NOT NULL GROUP BY base",
            task,
        )
        return {base: (accuracy, count) for base, accuracy, count in rows}
