"""Somebody's own ONNX file, read without trusting it."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from models.errors import UsageError
from tools.author.model.external_data import read_external_data

__all__ = ["parsed_model", "read_given_model"]

MAX_MODEL_BYTES = 1 << 30


def read_given_model(path: Path) -> onnx.ModelProto:
    """Return the model in the file ``path``, as it is there; weights beside it are put into it.

    Raises:
        UsageError: no such file, too large, not an ONNX model, or weights beside it that are
            missing, damaged or elsewhere.
    """
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise UsageError(f"{path}: {size >> 20} MiB, more than a board can train")
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory: give the .onnx file in it") from None
    model = parsed_model(content, str(path))
    if not model.graph.node or not model.graph.output:
        raise UsageError(f"{path} is not an ONNX model: it computes nothing")
    read_external_data(model, path, max_bytes=MAX_MODEL_BYTES - size)
    return model


def parsed_model(content: bytes, name: str) -> onnx.ModelProto:
    """Return the model that ``content`` holds.

    Raises:
        UsageError: it holds none; ``name`` says where it came from.
    """
    try:
        return onnx.load_from_string(content)
    except DecodeError:
        raise UsageError(f"{name} is not an ONNX model, or it is damaged") from None
