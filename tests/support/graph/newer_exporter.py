"""torch's newer exporter, which here reads its five hundred translations once a process.

By itself it reads them anew for each export, in a third of its time. Where a torch has no such
place to stand in, exports only take that longer.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import nn

__all__ = ["export_newer"]


def export_newer(
    net: nn.Module, inputs: tuple[torch.Tensor, ...], **settings: Any
) -> onnx.ModelProto:
    """Return the graph of ``net``; ``settings`` are those of `torch.onnx.export`."""
    _read_translations_once()
    program = torch.onnx.export(net, inputs, dynamo=True, verbose=False, **settings)
    assert program is not None
    return program.model_proto


@functools.cache
def _read_translations_once() -> None:
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read: Callable[..., Any] = functools.cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):
        return

    def registry(*arguments: Any, **named: Any) -> Any:
        """One for each export, which may add to it."""
        found = copy.copy(read(*arguments, **named))
        found.functions = {target: list(known) for target, known in found.functions.items()}
        return found

    setattr(ONNXRegistry, "from_torchlib", staticmethod(registry))  # noqa: B010 (mypy)
