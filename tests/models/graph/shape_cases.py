"""Cases of `models.graph.gradients_shape`: moving elements."""

import numpy as np
import torch
from gradient_case import BATCH, Case, Const, X, floats, ints, unary
from torch.nn import functional as nnf

SPLIT = Case(
    "Split",
    "Split",
    [floats(BATCH, 6, 2), ints(1, 2, 3)],
    lambda x: torch.split(x, [1, 2, 3], 1),
    {"axis": 1},
)

TABLE = floats(6, 5)

INDICES = np.array([[0, 1, 1], [5, 1, 0], [2, 2, 2]], np.int64)


SHAPE = [
    unary("Flatten", lambda x: x.flatten(1)),
    unary("Flatten", lambda x: x.flatten(0, 1), axis=2),
    Case("Reshape", "Reshape", [X, ints(-1, 20)], lambda x: x.reshape(-1, 20)),
    Case("Reshape kept", "Reshape", [X, ints(0, 2, -1)], lambda x: x.reshape(len(x), 2, -1)),
    Case("Squeeze", "Squeeze", [X[:, :1], ints(1)], lambda x: x.squeeze(1)),
    Case("Unsqueeze", "Unsqueeze", [X, ints(1, -1)], lambda x: x[:, None, ..., None]),
    unary("Transpose", lambda x: x.permute(0, 2, 1), perm=[0, 2, 1]),
    Case("Transpose all", "Transpose", [floats(4, 5)], lambda x: x.T, {}, ()),
    Case(
        "Concat",
        "Concat",
        [X, X[:, :2], floats(BATCH, 1, 5)],
        lambda *x: torch.cat(x, 1),
        {"axis": 1},
        (0, 1, 2),
    ),
    Case(
        "Concat with a constant",
        "Concat",
        [Const(floats(2, 5)), floats(3, 5)],
        lambda x: torch.cat([torch.from_numpy(floats(2, 5)), x]),
        {"axis": -2},
        (),
    ),
    SPLIT,
    SPLIT._replace(
        label="Split in part",
        oracle=lambda x: (x[:, :1], x[:, 1:3] * 0, x[:, 3:]),
        unread=(1,),
    ),
    Case("Slice", "Slice", [X, ints(1), ints(3), ints(1)], lambda x: x[:, 1:3]),
    Case(
        "Slice by steps",
        "Slice",
        [floats(BATCH, 8, 9), ints(1, 0), ints(2**40, -1), ints(1, 2), ints(3, 2)],
        lambda x: x[:, 1::3, 0:-1:2],
    ),
    Case(
        "Slice backward",
        "Slice",
        [X, ints(-1, 3), ints(-(2**40), 0), ints(2, 1), ints(-1, -2)],
        lambda x: x.flip(2)[:, [3, 1]],
    ),
    Case(
        "Slice of all",
        "Slice",
        [X, ints(0, 1), ints(2**40, 2**40)],
        lambda x: x[:, 1:],
    ),
    Case(
        "Gather rows",
        "Gather",
        [TABLE, Const(INDICES)],
        lambda t: nnf.embedding(torch.from_numpy(INDICES), t),
        follows=(1,),
    ),
    Case("Gather vector", "Gather", [X, ints(1, 1, -1)], lambda x: x[:, [1, 1, -1]], {"axis": 1}),
    Case("Gather one", "Gather", [X, Const(np.int64(-2))], lambda x: x[..., -2], {"axis": 2}),
    Case(
        "Gather matrix inside",
        "Gather",
        [X, Const(np.array([[0, 1], [1, 3]]))],
        lambda x: x[:, torch.tensor([[0, 1], [1, 3]])],
        {"axis": 1},
    ),
    Case("Expand", "Expand", [X[0], ints(2, 4, 5)], lambda x: x.expand(2, 4, 5), {}, ()),
    Case("Expand tail", "Expand", [X[:, :1], ints(1, 4, 1)], lambda x: x.expand(-1, 4, -1)),
    Case("Pad", "Pad", [X, ints(0, 1, 2, 0, 0, 3)], lambda x: nnf.pad(x, (2, 3, 1, 0))),
    Case("Pad by -1", "Pad", [X, ints(0, 1, -1, 0, 0, 3)], lambda x: nnf.pad(x, (-1, 3, 1, 0))),
    Case(
        "Pad of named axes",
        "Pad",
        [X, ints(1, 2), Const(np.float32(5)), ints(-1)],
        lambda x: nnf.pad(x, (1, 2), value=5.0),
    ),
]
