"""The training loop on a linear model, whose steps are computed by numpy as the second source."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.errors import PayloadError, UsageError
from models.graph.reading.forward_graph import normalize_forward
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd, slot_names
from models.learning import training_loop
from models.learning.measurement import evaluate
from models.learning.onnx_session import open_session
from models.learning.training_loop import Stepper, train, train_by, training_rows
from models.protocol.manifest import TrainingPlan
from models.samples.sample_check import samples_of
from models.task.params import Tensor, flatten, unflatten
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec

RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(4, 3)).astype(np.float32)
B = RANDOM.normal(size=3).astype(np.float32)
TENSORS: dict[str, Tensor] = {"W": W, "b": B}
X = RANDOM.normal(size=(22, 4)).astype(np.float32)
Y = RANDOM.integers(0, 3, 22)
PLAN = TrainingPlan(open=True, epochs=1, batch=8, learning_rate=0.1)


def forward() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "W", "b"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(W, "W"), numpy_helper.from_array(B, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return normalize_forward(model)


def task(
    loss: Any = "cross_entropy", momentum: float = 0.0, proximal: bool = False
) -> tuple[TaskSpec, bytes]:
    classification = loss == "cross_entropy"
    optimizer = Sgd(momentum=momentum)
    y_shape = () if classification else (3,)
    y_dtype: Any = "int64" if classification else "float32"
    graph = derive_training_graph(
        forward(),
        trainable=["W", "b"],
        loss=loss,
        optimizer=optimizer,
        proximal=proximal,
        classes=3 if classification else 0,
        y_dtype=y_dtype,
        y_shape=y_shape,
    )
    spec = TaskSpec(
        format=1,
        task="linear",
        net="linear",
        tensors=(TensorSpec("W", (4, 3), Role.SHARED), TensorSpec("b", (3,), Role.SHARED)),
        x=ArraySpec("float32", (4,)),
        y=ArraySpec(y_dtype, y_shape),
        classes=3 if classification else 0,
        loss=loss,
        metric="accuracy" if classification else "mse",
        optimizer="sgd",
        proximal=proximal,
        infer_input="x",
        infer_output="logits",
        slots=slot_names(optimizer, ["W", "b"]),
    )
    return spec, graph.SerializeToString()


INFER = forward().SerializeToString()
SPEC, TRAIN = task()


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def numpy_step(
    tensors: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray, rate: float
) -> dict[str, np.ndarray]:
    """One step of softmax regression: dL/dz = (p - onehot(y)) / n."""
    d = (softmax(x @ tensors["W"] + tensors["b"]) - np.eye(3)[y]) / len(x)
    return {"W": tensors["W"] - rate * x.T @ d, "b": tensors["b"] - rate * d.sum(axis=0)}


def close(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)


def test_full_batch_steps_are_those_of_softmax_regression() -> None:
    plan = msgspec.structs.replace(PLAN, batch=22, epochs=7)
    result = train(TRAIN, SPEC, TENSORS, X, Y, plan, seed=0)
    expected: dict[str, np.ndarray] = dict(TENSORS)
    for _ in range(7):
        expected = numpy_step(expected, X, Y, 0.1)
    close(result.tensors, expected)
    assert result.steps == 7


def test_momentum_carries_over_from_step_to_step() -> None:
    spec, graph = task(momentum=0.9)
    plan = msgspec.structs.replace(PLAN, batch=22, epochs=5)
    expected: dict[str, np.ndarray] = dict(TENSORS)
    velocity: dict[str, np.ndarray] = {name: np.zeros_like(v) for name, v in TENSORS.items()}
    for _ in range(5):
        plain = numpy_step(expected, X, Y, 1.0)
        velocity = {n: 0.9 * velocity[n] + expected[n] - plain[n] for n in expected}
        expected = {n: expected[n] - 0.1 * velocity[n] for n in expected}
    close(train(graph, spec, TENSORS, X, Y, plan, seed=0).tensors, expected)


def test_the_last_short_batch_is_padded_without_effect() -> None:
    """22 samples in batches of 8: the third step sees the six that are left and nothing else."""
    result = train(TRAIN, SPEC, TENSORS, X, Y, PLAN, seed=3)
    order = np.random.default_rng(3).permutation(22)
    expected: dict[str, np.ndarray] = dict(TENSORS)
    for rows in (order[:8], order[8:16], order[16:]):
        expected = numpy_step(expected, X[rows], Y[rows], 0.1)
    close(result.tensors, expected)
    assert result.steps == 3


def test_samples_of_weight_zero_teach_nothing() -> None:
    plan = msgspec.structs.replace(PLAN, batch=22)
    weight = np.where(np.arange(22) < 9, 1, 0).astype(np.float32)
    some = train(TRAIN, SPEC, TENSORS, X, Y, plan, sample_weight=weight, seed=0)
    close(some.tensors, numpy_step(TENSORS, X[:9], Y[:9], 0.1))


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(1, 100, 3), (2.4, 100, 7), (0.01, 100, 1), (4, 5, 5), (0.34, 1, 1)],
)
def test_a_plan_is_kept_to_the_step(epochs: float, max_steps: int, steps: int) -> None:
    plan = msgspec.structs.replace(PLAN, epochs=epochs, max_steps=max_steps)
    seen: list[tuple[int, float]] = []
    result = train(
        TRAIN, SPEC, TENSORS, X, Y, plan, seed=0, on_epoch=lambda n, loss: seen.append((n, loss))
    )
    assert result.steps == steps
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))


@pytest.mark.parametrize("epochs", [1, 3, 20])
def test_losses_are_of_the_first_and_the_last_tenth_of_the_steps(epochs: float) -> None:
    """Not of epochs: there is one by default, and then both would be the same."""
    losses: list[float] = []
    plan = msgspec.structs.replace(PLAN, epochs=epochs, max_steps=1000)

    class Recorder(Stepper):
        def step(self, *rows: Any) -> float:
            losses.append(super().step(*rows))
            return losses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "Stepper", Recorder)
        result = train(TRAIN, SPEC, TENSORS, X[:16], Y[:16], plan, seed=0)
    tenth = max(1, result.steps // 10)
    assert result.steps == 2 * epochs
    assert result.loss_first == pytest.approx(np.mean(losses[:tenth]))
    assert result.loss_last == pytest.approx(np.mean(losses[-tenth:]))
    assert result.loss_first != result.loss_last


def test_losses_of_one_step_are_the_same() -> None:
    plan = msgspec.structs.replace(PLAN, max_steps=1)
    result = train(TRAIN, SPEC, TENSORS, X, Y, plan, seed=0)
    assert result.loss_first == result.loss_last


def test_a_seed_repeats_and_another_one_differs() -> None:
    once, again, other = (train(TRAIN, SPEC, TENSORS, X, Y, PLAN, seed=s) for s in (1, 1, 2))
    assert np.array_equal(once.tensors["W"], again.tensors["W"])
    assert not np.array_equal(once.tensors["W"], other.tensors["W"])


def test_arguments_stay_as_they_are() -> None:
    before = {name: value.copy() for name, value in TENSORS.items()}
    train(TRAIN, SPEC, TENSORS, X, Y, PLAN, seed=0)
    assert all(np.array_equal(TENSORS[name], value) for name, value in before.items())


def test_the_proximal_term_pulls_back_to_the_start() -> None:
    spec, graph = task(proximal=True)
    plan = msgspec.structs.replace(PLAN, epochs=20)
    moved = []
    for mu in (0.0, 5.0):
        mu_plan = msgspec.structs.replace(plan, mu=mu)
        result = train(graph, spec, TENSORS, X, Y, mu_plan, seed=0)
        moved.append(float(np.abs(result.tensors["W"] - W).max()))
    assert moved[1] < 0.3 * moved[0]


def test_mu_needs_a_proximal_task() -> None:
    with pytest.raises(UsageError, match="--proximal"):
        train(TRAIN, SPEC, TENSORS, X, Y, msgspec.structs.replace(PLAN, mu=0.1), seed=0)


def test_divergence_is_said_with_the_step_and_what_to_do() -> None:
    spec, graph = task("mse")
    target = np.zeros((22, 3), np.float32)
    plan = msgspec.structs.replace(PLAN, learning_rate=100.0, epochs=100)
    with pytest.raises(UsageError, match=r"diverged at step \d+ .*lower the learning rate"):
        train(graph, spec, TENSORS, X, target, plan, seed=0)


@pytest.mark.parametrize("batch", [1, 8, 22])
@pytest.mark.parametrize("row", [0, 13, 21])
def test_one_sample_that_breaks_the_training_is_named_and_not_the_learning_rate(
    batch: int, row: int
) -> None:
    """Its square overflows: the loss is finite or not, the gradient is not."""
    spec, graph = task("mse")
    x, target = X.copy(), np.zeros((22, 3), np.float32)
    x[row] = 1e30
    plan = msgspec.structs.replace(PLAN, batch=batch, epochs=3, learning_rate=0.01)
    with pytest.raises(UsageError, match=f"row {row} broke the training") as caught:
        train(graph, spec, TENSORS, x, target, plan, seed=0)
    assert "lower" not in str(caught.value)
    with pytest.raises(UsageError, match=f"row {100 + row} broke the training"):
        train(graph, spec, TENSORS, x, target, plan, seed=0, numbers=range(100, 122))


def test_several_samples_that_break_the_training_are_counted() -> None:
    spec, graph = task("mse")
    x = X.copy()
    x[[3, 5, 8]] = 1e30
    plan = msgspec.structs.replace(PLAN, batch=22)
    with pytest.raises(UsageError, match=r"row 3 .and those in 2 more rows. broke"):
        train(graph, spec, TENSORS, x, np.zeros((22, 3), np.float32), plan, seed=0)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_rate_that_is_too_high_blames_no_sample(batch: int) -> None:
    spec, graph = task("mse")
    plan = msgspec.structs.replace(PLAN, learning_rate=100.0, epochs=100, batch=batch)
    with pytest.raises(UsageError, match=r"diverged .*lower the learning rate"):
        train(graph, spec, TENSORS, X, np.zeros((22, 3), np.float32), plan, seed=0)


@pytest.mark.parametrize("batch", [3, 22, 64])
def test_evaluation_is_that_of_numpy(batch: int) -> None:
    other = {"W": W[::-1].copy(), "b": 2 * B}
    logits = X @ other["W"] + other["b"]
    found = evaluate(INFER, SPEC, other, X, Y, batch=batch)
    assert found.samples == 22
    assert found.metric == pytest.approx((logits.argmax(axis=1) == Y).mean())
    assert found.loss == pytest.approx(-np.log(softmax(logits)[np.arange(22), Y]).mean(), rel=1e-5)


def test_evaluation_without_tensors_is_of_the_file() -> None:
    found = evaluate(INFER, SPEC, {}, X, Y)
    assert found == evaluate(INFER, SPEC, TENSORS, X, Y)


def test_regression_is_measured_by_the_mean_squared_error() -> None:
    spec, _ = task("mse")
    target = RANDOM.normal(size=(22, 3)).astype(np.float32)
    found = evaluate(INFER, spec, {}, X, target)
    assert found.metric == pytest.approx(np.square(X @ W + B - target).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (X[:, :3], Y, r"x has shape \(22, 3\)"),
        (X.astype(np.uint8), Y, "x is uint8"),
        (X, Y[:5], "22 samples with 5 labels"),
        (X, np.where(np.arange(22) == 4, 3, Y), "label 3 in row 4"),
        (X, np.where(np.arange(22) == 6, -1, Y), "label -1 in row 6"),
        (X, Y.astype(np.float32) + 0.5, "not a whole number"),
        (X, Y.reshape(11, 2).repeat(2, axis=0), "y has shape"),
        (np.where(np.arange(22)[:, None] == 7, np.nan, X).astype(np.float32), Y, "x: row 7"),
    ],
)
def test_samples_that_do_not_fit_are_refused(x: np.ndarray, y: np.ndarray, says: str) -> None:
    for refused in (
        lambda: samples_of(SPEC, x, y),
        lambda: train(TRAIN, SPEC, TENSORS, x, y, PLAN, seed=0),
        lambda: evaluate(INFER, SPEC, {}, x, y),
    ):
        with pytest.raises(UsageError, match=says):
            refused()


def test_labels_may_be_of_any_integer_type() -> None:
    expected = train(TRAIN, SPEC, TENSORS, X, Y, PLAN, seed=0).tensors
    close(train(TRAIN, SPEC, TENSORS, X, Y.astype(np.uint8), PLAN, seed=0).tensors, expected)


@pytest.mark.parametrize(
    "tensors",
    [{"W": W}, {"W": W.T.copy(), "b": B}, {"W": W.astype(np.float64), "b": B}],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, Any]) -> None:
    with pytest.raises(PayloadError, match="tensor"):
        train(TRAIN, SPEC, tensors, X, Y, PLAN, seed=0)


def test_a_graph_of_another_task_or_no_graph_is_refused() -> None:
    _, with_momentum = task(momentum=0.9)
    for model in (with_momentum, INFER, b"no model", TRAIN[: len(TRAIN) // 2]):
        with pytest.raises(PayloadError):
            train(model, SPEC, TENSORS, X, Y, PLAN, seed=0)


@pytest.mark.parametrize("weight", [np.zeros(22), np.full(22, -1.0), np.ones(3)])
def test_sample_weights_must_make_sense(weight: np.ndarray) -> None:
    values = weight.astype(np.float32)
    with pytest.raises(UsageError, match="sample_weight"):
        train(TRAIN, SPEC, TENSORS, X, Y, PLAN, sample_weight=values, seed=0)


def test_no_samples_are_no_training_and_no_evaluation() -> None:
    for refused in (
        lambda: train(TRAIN, SPEC, TENSORS, X[:0], Y[:0], PLAN, seed=0),
        lambda: evaluate(INFER, SPEC, {}, X[:0], Y[:0]),
    ):
        with pytest.raises(UsageError, match="no samples"):
            refused()


@pytest.mark.parametrize(("momentum", "proximal"), [(0.0, False), (0.9, False), (0.9, True)])
def test_a_stepper_that_is_reset_is_as_good_as_new(momentum: float, proximal: bool) -> None:
    """One session serves many members: slots at zero, anchored where it starts, to the bit."""
    spec, graph = task(momentum=momentum, proximal=proximal)
    plan = msgspec.structs.replace(PLAN, epochs=3, mu=0.5 * proximal)
    rows = training_rows(spec, X, Y, plan)
    stepper = Stepper(open_session(graph), spec, TENSORS, rows.batch, plan)
    start = stepper.flat()
    assert np.array_equal(start, np.concatenate([W.reshape(-1), B]))
    train_by(stepper, rows, plan, seed=5)
    for begin in (start, start[::-1].copy()):
        alone = train(graph, spec, unflatten(begin, spec.trainable), X, Y, plan, seed=7)
        stepper.reset(begin)
        assert np.array_equal(stepper.flat(), begin)
        again = train_by(stepper, rows, plan, seed=7)
        assert np.array_equal(stepper.flat(), flatten(alone.tensors, spec.trainable))
        assert (again.loss_first, again.loss_last) == (alone.loss_first, alone.loss_last)
    with pytest.raises(PayloadError, match="15"):
        stepper.reset(start[1:])


def test_each_tensor_stands_where_onnxruntime_would_put_it() -> None:
    """In what order a kernel adds depends on where its operands are: here, always the same."""
    stepper = Stepper(open_session(TRAIN), SPEC, TENSORS, 8, PLAN)
    for _ in range(3):
        assert {value.ctypes.data % 64 for value in stepper.tensors().values()} == {0}
        stepper.step(X[:8], Y[:8], np.ones(8, np.float32))
