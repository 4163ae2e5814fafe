"""One kind of work that a full or failing disk stops: how it is said, and when it is tried again.

Each kind has its own, so that what cannot be done does not keep from being done what can.
"""

import logging
from collections.abc import Callable

from models.errors import TransientError
from models.host.backoff import Backoff

__all__ = ["LONGEST_RETRY_S", "RETRY_S", "Retry"]

log = logging.getLogger(__name__)

RETRY_S = 5.0
LONGEST_RETRY_S = 40.0  # of work that is long, as a fold is: each attempt does all of it


class Retry:
    """Not due for `RETRY_S` after the disk refused something; then twice that, up to ``longest_s``.

    Times in seconds that nobody sets.
    """

    def __init__(self, what: str, *, longest_s: float = RETRY_S) -> None:
        self._what = what
        self._backoff = Backoff(RETRY_S, longest_s)
        self.problem = ""  # of the disk, until it is over

    @property
    def at(self) -> float:
        """When it is due again."""
        return self._backoff.at

    def run(self, now: float, work: Callable[[], None]) -> None:
        """Do it if it is due; where the disk is full or failing say so, once, and rest."""
        if not self._backoff.due(now):
            return
        try:
            work()
        except (TransientError, OSError) as error:
            if not self.problem:
                log.error(
                    "cannot %s, keeping on without: %s; free some space", self._what, str(error)
                )
            self.problem = str(error)
            self._backoff.failed(now)
            return
        self._backoff.worked()
        if self.problem:
            self.problem = ""
            log.info("can %s again", self._what)
