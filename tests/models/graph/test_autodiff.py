"""Whole training steps against torch: the loss curve, the weights, and what is refused."""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as nnf

from models.errors import UsageError
from models.graph.autodiff import derive_training_graph
from models.graph.forward_graph import normalize_forward, weights
from models.graph.input_contract import with_input_conversion
from models.graph.optimizers import Adam, Optimizer, Sgd, slot_names

STEPS = 50
CURVE = 1e-3  # how far the loss curves may lie apart


def run(session: ort.InferenceSession, feed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def load(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options)


class OurTrainer:
    """The training graph as a device runs it: outputs of a step are inputs of the next."""

    def __init__(
        self, model: onnx.ModelProto, tensors: Mapping[str, np.ndarray], optimizer: Optimizer
    ) -> None:
        self.session = load(model)
        self.state = dict(tensors)
        for slot in slot_names(optimizer, list(tensors)):
            shape = () if slot == "adam_step" else tensors[slot.split("/", 1)[1]].shape
            self.state[slot] = np.zeros(shape, np.float32)
        self.extra: dict[str, np.ndarray] = {}

    def anchor(self, mu: float, tensors: Mapping[str, np.ndarray]) -> None:
        self.extra = {f"anchor/{name}": value for name, value in tensors.items()}
        self.extra["mu"] = np.array(mu, np.float32)

    def step(
        self, x: np.ndarray, y: np.ndarray, lr: float, weight: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        if weight is None:
            weight = np.ones(len(x), np.float32)
        feed = {"x": x, "y": y, "sample_weight": weight, "lr": np.array(lr, np.float32)}
        out = run(self.session, {**self.state, **self.extra, **feed})
        self.state = {name: out[f"new/{name}"] for name in self.state}
        return out


def export(net: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Export with torch's older exporter, which is quick; batch norm stays a node."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, *shape),),
            buffer,
            opset_version=17,
            do_constant_folding=False,
            dynamo=False,
        )
    return onnx.load_from_string(buffer.getvalue())


def export_by_dynamo(net: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Export with torch's newer exporter, with the parameters' own names and a fixed batch of 1."""
    program = torch.onnx.export(
        net.eval(),
        (torch.zeros(1, *shape),),
        dynamo=True,
        opset_version=18,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


class Block(nn.Module):
    """conv + batch norm + relu6, a residual, depthwise, pools: what image nets are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 9, 4)
        with torch.no_grad():
            for statistic in (self.norm.running_mean, self.norm.running_var):
                assert statistic is not None
                statistic.uniform_(0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nnf.relu6(self.norm(self.stem(x)))
        x = nnf.max_pool2d(nnf.relu(x + self.point(self.depth(x))), 2)
        return self.head(nnf.avg_pool2d(x, 2).flatten(1))


class Attention(nn.Module):
    """One transformer block over a sequence, with layer norm and gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(n, t, 16))
        return self.head(nnf.gelu(x).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.Tanh(), nn.Linear(32, 4)),
        (6, 6),
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, 1, 1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 20, 3, 1, 1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Flatten(),
            nn.Linear(180, 4),
        ),
        (1, 12, 12),
    ),
    "block": (Block, (1, 12, 12)),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 16, 5, 2, 2),
            nn.LeakyReLU(0.1),
            nn.Conv1d(16, 20, 3, groups=2),
            nn.SiLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(20, 4),
        ),
        (3, 32),
    ),
    "small images": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, (3, 2), 1, (2, 1), dilation=2, groups=8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        ),
        (2, 16, 14),
    ),
    "attention": (Attention, (7, 6)),
}


def batches(shape: tuple[int, ...], size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x = generator.standard_normal((STEPS, size, *shape)).astype(np.float32)
    y = np.arange(STEPS * size).reshape(STEPS, size) % 4
    x += y.reshape(STEPS, size, *[1] * len(shape)) * 0.3  # something to learn
    return x, y


def tensors_of(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


def torch_optimizer(net: nn.Module, optimizer: Optimizer, lr: float) -> torch.optim.Optimizer:
    if isinstance(optimizer, Adam):
        return torch.optim.Adam(
            net.parameters(),
            lr,
            (optimizer.beta1, optimizer.beta2),
            optimizer.epsilon,
            optimizer.weight_decay,
        )
    return torch.optim.SGD(
        net.parameters(), lr, optimizer.momentum, weight_decay=optimizer.weight_decay
    )


OPTIMIZERS: dict[str, tuple[Optimizer, float]] = {
    "sgd": (Sgd(momentum=0), 0.05),
    "momentum and decay": (Sgd(momentum=0.9, weight_decay=1e-2), 0.02),
    "adam": (Adam(weight_decay=1e-2), 1e-3),
}


def compare(
    net: nn.Module, forward: onnx.ModelProto, shape: tuple[int, ...], rule: str, *, mu: float = 0.0
) -> OurTrainer:
    """Train both for 50 steps and compare loss, gradient norm and, roughly, the weights."""
    optimizer, lr = OPTIMIZERS[rule]
    tensors = tensors_of(net)
    assert set(weights(forward)) == set(tensors)
    model = derive_training_graph(
        forward,
        trainable=list(tensors),
        loss="cross_entropy",
        optimizer=optimizer,
        proximal=mu > 0,
        classes=4,
    )
    ours, theirs = OurTrainer(model, tensors, optimizer), torch_optimizer(net, optimizer, lr)
    if mu:
        ours.anchor(mu, tensors)
    anchors = [p.detach().clone() for p in net.parameters()]
    curves = []
    for step, (x, y) in enumerate(zip(*batches(shape), strict=True)):
        size = 8 if step % 5 else 3  # the same graph takes any batch
        x, y = x[:size], y[:size]
        theirs.zero_grad()
        loss = nnf.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
        for p, anchor in zip(net.parameters(), anchors, strict=True):
            assert p.grad is not None
            p.grad += mu * (p.detach() - anchor)
        theirs.step()
        out = ours.step(x, y, lr)
        curves.append((float(out["loss"]), loss.item()))
        assert float(out["grad_norm"]) == pytest.approx(norm.item(), rel=0.02)
    found, expected = np.array(curves).T
    assert np.abs(found - expected).max() < CURVE
    assert expected[-10:].mean() < expected[:10].mean()
    for name, p in net.named_parameters():
        assert np.abs(ours.state[name] - p.detach().numpy()).max() < 0.01
    return ours


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("name", NETS)
def test_the_loss_curve_is_torch_s(name: str, rule: str) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build()
    model = export(net, shape)
    rename_transposed(model, net)
    compare(net, normalize_forward(model), shape, rule)


def rename_transposed(model: onnx.ModelProto, net: nn.Module) -> None:
    """Undo what the older exporter does to a Linear over sequences: W.T under another name."""
    names = {name for name, _ in net.named_parameters()}
    for node in list(model.graph.node):
        if node.op_type == "MatMul" and node.input[1].startswith("onnx::"):
            tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
            value = numpy_helper.to_array(tensor).T
            parameters = dict(net.named_parameters())
            (name,) = (n for n in names if np.array_equal(parameters[n].detach().numpy(), value))
            tensor.CopyFrom(numpy_helper.from_array(value.copy(), name))
            turned = f"{name}/transposed"
            node.input[1] = turned
            model.graph.node.insert(0, helper.make_node("Transpose", [name], [turned], perm=[1, 0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["block", "attention"])
def test_an_unoptimized_dynamo_export_trains_under_torch_s_own_names(name: str) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build()
    compare(net, normalize_forward(export_by_dynamo(net, shape)), shape, "sgd")


def test_the_proximal_term_pulls_toward_the_anchor_as_in_fedprox() -> None:
    build, shape = NETS["mlp"]
    torch.manual_seed(0)
    net = build()
    compare(net, normalize_forward(export(net, shape)), shape, "momentum and decay", mu=0.3)


def small_step(**changes: Any) -> tuple[OurTrainer, tuple[int, ...]]:
    build, shape = NETS["block"]
    torch.manual_seed(0)
    net = build()
    forward = normalize_forward(export(net, shape))
    settings: dict[str, Any] = {
        "trainable": list(weights(forward)),
        "loss": "cross_entropy",
        "optimizer": Sgd(),
        **changes,
    }
    model = derive_training_graph(forward, **settings)
    trained = {name: weights(forward)[name] for name in settings["trainable"]}
    return OurTrainer(model, trained, settings["optimizer"]), shape


def test_samples_of_weight_zero_are_padding() -> None:
    ours, shape = small_step()
    xs, ys = batches(shape)
    x, y = xs[0], ys[0]
    start = dict(ours.state)
    real = ours.step(x[:5], y[:5], 0.1)
    ours.state = start
    padded = ours.step(x, y, 0.1, weight=np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32))
    for name, value in real.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_weights_count_relative_to_their_sum() -> None:
    ours, shape = small_step()
    xs, ys = batches(shape)
    x, y = xs[0], ys[0]
    start = dict(ours.state)
    twice = ours.step(np.concatenate([x, x[:2]]), np.concatenate([y, y[:2]]), 0.1)
    ours.state = start
    weighted = ours.step(x, y, 0.1, weight=np.array([6, 6, 3, 3, 3, 3, 3, 3], np.float32))
    for name, value in twice.items():
        np.testing.assert_allclose(weighted[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_batch_of_padding_alone_changes_nothing() -> None:
    ours, shape = small_step(optimizer=Sgd(momentum=0))
    xs, ys = batches(shape)
    before = dict(ours.state)
    out = ours.step(xs[0], ys[0], 0.1, weight=np.zeros(8, np.float32))
    assert out["loss"] == 0
    assert out["grad_norm"] == 0
    for name, value in before.items():
        np.testing.assert_array_equal(ours.state[name], value)


def test_frozen_tensors_cost_no_gradient_nodes() -> None:
    whole, _ = small_step()
    head, _ = small_step(trainable=["head.weight", "head.bias"])
    build, shape = NETS["block"]
    forward = normalize_forward(export(build(), shape))
    model = derive_training_graph(
        forward, trainable=["head.weight", "head.bias"], loss="cross_entropy", optimizer=Sgd()
    )
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 3  # the forward ones
    assert not {"ConvTranspose", "Sign", "ScatterElements"} & set(operators)
    frozen = {tensor.name for tensor in model.graph.initializer}
    assert "stem.weight" in frozen
    assert "head.weight" not in frozen
    assert {v.name for v in head.session.get_inputs()} == {
        *("x", "y", "sample_weight", "lr"),
        *("head.weight", "head.bias", "momentum/head.weight", "momentum/head.bias"),
    }
    assert len(whole.session.get_inputs()) > len(head.session.get_inputs())


@pytest.mark.parametrize(
    "trained",
    [["norm.weight", "norm.bias"], ["stem.weight"], ["norm.bias"], ["depth.weight", "norm.weight"]],
)
def test_any_part_of_a_net_may_be_trained(trained: list[str]) -> None:
    ours, shape = small_step(trainable=trained)
    torch.manual_seed(0)
    net = NETS["block"][0]().eval()
    xs, ys = batches(shape)
    loss = nnf.cross_entropy(net(torch.from_numpy(xs[0])), torch.from_numpy(ys[0]))
    loss.backward()
    out = ours.step(xs[0], ys[0], 0.1)
    parameters = dict(net.named_parameters())
    for name in trained:
        gradient = parameters[name].grad
        assert gradient is not None
        found = out[f"new/momentum/{name}"]
        np.testing.assert_allclose(found, gradient.numpy(), rtol=1e-3, atol=1e-5)


LOSS_ORACLES: dict[str, Callable[..., torch.Tensor]] = {
    "mse": lambda p, y: ((p - y) ** 2).flatten(1).mean(1),
    "bce": lambda p, y: nnf.binary_cross_entropy_with_logits(p, y, reduction="none").mean(1),
    "cross_entropy": lambda p, y: nnf.cross_entropy(p, y[:, 0].long(), reduction="none"),
    "cross_entropy of probabilities": lambda p, y: nnf.cross_entropy(p, y, reduction="none"),
}
FINALS = {"mse": None, "bce": nn.Sigmoid()}


@pytest.mark.parametrize("final", [False, True], ids=["of logits", "of probabilities"])
@pytest.mark.parametrize("loss", LOSS_ORACLES)
def test_each_loss_and_its_gradient_are_torch_s(loss: str, final: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5))
    last = FINALS.get(loss, nn.Softmax(-1))
    whole = nn.Sequential(net[0], last) if final and last is not None else net
    forward = normalize_forward(export(whole, (6,)))
    tensors = tensors_of(net)
    labels = loss == "cross_entropy"
    model = derive_training_graph(
        forward,
        trainable=list(tensors),
        loss=loss.split()[0],  # type: ignore[arg-type]
        optimizer=Sgd(momentum=0),
        y_dtype="uint8" if labels else "float32",
        y_shape=() if labels else (5,),
    )
    ours = OurTrainer(model, tensors, Sgd(momentum=0))
    generator = np.random.default_rng(0)
    x = (30 * generator.standard_normal((8, 6))).astype(np.float32)  # logits of 100: stable
    y = generator.integers(0, 2, (8, 5)).astype(np.float32)
    if loss == "cross_entropy of probabilities":
        y = generator.dirichlet(np.ones(5), 8).astype(np.float32)
    w = generator.uniform(0, 2, 8).astype(np.float32)
    each = LOSS_ORACLES[loss](net(torch.from_numpy(x)), torch.from_numpy(y))
    expected = (each * torch.from_numpy(w)).sum() / w.sum()
    expected.backward()
    out = ours.step(x, y[:, 0].astype(np.uint8) if labels else y, 1.0, weight=w)
    assert float(out["loss"]) == pytest.approx(expected.item(), rel=1e-5)
    for name, p in net.named_parameters():
        assert p.grad is not None
        moved = tensors[name] - ours.state[name]
        np.testing.assert_allclose(moved, p.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_a_label_per_position_is_averaged_over_the_positions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4))
    model = export(net, (7, 6))
    rename_transposed(model, net)
    forward = normalize_forward(model)
    tensors = tensors_of(net)
    training = derive_training_graph(
        forward,
        trainable=list(tensors),
        loss="cross_entropy",
        optimizer=Sgd(momentum=0),
        y_shape=(7,),
        classes=4,
    )
    ours = OurTrainer(training, tensors, Sgd(momentum=0))
    generator = np.random.default_rng(0)
    x = generator.standard_normal((3, 7, 6)).astype(np.float32)
    y = generator.integers(0, 4, (3, 7))
    out = ours.step(x, y, 1.0)
    expected = nnf.cross_entropy(
        net(torch.from_numpy(x)).reshape(-1, 4), torch.from_numpy(y).reshape(-1)
    )
    assert float(out["loss"]) == pytest.approx(expected.item(), rel=1e-5)


def test_weights_in_constant_nodes_are_found() -> None:
    torch.manual_seed(0)
    net = NETS["mlp"][0]()
    model = export(net, (6, 6))
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    for tensor in tensors:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    compare(net, normalize_forward(model), (6, 6), "sgd")


def test_data_of_another_type_and_shape_are_converted_inside_the_graphs() -> None:
    torch.manual_seed(0)
    net = NETS["cnn"][0]()
    infer = with_input_conversion(
        export(net, (1, 12, 12)), dtype="uint8", sample_shape=(12, 12), mean=0.1, std=0.3
    )
    tensors = tensors_of(net)
    model = derive_training_graph(
        infer, trainable=list(tensors), loss="cross_entropy", optimizer=Sgd(), y_dtype="int32"
    )
    ours = OurTrainer(model, tensors, Sgd())
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (5, 12, 12), dtype=np.uint8)
    y = generator.integers(0, 4, 5).astype(np.int32)
    converted = torch.from_numpy((x[:, None].astype(np.float32) / 255 - 0.1) / 0.3)
    expected = nnf.cross_entropy(net(converted), torch.from_numpy(y).long())
    assert float(ours.step(x, y, 0.1)["loss"]) == pytest.approx(expected.item(), rel=1e-5)


def chain(*operators: str) -> onnx.ModelProto:
    """x -> Gemm (w0) -> operator -> Gemm (w1) -> operator ..., all 4 wide."""
    nodes, tensors, value = [], [], "input"
    for i, operator in enumerate(operators):
        tensors.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), f"w{i}"))
        nodes.append(helper.make_node("Gemm", [value, f"w{i}"], [f"h{i}"]))
        nodes.append(helper.make_node(operator, [f"h{i}"], [f"a{i}"], name=f"act{i}"))
        value = f"a{i}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", 4])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def derive(model: onnx.ModelProto, trainable: list[str], **settings: Any) -> onnx.ModelProto:
    return derive_training_graph(
        normalize_forward(model),
        trainable=trainable,
        loss=settings.pop("loss", "cross_entropy"),
        optimizer=Sgd(),
        **settings,
    )


def test_a_missing_rule_names_node_operator_and_what_could_be_trained_instead() -> None:
    model = chain("Relu", "Mish", "Tanh", "Identity")
    with pytest.raises(UsageError) as caught:
        derive(model, ["w0", "w3"])
    text = str(caught.value)
    assert "'act1'" in text
    assert "Mish" in text
    assert "w2, w3" in text
    assert "w1" not in text.split("instead")[1]
    derive(model, ["w2", "w3"])  # as the message says


def test_operators_without_rule_do_no_harm_beside_the_way() -> None:
    derive(chain("Mish", "Relu"), ["w1"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trainable": ["nothing"]}, "no weight 'nothing'"),
        ({"trainable": []}, "no tensor"),
        ({"classes": 7}, "7 classes"),
        ({"loss": "mse", "y_shape": (3,)}, "as many elements"),
        ({"y_shape": (2,)}, "cross-entropy wants"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict[str, Any], words: str) -> None:
    trainable = settings.pop("trainable", ["w0"])
    with pytest.raises(UsageError, match=words):
        derive(chain("Relu"), trainable, **settings)
