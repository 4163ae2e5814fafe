"""The child program that applies patches: ``python -m … SPEC BASE AVERAGE K DECAY FOLDER PATCH...``

It makes the parameters of a release out of those of an older one, and from the same patches the
average that devices run. Its results are files that nobody believes before their digests are the
ones that the release promises.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from edge_agent.board.children import settle_in, worked_off
from edge_agent.releases.patching import AVERAGE, NONE, PARAMETERS, PATCHER
from models.codec.average import averaged
from models.codec.release_patch import patched
from models.protocol.npz import read_vector, write_vector
from models.task.params import Vector
from models.task.spec import decode_spec

__all__ = ["apply_patches", "main", "work"]


def main() -> int:
    settle_in()
    return worked_off(PATCHER, work, sys.argv[1:])


def apply_patches(arguments: Sequence[str]) -> None:
    """Write what the parameters in the file BASE become by each PATCH into FOLDER.

    And, unless K is 0, the average whose number is K after the last of them, by DECAY: moved from
    the one in the file AVERAGE, or begun in these patches where that is ``NONE``. Without a patch
    it is moved once, to BASE, and nothing else is written.

    Raises:
        PayloadError: a file is not what it should be.
        OSError: the disk is full or failing.
    """
    spec_file, base, before, number, decay, folder, *patches = arguments
    spec = decode_spec(Path(spec_file).read_bytes())
    parameters = read_vector(Path(base).read_bytes(), size=spec.shared_size)
    average: Vector | None = None
    if before != NONE:
        average = read_vector(Path(before).read_bytes(), size=spec.shared_size)
    moved = int(number) - max(1, len(patches))  # how often it was, before the first of them
    for patch in patches:
        parameters = patched(parameters, Path(patch).read_bytes(), spec.shared)
        moved += 1
        if moved > 0:
            average = averaged(average, parameters, moved, decay=float(decay))
    if patches:
        (Path(folder) / PARAMETERS).write_bytes(write_vector(parameters))
    elif int(number):
        average = averaged(average, parameters, int(number), decay=float(decay))
    if average is not None and int(number):
        (Path(folder) / AVERAGE).write_bytes(write_vector(average))


work = apply_patches


if __name__ == "__main__":
    raise SystemExit(main())
