"""Samples and answers as arrays in a frame: ``.npy``, bounded by the bytes that are there."""

import io
import math

import numpy as np
import numpy.typing as npt

from edge_agent.client.edgefold_client import ProtocolError, npy_header
from models.errors import PayloadError
from models.task.spec import TaskSpec

__all__ = ["FRAME_ROOM", "Array", "npy_bytes", "parse_samples"]

FRAME_ROOM = 4096  # bytes of a frame's body that are not the array's values
Array = npt.NDArray[np.generic]


def parse_samples(data: bytes, spec: TaskSpec) -> Array:
    """Read one ``.npy`` array of samples, shape (n, *spec.x.shape), n >= 1, as a view of ``data``.

    Nothing is allocated for what its header says: the size is checked against the bytes that are
    there.

    Raises:
        PayloadError: not such an array; the message says what was expected.
    """
    wanted = f"samples of dtype {spec.x.dtype} and shape (n, {', '.join(map(str, spec.x.shape))})"
    try:
        header = npy_header(data)
    except ProtocolError as error:
        raise PayloadError(f"{error}; send {wanted} as numpy.save writes it") from None
    kind = np.dtype(spec.x.dtype)
    if header.descr != kind.str:
        raise PayloadError(f"array of dtype {header.descr}; send {wanted}")
    if header.shape[1:] != spec.x.shape or header.shape[:1] in ((), (0,)):
        raise PayloadError(f"array of shape {header.shape}; send {wanted}")
    if header.is_fortran:
        raise PayloadError("array in Fortran order; send it in C order (numpy.ascontiguousarray)")
    size = len(data) - header.start
    if size != math.prod(header.shape) * kind.itemsize:
        raise PayloadError(f"array of shape {header.shape} with {size} bytes of data")
    return np.frombuffer(data, kind, offset=header.start).reshape(header.shape)


def npy_bytes(array: Array) -> bytes:
    """Return ``array`` as `numpy.save` writes it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
