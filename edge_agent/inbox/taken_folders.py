"""Folders that an intake of edgefold 0.1 had begun with: ``.taken-<digits>/LABEL/`` in the inbox.

It moved a folder there, stored its samples and deleted it. What a crash left is put back, and
taken as any other; of what was in the store already only the rest is stored.
"""

import os
from pathlib import Path

import numpy as np

from edge_agent.inbox.inbox_files import read_regular
from edge_agent.inbox.intake_job import IntakeJob
from edge_agent.inbox.labeled_folders import read_sample
from edge_agent.inbox.rejects import free_name
from edge_agent.samples.fitting import Array, fitted
from edge_agent.samples.sample_store import segments
from edge_agent.samples.segment_writer import Shelves, chosen, parts_of, source_of, write_parts
from models.errors import EdgefoldError
from models.task.spec import TaskSpec

__all__ = ["put_back"]


def put_back(taken: Path, spec: TaskSpec, job: IntakeJob) -> None:
    """Move what lies in ``taken`` back to where it came from; of stored samples remove the files.

    Raises:
        OSError: it cannot be read or moved.
    """
    present = {s.source for folder in (job.train, job.holdout) for s in segments(Path(folder))}
    for folder in sorted(path for path in taken.iterdir() if path.is_dir()):
        source = source_of(taken.name, folder.name, 0)
        if source in present:
            _finish(folder, source, spec, job)
        home = Path(job.inbox) / folder.name
        home.mkdir(exist_ok=True)
        for path in sorted(folder.iterdir()):
            path.rename(free_name(home / path.name))
        folder.rmdir()
    if not os.listdir(taken):
        taken.rmdir()


def _finish(folder: Path, source: str, spec: TaskSpec, job: IntakeJob) -> None:
    """Store the parts of ``folder`` that are missing, as was done then, and remove the files."""
    label = int(folder.name)
    good: list[tuple[Path, Array]] = []
    for path in sorted(folder.iterdir()):
        try:
            data, _ = read_regular(path, max_bytes=job.max_bytes)
            sample = read_sample(path.name, data, spec)
            good.append((path, fitted(sample[np.newaxis], np.array([label]), spec)[0]))
        except EdgefoldError:
            continue
    if not good:
        return
    x = np.concatenate([sample for _, sample in good])
    y = np.full(len(x), label, spec.y.dtype)
    test = chosen(len(x), job.holdout_share, source)
    for target, rows, limit in (
        (job.holdout, np.flatnonzero(test), job.max_holdout),
        (job.train, np.flatnonzero(~test), job.max_count),
    ):
        parts = list(parts_of(x, rows[max(0, len(rows) - limit) :], target))
        write_parts(x, y, parts, source, Shelves())
    for path, _ in good:
        path.unlink()
