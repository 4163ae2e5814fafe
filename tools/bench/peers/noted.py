"""What the programs of a peer noted, read back; and the wait for a job that goes on noting."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.errors import UsageError

__all__ = ["noted", "wait_for_job"]

STALLED_S = 600.0  # without a note: as long as the slowest training may take
LOOK_S = 0.2


def wait_for_job(directory: Path, is_over: Callable[[], bool], *, said: Callable[[], str]) -> None:
    """Return when the job is over.

    Raises:
        UsageError: nothing was noted for `STALLED_S`; with what the server said last.
    """
    path = directory / "notes.jsonl"
    size, changed_at = 0, time.monotonic()
    while not is_over():
        now, noted_bytes = time.monotonic(), path.stat().st_size if path.exists() else 0
        if noted_bytes != size:
            size, changed_at = noted_bytes, now
        if now - changed_at > STALLED_S:
            raise UsageError(
                f"the job in {directory} does not go on ({STALLED_S:.0f} s without a note; with "
                f"--keep DIR its files stay); the server said:\n{said()}"
            )
        time.sleep(LOOK_S)


def noted(directory: Path, kind: str) -> list[dict[str, Any]]:
    """Return the notes of ``kind`` in order; none while there is no file."""
    try:
        lines = (directory / "notes.jsonl").read_text().splitlines()
    except OSError:
        return []
    notes = []
    for line in lines:
        try:
            note = json.loads(line)
        except ValueError:
            continue  # it is being written
        if note["kind"] == kind:
            notes.append(note)
    return notes
