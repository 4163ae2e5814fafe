"""Weights that an exporter wrote beside an ONNX file, read without trusting the file.

torch >= 2.9 writes ``model.onnx`` and ``model.onnx.data`` unless told otherwise. What the ONNX file
says of the other file is a claim: a name in its own folder, a place and a size in it are believed,
anything else is refused.
"""

import math
import os
import stat
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from models.errors import UsageError

__all__ = ["read_external_data"]

ONE_FILE = "export it as one file: torch.onnx.export(..., external_data=False)"


def read_external_data(model: onnx.ModelProto, path: Path, *, max_bytes: int) -> None:
    """Put the values that lie beside ``path``, the file of ``model``, into ``model``.

    Raises:
        UsageError: a file is missing, too short, too large or elsewhere; names weight and file.
    """
    outside = [
        tensor
        for tensor in _tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data
    ]
    left = max_bytes
    for tensor in outside:
        size = _size_of(tensor)
        left -= size
        if left < 0:
            raise UsageError(
                f"{path}: its weights are more than {max_bytes >> 20} MiB, which no board can train"
            )
        content = _read(tensor, path, size)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = content


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return [
        *model.graph.initializer,
        *(a.t for node in nodes for a in node.attribute if a.HasField("t")),
    ]


def _size_of(tensor: onnx.TensorProto) -> int:
    """Return the bytes that the tensor has by its type and shape."""
    try:
        item = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise UsageError(f"weight {tensor.name!r} has no known type") from None
    if item.hasobject or any(side < 0 for side in tensor.dims):
        raise UsageError(f"weight {tensor.name!r} holds no numbers of a known size")
    count: int = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        return (count + 1) // 2
    return count * int(item.itemsize)


def _read(tensor: onnx.TensorProto, path: Path, size: int) -> bytes:
    claims = {entry.key: entry.value for entry in tensor.external_data}
    location = claims.get("location", "")
    beside = _beside(path, location, tensor.name)
    offset = _number(claims, "offset", 0, tensor.name)
    length = _number(claims, "length", size, tensor.name)
    if length != size:
        raise UsageError(
            f"weight {tensor.name!r} has {length} bytes in {location}, but its shape "
            f"{list(tensor.dims)} needs {size}: the files do not belong together, or are damaged"
        )
    try:
        # Not a link that leads elsewhere, nor a device: what is opened is what was looked at.
        descriptor = os.open(beside, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UsageError(
            f"{path} keeps its weights in {location}, which is not beside it: copy both files, or "
            f"{ONE_FILE}"
        ) from None
    except PermissionError:
        raise
    except OSError as error:
        raise UsageError(f"{beside}: {error.strerror}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise UsageError(f"{beside} is no file: {path} keeps its weights there")
    with open(descriptor, "rb") as file:
        if offset + size > found.st_size:
            raise UsageError(
                f"{beside} has {found.st_size} bytes, but weight {tensor.name!r} of {path} ends at "
                f"{offset + size}: it is cut off, or of another model"
            )
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise UsageError(f"{beside} became shorter while it was read")
    return content


def _beside(path: Path, location: str, weight: str) -> Path:
    """Return the file that ``location`` names, if it is in the folder of ``path``."""
    folder = Path(os.path.realpath(path.parent))
    pure = Path(location)
    said = f"weight {weight!r} of {path} is said to be in {location!r}"
    if not location or "\0" in location:
        raise UsageError(f"{said}, which is no file name")
    if pure.is_absolute() or ".." in pure.parts or "\\" in location:
        raise UsageError(f"{said}: only files in the folder of the model are read")
    real = Path(os.path.realpath(folder / pure))
    if not real.is_relative_to(folder):
        raise UsageError(
            f"{said}, a link to {real}: only files in the folder of the model are read"
        )
    return real


def _number(claims: dict[str, str], key: str, default: int, weight: str) -> int:
    text = claims.get(key, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise UsageError(f"weight {weight!r} lies outside the ONNX file with {key} {text!r}")
    return int(text)
