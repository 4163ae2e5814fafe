"""The life of a release on a device, from its announcement on: one table. Pure.

A `TrackedRelease` is handed from who fetches to who installs and into its slot; its state changes
by an event of the table and not otherwise. After a restart the announced release begins anew, and
what is on disk counts; what the slots hold and which one is active is on disk.
"""

from enum import StrEnum

from models.life import Life, Step
from models.protocol.manifest import Manifest

__all__ = ["RELEASE_LIFE", "ReleaseEvent", "ReleaseState", "TrackedRelease"]


class ReleaseState(StrEnum):
    """What a release is on this device."""

    ANNOUNCED = "announced"  # its manifest is acceptable; its spec is fetched before all else
    FETCHING = "fetching"  # the other files
    PATCHING = "patching"  # a child makes vectors out of the installed ones
    WHOLE = "whole"
    STAGED = "staged"  # the inference process tries it before it counts
    ACTIVE = "active"
    PASSIVE = "passive"  # kept in case that the active one is damaged
    DAMAGED = "damaged"  # found at a start; its slot is used again
    REFUSED = "refused"
    GONE = "gone"


class ReleaseEvent(StrEnum):
    """What can happen to a release on this device."""

    FITS = "its spec is here and fits"
    FILES_HERE = "all files are here"
    PATCHES_HERE = "what its vectors are made of is here"
    PATCHED = "its vectors are made"
    UNPATCHED = "what was made is something else"
    LOST = "a file is gone"
    WRITTEN = "written into the passive slot"
    POSTPONED = "cannot be tried now"
    RUNS = "it runs here"
    REJECTED = "not for this device"
    REPLACED = "another one runs"
    BROKEN = "a file is damaged on disk"
    TAKES_OVER = "the active one is damaged"
    GIVES_WAY = "another one comes"


_S, _E = ReleaseState, ReleaseEvent

RELEASE_LIFE = Life(
    (
        Step(_S.ANNOUNCED, _E.FITS, _S.FETCHING),
        Step(_S.ANNOUNCED, _E.REJECTED, _S.REFUSED),
        Step(_S.FETCHING, _E.FILES_HERE, _S.WHOLE),
        Step(_S.FETCHING, _E.PATCHES_HERE, _S.PATCHING),
        Step(_S.PATCHING, _E.PATCHED, _S.WHOLE),
        Step(_S.PATCHING, _E.UNPATCHED, _S.FETCHING),
        Step(_S.PATCHING, _E.LOST, _S.FETCHING),
        Step(_S.WHOLE, _E.LOST, _S.FETCHING),
        Step(_S.WHOLE, _E.WRITTEN, _S.STAGED),
        Step(_S.STAGED, _E.POSTPONED, _S.WHOLE),
        Step(_S.STAGED, _E.REJECTED, _S.REFUSED),
        Step(_S.STAGED, _E.RUNS, _S.ACTIVE),
        Step(_S.ACTIVE, _E.REPLACED, _S.PASSIVE),
        Step(_S.ACTIVE, _E.BROKEN, _S.DAMAGED),
        Step(_S.PASSIVE, _E.BROKEN, _S.DAMAGED),
        Step(_S.PASSIVE, _E.TAKES_OVER, _S.ACTIVE),
        *(
            Step(state, _E.GIVES_WAY, _S.GONE)
            for state in _S
            if state not in (_S.ACTIVE, _S.REFUSED, _S.GONE)
        ),
    ),
    durable={
        _S.ANNOUNCED: "nothing, or chunks of its spec",
        _S.FETCHING: "chunks; files that came whole, each under its digest",
        _S.PATCHING: "all files but the vectors that are made, and the patches that lead to them",
        _S.WHOLE: "all files, each under its digest",
        _S.STAGED: "its manifest in the passive slot, which counts for nothing yet",
        _S.ACTIVE: "its manifest in the slot that `active.json` names",
        _S.PASSIVE: "its manifest in the other slot, and its files",
        _S.DAMAGED: "its manifest in a slot; the damaged file is deleted",
        _S.REFUSED: "nothing that counts: it is looked at again after a restart",
        _S.GONE: "nothing",
    },
)


class TrackedRelease:
    """A release, and how far it is on this device."""

    def __init__(self, manifest: Manifest, state: ReleaseState = RELEASE_LIFE.first) -> None:
        self.manifest = manifest
        self.state = state

    def happened(self, event: ReleaseEvent) -> None:
        """Note ``event``.

        Raises:
            RuntimeError: that cannot happen to it now.
        """
        self.state = RELEASE_LIFE.after(self.state, event)

    def gives_way(self) -> None:
        """Another one comes: it is gone, unless it ended before."""
        if RELEASE_LIFE.allows(self.state, ReleaseEvent.GIVES_WAY):
            self.happened(ReleaseEvent.GIVES_WAY)
