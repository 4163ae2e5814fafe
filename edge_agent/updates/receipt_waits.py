"""For which receipts a device waits, and when it asks for them: ever more rarely. Pure."""

import math
from collections.abc import Callable

from models.host.backoff import Backoff

__all__ = ["ANSWER_S", "FIRST_WAIT_S", "ReceiptWaits"]

FIRST_WAIT_S = 60.0  # for a receipt, before the server is asked; doubles, jittered
LONGEST_WAIT_S = 900.0
STORED_WAIT_S = 3600.0  # for the final receipt of what the server holds
ANSWER_S = 15.0  # for the answer to what was asked on connecting, before an update is sent anew


class ReceiptWaits:
    """The updates that receipts are waited for, by number."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._rests: dict[int, Backoff] = {}

    def __contains__(self, seq: int) -> bool:
        return seq in self._rests

    def asked(self, seq: int, now: float) -> None:
        """The server was asked for ``seq`` just now."""
        self._wait(seq, now, ANSWER_S)

    def sent(self, seq: int, now: float, wait_s: float = FIRST_WAIT_S) -> None:
        """All of ``seq`` has left us."""
        self._wait(seq, now, wait_s * self._uniform(1, 2))

    def stored(self, seq: int, now: float) -> None:
        """The server holds ``seq``, and may keep it for long."""
        self._wait(seq, now, STORED_WAIT_S * self._uniform(0.5, 1))

    def _wait(self, seq: int, now: float, first_s: float) -> None:
        rest = Backoff(
            max(2 * first_s, FIRST_WAIT_S), max(first_s, LONGEST_WAIT_S), uniform=self._uniform
        )
        rest.at = now + first_s
        self._rests[seq] = rest

    def hurry(self, now: float) -> None:
        """The server came back: ask soon."""
        for rest in self._rests.values():
            rest.at = min(rest.at, now + ANSWER_S * self._uniform(0.5, 1))

    def forget(self, seq: int) -> None:
        self._rests.pop(seq, None)

    def clear(self) -> None:
        self._rests.clear()

    def due(self, now: float) -> list[int]:
        """Return those that are overdue, to be asked for now; each rests longer than before."""
        due = [seq for seq, rest in self._rests.items() if rest.due(now)]
        for seq in due:
            self._rests[seq].failed(now)
        return due

    def next_at(self) -> float:
        """Return when the next is overdue."""
        return min((rest.at for rest in self._rests.values()), default=math.inf)
