"""What becomes of an entry of the inbox that could not be taken: it waits, or is put aside. Pure.

Put aside is only what is broken in itself: no library, no release, no setting and no time would
make samples of it. Everything else waits where it lies, and is looked at again when that may help.
"""

import errno
from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec

from edge_agent.board.problems import sentence_of
from models.errors import EdgefoldError, ForeignError, PayloadError, TooLargeError, UsageError
from models.host.backoff import doubled

__all__ = [
    "CUT_OFF_S",
    "DAY_S",
    "Fate",
    "Group",
    "NotHereError",
    "Wait",
    "fate_of",
    "pause_s",
    "unchanged_in_folder",
]

CUT_OFF_S = 600.0  # a copy may stop for so long before what is there counts as all that comes
HOUR_S, DAY_S = 3600.0, 86400.0
LIBRARY_S = 60.0  # the agent also looks whether the library has come
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Wait(StrEnum):
    """What an entry waits for."""

    WRITING = "writing"  # for its other half, or for the certainty that none comes
    LIBRARY = "library"  # for a library to be installed here
    SPEC = "spec"  # for a release that takes such samples
    LIMIT = "limit"  # for a setting that lets it in
    UNKNOWN = "unknown"  # for somebody who knows what this is
    REFUSED = "refused"  # for the system to let us read or remove it
    ENDED = "ended"  # for more memory or time: reading it ended the parser
    ASIDE = "aside"  # for room among the rejected
    NO_ROOM = "no room"  # for room on the disk
    RELEASE = "release"  # for the first release
    RENAME = "rename"  # for the name that says it is whole


class NotHereError(UsageError):
    """Nothing is wrong with it, but it cannot be taken here and now: it waits for ``wait``."""

    def __init__(self, wait: Wait, message: str) -> None:
        super().__init__(message)
        self.wait = wait


class Group(msgspec.Struct, frozen=True, array_like=True):
    """Entries, or files in a folder, that wait for the same."""

    wait: Wait
    count: int
    example: str  # the name of one of them, fit to be printed
    reason: str  # that one's


class Fate(NamedTuple):
    """What becomes of it, and why; ``wait`` if it waits."""

    do: Literal["wait", "reject", "nothing"]
    wait: Wait = Wait.UNKNOWN
    reason: str = ""


def fate_of(error: Exception, *, unchanged_s: float) -> Fate:
    """Decide about what raised ``error`` when read, and has been as it is for so long."""
    match error:
        case NotHereError():
            return Fate("wait", error.wait, sentence_of(error))
        case MemoryError():
            return Fate("wait", Wait.ENDED, "it takes too much memory")
        case TooLargeError():
            return Fate("wait", Wait.LIMIT, f"{sentence_of(error)}: split it")
        case ForeignError():  # no copy that goes on would mend it
            return Fate("reject", reason=sentence_of(error))
        case PayloadError() if unchanged_s < CUT_OFF_S:
            waited = (
                f"if it is still being copied it is waited for, {CUT_OFF_S / 60:.0f} minutes long"
            )
            reason = f"{sentence_of(error)}; {waited}"
            return Fate("wait", Wait.WRITING, reason)
        case EdgefoldError():
            return Fate("reject", reason=sentence_of(error))
        case FileNotFoundError():
            return Fate("nothing")  # whoever put it there took it away again
        case OSError():
            wait = Wait.NO_ROOM if error.errno in NO_ROOM else Wait.REFUSED
            reason = error.strerror or type(error).__name__
            if error.errno in (errno.EACCES, errno.EPERM):
                reason += ": let the agent's user read it and write to its folder"
            return Fate("wait", wait, reason)
        case _:  # a mistake of ours or of a library, which another release may mend
            reason = f"reading it failed: {type(error).__name__}: {sentence_of(error)}"
            return Fate("wait", Wait.ENDED, reason)


def pause_s(wait: Wait, *, tries: int, unchanged_s: float) -> float:
    """Return when to look again at what waits for ``wait`` and was tried so often.

    What wakes it before: it changes, a library or another spec comes, the agent starts anew.
    """
    match wait:
        case Wait.WRITING:
            return max(1.0, CUT_OFF_S - unchanged_s)
        case Wait.LIBRARY:
            return doubled(LIBRARY_S, tries, HOUR_S)
        case Wait.REFUSED | Wait.ASIDE:
            return HOUR_S
        case Wait.ENDED:
            return doubled(HOUR_S, tries - 1, DAY_S)
        case Wait.NO_ROOM:
            return 0.0  # the whole intake rests
        case _:
            return DAY_S


def unchanged_in_folder(age_s: float, *, folder_unchanged_s: float, folder_known_s: float) -> float:
    """Return how long a file in a folder has been as it is, for certain.

    ``age_s`` is by the wall clock, which may jump: it counts no more than we know the folder.
    """
    return max(folder_unchanged_s, min(max(age_s, 0.0), folder_known_s))
