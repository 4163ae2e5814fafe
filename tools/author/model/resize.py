"""Images of another size for a model that insists on its own: resizing as part of the graph."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.errors import UsageError
from models.graph.reading.forward_graph import input_array, normalize_forward
from models.samples.pictures import Layout, layout_of

__all__ = ["check_pictures", "with_resized_input"]


def with_resized_input(
    model: onnx.ModelProto,
    sample_shape: Sequence[int],
    on_step: Callable[[str], None] = lambda words: None,
    *,
    output: str | None = None,
) -> onnx.ModelProto:
    """Return ``model`` for images of ``sample_shape``, resized bilinearly in front of it.

    ``output`` is the one that is wanted of it, by default its first.

    ``sample_shape`` is [height, width], [channels, height, width] or, with 1, 3 or 4 channels,
    [height, width, channels]. Gray images are repeated for a model that takes three channels.

    Raises:
        UsageError: the samples or the model's input are not images, or channels do not agree.
    """
    model = normalize_forward(model, output=output)
    wanted = input_array(model)
    if len(wanted.shape) != 3 or wanted.dtype != "float32":
        raise UsageError(
            f"--resize: the model takes {wanted.dtype} {wanted.shape}, which is no image "
            f"(channels, height, width)"
        )
    layout = check_pictures(sample_shape)
    channels, height, width = layout.channels, layout.height, layout.width
    if (channels, height, width) == wanted.shape:
        return model
    on_step("resized to what the model takes")
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


def check_pictures(shape: Sequence[int]) -> Layout:
    """Return how samples of ``shape`` are pictures.

    Raises:
        UsageError: they are none.
    """
    layout = layout_of(shape) if len(shape) > 1 else None
    if layout is None:
        raise UsageError(f"--resize: samples of {tuple(shape)} are not images")
    return layout
