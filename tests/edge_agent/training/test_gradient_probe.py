"""The probe reads the gradient out of a training graph: torch computes the same by itself."""

from typing import Any

import numpy as np
import pytest
import torch
from torch_nets import NETS, export

from edge_agent.training.gradient_probe import Probe, looked_back
from models.errors import PayloadError
from models.graph.reading.forward_graph import normalize_forward, weights
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Adam, Optimizer, Sgd, slot_names
from models.learning.onnx_session import open_session
from models.learning.training_loop import Stepper
from models.protocol.manifest import TrainingPlan
from models.task.params import flatten
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Sgd(momentum=0),
    "momentum": Sgd(momentum=0.9),
    "adam": Adam(),
}
CLASS_WEIGHTS = {"no class weights": False, "class weights": True}
PERSONAL = {"all shared": False, "a personal head": True}


class World:
    """A net of torch, its training graph, samples, and the gradient that torch finds."""

    def __init__(
        self, optimizer: Optimizer, *, weighted: bool, personal: bool, proximal: bool = False
    ) -> None:
        torch.manual_seed(3)
        build, shape = NETS["block"]
        self.net = build()
        forward = normalize_forward(export(self.net, shape))
        tensors = {name: np.array(value) for name, value in weights(forward).items()}
        classes = self.net(torch.zeros(1, *shape)).shape[-1]
        head = list(tensors)[-1]
        graph = derive_training_graph(
            forward,
            trainable=list(tensors),
            loss="cross_entropy",
            optimizer=optimizer,
            proximal=proximal,
        )
        random = np.random.default_rng(5)
        self.spec = TaskSpec(
            format=1,
            task="block",
            net="block",
            tensors=tuple(
                TensorSpec(
                    name, value.shape, Role.PERSONAL if personal and name == head else Role.SHARED
                )
                for name, value in tensors.items()
            ),
            x=ArraySpec("float32", shape),
            y=ArraySpec("int64", ()),
            classes=classes,
            loss="cross_entropy",
            metric="accuracy",
            optimizer="adam" if isinstance(optimizer, Adam) else "sgd",
            proximal=proximal,
            infer_input="x",
            infer_output="logits",
            slots=slot_names(optimizer, list(tensors)),
            class_weights=tuple(random.uniform(0.2, 3, classes)) if weighted else (),
        )
        self.tensors = tensors
        self.session = open_session(graph.SerializeToString())
        self.x = random.normal(size=(13, *shape)).astype(np.float32)
        self.y = random.integers(0, classes, 13)

    @property
    def shared(self) -> np.ndarray:
        return flatten(self.tensors, self.spec.shared)

    @property
    def personal(self) -> dict[str, np.ndarray]:
        return {t.name: self.tensors[t.name] for t in self.spec.with_role(Role.PERSONAL)}

    def by_torch(self, sample_weight: np.ndarray) -> tuple[float, np.ndarray]:
        net = self.net.double()
        each = torch.nn.functional.cross_entropy(
            net(torch.from_numpy(self.x.astype(np.float64))),
            torch.from_numpy(self.y),
            reduction="none",
        )
        weight = torch.from_numpy(sample_weight.astype(np.float64))
        if self.spec.class_weights:
            weight = weight * torch.tensor(self.spec.class_weights, dtype=torch.float64)[self.y]
        loss = (each * weight).sum() / weight.sum()
        net.zero_grad()
        loss.backward()
        found = {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}
        return float(loss.detach()), flatten(found, self.spec.shared)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("weighted", CLASS_WEIGHTS)
@pytest.mark.parametrize("personal", PERSONAL)
def test_loss_and_gradient_are_those_of_torch(optimizer: str, weighted: str, personal: str) -> None:
    world = World(
        OPTIMIZERS[optimizer], weighted=CLASS_WEIGHTS[weighted], personal=PERSONAL[personal]
    )
    probe = Probe(world.session, world.spec, world.personal)
    for sample_weight in (None, np.linspace(0, 2, 13).astype(np.float32)):
        loss, gradient = probe(world.shared, world.x, world.y, sample_weight)
        told = np.ones(13) if sample_weight is None else sample_weight
        expected_loss, expected = world.by_torch(told)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
        assert error < 1e-5, f"{optimizer}: {error}"
        assert gradient.dtype == np.float32
        assert gradient.shape == (world.spec.shared_size,)


def test_a_probe_moves_nothing_and_leaves_no_trace() -> None:
    world = World(Sgd(momentum=0.9), weighted=False, personal=False)
    before = world.shared.copy()
    probe = Probe(world.session, world.spec)
    first = probe(world.shared, world.x, world.y)
    again = probe(world.shared, world.x, world.y)
    assert np.array_equal(first.gradient, again.gradient)
    assert np.array_equal(world.shared, before)


def test_at_the_anchor_a_proximal_term_is_not_there() -> None:
    plain = World(Sgd(momentum=0), weighted=False, personal=False)
    proximal = World(Sgd(momentum=0), weighted=False, personal=False, proximal=True)
    found = [Probe(w.session, w.spec)(w.shared, w.x, w.y).gradient for w in (plain, proximal)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-8)


def test_one_step_of_plain_sgd_goes_against_the_gradient() -> None:
    """What gd-sec with ``gradient = true`` sends is what one step of training would."""
    world = World(Sgd(momentum=0), weighted=True, personal=False)
    plan = TrainingPlan(open=True, epochs=1, batch=13, learning_rate=0.05)
    stepper = Stepper(world.session, world.spec, world.tensors, 13, plan)
    class_weights = np.array(world.spec.class_weights, np.float32)[world.y]
    stepper.step(world.x, world.y, class_weights)
    moved = flatten(stepper.tensors(), world.spec.shared) - world.shared
    gradient = Probe(world.session, world.spec)(world.shared, world.x, world.y).gradient
    np.testing.assert_allclose(moved, -0.05 * gradient, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_small_gradients_of_plain_sgd_are_not_lost_beside_large_weights(scale: float) -> None:
    world = World(Sgd(momentum=0), weighted=False, personal=False)
    weight = np.full(13, scale, np.float32)
    found = Probe(world.session, world.spec)(world.shared, world.x, world.y, weight).gradient
    _, expected = world.by_torch(np.ones(13))  # a weighted mean: the scale cancels
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_missing_personal_tensor_is_named() -> None:
    world = World(Sgd(), weighted=False, personal=True)
    (name,) = world.personal
    with pytest.raises(PayloadError, match=name):
        Probe(world.session, world.spec)


def test_a_graph_of_another_task_is_refused() -> None:
    world = World(Sgd(momentum=0), weighted=False, personal=False)
    strange: Any = TensorSpec("no such tensor", (2,), Role.SHARED)
    other = TaskSpec(
        **{f: getattr(world.spec, f) for f in world.spec.__struct_fields__}
        | {"tensors": (strange,), "slots": ()}
    )
    with pytest.raises(PayloadError, match="no such tensor"):
        Probe(world.session, other)


@pytest.mark.parametrize(("name", "momentum"), [("sgd", 0.0), ("momentum", 0.9), ("adam", 0.0)])
def test_the_graph_tells_its_momentum(name: str, momentum: float) -> None:
    world = World(OPTIMIZERS[name], weighted=True, personal=True)
    probe = Probe(world.session, world.spec, world.personal)
    assert probe.momentum(world.shared, world.x, world.y) == pytest.approx(momentum, abs=1e-5)


def test_what_a_training_saw_is_the_papers_quotients() -> None:
    world = World(Sgd(momentum=0.9), weighted=False, personal=False)
    probe = Probe(world.session, world.spec)
    delta = np.random.default_rng(2).normal(0, 1e-2, world.shared.size).astype(np.float32)
    seen = looked_back(probe, world.shared, delta, world.x, world.y, steps=5, seed=1)
    began, ended = (probe(w, world.x, world.y) for w in (world.shared, world.shared + delta))
    distance = np.linalg.norm(delta.astype(float))
    change = np.linalg.norm(ended.gradient.astype(float) - began.gradient)
    assert seen.rho == pytest.approx(abs(ended.loss - began.loss) / distance, rel=1e-3)
    assert seen.beta == pytest.approx(change / distance, rel=1e-3)
    assert seen.gradient_norm == pytest.approx(np.linalg.norm(began.gradient), rel=1e-4)
    assert seen.effective == pytest.approx(1 + 1.9 + 2.71 + 3.439 + 4.0951, rel=1e-4)
    still = looked_back(probe, world.shared, 0 * delta, world.x, world.y, steps=1, seed=1)
    assert (still.rho, still.beta, still.effective) == (None, None, 1.0)
    broken = looked_back(probe, world.shared, np.inf * delta, world.x, world.y, steps=1, seed=1)
    assert (broken.rho, broken.beta) == (None, None)
