"""Nets that resize, from both exporters and as old files have it, against torch."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from net_gradients import EXPORT_PARAMETERS, EXPORTS, assert_torch_s_step, older
from onnx import TensorProto, helper, numpy_helper
from sessions import session_of
from torch import nn
from torch.nn import functional as nnf

from models.errors import UsageError
from models.graph.reading.forward_graph import normalize_forward, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd


class Decoder(nn.Module):
    """Down, up again, and together with what was there before, as in a U-Net."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, 2, 1)
        self.up = nn.Upsample(**options)
        self.skip = nn.Conv2d(2, 4, 1)
        self.head = nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(torch.tanh(self.down(x)))
        return self.head(up * self.skip(x)).mean((2, 3))


OPTIONS: dict[str, dict[str, Any]] = {
    "nearest by a factor": {"scale_factor": 2, "mode": "nearest"},
    "nearest to a size": {"size": (8, 10), "mode": "nearest"},
    "bilinear by a factor": {"scale_factor": 2, "mode": "bilinear"},
    "bilinear to a size, corners aligned": {
        "size": (8, 10),
        "mode": "bilinear",
        "align_corners": True,
    },
    "bicubic": {"scale_factor": 2, "mode": "bicubic"},
}


@pytest.mark.parametrize("export", EXPORT_PARAMETERS)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_net_that_resizes_trains_as_in_torch(options: str, export: str) -> None:
    torch.manual_seed(0)
    net = Decoder(**OPTIONS[options])
    assert_torch_s_step(net, EXPORTS[export](net, (2, 8, 10)), (2, 8, 10))


@pytest.mark.parametrize(
    ("options", "opset"),
    [
        ("nearest by a factor", 9),
        ("nearest by a factor", 10),
        ("nearest to a size", 11),
        ("bilinear to a size, corners aligned", 11),
        ("bilinear by a factor", 13),
    ],
)
def test_a_net_of_an_old_opset_trains_as_in_torch(options: str, opset: int) -> None:
    """Up to opset 9 the operator is Upsample, at 10 Resize without coordinates."""
    torch.manual_seed(0)
    net = Decoder(**OPTIONS[options])
    model = older(net, (2, 8, 10), opset=opset, dynamic=True)
    assert_torch_s_step(net, model, (2, 8, 10))


def upsampling(opset: int, factors: tuple[float, ...], **attributes: Any) -> onnx.ModelProto:
    """Conv 3x3 - the operator - mean over the image, as another tool than torch writes it."""
    generator = np.random.default_rng(1)
    w = generator.standard_normal((4, 2, 3, 3)).astype(np.float32)
    tensors = [numpy_helper.from_array(w, "w")]
    if opset < 9:
        up = helper.make_node(
            "Upsample", ["h"], ["u"], "up", scales=list(map(float, factors)), **attributes
        )
    else:
        tensors.append(numpy_helper.from_array(np.array(factors, np.float32), "factors"))
        operator, inputs = ("Upsample", ["h"]) if opset < 10 else ("Resize", ["h", ""])
        inputs = inputs if opset != 10 else ["h"]
        up = helper.make_node(operator, [*inputs, "factors"], ["u"], "up", **attributes)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w"], ["h"]),
            up,
            helper.make_node("Mul", ["u", "u"], ["square"]),
            helper.make_node("GlobalAveragePool", ["square"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["out"]),
        ],
        "upsampling",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 2, 6, 7])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
        tensors,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4 if opset < 13 else 8
    )


class Upsampling(nn.Module):
    def __init__(self, model: onnx.ModelProto, **options: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(numpy_helper.to_array(model.graph.initializer[0])))
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = nnf.interpolate(nnf.conv2d(x, self.w), **self.options)
        return (up * up).mean((2, 3))


@pytest.mark.parametrize("opset", [7, 8, 9])
def test_upsample_of_old_opsets_trains(opset: int) -> None:
    model = upsampling(opset, (1, 1, 2, 3), mode="nearest")
    assert_torch_s_step(Upsampling(model, scale_factor=(2, 3)), model, (2, 6, 7))


def derive(model: onnx.ModelProto) -> onnx.ModelProto:
    forward = normalize_forward(model)
    return derive_training_graph(
        forward, trainable=list(weights(forward)), loss="cross_entropy", optimizer=Sgd()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "export with 'half_pixel'"),
        ({"keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy"),
    ],
)
def test_what_has_no_gradient_is_refused_by_name(options: dict[str, str], words: str) -> None:
    model = upsampling(19, (1, 1, 2, 2), mode="linear", **options)
    up = model.graph.node[1]
    if "keep_aspect_ratio_policy" in options:
        sizes = numpy_helper.from_array(np.array([8, 8]), "sizes")
        model.graph.initializer.append(sizes)
        up.input[2:] = ["", "sizes"]
        up.attribute.append(helper.make_attribute("axes", [2, 3]))
    else:
        region = numpy_helper.from_array(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), "region")
        model.graph.initializer.append(region)
        up.input[1] = "region"
    with pytest.raises(UsageError, match=f"'up'.*{words}"):
        derive(model)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialiasing_has_the_gradient_of_what_onnxruntime_does(mode: str) -> None:
    """Its filter differs from torch's; so that the loss of two near weights is the witness."""
    model = upsampling(19, (1, 1, 0.6, 0.5), mode=mode, antialias=1)
    session = session_of(derive(model))
    w = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    generator = np.random.default_rng(2)
    x = generator.standard_normal((3, 2, 6, 7)).astype(np.float32)
    fixed = {
        "x": x,
        "y": np.array([0, 1, 3]),
        "sample_weight": np.ones(3, np.float32),
        "lr": np.array(0, np.float32),
        "momentum/w": np.zeros(w.shape, np.float32),
    }
    direction = generator.standard_normal(w.shape)
    step = 2e-3
    near = [
        session.run(["loss"], {"w": (w + sign * step * direction).astype(np.float32), **fixed})[0]
        for sign in (1, -1)
    ]
    (gradient,) = session.run(["new/momentum/w"], {"w": w.astype(np.float32), **fixed})
    slope = (near[0] - near[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=5e-3)
