"""What the programs of a peer noted, read back."""

import json
from pathlib import Path
from typing import Any

__all__ = ["noted"]


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
