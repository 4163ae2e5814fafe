"""What an operator should look at: one sentence per part, said once when it appears or changes."""

import logging
from typing import NamedTuple

from models.errors import EdgefoldError
from models.host.sentences import brief, shown

__all__ = ["URGENCY", "Problem", "Problems", "sentence_of"]

log = logging.getLogger("edge_agent")

MOST_TEXTS = 20  # remembered of one open problem, so that they are logged once
LONGEST_ERROR = 500  # letters of one: what a library or a file says may be of any length

# The most urgent first: what keeps a device from its fleet or will, what keeps it from storing
# anything, then what it runs, learns and is given. Parts that are not named here come last, newest
# first.
URGENCY = (
    *("identity", "broker", "permission", "server", "task", "settings"),
    *("storage", "outbox", "message", "release", "download", "fetching", "sending", "requests"),
    *("inference", "inference process", "training", "learner", "samples", "intake"),
)
_RANK = {part: rank for rank, part in enumerate(URGENCY)}


class Problem(NamedTuple):
    """One open problem."""

    part: str
    text: str
    since: float  # monotonic seconds; the text may have changed meanwhile


class Problems:
    """The open problems, one for each part.

    ``now`` is the time in monotonic seconds; the agent sets it before anything happens.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._open: dict[str, Problem] = {}
        self._logged: dict[str, set[str]] = {}  # of each open problem: its texts so far

    def say(self, part: str, text: str) -> None:
        """``part`` has this problem until `clear`, or an empty text; logged when it is new.

        A text that alternates with another one is logged once.
        """
        if not text:
            self.clear(part)
            return
        text = shown(text)
        before = self._open.get(part)
        if before is not None and before.text == text:
            return
        since = self.now if before is None else before.since
        self._open.pop(part, None)
        self._open[part] = Problem(part, text, since)
        logged = self._logged.setdefault(part, set())
        if text not in logged:
            if len(logged) < MOST_TEXTS:
                logged.add(text)
            log.warning("problem part=%s: %s", part, text)

    def clear(self, part: str) -> None:
        if self._open.pop(part, None) is not None:
            del self._logged[part]
            log.info("problem solved part=%s", part)

    def all(self) -> list[Problem]:
        """Return the open problems, the most urgent one first."""
        if not self._open:
            return []
        newest_first = reversed(self._open.values())
        return sorted(newest_first, key=lambda problem: _RANK.get(problem.part, len(_RANK)))

    @property
    def most_urgent(self) -> str:
        """The sentence for the status, at most 400 characters; empty when all is well."""
        if not self._open:
            return ""
        return self.all()[0].text[:400]

    def contained(self, part: str, *, whatever: bool = False) -> "_Contained":
        """Turn what a full disk or a bad file raises into a problem of ``part``, and go on.

        A part is written so that nothing is half done then, and what was not done is tried again.
        ``whatever``: also a mistake of ours, where strangers' names are handled. It costs the
        device that part, and neither what it has learned nor what it answers.
        """
        return _Contained(self, part, whatever=whatever)


class _Contained:
    """A context of `Problems.contained`; a class, since each tick of the agent enters several."""

    def __init__(self, problems: Problems, part: str, *, whatever: bool) -> None:
        self._problems = problems
        self._part = part
        self._taken = (Exception,) if whatever else (OSError, EdgefoldError)

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        if error is None:
            self._problems.clear(self._part)
            return False
        if not isinstance(error, self._taken):
            return False
        if isinstance(error, OSError | EdgefoldError):
            self._problems.say(self._part, sentence_of(error))
        else:
            log.debug("part=%s", self._part, exc_info=error)
            mistake = f"{type(error).__name__}: {sentence_of(error)}"
            self._problems.say(self._part, f"{mistake} (a mistake of edgefold: please report it)")
        return True


def sentence_of(error: Exception) -> str:
    """Return ``error`` as one printable line, with the file that an `OSError` is about."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({brief(str(error.filename))})" if error.filename else ""
        return f"{error.strerror}{where}"
    return shown(" ".join(str(error).split()))[:LONGEST_ERROR] or type(error).__name__
