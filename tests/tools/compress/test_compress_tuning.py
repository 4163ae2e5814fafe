"""`edgefold compress --fine-tune`, and what it is made of."""

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.codec.payload import decompress
from models.errors import UsageError
from tools.author.bundle.bundle_directory import write_bundle
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.cli import main
from tools.compress.compress_pruning import PRUNED, Pruning, kept_share
from tools.compress.compress_subject import read_subject, split
from tools.compress.compress_training import Classifier, Descent, Plan, Samples, augmented, descend
from tools.compress.compress_tuning import fine_tune


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small net that has learned the digits."""
    options = TaskOptions(net="mlp", pretrain=15, learning_rate=0.05)
    bundle = create_task("digits", load_dataset("digits"), options)
    directory = tmp_path_factory.mktemp("bundle") / "digits"
    write_bundle(bundle, directory)
    return directory


def test_before_minus_after_of_a_step_is_the_gradient_that_torch_computes(digits) -> None:
    subject = read_subject(digits, None)
    data = load_dataset("digits")
    samples = Samples(data.x[:20], data.y[:20])
    descent = Descent(subject.model, subject.specs, classes=10)
    descent.point[:] = subject.weights
    loss, gradient = descent.gradient(samples)
    tensors, at = [], 0
    for spec in subject.specs:
        part = subject.weights[at : at + spec.size].reshape(spec.shape)
        tensors.append(torch.tensor(part, requires_grad=True))
        at += spec.size
    value = torch.from_numpy(samples.x.reshape(20, -1) / np.float32(255))
    for number in range(0, len(tensors), 2):
        value = torch.nn.functional.linear(value, tensors[number], tensors[number + 1])
        value = value if number == len(tensors) - 2 else torch.relu(value)
    expected = torch.nn.functional.cross_entropy(value, torch.from_numpy(samples.y))
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    wanted = np.concatenate([tensor.grad.numpy().reshape(-1) for tensor in tensors])
    np.testing.assert_allclose(gradient, wanted, atol=2e-6)


@pytest.mark.parametrize("adam", [False, True])
def test_descent_learns_and_leaves_its_start_alone(digits, adam: bool) -> None:
    subject = read_subject(digits, None)
    data = split(load_dataset("digits"))
    start = np.random.default_rng(0).normal(0, 0.05, subject.weights.size).astype(np.float32)
    before = start.copy()
    plan = Plan(epochs=6, learning_rate=0.002 if adam else 0.05, batch=32, adam=adam)
    found = descend(Descent(subject.model, subject.specs, classes=10), start, data.learning, plan)
    assert np.array_equal(start, before)
    assert Classifier(subject.with_weights(found)).accuracy(data.test) > 0.85


def test_a_step_too_long_ends_in_one_clear_sentence(digits) -> None:
    subject = read_subject(digits, None)
    data = split(load_dataset("digits"))
    descent = Descent(subject.model, subject.specs, classes=10)
    wild = np.full_like(subject.weights, np.float32(1e30))
    with pytest.raises(UsageError, match="lower the rate"):
        descend(descent, wild, data.learning, Plan(epochs=1, learning_rate=1.0))


def test_images_are_mirrored_and_moved_each_by_itself() -> None:
    x = np.zeros((200, 1, 5, 6), np.uint8)
    x[:, 0, 2, 1] = 9
    moved = augmented(x, Plan(1, 1.0, flip=True, shift=1), np.random.default_rng(0))
    assert moved.shape == x.shape
    assert (moved.reshape(200, -1).sum(axis=1) == 9).all()
    places = {tuple(place[1:]) for place in np.argwhere(moved[:, 0])}
    assert places == {(r, c) for r in (1, 2, 3) for c in (0, 1, 2, 3, 4, 5)} - {(0, 0)}
    assert np.array_equal(augmented(x, Plan(1, 1.0), np.random.default_rng(0)), x)


def test_the_share_of_weights_falls_from_all_to_the_least() -> None:
    shares = [kept_share(0.01, done) for done in np.linspace(0, 1, 50)]
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(shares))


def test_pruning_ends_with_as_many_weights_as_the_bytes_hold(digits) -> None:
    subject = read_subject(digits, None)
    pruning = Pruning(subject.specs, 1000)
    weights = subject.weights.copy()
    kept = [weights.size]
    for done in np.linspace(0, PRUNED, 60):
        assert pruning(weights, float(done)) is weights
        kept.append(int(np.count_nonzero(weights)))
        assert kept[-1] == pruning.kept
    assert all(a >= b for a, b in itertools.pairwise(kept))
    largest = np.sort(np.abs(subject.weights))[-kept[-1] :]
    np.testing.assert_array_equal(np.sort(np.abs(weights[weights != 0])), largest)
    payload = pruning.fit(weights)
    assert 930 < len(payload) <= 1000
    decoded = decompress(payload, subject.specs)
    assert np.count_nonzero(decoded[weights == 0]) == 0
    assert np.square(weights - decoded).sum() < 0.02 * np.square(weights).sum()


def test_bytes_that_hold_no_weight_are_refused(digits) -> None:
    subject = read_subject(digits, None)
    with pytest.raises(UsageError, match="3 bytes hold no weight"):
        Pruning(subject.specs, 3).fit(subject.weights.copy())


def test_a_result_without_any_weight_is_refused_and_nothing_is_written(
    digits, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "small.npz"
    assert main(["compress", str(digits), "--bytes", "9", "--out", str(out)]) == 2
    assert "nothing is left in" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rate", "most", "least"),
    [("transform", "0.002", 1000, 0.93), ("prune", "0.005", 600, 0.91)],
)
def test_fine_tuning_beats_coding_alone_at_equal_bytes(
    digits, method, rate, most, least, tmp_path, capsys
) -> None:
    command = ["compress", str(digits), "--data", "digits", "--bytes", str(most), "--json"]
    assert main(command) == 0
    alone = json.loads(capsys.readouterr().out)
    paths = {name: tmp_path / name for name in ("payload.npz", "back.onnx")}
    command += ["--fine-tune", "40", "--lr", rate, "--batch", "32", "--method", method]
    command += ["--out", str(paths["payload.npz"]), "--restored", str(paths["back.onnx"])]
    assert main(command) == 0
    tuned = json.loads(capsys.readouterr().out)
    assert tuned["payload_bytes"] <= most
    assert tuned["accuracy_after"] > least
    assert tuned["accuracy_after"] > alone["accuracy_after"] + 0.01
    data = split(load_dataset("digits"))
    restored = Classifier(onnx.load(paths["back.onnx"]))
    assert restored.accuracy(data.test) == pytest.approx(tuned["accuracy_after"], abs=1e-4)
    subject = read_subject(digits, None)
    decoded = decompress(paths["payload.npz"].read_bytes(), subject.specs)
    assert np.count_nonzero(decoded) == tuned["not_zero"]


def test_a_single_step_still_gives_a_payload_that_fits(digits) -> None:
    subject = read_subject(digits, None)
    data = split(load_dataset("digits"))
    plan = Plan(1, 0.001, batch=10_000, adam=True)
    found = fine_tune(subject, data, 2000, plan, method="prune")
    assert len(found.payload) <= 2000
    assert found.kept > 1000
    assert found.form in ("fine-tuned: prune", "not fine-tuned")


def test_fine_tuning_refuses_data_of_more_classes_than_the_model_has(digits) -> None:
    subject = read_subject(digits, None)
    data = split(load_dataset("digits"))
    strange = data._replace(learning=data.learning._replace(y=data.learning.y + 1))
    with pytest.raises(UsageError, match="classes"):
        fine_tune(subject, strange, 1000, Plan(1, 0.001))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--fine-tune", "3"],
        ["--fine-tune", "0", "--data", "digits"],
        ["--fine-tune", "3", "--data", "digits", "--nmse", "0.1"],
        ["--fine-tune", "3", "--data", "no-such-file"],
    ],
)
def test_wrong_wishes_are_refused_in_one_sentence(digits, wrong, capsys) -> None:
    assert main(["compress", str(digits), *wrong]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
