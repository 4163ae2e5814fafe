"""Runs the child that makes a release's parameters out of older ones. One at a time.

What it makes is checked here like anything that was downloaded; killed at any moment, it is begun
anew.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_agent.board.children import DISK_FAILED, Child, Launch, last_line
from edge_agent.releases.model_slots import BLOCK, Slots
from models.errors import TransientError, TrustError
from models.protocol.manifest import Artifact, Manifest

__all__ = ["PATCHER", "POLL_S", "Patching"]

PATCHER = "edge_agent.releases.patcher"  # the child program
POLL_S = 0.1
MAX_SECONDS = 600.0


class Patching:
    """Its owner passes on the time; ``directory`` is for this alone."""

    def __init__(self, *, launch: Launch, slots: Slots, directory: Path) -> None:
        self._launch = launch
        self._slots = slots
        self._directory = directory
        self._child: Child | None = None
        self._deadline = 0.0
        shutil.rmtree(directory, ignore_errors=True)  # what a crash left

    def advance(self, wanted: Manifest, patches: Sequence[Artifact], now: float) -> bool:
        """Begin or go on; return whether the parameters of ``wanted`` are in the slots now.

        Raises:
            TrustError: they cannot be made in this way.
            TransientError, OSError: the disk is full or failing; tried again when called again.
        """
        result = self._directory / "parameters.npz"
        if self._child is None:
            self._begin(wanted, patches, result, now)
            return False
        code = self._child.poll()
        if code is None and now < self._deadline:
            return False
        reason = last_line(self._directory / "log.txt") or f"exit code {code}"
        self.stop()
        if code == DISK_FAILED:
            raise TransientError(reason)
        if code is None:
            raise TrustError(f"it took more than {MAX_SECONDS / 60:.0f} minutes")
        if code != 0:
            raise TrustError(reason)
        self._slots.add(wanted.artifacts["parameters"], _pieces(result))
        shutil.rmtree(self._directory, ignore_errors=True)
        return True

    def _begin(
        self, wanted: Manifest, patches: Sequence[Artifact], result: Path, now: float
    ) -> None:
        base = self._slots.active
        if base is None:
            raise TrustError("there is no release to begin from")
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir()
        arguments = [
            self._slots.path(wanted, "spec"),
            self._slots.path(base, "parameters"),
            str(result),
            *map(self._slots.file, patches),
        ]
        self._child = self._launch(PATCHER, arguments, log=self._directory / "log.txt")
        self._deadline = now + MAX_SECONDS

    def stop(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child = None


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block
