"""The job of a comparison as the peers' programs read it, and where they note what happens.

Runs in a peer's environment: no torch here, and nothing of edgefold.
"""

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["JOB_VARIABLE", "NOTES_VARIABLE", "Job", "note", "notes_directory", "the_job"]

JOB_VARIABLE = "EDGEFOLD_PEERS_JOB"  # the file job.json; the data lie beside it
NOTES_VARIABLE = "EDGEFOLD_PEERS_NOTES"  # a directory: notes.jsonl, and the models


class Job(NamedTuple):
    """What all sides do."""

    net: str
    input_shape: tuple[int, ...]  # of one sample, as the net takes it
    classes: int
    clients: int
    rounds: int
    epochs: int
    batch: int
    learning_rate: float
    momentum: float
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # of the parameters, in the flat vector's order


def the_job() -> tuple[Job, Path]:
    """Return the job, and the directory with its data: client-1.npz and so on, init.npz."""
    path = Path(os.environ[JOB_VARIABLE])
    read = json.loads(path.read_text())
    shapes = tuple((name, tuple(shape)) for name, shape in read.pop("shapes"))
    shape = tuple(read.pop("input_shape"))
    return Job(**read, shapes=shapes, input_shape=shape), path.parent


def notes_directory() -> Path:
    return Path(os.environ[NOTES_VARIABLE])


def note(kind: str, **facts: object) -> None:
    """Add one line to the notes: what happened, and when."""
    line = json.dumps({"at": time.time(), "kind": kind, "pid": os.getpid(), **facts})
    with open(notes_directory() / "notes.jsonl", "a") as file:
        file.write(line + "\n")
