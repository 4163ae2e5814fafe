"""Optimizer updates as graph nodes: torch's SGD and Adam, and FedProx' proximal term. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.graph.graph_builder import GraphBuilder

__all__ = ["ADAM_STEP", "Adam", "Optimizer", "Sgd", "emit_updates", "slot_names"]


@dataclass(frozen=True)
class Sgd:
    """As torch.optim.SGD: v' = momentum v + (g + decay w), w' = w - lr v'."""

    momentum: float = 0.9  # 0: no slots
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Adam:
    """As torch.optim.Adam (Kingma, Ba, arXiv:1412.6980), decay added to the gradient."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0


Optimizer = Sgd | Adam

ADAM_STEP = "adam_step"


def slot_names(optimizer: Optimizer, trainable: Sequence[str]) -> tuple[str, ...]:
    """Return the optimizer's slots by their names as graph inputs; all start at zero.

    A slot has the shape of its tensor; ``adam_step`` is a scalar.
    """
    if isinstance(optimizer, Adam):
        pairs = [f"{kind}/{name}" for name in trainable for kind in ("adam_m", "adam_v")]
        return (*pairs, ADAM_STEP)
    return tuple(f"momentum/{name}" for name in trainable if optimizer.momentum)


def emit_updates(
    g: GraphBuilder, optimizer: Optimizer, gradients: Mapping[str, str], *, proximal: bool
) -> None:
    """Emit ``new/<tensor>`` and ``new/<slot>`` for the gradients of the data loss.

    The proximal term mu/2 ||w - anchor||² (Li et al., FedProx, arXiv:1812.06127) and the decay
    decay/2 ||w||² enter here, as their gradients.
    """
    corrections = None
    if isinstance(optimizer, Adam):
        step = g.emit("Add", ADAM_STEP, g.scalar(1), output=f"new/{ADAM_STEP}")
        corrections = tuple(
            g.sub(g.scalar(1), g.emit("Pow", g.scalar(beta), step))
            for beta in (optimizer.beta1, optimizer.beta2)
        )
    for name, data_gradient in gradients.items():
        gradient = data_gradient
        if proximal:
            gradient = g.add(gradient, g.mul(g.sub(name, f"anchor/{name}"), "mu"))
        if optimizer.weight_decay:
            gradient = g.add(gradient, g.mul(name, g.scalar(optimizer.weight_decay)))
        if isinstance(optimizer, Adam):
            assert corrections is not None
            _adam(g, optimizer, name, gradient, corrections)
        else:
            _sgd(g, optimizer, name, gradient)


def _sgd(g: GraphBuilder, optimizer: Sgd, name: str, gradient: str) -> None:
    velocity = gradient
    if optimizer.momentum:
        kept = g.mul(f"momentum/{name}", g.scalar(optimizer.momentum))
        velocity = g.emit("Add", kept, gradient, output=f"new/momentum/{name}")
    g.emit("Sub", name, g.mul(velocity, "lr"), output=f"new/{name}")


def _adam(
    g: GraphBuilder, optimizer: Adam, name: str, gradient: str, corrections: tuple[str, ...]
) -> None:
    """m' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2) g², w' = w - lr m̂ / (sqrt(v̂) + eps)."""
    moments = []
    for kind, beta, value in (
        ("adam_m", optimizer.beta1, gradient),
        ("adam_v", optimizer.beta2, g.mul(gradient, gradient)),
    ):
        kept = g.mul(f"{kind}/{name}", g.scalar(beta))
        fresh = g.mul(value, g.scalar(1 - beta))
        moments.append(g.emit("Add", kept, fresh, output=f"new/{kind}/{name}"))
    mean, square = (g.div(m, c) for m, c in zip(moments, corrections, strict=True))
    scale = g.add(g.emit("Sqrt", square), g.scalar(optimizer.epsilon))
    g.emit("Sub", name, g.mul(g.div(mean, scale), "lr"), output=f"new/{name}")
