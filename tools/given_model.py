"""Somebody's own ONNX file, read without trusting it."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from models.errors import UsageError

__all__ = ["parsed_model", "read_given_model"]

MAX_MODEL_BYTES = 1 << 30


def read_given_model(path: Path) -> onnx.ModelProto:
    """Return the model in the file ``path``, as it is there.

    Raises:
        UsageError: no such file, too large, or not an ONNX model.
    """
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise UsageError(f"{path}: {size >> 20} MiB, more than a board can train")
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    model = parsed_model(content, str(path))
    if not model.graph.node or not model.graph.output:
        raise UsageError(f"{path} is not an ONNX model: it computes nothing")
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
