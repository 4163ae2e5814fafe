"""What a device runs for itself: law L8, which docs/reliability.md has.

The model that it tuned is a whole file for as long as the outbox names it, what it runs is there,
and that changes only with a training or a measurement that was committed.
"""

from collections.abc import Callable

from models.errors import PayloadError
from models.task.params import Vector
from tools.simulation.machines.virtual_disk import Database

__all__ = ["OwnModelLaw"]


class OwnModelLaw:
    """Of one device."""

    def __init__(self) -> None:
        self._known: str | None = None  # the file that was looked at
        self._serves: float | None = None
        self._because: tuple[object, ...] = ()

    def look(self, database: Database, read: Callable[[str], Vector]) -> str:
        """Return what is wrong with the device's own model, or ""; ``read``: of its files."""
        job, tuned = database.execute("SELECT job, tuned FROM codec").fetchone()
        facts = dict(database.execute("SELECT name, value FROM facts"))
        serves, because = facts.get("serves_tuned", 0.0), (job, facts.get("evaluated_release"))
        before, self._serves = self._serves, serves
        reason, self._because = self._because, because
        if serves and tuned is None:
            return "it runs a model of its own, and has none"
        if before is not None and before != serves and reason == because:
            return "it runs another model, and nothing was measured"
        if tuned is not None and tuned != self._known:
            self._known = tuned
            try:
                read(tuned)
            except (OSError, PayloadError) as error:
                return f"its own model is lost: {error}"
        return ""
