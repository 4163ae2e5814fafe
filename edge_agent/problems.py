"""What an operator should look at: one sentence per part, said once when it appears or changes."""

import logging

from models.errors import EdgefoldError

__all__ = ["Problems", "told"]

log = logging.getLogger("edge_agent")


class Problems:
    """The open problems, newest last, by the part that has them."""

    def __init__(self) -> None:
        self._open: dict[str, str] = {}

    def say(self, part: str, text: str) -> None:
        """``part`` has this problem until `clear`; logged when it is new."""
        if self._open.get(part) != text:
            self._open.pop(part, None)
            self._open[part] = text
            log.warning("problem part=%s: %s", part, text)

    def clear(self, part: str) -> None:
        if self._open.pop(part, None) is not None:
            log.info("problem solved part=%s", part)

    @property
    def newest(self) -> str:
        """The sentence for the status, at most 400 characters; empty when all is well."""
        return next(reversed(self._open.values()), "")[:400]

    def contained(self, part: str) -> "_Contained":
        """Turn what a full disk or a bad file raises into a problem of ``part``, and go on.

        A part is written so that nothing is half done then, and what was not done is tried again.
        """
        return _Contained(self, part)


class _Contained:
    """A context of `Problems.contained`; a class, since each tick of the agent enters several."""

    def __init__(self, problems: Problems, part: str) -> None:
        self._problems = problems
        self._part = part

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        if error is None:
            self._problems.clear(self._part)
            return False
        if not isinstance(error, OSError | EdgefoldError):
            return False
        self._problems.say(self._part, told(error))
        return True


def told(error: Exception) -> str:
    """Return ``error`` as one line, with the file that an `OSError` is about."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    return " ".join(str(error).split()) or type(error).__name__
