"""Scores against torch, for what a model may answer; old specs by their old rule."""

import msgspec
import numpy as np
import pytest
import torch
from scored_task import SPEC

from models.errors import UsageError
from models.learning.scoring import mean_score, score
from models.task.spec import TaskSpec

Y_SHAPES = [(), (7,), (4, 3)]


def spec_of(loss: str, answers: str = "", metric: str = "accuracy") -> TaskSpec:
    return msgspec.structs.replace(SPEC, loss=loss, answers=answers, metric=metric)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("y_shape", Y_SHAPES)
@pytest.mark.parametrize("answers", ["logits", "log_softmax", "probabilities", "", "old softmax"])
def test_classes_are_scored_as_torch_does(answers: str, y_shape: tuple[int, ...]) -> None:
    z = torch.tensor(random().normal(0, 2, (40, *y_shape, 5)))
    y = random(1).integers(0, 5, (40, *y_shape))
    loss = torch.nn.functional.cross_entropy(z.reshape(-1, 5), torch.tensor(y.reshape(-1)))
    outputs = {
        "log_softmax": torch.log_softmax(z, -1),
        "probabilities": torch.softmax(z, -1),
        "old softmax": torch.softmax(z, -1),
    }.get(answers, z)
    said = {"log_softmax": "logits", "old softmax": ""}.get(answers, answers)
    found = score(spec_of("cross_entropy", said), outputs.numpy(), y)
    assert found.loss == pytest.approx(loss.item(), rel=1e-9)
    assert found.metric == pytest.approx((z.numpy().argmax(-1) == y).mean())
    assert found.samples == 40


@pytest.mark.parametrize("shape", [(1,), (), (3,), (2, 2)])
@pytest.mark.parametrize("answers", ["probabilities", "", "logits"])
def test_yes_and_no_is_scored_as_torch_does(answers: str, shape: tuple[int, ...]) -> None:
    z = torch.tensor(random().normal(0, 3, (50, *shape)))
    y = torch.tensor(random(1).integers(0, 2, (50, *shape)).astype(np.float32))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y.double())
    outputs = z if answers == "logits" else torch.sigmoid(z)
    found = score(spec_of("bce", answers), outputs.numpy(), y.numpy())
    assert found.loss == pytest.approx(loss.item(), rel=1e-9)
    assert found.metric == pytest.approx(((z > 0) == (y > 0.5)).double().mean().item())
    brier = torch.square(torch.sigmoid(z) - y).mean()
    found = score(spec_of("bce", answers, "mse"), outputs.numpy(), y.numpy())
    assert found.metric == pytest.approx(brier.item())


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3)])
def test_numbers_are_scored_as_torch_does(shape: tuple[int, ...]) -> None:
    p, y = (torch.tensor(random(seed).normal(size=(20, *shape))) for seed in (0, 1))
    found = score(spec_of("mse", metric="mse"), p.numpy(), y.numpy())
    assert found.loss == found.metric == pytest.approx(torch.nn.functional.mse_loss(p, y).item())


@pytest.mark.parametrize("answers", ["logits", "probabilities", ""])
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_it_does_not_matter_how_samples_are_cut_into_batches(answers: str, batch: int) -> None:
    outputs = np.exp(random().normal(size=(40, 5)))
    outputs /= outputs.sum(axis=1, keepdims=True)
    if answers != "probabilities":
        outputs[::2] *= 3  # rows of logits among rows that look like probabilities
    y = random(1).integers(0, 5, 40)
    spec = spec_of("cross_entropy", answers)
    parts = [score(spec, outputs[n : n + batch], y[n : n + batch]) for n in range(0, 40, batch)]
    assert mean_score(parts) == pytest.approx(score(spec, outputs, y), rel=1e-12)


def test_logits_that_look_like_probabilities_are_taken_as_what_the_spec_says() -> None:
    outputs, y = np.array([[0.25, 0.75]]), np.array([1])
    two = {"classes": 2}
    as_logits = msgspec.structs.replace(spec_of("cross_entropy", "logits"), **two)
    assert score(as_logits, outputs, y).loss == pytest.approx(np.log(1 + np.exp(-0.5)))
    as_shares = msgspec.structs.replace(spec_of("cross_entropy", "probabilities"), **two)
    assert score(as_shares, outputs, y).loss == pytest.approx(-np.log(0.75))


@pytest.mark.parametrize(
    ("loss", "outputs", "y"),
    [
        ("cross_entropy", np.zeros((6, 5)), np.zeros((6, 2), int)),
        ("cross_entropy", np.zeros((6, 5, 7)), np.zeros((6, 7), int)),  # classes not last
        ("cross_entropy", np.zeros((6, 4)), np.zeros(6, int)),
        ("bce", np.zeros((6, 2)), np.zeros(6)),
        ("mse", np.zeros((6, 2)), np.zeros((6, 3))),
    ],
)
def test_answers_of_another_shape_are_refused(
    loss: str, outputs: np.ndarray, y: np.ndarray
) -> None:
    with pytest.raises(UsageError, match="answers with shape"):
        score(spec_of(loss), outputs, y)


@pytest.mark.parametrize("answers", ["logits", "probabilities", ""])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_never_right(answers: str, value: float) -> None:
    outputs = np.zeros((4, 5))
    outputs[:, 0] = [1, 1, value, value]
    found = score(spec_of("cross_entropy", answers), outputs, np.zeros(4, np.int64))
    assert found.metric == 0.5
    for target in (0, 1):
        found = score(spec_of("bce", answers), np.full((4, 1), np.nan), np.full(4, target))
        assert found.metric == 0


def test_a_class_that_a_model_never_names_does_no_harm() -> None:
    outputs = np.array([[0, 1, 0, 0, -np.inf]])
    found = score(spec_of("cross_entropy", "logits"), outputs, np.array([1]))
    assert found.metric == 1
    assert np.isfinite(found.loss)
