"""The child program that applies patches: ``python -m … SPEC BASE RESULT PATCH...``.

It makes the parameters of a release out of those of an older one. Its result is a file that
nobody believes before its digest is the one that the release promises.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from edge_agent.board.children import DISK_FAILED, settle_in
from edge_agent.board.problems import sentence_of
from models.codec.release_patch import patched
from models.errors import EdgefoldError
from models.protocol.npz import read_vector, write_vector
from models.task.spec import decode_spec

__all__ = ["apply_patches", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    settle_in()
    try:
        apply_patches(sys.argv[1:] if arguments is None else arguments)
    except (OSError, EdgefoldError) as error:
        print(sentence_of(error), file=sys.stderr)
        return DISK_FAILED if isinstance(error, OSError) else 1
    return 0


def apply_patches(arguments: Sequence[str]) -> None:
    """Write the parameters in the file BASE, moved by each PATCH, to the file RESULT.

    Raises:
        PayloadError: a file is not what it should be.
        OSError: the disk is full or failing.
    """
    spec_file, base, result, *patches = (Path(argument) for argument in arguments)
    spec = decode_spec(spec_file.read_bytes())
    parameters = read_vector(base.read_bytes(), size=spec.shared_size)
    for patch in patches:
        parameters = patched(parameters, patch.read_bytes(), spec.shared)
    result.write_bytes(write_vector(parameters))


if __name__ == "__main__":
    raise SystemExit(main())
