"""Reads the payloads of stored updates; gives up on one that the disk cannot give back.

Without that a single bad block would hold up its task for ever. What is given up is refused, so
its device, which still has it, takes the work back.
"""

from broker.records.update_records import UpdateRecords
from models.errors import PayloadError, TransientError

__all__ = ["MOST_TRIES", "PayloadReader"]

MOST_TRIES = 5  # in two minutes, see `broker.retry`


class PayloadReader:
    """Counts tries in memory: a restart may be what the disk needed."""

    def __init__(self, updates: UpdateRecords) -> None:
        self._updates = updates
        self._tries: dict[int, int] = {}  # by row, of those that could not be read

    def read(self, row: int) -> bytes:
        """Return the payload of the update in ``row``.

        Raises:
            TransientError: it cannot be read now.
            PayloadError: it is damaged, or could not be read too often.
        """
        try:
            payload = self._updates.payload(row)
        except TransientError as error:
            self._tries[row] = self._tries.get(row, 0) + 1
            if not self.gave_up(row):
                raise
            raise PayloadError("the server's disk cannot read it any more") from error
        self._tries.pop(row, None)
        return payload

    def gave_up(self, row: int) -> bool:
        return self._tries.get(row, 0) >= MOST_TRIES
