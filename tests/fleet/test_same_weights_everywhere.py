"""A release means the same model on devices, on the server and as an exported file.

onnxruntime's optimizer folds batch norm into convolutions and reorders their weights from the
values in the file: a session that overrides initializers by name then answers with the old
weights, and only convolutional nets show it.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from broker.releases.hold_out import Evaluator, HoldOut
from edge_agent.inference.inference_model import Model
from edge_agent.inference.inference_requests import Load
from models.learning.measurement import evaluate
from models.protocol.npz import write_vector
from models.task.params import unflatten
from tools.author.bundle.bundle_directory import write_bundle
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.export_model import export_model
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset


@pytest.mark.parametrize("net", ["mlp", "cnn", "ds_cnn"])
def test_a_release_answers_alike_wherever_it_runs(net: str, tmp_path: Path) -> None:
    data = load_dataset("digits")
    rows = data.test_rows[:100]
    x, y = data.x[rows], data.y[rows]
    bundle = create_task("digits", data, TaskOptions(net=net))
    write_bundle(bundle, tmp_path / "bundle")
    parameters = np.random.default_rng(0).normal(0, 0.1, bundle.spec.shared_size)
    artifact = write_vector(parameters.astype(np.float32))
    (tmp_path / "parameters.npz").write_bytes(artifact)

    plainly = onnxruntime.SessionOptions()
    plainly.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    exported = onnxruntime.InferenceSession(
        export_model(bundle, artifact), plainly, providers=["CPUExecutionProvider"]
    )
    (expected,) = exported.run([bundle.spec.infer_output], {bundle.spec.infer_input: x})

    device = Model(
        Load(
            infer=str(tmp_path / "bundle/infer.onnx"),
            spec=str(tmp_path / "bundle/spec.json"),
            parameters=str(tmp_path / "parameters.npz"),
            personal=None,
            release=1,
        )
    )
    np.testing.assert_allclose(device.run(x), expected, rtol=1e-3, atol=1e-3)

    hits = float((expected.argmax(1) == y).mean())
    score = Evaluator(bundle.infer, bundle.spec, HoldOut(x, y))(parameters.astype(np.float32))
    assert score.metric == pytest.approx(hits)
    tensors = unflatten(parameters.astype(np.float32), bundle.spec.shared)
    assert evaluate(bundle.infer, bundle.spec, tensors, x, y).metric == pytest.approx(hits)
