"""Cases of `gradients_recurrent.py`, against ONNX' formulas written out in torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gradient_case import Case, Const, floats

TIMES, SAMPLES, INPUTS, HIDDEN = 5, 3, 4, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
State = tuple[torch.Tensor, torch.Tensor]


def cell(
    op: str, x: torch.Tensor, state: State, r: torch.Tensor, rb: torch.Tensor, **attributes: Any
) -> State:
    """One time: x is X Wᵀ + Wb, by the formulas of the operators' documentation."""
    h, c = state
    if op == "RNN":
        activate = torch.relu if "Relu" in attributes.get("activations", []) else torch.tanh
        return activate(x + h @ r.T + rb), c
    if op == "LSTM":
        i, o, f, g = (x + h @ r.T + rb).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    xz, xr, xn = x.chunk(3, -1)
    (rz, rr, rn), (bz, br, bn) = r.chunk(3), rb.chunk(3)
    z, reset = (xz + h @ rz.T + bz).sigmoid(), (xr + h @ rr.T + br).sigmoid()
    if attributes.get("linear_before_reset"):
        n = (xn + reset * (h @ rn.T + bn)).tanh()
    else:
        n = (xn + (reset * h) @ rn.T + bn).tanh()
    return (1 - z) * n + z * h, c


def recurrent_case(
    label: str,
    op: str,
    *,
    bias: bool = True,
    states: int = 0,
    times: int = TIMES,
    unread: tuple[int, ...] = (),
    lengths: bool = False,
    **attributes: Any,
) -> Case:
    direction = attributes.get("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    width = GATES[op] * HIDDEN
    inputs: list[Any] = [
        floats(times, SAMPLES, INPUTS),
        floats(count, width, INPUTS, high=1),
        floats(count, width, HIDDEN, high=1),
        floats(count, 2 * width, high=1) if bias else None,
        Const(np.full(SAMPLES, times, np.int32)) if lengths else None,
        *(floats(count, SAMPLES, HIDDEN, high=1 + i) for i in range(states)),
    ]

    def oracle(x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, *rest: torch.Tensor) -> Any:
        b = rest[0] if bias else torch.zeros(count, 2 * width)
        first = rest[bool(bias) :]
        outputs: list[Sequence[torch.Tensor]] = []
        for d in range(count):
            backward = direction == "reverse" or d == 1
            state = (
                first[0][d] if first else torch.zeros(SAMPLES, HIDDEN),
                first[1][d] if len(first) > 1 else torch.zeros(SAMPLES, HIDDEN),
            )
            y: list[torch.Tensor] = [torch.zeros(0)] * times
            for t in reversed(range(times)) if backward else range(times):
                row = x[t] @ w[d].T + b[d, :width]
                state = cell(op, row, state, r[d], b[d, width:], **attributes)
                y[t] = state[0]
            outputs.append((torch.stack(y), *state))
        ys, hs, cs = zip(*outputs, strict=True)
        found = (torch.stack(ys, 1), torch.stack(hs), torch.stack(cs))
        outer = found if op == "LSTM" else found[:2]
        return tuple(value * (i not in unread) for i, value in enumerate(outer))

    attributes["hidden_size"] = HIDDEN
    return Case(f"{op} {label}", op, inputs, oracle, attributes, (), unread)


RECURRENT = [
    *(recurrent_case("plain", op) for op in GATES),
    *(recurrent_case("without bias", op, bias=False) for op in GATES),
    *(recurrent_case("backward", op, direction="reverse", states=1) for op in GATES),
    *(recurrent_case("both ways", op, direction="bidirectional", states=1) for op in GATES),
    *(recurrent_case("from a state", op, states=1) for op in GATES),
    *(recurrent_case("of which the states are read", op, unread=(1, 2)) for op in GATES),
    *(recurrent_case("of which the last state is read", op, unread=(0, 2)) for op in GATES),
    *(recurrent_case("of one time", op, times=1) for op in GATES),
    *(recurrent_case("of one time from a state", op, times=1, states=1) for op in GATES),
    *(recurrent_case("of full lengths", op, lengths=True) for op in GATES),
    recurrent_case("from both states", "LSTM", states=2),
    recurrent_case("both ways from both states", "LSTM", states=2, direction="bidirectional"),
    recurrent_case("of which the last cell is read", "LSTM", unread=(0, 1), states=2),
    recurrent_case("with relu", "RNN", activations=["Relu"]),
    recurrent_case(
        "both ways with relu", "RNN", activations=["Relu"] * 2, direction="bidirectional"
    ),
    recurrent_case("by name", "LSTM", activations=["Sigmoid", "Tanh", "Tanh"]),
    *(
        recurrent_case(f"linear before reset {label}", "GRU", linear_before_reset=1, **settings)
        for label, settings in {
            "plain": {},
            "without bias": {"bias": False},
            "both ways": {"direction": "bidirectional", "states": 1},
            "of one time": {"times": 1},
            "last state": {"unread": (0,)},
        }.items()
    ),
]
