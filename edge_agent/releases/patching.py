"""Runs the child that makes a release's vectors out of older ones. One at a time.

What it makes is checked here like anything that was downloaded; killed at any moment, it is begun
anew.
"""

from collections.abc import Iterator
from pathlib import Path

from edge_agent.board.child_job import ChildJob
from edge_agent.board.children import Launch
from edge_agent.releases.model_slots import BLOCK, Slots
from edge_agent.releases.vectors_to_make import ToMake
from models.errors import DigestMismatchError, TransientError, TrustError
from models.protocol.manifest import Manifest

__all__ = ["AVERAGE", "NONE", "PARAMETERS", "PATCHER", "Patching"]

PATCHER = "edge_agent.releases.apply_patches"  # the child program
PARAMETERS = "parameters.npz"  # its results
AVERAGE = "average.npz"
NONE = "-"  # in the place of a file
MAX_SECONDS = 600.0


class Patching:
    """Its owner passes on the time; ``directory`` is for this alone."""

    def __init__(self, *, launch: Launch, slots: Slots, directory: Path) -> None:
        self._slots = slots
        self._job = ChildJob(launch, directory, program=PATCHER)
        self._job.clear()  # what a crash left

    def advance(self, wanted: Manifest, make: ToMake, now: float) -> str | None:
        """Begin or go on; None: not over yet. Else the parameters of ``wanted`` are in the slots.

        Returns:
            "" if its average is there too, where it was to be made, or why it is not.

        Raises:
            TrustError, DigestMismatchError: the parameters cannot be made in this way.
            TransientError, OSError: the disk is full or failing, or memory short; tried again when
                called again.
        """
        if not self._job.is_running:
            self._begin(wanted, make, now)
            return None
        ended = self._job.poll(now)
        if ended is None:
            return None
        if ended.is_disk:
            raise TransientError(ended.reason)
        if ended.is_killed:  # children are the first to go: it says nothing of the patches
            raise TransientError("the system ended the child: not enough memory")
        if ended.is_overdue:
            raise TrustError(f"it took more than {MAX_SECONDS / 60:.0f} minutes")
        if not ended.worked:
            raise TrustError(ended.reason)
        # The average first: with the parameters here, the patches to make it of are not wanted.
        not_there = self._take_average(wanted) if make.average else ""
        if make.patches:
            made = _pieces(f"{self._job.folder}/{PARAMETERS}")
            self._slots.add(wanted.artifacts["parameters"], made)
        self._job.clear()
        return not_there

    def _begin(self, wanted: Manifest, make: ToMake, now: float) -> None:
        slots, base = self._slots, self._slots.active if make.patches else wanted
        if base is None:
            raise TrustError("there is no release to begin from")
        before = slots.file(make.before) if make.before else NONE
        number = wanted.averaged if make.average else 0
        arguments = [slots.path(wanted, "spec"), slots.path(base, "parameters"), before]
        arguments += [str(number), repr(wanted.plan.average), self._job.folder]
        self._job.prepare()
        self._job.begin([*arguments, *map(slots.file, make.patches)], now, MAX_SECONDS)

    def _take_average(self, wanted: Manifest) -> str:
        """Store the average that was made; return why that is not the release's."""
        try:
            self._slots.add(wanted.artifacts["average"], _pieces(f"{self._job.folder}/{AVERAGE}"))
        except DigestMismatchError as error:
            return str(error)
        return ""

    def stop(self) -> None:
        """End the child."""
        self._job.kill()


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block
