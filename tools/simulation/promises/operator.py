"""What an operator does to a simulated server, in a process of his own."""

from collections.abc import Callable

from tools.simulation.machines.virtual_disk import Database
from tools.simulation.promises.trace import Trace

__all__ = ["Operator"]


class Operator:
    """Asks for devices to be forgotten, and looks whether they were."""

    def __init__(self, trace: Trace, database: Callable[[], Database | None]) -> None:
        self._trace = trace
        self._database = database

    def ask_to_forget(self, device: str) -> None:
        """An operator wants ``device`` forgotten, in a process of his own; the server may be down.

        It is all the same to every promise: nothing of it is taken out of these books.
        """
        database = self._database()
        if (
            database is None
            or not database.execute(
                "SELECT 1 FROM sqlite_master WHERE name = 'forgotten'"
            ).fetchone()
        ):
            return
        self._trace.say("operator", f"forget {device}")
        database.execute("INSERT OR REPLACE INTO forgotten VALUES (?, 0.0, 0)", (device,))
        self._trace.counts["forgets"] += 1

    def forgetting(self, devices: set[str]) -> list[str]:
        """Return what is not yet as it should be of those who were forgotten and came back."""
        database = self._database()
        if database is None:
            return []
        asked = database.execute("SELECT device FROM forgotten WHERE step = 0").fetchall()
        known = {device for (device,) in database.execute("SELECT device FROM devices")}
        return [f"{device} is not forgotten" for (device,) in asked] + [
            f"{device} was forgotten and did not come back" for device in devices - known
        ]
