"""A hundred small torch nets of the kinds that people bring, exported as people export."""

import copy
import io
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from nets_for_images import NETS_FOR_IMAGES
from nets_for_sequences import NETS_FOR_SEQUENCES
from nets_for_vectors import NETS_FOR_VECTORS
from newer_exporter import export_newer
from small_net import CLASSES, Brought
from torch import nn

HUNDRED = {**NETS_FOR_VECTORS, **NETS_FOR_IMAGES, **NETS_FOR_SEQUENCES}


def built(brought: Brought) -> nn.Module:
    """Return the net in evaluation mode, no two of its tensors alike."""
    torch.manual_seed(1)
    net = copy.deepcopy(brought.build())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return net.eval()


def samples(brought: Brought, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    if brought.tokens:
        return torch.randint(brought.tokens, (count, *brought.shape), generator=generator)
    return torch.randn((count, *brought.shape), generator=generator)


def exported(net: nn.Module, brought: Brought, *, dynamo: bool, dynamic: bool) -> onnx.ModelProto:
    """Export with one exporter, for one sample or for any batch, all else as torch has it."""
    x = samples(brought, 2 if dynamic else 1)
    settings: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            if dynamic:
                settings["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
            return export_newer(net, (x,), optimize=brought.folding, **settings)
        if dynamic:
            settings = {"input_names": ["in"], "dynamic_axes": {"in": {0: "batch"}}}
        settings["do_constant_folding"] = brought.folding
        buffer = io.BytesIO()
        torch.onnx.export(net, (x,), buffer, dynamo=False, **settings)
    return onnx.load_from_string(buffer.getvalue())


def targets(brought: Brought, output: torch.Tensor) -> np.ndarray:
    generator = np.random.default_rng(4)
    if brought.loss == "cross_entropy":
        return generator.integers(0, min(output.shape[-1], CLASSES), output.shape[:-1])
    if brought.loss == "bce":
        return generator.integers(0, 2, output.shape).astype(np.float32)
    return generator.standard_normal(output.shape).astype(np.float32)
