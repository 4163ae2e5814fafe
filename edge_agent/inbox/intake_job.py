"""What the inbox has its child do, and what the child says of it."""

import msgspec

from edge_agent.samples.entry_fate import Group

__all__ = ["INTAKE", "JOB", "OPENED", "RESULT", "Entry", "IntakeJob", "IntakeResult"]

INTAKE = "edge_agent.inbox.intake"  # the child program
JOB = "job.json"  # in the workspace, as is
RESULT = "result.json"  # what came of it
OPENED = "opened"  # file in the workspace: what the child has before it, should it die of that


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One entry of the inbox; names are bytes, since not every name is a text."""

    name: bytes
    unchanged_s: float = 0.0  # as far as the agent saw
    known_s: float = 0.0  # to the agent
    after: bytes = b""  # of a folder: go on after the file of this name


class IntakeJob(msgspec.Struct, frozen=True):
    """What the child shall take in."""

    entries: tuple[Entry, ...]
    inbox: str
    workspace: str
    spec: str
    train: str
    holdout: str
    holdout_share: float
    max_count: int
    max_holdout: int
    max_bytes: int
    keep_rejected_bytes: int
    keep_rejected_s: float
    wall: float  # seconds since 1970, as the agent's clock has it
    skip: tuple[bytes, ...] = ()  # what ended a parser before, as noted in `OPENED`


class IntakeResult(msgspec.Struct, frozen=True):
    """What came of it."""

    added: int
    rejected: tuple[str, ...]
    waiting: tuple[tuple[bytes, tuple[Group, ...]], ...] = ()  # by entry; what stays in the inbox
    examined: int = 0  # so many of the job's entries, from the first
    more: tuple[tuple[bytes, bytes], ...] = ()  # not to its end: an entry, and where to go on
    no_room: str = ""  # why nothing more can be stored now; what was not taken is in the inbox
    dropped: int = 0  # samples of one file beyond the most that are kept
    expired: int = 0  # rejected files that were kept long enough
    foreign: tuple[Group, ...] = ()  # samples that somebody put among the rejected
