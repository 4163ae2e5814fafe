"""Which of a release's vectors are made here instead of fetched, and out of what. Pure.

A release has parameters, which devices train from, and maybe an average, which they run. Both move
once for each patch, so that who has those of an older release makes both from the same patches. The
digests in the manifest judge what was made; what is made of too little is fetched whole.
"""

from collections.abc import Callable
from typing import NamedTuple

from models.protocol.manifest import Artifact, Manifest

__all__ = ["ToMake", "to_make"]


class ToMake(NamedTuple):
    """What a child makes of a release.

    ``patches`` lead from the installed parameters to the release's; (): those are fetched whole, or
    here. ``average``: whether it is made as well, or alone. ``before``: the installed average that
    it is moved from; None: its first value lies in these patches, or is the parameters.
    """

    patches: tuple[Artifact, ...] = ()
    average: bool = False
    before: Artifact | None = None

    def __bool__(self) -> bool:
        return bool(self.patches) or self.average


def to_make(
    wanted: Manifest,
    installed: Manifest | None,
    *,
    has: Callable[[Artifact], bool],
    no_patches: bool = False,
    no_average: bool = False,
) -> ToMake:
    """Return what of ``wanted`` is to be made, given what is ``installed`` and which files we have.

    ``no_patches``, ``no_average``: that way was tried and led elsewhere. Patches are taken where
    they have fewer bytes than what would have to be fetched instead, and none is empty.
    """
    parameters, average = wanted.artifacts["parameters"], wanted.artifacts.get("average")
    if average == parameters or (average is not None and has(average)):
        average = None
    chain: tuple[Artifact, ...] = ()
    if installed is not None and not no_patches and not has(parameters):
        chain = wanted.patches_from(installed.release)
    by_chain = _average_after(wanted, installed, len(chain), has) if average and chain else None
    at_once = _average_after(wanted, installed, 1, has) if average else None
    if no_average:
        by_chain = at_once = None
    spared = parameters.size
    if average and by_chain and not at_once:
        spared += average.size
    if chain and all(patch.size for patch in chain) and sum(p.size for p in chain) < spared:
        return by_chain._replace(patches=chain) if by_chain else ToMake(chain)
    return at_once or ToMake()


def _average_after(
    wanted: Manifest,
    installed: Manifest | None,
    moves: int,
    has: Callable[[Artifact], bool],
) -> ToMake | None:
    """Return how the average of ``wanted`` is made by ``moves`` from the installed one, if it is.

    A first average is the parameters themselves: there is nothing before it.
    """
    number = wanted.averaged - moves
    if number <= 0:
        return ToMake(average=True)
    before = installed.artifacts.get("average") if installed else None
    if installed is None or before is None or installed.averaged != number or not has(before):
        return None
    return ToMake(average=True, before=before)
