"""Cases of `models.graph.gradients.gradients_activation`."""

import torch
from gradient_case import Case, X, floats, unary
from torch.nn import functional as nnf

ACTIVATION = [
    unary("Celu", nnf.celu),
    unary("Celu", lambda x: nnf.celu(x, 0.5), alpha=0.5),
    unary("Elu", nnf.elu),
    unary("Elu", lambda x: nnf.elu(x, 0.5), alpha=0.5),
    unary("Erf", torch.erf),
    unary("Gelu", nnf.gelu),
    unary("Gelu", lambda x: nnf.gelu(x, approximate="tanh"), approximate="tanh"),
    unary("HardSigmoid", nnf.hardsigmoid, alpha=1 / 6, beta=0.5, x=X * 3),
    unary("HardSwish", nnf.hardswish, x=X * 3),
    unary("LeakyRelu", nnf.leaky_relu),
    unary("LeakyRelu", lambda x: nnf.leaky_relu(x, 0.3), alpha=0.3),
    Case("PRelu", "PRelu", [X, floats(4, 1)], lambda x, s: torch.where(x > 0, x, s * x)),
    unary("Relu", torch.relu),
    unary("Selu", nnf.selu),
    unary("Sigmoid", torch.sigmoid),
    unary("Softplus", nnf.softplus),
    unary("Softsign", nnf.softsign),
    unary("Tanh", torch.tanh),
    unary("Mish", nnf.mish),
    unary("Shrink", lambda x: nnf.softshrink(x, 0.7), lambd=0.7, bias=0.7),
    unary("Shrink", nnf.hardshrink),
    unary("ThresholdedRelu", lambda x: nnf.threshold(x, 1.0, 0.0)),
    unary("ThresholdedRelu", lambda x: nnf.threshold(x, -0.4, 0.0), alpha=-0.4),
]
