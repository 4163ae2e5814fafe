"""How many updates of this device are in each release: so it knows what others changed."""

from edge_agent.updates.outbox_file import OutboxFile, Question, Rows

__all__ = ["OwnFolds"]

_ADD = "INSERT INTO folds VALUES (?, 1) ON CONFLICT (release) DO UPDATE SET count = count + 1"


def _pairs(rows: Rows) -> list[tuple[int, int]]:
    return [(release, count) for release, count in rows]


_FOLDS = Question("folds", "SELECT release, count FROM folds", _pairs)


class OwnFolds:
    """The table of the folds. ``add`` and ``forget`` are parts of a transaction."""

    def __init__(self, file: OutboxFile) -> None:
        self._file = file

    def count(self, *, after: int, until: int) -> int:
        """Return how many own updates are in the releases above ``after`` and up to ``until``.

        ``after`` is not below the release that was trained on last: older ones are forgotten.
        """
        folds = self._file.answer(_FOLDS)
        return sum(count for release, count in folds if after < release <= until)

    def add(self, release: int) -> None:
        """One more is in ``release``."""
        self._file.rows(_ADD, release)

    def forget(self, *, until: int | None = None) -> None:
        """Forget those in releases up to ``until``; all of them without."""
        self._file.rows("DELETE FROM folds WHERE release <= coalesce(?, release)", until)
