"""Every net of the zoo: adapts to the data, says what is too small, exports cleanly."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from models.errors import UsageError
from models.nets.catalog import NETS, build_net, input_shape
from models.nets.export import calibrate_norms, export_net

SAMPLES = {
    "mlp": [(8, 8), (5,), (3, 32, 32)],
    "cnn": [(8, 8), (28, 28), (3, 32, 32), (32, 32, 3)],
    "cnn_norm": [(28, 28), (3, 32, 32), (16, 20)],
    "lenet": [(28, 28), (3, 32, 32), (16, 20)],
    "ds_cnn": [(64, 32), (1, 49, 10), (8, 8)],
    "har_cnn": [(9, 128), (3, 24)],
    "mobilenet_small": [(3, 32, 32), (28, 28), (64, 64, 3)],
    "resnet18": [(8, 8), (3, 64, 64)],
}
TOO_SMALL = {
    "cnn": (3, 3),
    "cnn_norm": (15, 28),
    "lenet": (15, 28),
    "ds_cnn": (2, 8),
    "har_cnn": (3, 4),
    "mobilenet_small": (7, 7),
    "resnet18": (3, 7, 7),
}


@pytest.mark.parametrize("name", NETS)
def test_a_net_takes_its_kinds_of_samples(name: str) -> None:
    for sample in SAMPLES[name]:
        shape = input_shape(name, sample)
        net = build_net(name, shape, 7, seed=0)
        with torch.no_grad():
            assert net(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size"), [("cnn", 421_642), ("cnn_norm", 54_100), ("lenet", 44_426)]
)
def test_a_net_has_the_size_that_we_state(name: str, size: int) -> None:
    net = build_net(name, (1, 28, 28), 10, seed=0)
    assert sum(p.numel() for p in net.parameters()) == size


@pytest.mark.parametrize("name", TOO_SMALL)
def test_samples_that_are_too_small_are_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(UsageError, match="at least"):
        build_net(name, input_shape(name, TOO_SMALL[name]), 10, seed=0)


@pytest.mark.parametrize("name", [name for name in NETS if name != "mlp"])
def test_samples_of_another_kind_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="takes samples of"):
        build_net(name, input_shape(name, (17,)), 10, seed=0)


def test_an_unknown_net_is_answered_with_the_list() -> None:
    with pytest.raises(UsageError, match="mlp, cnn, cnn_norm, lenet, ds_cnn"):
        build_net("lstm", (8, 8), 10, seed=0)


@pytest.mark.parametrize("name", NETS)
def test_the_export_computes_what_torch_computes_for_any_batch(name: str) -> None:
    shape = input_shape(name, SAMPLES[name][0])
    net = build_net(name, shape, 10, seed=0)
    random = np.random.default_rng(0)
    calibrate_norms(net, random.normal(size=(64, *shape)).astype(np.float32))
    model = export_net(net, shape)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    names = {tensor.name for tensor in model.graph.initializer}
    assert {key for key, value in net.state_dict().items() if value.dim()} <= names
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("BatchNormalization") == len(norms)
    session = ort.InferenceSession(model.SerializeToString())
    for batch in (1, 5):
        x = random.normal(size=(batch, *shape)).astype(np.float32)
        with torch.no_grad():
            expected = net(torch.from_numpy(x)).numpy()
        (found,) = session.run(None, {"x": x})
        np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))


def test_calibration_makes_channels_of_unit_variance_and_keeps_quiet_ones_quiet() -> None:
    shape = (1, 16, 16)
    net = build_net("ds_cnn", shape, 10, seed=0)
    first, norm = net[0], net[1]
    with torch.no_grad():
        first.weight[0] *= 1e-6
    x = np.random.default_rng(0).normal(3, 10, size=(256, *shape)).astype(np.float32)
    calibrate_norms(net, x)
    with torch.no_grad():
        channels = first(torch.from_numpy(x))
        deviation = channels.std(dim=(0, 2, 3))
        normed = norm(channels).mean(dim=(0, 2, 3))
    assert not any(module.training for module in net.modules())
    np.testing.assert_allclose(deviation[1:], 1, atol=0.05)
    assert deviation[0] < 1e-3
    np.testing.assert_allclose(normed, 0, atol=0.05)


def test_a_seed_gives_the_same_net_and_leaves_torch_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    once, again = (build_net("mlp", (8,), 3, seed=1) for _ in range(2))
    assert torch.rand(1) == expected
    pairs = zip(once.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
