"""Cases of `models.graph.gradients.gradients_shape`: moving elements."""

import numpy as np
import torch
from gradient_case import BATCH, IMAGE, Case, Const, X, floats, ints, unary
from torch.nn import functional as nnf

SPLIT = Case(
    "Split",
    "Split",
    [floats(BATCH, 6, 2), ints(1, 2, 3)],
    lambda x: torch.split(x, [1, 2, 3], 1),
    {"axis": 1},
)

PIXELS = floats(BATCH, 8, 3, 4)

SPACE = floats(BATCH, 3, 6, 4)


def depth_first(x: torch.Tensor) -> torch.Tensor:
    """Space to depth with the place in the block as the slower channel."""
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, h // 2, 2, w // 2, 2)
        .permute(0, 3, 5, 1, 2, 4)
        .reshape(n, -1, h // 2, w // 2)
    )


def space_first(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, 2 * h, 2 * w)


def exclusive(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(1) - x


SHAPE = [
    unary("Flatten", lambda x: x.flatten(1)),
    unary("Flatten", lambda x: x.flatten(0, 1), axis=2),
    Case("Reshape", "Reshape", [X, ints(-1, 20)], lambda x: x.reshape(-1, 20)),
    Case("Reshape kept", "Reshape", [X, ints(0, 2, -1)], lambda x: x.reshape(len(x), 2, -1)),
    Case("Squeeze", "Squeeze", [X[:, :1], ints(1)], lambda x: x.squeeze(1)),
    Case("Unsqueeze", "Unsqueeze", [X, ints(1, -1)], lambda x: x[:, None, ..., None]),
    unary("Transpose", lambda x: x.permute(0, 2, 1), perm=[0, 2, 1]),
    Case(
        "Slice of nothing beside",
        "Slice",
        [X, ints(2), ints(-2), ints(1), ints(2)],
        lambda x: x[:, 2:-2:2],
    ),
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
    Case(
        "Pad reflect",
        "Pad",
        [X, ints(0, 0, 3, 0, 0, 2)],
        lambda x: nnf.pad(x, (3, 2), mode="reflect"),
        {"mode": "reflect"},
    ),
    Case(
        "Pad reflect two axes",
        "Pad",
        [IMAGE, ints(0, 0, 2, 1, 0, 0, 1, 3)],
        lambda x: nnf.pad(x, (1, 3, 2, 1), mode="reflect"),
        {"mode": "reflect"},
    ),
    Case(
        "Pad edge",
        "Pad",
        [IMAGE, ints(0, 0, 2, 1, 0, 0, 0, 3)],
        lambda x: nnf.pad(x, (1, 3, 2, 0), mode="replicate"),
        {"mode": "edge"},
    ),
    Case(
        "Pad wrap",
        "Pad",
        [IMAGE, ints(2, 1, 1, 3), None, ints(2, 3)],
        lambda x: nnf.pad(x, (1, 3, 2, 1), mode="circular"),
        {"mode": "wrap"},
    ),
    Case(
        "Pad with a trained value",
        "Pad",
        [X, ints(0, 1, 2, 0, 0, 3), np.float32(0.5)],
        lambda x, v: torch.cat(
            [
                v.expand(len(x), 5, 2),
                torch.cat([v.expand(len(x), 1, 5), x], 1),
                v.expand(len(x), 5, 3),
            ],
            2,
        ),
    ),
    Case("Tile", "Tile", [X, ints(1, 2, 3)], lambda x: x.repeat(1, 2, 3)),
    Case("Tile of one", "Tile", [X[:, :1], ints(1, 4, 1)], lambda x: x.repeat(1, 4, 1)),
    Case("Tile of the batch", "Tile", [X[0, :1], ints(2, 3)], lambda x: x.repeat(2, 3), {}, ()),
    Case("Trilu", "Trilu", [X], torch.triu),
    Case("Trilu lower", "Trilu", [X, Const(np.int64(1))], lambda x: x.tril(1), {"upper": 0}),
    Case("CumSum", "CumSum", [X, Const(np.int64(1))], lambda x: x.cumsum(1)),
    Case("CumSum exclusive", "CumSum", [X, Const(np.int64(1))], exclusive, {"exclusive": 1}),
    Case(
        "CumSum back",
        "CumSum",
        [X, Const(np.int64(-1))],
        lambda x: x.flip(2).cumsum(2).flip(2),
        {"reverse": 1},
    ),
    Case(
        "CumSum exclusive back",
        "CumSum",
        [X, Const(np.int64(1))],
        lambda x: exclusive(x.flip(1)).flip(1),
        {"exclusive": 1, "reverse": 1},
    ),
    Case(
        "ReverseSequence",
        "ReverseSequence",
        [floats(4, 3, 5), ints(4, 2, 1)],
        lambda x: torch.stack(
            [torch.cat([x[:n, i].flip(0), x[n:, i]]) for i, n in enumerate((4, 2, 1))], 1
        ),
        {"time_axis": 0, "batch_axis": 1},
        (),
    ),
    unary("DepthToSpace", space_first, x=PIXELS, blocksize=2),
    unary("DepthToSpace", lambda x: nnf.pixel_shuffle(x, 2), x=PIXELS, blocksize=2, mode="CRD"),
    unary("SpaceToDepth", depth_first, x=SPACE, blocksize=2),
]
