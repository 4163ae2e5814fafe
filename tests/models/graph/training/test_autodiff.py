"""Whole training steps against torch: the loss curve, the weights, and what is refused."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from our_trainer import OurTrainer, small_step
from torch import nn
from torch.nn import functional as nnf
from torch_nets import (
    NETS,
    batches,
    export,
    export_by_dynamo,
    rename_transposed,
    tensors_of,
)

from models.errors import UsageError
from models.graph.contract.input_contract import convert_input
from models.graph.reading.forward_graph import normalize_forward, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Adam, Optimizer, Sgd

CURVE = 1e-3  # how far the loss curves may lie apart


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
    infer = convert_input(
        export(net, (1, 12, 12)), dtype="uint8", sample_shape=(12, 12), mean=0.1, std=0.3
    ).model
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
    nodes, value = [], "input"
    tensors = [numpy_helper.from_array(np.array([4]), "wide")]
    for i, operator in enumerate(operators):
        tensors.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), f"w{i}"))
        nodes.append(helper.make_node("Gemm", [value, f"w{i}"], [f"h{i}"]))
        crops = operator == "CenterCropPad"  # to the same size; it has no rule
        more = ["wide"] if crops else []
        nodes.append(helper.make_node(operator, [f"h{i}", *more], [f"a{i}"], name=f"act{i}"))
        if crops:
            nodes[-1].attribute.append(helper.make_attribute("axes", [1]))
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
    model = chain("Relu", "CenterCropPad", "Tanh", "Identity")
    with pytest.raises(UsageError) as caught:
        derive(model, ["w0", "w3"])
    text = str(caught.value)
    assert "'act1'" in text
    assert "CenterCropPad" in text
    assert "w2, w3" in text
    assert "w1" not in text.split("instead")[1]
    derive(model, ["w2", "w3"])  # as the message says


def test_operators_without_rule_do_no_harm_beside_the_way() -> None:
    derive(chain("CenterCropPad", "Relu"), ["w1"])


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


@pytest.mark.parametrize("op", ["Round", "Greater"])
def test_a_node_that_only_makes_steps_is_named(op: str) -> None:
    node = helper.make_node(op, ["a", "half"] if op == "Greater" else ["a"], ["b"], "hard")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            node,
            helper.make_node("Cast", ["b"], ["p"], to=TensorProto.FLOAT),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 1])],
        [
            numpy_helper.from_array(np.ones((4, 1), np.float32), "w"),
            numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        ],
    )
    forward = normalize_forward(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    with pytest.raises(UsageError, match=rf"'w' cannot.*'hard' \({op}\).*only makes steps"):
        derive_training_graph(
            forward, trainable=["w"], loss="mse", optimizer=Sgd(), y_dtype="float32", y_shape=(1,)
        )
