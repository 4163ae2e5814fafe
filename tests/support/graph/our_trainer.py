"""Training graphs as a device runs them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from sessions import session_of
from torch_nets import NETS, export

from models.graph.reading.forward_graph import normalize_forward, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Optimizer, Sgd, slot_names


def run(session: ort.InferenceSession, feed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


class OurTrainer:
    """The training graph as a device runs it: outputs of a step are inputs of the next."""

    def __init__(
        self, model: onnx.ModelProto, tensors: Mapping[str, np.ndarray], optimizer: Optimizer
    ) -> None:
        self.session = session_of(model)
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
