"""Runs the child that makes a release's parameters out of older ones. One at a time.

What it makes is checked here like anything that was downloaded; killed at any moment, it is begun
anew.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_agent.board.child_job import ChildJob
from edge_agent.board.children import Launch
from edge_agent.releases.model_slots import BLOCK, Slots
from models.errors import TransientError, TrustError
from models.protocol.manifest import Artifact, Manifest

__all__ = ["PATCHER", "Patching"]

PATCHER = "edge_agent.releases.apply_patches"  # the child program
MAX_SECONDS = 600.0


class Patching:
    """Its owner passes on the time; ``directory`` is for this alone."""

    def __init__(self, *, launch: Launch, slots: Slots, directory: Path) -> None:
        self._slots = slots
        self._job = ChildJob(launch, directory, program=PATCHER)
        self._job.clear()  # what a crash left

    def advance(self, wanted: Manifest, patches: Sequence[Artifact], now: float) -> bool:
        """Begin or go on; return whether the parameters of ``wanted`` are in the slots now.

        Raises:
            TrustError: they cannot be made in this way.
            TransientError, OSError: the disk is full or failing; tried again when called again.
        """
        result = f"{self._job.folder}/parameters.npz"
        if not self._job.is_running:
            base = self._slots.active
            if base is None:
                raise TrustError("there is no release to begin from")
            arguments = [self._slots.path(wanted, "spec"), self._slots.path(base, "parameters")]
            arguments += [result, *map(self._slots.file, patches)]
            self._job.prepare()
            self._job.begin(arguments, now, MAX_SECONDS)
            return False
        ended = self._job.poll(now)
        if ended is None:
            return False
        if ended.is_disk:
            raise TransientError(ended.reason)
        if ended.is_overdue:
            raise TrustError(f"it took more than {MAX_SECONDS / 60:.0f} minutes")
        if not ended.worked:
            raise TrustError(ended.reason)
        self._slots.add(wanted.artifacts["parameters"], _pieces(result))
        self._job.clear()
        return True

    def stop(self) -> None:
        """End the child."""
        self._job.kill()


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block
