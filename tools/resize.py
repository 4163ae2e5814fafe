"""Images of another size for a model that insists on its own: resizing as part of the graph."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.errors import UsageError
from models.graph.forward_graph import input_array, normalize_forward

__all__ = ["with_resized_input"]


def with_resized_input(model: onnx.ModelProto, sample_shape: Sequence[int]) -> onnx.ModelProto:
    """Return ``model`` for images of ``sample_shape``, resized bilinearly in front of it.

    ``sample_shape`` is [height, width], [channels, height, width] or, with 1, 3 or 4 channels,
    [height, width, channels]. Gray images are repeated for a model that takes three channels.

    Raises:
        UsageError: the samples or the model's input are not images, or channels do not agree.
    """
    model = normalize_forward(model)
    wanted = input_array(model)
    if len(wanted.shape) != 3 or wanted.dtype != "float32":
        raise UsageError(
            f"--resize: the model takes {wanted.dtype} {wanted.shape}, which is no image "
            f"(channels, height, width)"
        )
    channels, height, width = _as_image(sample_shape)
    graph = model.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == wanted.name:
                node.input[place] = "resize/resized"
    source = wanted.name
    steps = []
    if channels != wanted.shape[0]:
        if channels != 1:
            raise UsageError(f"--resize: {channels} channels, the model takes {wanted.shape[0]}")
        repeated = [source] * wanted.shape[0]
        steps.append(helper.make_node("Concat", repeated, ["resize/channels"], axis=1))
        source = "resize/channels"
    sizes = np.array(wanted.shape[1:], np.int64)
    graph.initializer.append(numpy_helper.from_array(sizes, "resize/sizes"))
    steps.append(
        helper.make_node(
            "Resize",
            [source, "", "", "resize/sizes"],
            ["resize/resized"],
            axes=[2, 3],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
    )
    for step in reversed(steps):
        graph.node.insert(0, step)
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info(
            wanted.name, onnx.TensorProto.FLOAT, [batch, channels, height, width]
        )
    )
    del graph.value_info[:]
    return model


def _as_image(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] > 4:
        return shape[2], shape[0], shape[1]
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise UsageError(f"--resize: samples of {tuple(shape)} are not images")
