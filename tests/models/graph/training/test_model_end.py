"""Every way to end a model: taken as torch takes it, or refused in one sentence."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as nnf
from our_trainer import OurTrainer, run
from sessions import session_of
from torch import nn
from torch_nets import export

from models.errors import UsageError
from models.graph.reading.forward_graph import normalize_forward, output_array, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd
from tools.author.model.output_contract import check_answers, with_loss_output

BATCH = 9

Answer = Callable[[torch.Tensor], torch.Tensor]


class Ending(nn.Module):
    """A layer, and what a stranger puts behind it."""

    def __init__(self, body: nn.Module, end: Answer) -> None:
        super().__init__()
        self.body, self.end = body, end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.body(x))


def linear(outputs: int, end: Answer) -> Ending:
    return Ending(nn.Linear(6, outputs), end)


def prepared(
    net: Ending, x_shape: tuple[int, ...], loss: str, **given: object
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model as it was exported, and as a bundle has it."""
    forward = normalize_forward(export(net, x_shape))
    return forward, with_loss_output(forward, loss, **given).model  # type: ignore[arg-type]


def check_one_step(
    net: Ending,
    infer: onnx.ModelProto,
    x: torch.Tensor,
    y: torch.Tensor,
    loss: str,
    expected: torch.Tensor,
) -> None:
    """Loss and gradients of the training graph are those of ``expected``."""
    tensors = weights(infer)
    graph = derive_training_graph(
        infer,
        trainable=list(tensors),
        loss=loss,  # type: ignore[arg-type]
        optimizer=Sgd(momentum=0),
        y_dtype=str(y.numpy().dtype),
        y_shape=tuple(y.shape[1:]),
    )
    ours = OurTrainer(graph, tensors, Sgd(momentum=0))
    out = ours.step(x.numpy(), y.numpy(), 1.0)
    expected.backward()
    assert float(out["loss"]) == pytest.approx(expected.item(), rel=1e-4)
    gradients = [p.grad.numpy() for p in net.parameters() if p.grad is not None]
    assert len(gradients) == len(tensors)
    for name, gradient in zip(tensors, gradients, strict=True):
        moved = tensors[name] - ours.state[name]
        np.testing.assert_allclose(
            moved.reshape(gradient.shape), gradient, rtol=2e-3, atol=1e-5, err_msg=name
        )


YES_OR_NO: dict[str, tuple[int, Answer]] = {
    "sigmoid": (1, torch.sigmoid),
    "sigmoid, squeezed": (1, lambda z: torch.sigmoid(z).squeeze(-1)),
    "sigmoid, in another shape": (1, lambda z: torch.sigmoid(z).reshape(-1, 1, 1).flatten(1)),
    "sigmoid, unsqueezed": (1, lambda z: torch.sigmoid(z).unsqueeze(1)),
    "sigmoid, clamped": (1, lambda z: torch.sigmoid(z).clamp(1e-6, 1 - 1e-6)),
    "sigmoid, by way of double": (1, lambda z: torch.sigmoid(z.double()).float()),
    "sigmoid, transposed": (4, lambda z: torch.sigmoid(z).reshape(-1, 2, 2).transpose(1, 2)),
    "sigmoid of several": (5, torch.sigmoid),
    "sigmoid, written out": (1, lambda z: 1 / (1 + torch.exp(-z))),
    "sigmoid, of a tanh": (1, lambda z: torch.tanh(z / 2) * 0.5 + 0.5),
    "the other side of a sigmoid": (1, lambda z: 1 - torch.sigmoid(z)),
    "hard sigmoid": (1, nnf.hardsigmoid),
    "two sigmoids": (2, lambda z: torch.sigmoid(z[:, :1]) * torch.sigmoid(z[:, 1:])),
    "one side of a softmax": (2, lambda z: torch.softmax(z, 1)[:, 1]),
    "clamped line": (1, lambda z: (z * 0.1 + 0.5).clamp(0, 1)),
}


@pytest.mark.parametrize("name", YES_OR_NO)
def test_probabilities_stay_as_they_are_and_are_learned_as_by_bce_loss(name: str) -> None:
    torch.manual_seed(0)
    outputs, end = YES_OR_NO[name]
    net = linear(outputs, end)
    x = torch.randn(BATCH, 6)
    p = net(x)
    y = (torch.rand(p.shape) < 0.5).float()
    given, infer = prepared(net, (6,), "bce", y_shape=tuple(y.shape[1:]))
    assert infer == given
    check_one_step(net, infer, x, y, "bce", nnf.binary_cross_entropy(p, y))


LOGITS: dict[str, tuple[int, Answer]] = {
    "logits": (1, lambda z: z),
    "logits, squeezed": (1, lambda z: z.squeeze(-1)),
    "logits of several": (5, lambda z: z),
    "logits with a temperature": (1, lambda z: z / 2.5),
    "logits, capped": (1, lambda z: 10 * torch.tanh(z / 10)),
    "logits, clamped": (1, lambda z: z.clamp(-20, 20)),
}


@pytest.mark.parametrize("name", LOGITS)
def test_behind_logits_a_sigmoid_is_put_and_said(name: str) -> None:
    torch.manual_seed(0)
    outputs, end = LOGITS[name]
    net = linear(outputs, end)
    x = torch.randn(BATCH, 6)
    z = net(x)
    y = (torch.rand(z.shape) < 0.5).float()
    forward = normalize_forward(export(net, (6,)))
    forward.graph.node[-1].name = forward.graph.output[0].name  # as some exporters do
    made = with_loss_output(forward, "bce", y_shape=tuple(y.shape[1:]))
    assert made.answers == "probabilities"
    assert "a sigmoid was put behind" in made.words[0]
    (answers,) = run(session_of(made.model), {"x": x.numpy()}).values()
    np.testing.assert_allclose(answers, torch.sigmoid(z).detach().numpy(), rtol=1e-5)
    check_one_step(net, made.model, x, y, "bce", nnf.binary_cross_entropy_with_logits(z, y))


class Classes(NamedTuple):
    """A model of classes: the layer, its end, where torch has the classes, what it answers."""

    body: Callable[[], nn.Module]
    x_shape: tuple[int, ...]
    end: Answer
    axis: int = 1
    says: str = "logits"


def dense() -> nn.Module:
    return nn.Linear(6, 5)


def along_time() -> nn.Module:
    return nn.Conv1d(3, 5, 3)


def over_image() -> nn.Module:
    return nn.Conv2d(3, 5, 3)


def by_hand(z: torch.Tensor) -> torch.Tensor:
    power = torch.exp(z - z.max(1, keepdim=True).values)
    return power / power.sum(1, keepdim=True)


def renormalized(z: torch.Tensor) -> torch.Tensor:
    p = torch.sigmoid(z)
    return p / p.sum(1, keepdim=True).clamp(min=1e-9)


CLASSES = {
    "logits": Classes(dense, (6,), lambda z: z),
    "softmax": Classes(dense, (6,), lambda z: z.softmax(1), says="probabilities"),
    "log-softmax": Classes(dense, (6,), lambda z: z.log_softmax(1)),
    "softmax, clamped": Classes(
        dense, (6,), lambda z: z.softmax(1).clamp(1e-6, 1), says="probabilities"
    ),
    "softmax, its logarithm": Classes(dense, (6,), lambda z: z.softmax(1).log()),
    "softmax, clamped, its logarithm": Classes(dense, (6,), lambda z: (z.softmax(1) + 1e-9).log()),
    "log-softmax, its exponential": Classes(
        dense, (6,), lambda z: z.log_softmax(1).exp(), says="probabilities"
    ),
    "softmax, by hand": Classes(dense, (6,), by_hand, says="probabilities"),
    "sigmoids, normalized": Classes(dense, (6,), renormalized, says="probabilities"),
    "both sides of a sigmoid": Classes(
        lambda: nn.Linear(6, 1),
        (6,),
        lambda z: torch.cat([1 - torch.sigmoid(z), torch.sigmoid(z)], 1),
        says="probabilities",
    ),
    "softmax before axes of one": Classes(
        dense, (6,), lambda z: z[:, :, None, None].softmax(1), says="probabilities"
    ),
    "logits between axes of one": Classes(dense, (6,), lambda z: z[:, None, :, None], axis=2),
    "a sequence": Classes(along_time, (3, 9), lambda z: z),
    "a sequence, softmax": Classes(
        along_time, (3, 9), lambda z: z.softmax(1), says="probabilities"
    ),
    "a sequence, log-softmax, classes last": Classes(
        along_time, (3, 9), lambda z: z.transpose(1, 2).log_softmax(-1), axis=2
    ),
    "as many moments as classes, softmax": Classes(
        along_time, (3, 7), lambda z: z.softmax(1), says="probabilities"
    ),
    "as many moments as classes, softmax last": Classes(
        along_time, (3, 7), lambda z: z.transpose(1, 2).softmax(2), axis=2, says="probabilities"
    ),
    "a softmax before it is transposed": Classes(
        along_time, (3, 7), lambda z: z.softmax(1).transpose(1, 2), axis=2, says="probabilities"
    ),
    "a sequence, softmax over all moments of a batch at once": Classes(
        along_time,
        (3, 9),
        lambda z: z.transpose(1, 2).reshape(-1, 5).softmax(1).reshape(-1, 7, 5),
        axis=2,
        says="probabilities",
    ),
    "an image": Classes(over_image, (3, 8, 6), lambda z: z),
    "an image, softmax": Classes(
        over_image, (3, 8, 6), lambda z: z.softmax(1), says="probabilities"
    ),
    "an image, classes last": Classes(
        over_image, (3, 8, 6), lambda z: z.permute(0, 2, 3, 1).log_softmax(-1), axis=3
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_found_wherever_they_are_and_learned_as_by_torch(name: str) -> None:
    torch.manual_seed(0)
    body, x_shape, end, axis, says = CLASSES[name]
    net = Ending(body(), end)
    x = torch.randn(BATCH, *x_shape)
    given = net(x)
    last = given.movedim(axis, -1)
    classes = last.shape[-1]
    y_shape = tuple(size for size in last.shape[1:-1] if size != 1)
    last = last.reshape(BATCH, *y_shape, classes)
    y = torch.randint(0, classes, (BATCH, *y_shape))
    forward = normalize_forward(export(net, x_shape))
    made = with_loss_output(forward, "cross_entropy", y_shape=y_shape)
    assert made.answers == says
    assert output_array(made.model).shape == (*y_shape, classes)
    assert bool(made.words) == (axis == 1 and y_shape != ())
    (answers,) = run(session_of(made.model), {"x": x.numpy()}).values()
    np.testing.assert_allclose(answers, last.detach().numpy(), rtol=1e-4, atol=1e-6)
    logs = (last.log() if says == "probabilities" else last.log_softmax(-1)).reshape(-1, classes)
    check_one_step(net, made.model, x, y, "cross_entropy", nnf.nll_loss(logs, y.reshape(-1)))


REFUSED: dict[str, tuple[str, Ending, tuple[int, ...], tuple[int, ...], str]] = {
    "tanh": ("bce", linear(1, torch.tanh), (6,), (1,), r"Tanh\).*-1 and 1.*Sigmoid or in logits"),
    "relu": ("bce", linear(1, torch.relu), (6,), (1,), r"Relu\).*0 and inf"),
    "softplus": ("bce", linear(1, nnf.softplus), (6,), (1,), r"Softplus\)"),
    "exp": ("bce", linear(1, torch.exp), (6,), (1,), r"Exp\)"),
    "log-sigmoid": ("bce", linear(1, nnf.logsigmoid), (6,), (1,), "-inf and 0"),
    "softmax of one": ("bce", linear(1, lambda z: z.softmax(1)), (6,), (1,), "always 1"),
    "two for one label": ("bce", linear(2, lambda z: z.softmax(1)), (6,), (), "two classes"),
    "sigmoids": ("cross_entropy", linear(5, torch.sigmoid), (6,), (), r"Sigmoid\).*--loss bce"),
    "hard sigmoids": ("cross_entropy", linear(5, nnf.hardsigmoid), (6,), (), r"HardSigmoid\)"),
    "percent": ("cross_entropy", linear(5, lambda z: 100 * z.softmax(1)), (6,), (), r"Mul\).*sha"),
    "minus log": ("cross_entropy", linear(5, lambda z: -z.log_softmax(1)), (6,), (), r"Neg\).*tu"),
    "one value": ("cross_entropy", linear(1, torch.sigmoid), (6,), (), "--loss bce"),
    "softmax over the batch": (
        "cross_entropy", linear(5, lambda z: z.softmax(0)), (6,), (), "one batch size only"
    ),
    "softmax over time": (
        "cross_entropy", Ending(along_time(), lambda z: z.softmax(2)), (3, 9), (7,), "over axis 2"
    ),
    "two softmaxes": (
        "cross_entropy", linear(4, lambda z: z[:, :2].softmax(1) / 2 + z[:, 2:].softmax(1) / 2),
        (6,), (), r"Add\).*Softmax over the classes",
    ),
    "as many moments as classes": (
        "cross_entropy", Ending(along_time(), lambda z: z), (3, 7), (5,), "axis 1 or 2.*softmax"
    ),
    "labels of another length": (
        "cross_entropy", Ending(along_time(), lambda z: z), (3, 9), (6,), r"\[5, 7\].*\[6\]"
    ),
    "a label for many": (
        "cross_entropy", Ending(along_time(), lambda z: z), (3, 9), (), r"\[5, 7\].*\[\]"
    ),
    "percentages": (
        "cross_entropy", linear(5, lambda z: 100 * torch.softmax(z, -1)), (6,), (),
        "scales the classes",
    ),
    "chosen classes": ("cross_entropy", linear(5, lambda z: z.argmax(1)), (6,), (), "holds labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_fits_no_reading_is_refused_with_the_node_and_what_to_do(name: str) -> None:
    loss, net, x_shape, y_shape, says = REFUSED[name]
    with pytest.raises(UsageError, match=says) as refused:
        prepared(net, x_shape, loss, y_shape=y_shape)
    assert "\n" not in str(refused.value)


def test_an_axis_that_was_named_decides_where_two_fit() -> None:
    net = Ending(along_time(), lambda z: z)
    x = torch.randn(BATCH, 3, 7)
    for axis, order in ((1, (0, 2, 1)), (2, (0, 1, 2)), (-1, (0, 1, 2))):
        _, infer = prepared(net, (3, 7), "cross_entropy", y_shape=(5,), class_axis=axis)
        (answers,) = run(session_of(infer), {"x": x.numpy()}).values()
        np.testing.assert_allclose(answers, net(x).detach().numpy().transpose(order), atol=1e-5)
    with pytest.raises(UsageError, match=r"axis 2 .*cannot be the classes"):
        prepared(net, (3, 9), "cross_entropy", y_shape=(7,), class_axis=2)


@pytest.mark.parametrize(
    ("loss", "values", "is_refused"),
    [
        ("bce", [[0.1], [0.9]], True),
        ("bce", [[0.1], [1.2]], False),
        ("cross_entropy", [[0.1, 0.9], [0.5, 0.5]], True),
        ("cross_entropy", [[0.1, 0.8], [0.5, 0.4]], False),
    ],
)
def test_behind_a_node_that_hides_its_values_probabilities_are_not_taken_for_logits(
    loss: str, values: list[list[float]], is_refused: bool
) -> None:
    """CumSum stands for any operator whose values the graph's reader does not know."""
    node = onnx.helper.make_node("CumSum", ["x", "axis"], ["p"], "odd")
    shape = ["batch", len(values[0])]
    ends = [onnx.helper.make_tensor_value_info(name, 1, shape) for name in ("x", "p")]
    axis = onnx.numpy_helper.from_array(np.array(1), "axis")
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [axis])
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    made = with_loss_output(model, loss, y_shape=(1,) if loss == "bce" else ())  # type: ignore[arg-type]
    assert made.doubted == "'odd' (CumSum)"
    x = np.diff(np.array(values, np.float32), axis=1, prepend=0).astype(np.float32)
    if is_refused:
        with pytest.raises(UsageError, match=r"'odd' .*or in logits"):
            check_answers(made, x)
    else:
        check_answers(made, x)
