"""One kind of work that a full or failing disk stops: how it is said, and when it is tried again.

Each kind has its own, so that what cannot be done does not keep from being done what can.
"""

import logging
from collections.abc import Callable

from models.errors import TransientError
from models.host.backoff import doubled

__all__ = ["LONGEST_RETRY_S", "RETRY_S", "Retry"]

log = logging.getLogger(__name__)

RETRY_S = 5.0
LONGEST_RETRY_S = 40.0  # of work that is long, as a fold is: each attempt does all of it


class Retry:
    """Not due for `RETRY_S` after the disk refused something; then twice that, up to ``longest_s``.

    Times in seconds.
    """

    def __init__(self, what: str, *, longest_s: float = RETRY_S) -> None:
        self._what = what
        self._longest_s = longest_s
        self._failures = 0
        self.problem = ""  # of the disk, until it is over
        self.at = 0.0

    def run(self, now: float, work: Callable[[], None]) -> None:
        """Do it if it is due; where the disk is full or failing say so, once, and rest."""
        if now < self.at <= now + self._longest_s:  # a clock that jumped does not wait
            return
        try:
            work()
        except (TransientError, OSError) as error:
            if not self.problem:
                log.error(
                    "cannot %s, keeping on without: %s; free some space", self._what, str(error)
                )
            self.problem = str(error)
            self.at = now + doubled(RETRY_S, self._failures, self._longest_s)
            self._failures += 1
            return
        self._failures = 0
        if self.problem:
            self.problem = ""
            log.info("can %s again", self._what)
