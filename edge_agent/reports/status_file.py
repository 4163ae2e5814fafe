"""What an agent leaves in its directory for `edgefold-agent status`, in one sentence and in full.

Times are monotonic seconds, which all programs of one boot share: a clock that is set meanwhile
does not bend them.
"""

import contextlib
import os
import re
from pathlib import Path

import msgspec

from edge_agent.board.problems import Problem
from edge_agent.reports.heartbeat import RIDES_ALONG
from models.protocol.doing import Doing
from models.protocol.messages import Status

__all__ = ["LocalStatus", "read_local_status", "summary", "waits_for", "write_local_status"]

_DOINGS: dict[str, str] = {
    Doing.TRAINING: "trains on release {release} of task {task}",
    Doing.EVALUATING: "measures release {release} of task {task}",
    Doing.DOWNLOADING: "fetches a release of task {task}",
    Doing.SENDING: "sends what it has learned",
}
_MATTERS = tuple(name for name in Status.__struct_fields__ if name not in RIDES_ALONG)
_NUMBER = re.compile(r"[0-9.]+")


class LocalStatus(msgspec.Struct, frozen=True):
    """All that the agent says of itself."""

    status: Status
    summary: str  # one sentence: what it does, or what is wrong
    connected: bool
    since: float  # connected or not, since then
    last_error: str  # why the last connection ended, or none came to stand
    error_at: float | None
    heard_at: float | None  # the last word of the server
    waits_for: str
    problems: tuple[Problem, ...]  # the most urgent one first
    is_unsteady: bool = False  # connections come and go

    def what_matters(self) -> tuple[object, ...]:
        """Return what is worth a write to the card: not what changes all the time."""
        connection = () if self.is_unsteady else (self.connected, self.last_error)
        return (
            *(getattr(self.status, name) for name in _MATTERS),
            *connection,
            _NUMBER.sub("#", self.summary),
            _NUMBER.sub("#", self.waits_for),
            self.problems,
        )


def waits_for(status: Status, verdict: str) -> str:
    """Return what the device waits for; ``verdict`` says why it does not train."""
    if not status.release:
        return f"the first release of task {status.task}"
    updates = status.updates_waiting
    if not updates:
        return verdict
    return f"{verdict}; the server's answer to {updates} update{'s' if updates > 1 else ''}"


def summary(
    status: Status, problems: tuple[Problem, ...], *, connected: bool, waits_for: str
) -> str:
    """Return one sentence: what is wrong, or else what the device does."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return f"{' '.join(problems[0].text.split())}{more}"  # one line, as systemd wants it
    offline = "" if connected else "; connecting to the broker"
    if doing := _DOINGS.get(status.state):
        return doing.format(release=status.release, task=status.task) + offline
    if not status.release:
        return f"waits for {waits_for}{offline}"
    return f"all is well: runs release {status.release} of task {status.task}{offline}"


def write_local_status(path: Path, status: LocalStatus) -> None:
    """Leave ``status`` at ``path``; not worth a sync to the card.

    Raises:
        OSError: the disk is full or failing; there is none now, rather than one that was true.
    """
    draft = f"{path}.draft"
    try:
        with open(draft, "wb") as file:
            file.write(msgspec.json.encode(status))
        os.replace(draft, path)
    except OSError:
        for left in (draft, path):
            with contextlib.suppress(OSError):
                os.unlink(left)
        raise


def read_local_status(path: Path) -> LocalStatus | None:
    """Return what the agent left at ``path``; None if there is nothing that can be read.

    Raises:
        PermissionError: it is not ours to read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=LocalStatus)
    except PermissionError:
        raise
    except (OSError, msgspec.MsgspecError):
        return None
