"""A torch net as a forward ONNX graph with torch's parameter names. Author side."""

import io
import warnings
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import nn

__all__ = ["calibrate_norms", "export_net"]

QUIET = 0.1  # a channel's deviation over the median one of its layer
OPSET = 20  # the newest that this exporter writes; models.graph brings it to ours


def calibrate_norms(net: nn.Module, x: npt.NDArray[np.float32], *, batch: int = 256) -> None:
    """Fit all batch norms, and the convolutions before them, to ``x``, shape (n, *input shape).

    Training keeps the statistics frozen, so a fresh net needs some that fit its data: with mean 0
    and variance 1 as torch initializes them, the signal of a deep net dies or explodes. Each
    convolution is then divided by the deviation of its channels, so that they have variance 1
    (layer-sequential unit variance: Mishkin, Matas, "All you need is a good init",
    arXiv:1511.06422). Nearly the same function; but a frozen norm that divides by a small deviation
    multiplies the step that the same learning rate makes by its inverse square.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    with torch.no_grad():
        for start in range(0, max(1, len(x) - len(x) % batch), batch):
            net(torch.from_numpy(np.ascontiguousarray(x[start : start + batch])))
        for block in net.modules():
            if isinstance(block, nn.Sequential):
                for first, second in pairwise(block):
                    if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                        _normalize_channels(first, second)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def _normalize_channels(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Divide the convolution (without bias) so that ``norm`` finds variance 1."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    deviation = (norm.running_var + norm.eps).sqrt()
    # A channel that hardly changes must not be blown up to variance 1, with all noise in it.
    deviation = deviation.clamp(min=QUIET * float(deviation.median()))
    convolution.weight /= deviation[:, None, None, None]
    norm.running_mean /= deviation
    norm.running_var.fill_(1 - norm.eps)


def export_net(net: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return ``net`` as ONNX: float32 ``x`` [batch, *shape] to ``logits``; the batch is symbolic.

    Every parameter and every batch-norm statistic is an initializer of the name that it has in
    ``net.state_dict()``; batch norm stays a BatchNormalization node.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The newer exporter takes 5 s instead of 0.1 s and leaves shape arithmetic in the graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(2, *shape),),
            buffer,  # type: ignore[arg-type]  # this exporter takes files, its types forgot
            input_names=["x"],
            output_names=["logits"],
            dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            do_constant_folding=False,  # would fold batch norm into the convolutions
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    _separate_equal_tensors(model.graph, net)
    return model


def _separate_equal_tensors(graph: onnx.GraphProto, net: nn.Module) -> None:
    """Give each tensor of ``net`` its own initializer: the exporter merges equal ones."""
    values = {name: value.numpy() for name, value in net.state_dict().items() if value.dim()}
    kept = [
        node for node in graph.node if not (node.op_type == "Identity" and node.output[0] in values)
    ]
    used = {name for node in kept for name in node.input} & values.keys()
    others = [tensor for tensor in graph.initializer if tensor.name not in values]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(
        [numpy_helper.from_array(values[name], name) for name in values if name in used] + others
    )
