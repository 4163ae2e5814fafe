"""ONNX files from the wild: each classifier learns, each other file is refused in one sentence."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from sessions import session_of

from models.errors import UsageError
from models.graph.reading.forward_graph import input_array, normalize_forward, output_array, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd

FILES = Path(__file__).resolve().parents[4] / "shared" / "data" / "onnx"

pytestmark = pytest.mark.skipif(
    not FILES.is_dir(), reason=f"third-party models are not here: {FILES} does not exist"
)


class Model(NamedTuple):
    file: str
    batch: int
    trains: int  # how many tensors from the end are trained; 0 for all
    lr: float


FAST = [
    Model("mnist_fc_256x4", 16, 0, 0.1),
    Model("cifar10_resnet_2b", 8, 0, 0.01),
    Model("light_squeezenet", 2, 6, 0.01),
]
SLOW = [
    Model("broken_export_ppocr_v2_cls", 4, 0, 0.003),
    Model("light_squeezenet", 2, 0, 0.01),
    Model("light_shufflenet", 2, 0, 0.01),
    Model("light_resnet50", 2, 0, 0.02),
    Model("light_densenet121", 2, 0, 0.05),
]


def load(name: str) -> onnx.ModelProto:
    return onnx.load(FILES / f"{name}.onnx")


def started(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give the files that come without real weights (all equal) something to start from."""
    generator = np.random.default_rng(0)
    tensors = {}
    for name, value in values.items():
        equal = value.ndim > 1 and np.ptp(value) == 0
        spread = 1 / np.sqrt(max(value[0].size, 1)) if equal else 0
        tensors[name] = (
            (spread * generator.standard_normal(value.shape)).astype(np.float32) if equal else value
        )
    return tensors


def losses(model: Model, *, steps: int = 6) -> list[float]:
    """Learn one batch by heart and return the loss of each step."""
    forward = normalize_forward(load(model.file))
    candidates = weights(forward)
    trained = list(candidates)[-model.trains :]
    classes = output_array(forward).shape[0]
    training = derive_training_graph(
        forward, trainable=trained, loss="cross_entropy", optimizer=Sgd(momentum=0), classes=classes
    )
    start = started(candidates)
    for tensor in training.graph.initializer:  # the frozen ones
        if tensor.name in start:
            tensor.CopyFrom(onnx.numpy_helper.from_array(start[tensor.name], tensor.name))
    session = session_of(training)
    generator = np.random.default_rng(1)
    feed: dict[str, np.ndarray] = {name: start[name] for name in trained}
    fixed = {
        "x": generator.random((model.batch, *input_array(forward).shape), np.float32),
        "y": generator.integers(0, classes, model.batch),
        "sample_weight": np.ones(model.batch, np.float32),
        "lr": np.array(model.lr, np.float32),
    }
    names = [value.name for value in session.get_outputs()]
    found = []
    for _ in range(steps):
        out = dict(zip(names, session.run(names, {**feed, **fixed}), strict=True))
        feed = {name: out[f"new/{name}"] for name in feed}
        found.append(float(out["loss"]))
    assert np.isfinite(found).all()
    return found


@pytest.mark.parametrize("model", FAST, ids=[model.file for model in FAST])
def test_a_classifier_learns(model: Model) -> None:
    found = losses(model)
    assert found[-1] < 0.9 * found[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", SLOW, ids=[model.file for model in SLOW])
def test_a_large_or_crooked_classifier_learns(model: Model) -> None:
    found = losses(model, steps=4)
    assert found[-1] < 0.98 * found[0]


def test_normalizing_changes_no_prediction() -> None:
    for name in ("mnist_fc_256x4", "cifar10_resnet_2b"):
        original, normal = load(name), normalize_forward(load(name))
        shape = input_array(normal).shape
        x = np.random.default_rng(0).random((3, *shape), np.float32)
        before = ort.InferenceSession(original.SerializeToString())
        after = ort.InferenceSession(normal.SerializeToString())
        batch = after.run([output_array(normal).name], {"x": x})[0]
        for i in range(3):
            one = before.run(None, {original.graph.input[-1].name: x[i : i + 1]})[0]
            np.testing.assert_allclose(batch[i : i + 1], one, rtol=1e-4, atol=1e-4)


def test_of_a_detector_one_output_can_be_trained_and_its_other_weights_are_named() -> None:
    forward = normalize_forward(load("ultraface_rfb320"))
    assert [value.name for value in forward.graph.output] == ["scores", "boxes"]
    shape = output_array(forward).shape
    assert shape == (4420, 2)
    with pytest.raises(UsageError, match="'regression_headers"):
        derive_training_graph(
            forward,
            trainable=list(weights(forward)),
            loss="cross_entropy",
            optimizer=Sgd(),
            y_shape=shape[:1],
        )
    heads = [name for name in weights(forward) if name.startswith("classification_headers")]
    model = derive_training_graph(
        forward,
        trainable=heads,
        loss="cross_entropy",
        optimizer=Sgd(),
        y_shape=shape[:1],
        classes=2,
    )
    assert "new/" + heads[0] in {value.name for value in model.graph.output}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("silero_vad_16k_op15", "control flow"),
        ("dtln_1", "wants 2 inputs"),
    ],
)
def test_a_recurrent_audio_model_is_refused_in_one_sentence(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        normalize_forward(load(name))


def test_a_recurrent_model_without_states_from_outside_is_trained_whole() -> None:
    model = load("dtln_1")
    state = next(value for value in model.graph.input if value.name == "input_3")
    shape = [d.dim_value for d in state.type.tensor_type.shape.dim]
    model.graph.input.remove(state)
    zeros = onnx.numpy_helper.from_array(np.zeros(shape, np.float32), "input_3")
    model.graph.initializer.append(zeros)
    forward = normalize_forward(model)
    frames = output_array(forward).shape
    values = weights(forward)
    settings = {"loss": "mse", "optimizer": Sgd(momentum=0)}
    settings |= {"y_shape": frames, "y_dtype": "float32"}
    training = derive_training_graph(forward, trainable=list(values), **settings)
    session = session_of(training)
    generator = np.random.default_rng(1)
    feed = {
        "x": generator.random((3, *input_array(forward).shape), np.float32),
        "y": generator.random((3, *frames), np.float32),
        "sample_weight": np.ones(3, np.float32),
        "lr": np.array(1e-3, np.float32),
    }
    names = [value.name for value in session.get_outputs()]
    first = dict(zip(names, session.run(names, {**values, **feed}), strict=True))
    moved = {name: first[f"new/{name}"] for name in values}
    (later,) = session.run(["loss"], {**moved, **feed})
    assert later < first["loss"]
