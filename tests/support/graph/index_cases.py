"""Cases of `models.graph.gradients.gradients_index`: reading and writing by computed indices."""

import numpy as np
import torch
from gradient_case import BATCH, Case, Const, X, apart, floats, ints
from torch.nn import functional as nnf

TABLE = floats(6, 5)

INDICES = np.array([[0, 1, 1], [5, 1, 0], [2, 2, 2]], np.int64)

PLACES = np.random.default_rng(2).integers(-4, 4, (BATCH, 6, 5))  # along an axis of 4

APART = np.random.default_rng(3).permuted(np.tile(np.arange(4)[:, None], (BATCH, 1, 5)), axis=1)[
    :, :2
]

ROWS = np.array([[0, 1], [2, 3], [0, 1]], np.int64)

SOME = np.array([[2, 3], [0, 1]], np.int64)

OWN = np.random.default_rng(4).integers(0, 4, (BATCH, 6, 1))  # rows of each sample's own


def at(places: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(places % 4)[: len(x)]


def numbered(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(x))[:, None]


INDEX = [
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
    Case(
        "GatherElements",
        "GatherElements",
        [X, Const(PLACES)],
        lambda x: x.gather(1, at(PLACES, x)),
        {"axis": 1},
        (0, 1),
    ),
    Case(
        "GatherElements along the first",
        "GatherElements",
        [X[0], Const(PLACES[0])],
        lambda x: x.gather(0, torch.from_numpy(PLACES[0] % 4)),
        {},
        (),
    ),
    Case(
        "GatherND",
        "GatherND",
        [floats(3, 4, 5), Const(ROWS)],
        lambda x: x[ROWS[:, 0], ROWS[:, 1]],
        {},
        (),
    ),
    Case(
        "GatherND one sample",
        "GatherND",
        [floats(3, 4), Const(ROWS)],
        lambda x: x[ROWS[:, 0], ROWS[:, 1]],
        {},
        (),
    ),
    Case(
        "GatherND batch_dims",
        "GatherND",
        [X, Const(OWN)],
        lambda x: x[numbered(x), torch.from_numpy(OWN[: len(x), :, 0])],
        {"batch_dims": 1},
        (0, 1),
    ),
    Case(
        "GatherND two batch_dims",
        "GatherND",
        [floats(2, 4, 5), Const(np.arange(24).reshape(2, 4, 3, 1) % 5)],
        lambda x: x.gather(2, torch.arange(24).reshape(2, 4, 3) % 5),
        {"batch_dims": 2},
        (),
    ),
    Case(
        "ScatterElements",
        "ScatterElements",
        [X, Const(APART), floats(BATCH, 2, 5)],
        lambda x, u: x.scatter(1, at(APART, x), u),
        {"axis": 1},
        (0, 1, 2),
    ),
    Case(
        "ScatterElements add",
        "ScatterElements",
        [X, Const(PLACES), floats(BATCH, 6, 5)],
        lambda x, u: x.scatter_add(1, at(PLACES, x), u),
        {"axis": 1, "reduction": "add"},
        (0, 1, 2),
    ),
    Case(
        "ScatterND",
        "ScatterND",
        [floats(3, 4, 5), Const(SOME), floats(2, 5)],
        lambda x, u: x.index_put((torch.tensor(SOME[:, 0]), torch.tensor(SOME[:, 1])), u),
        {},
        (),
    ),
    Case(
        "ScatterND add",
        "ScatterND",
        [floats(3, 4, 5), Const(ROWS), floats(3, 5)],
        lambda x, u: x.index_put(
            (torch.tensor(ROWS[:, 0]), torch.tensor(ROWS[:, 1])), u, accumulate=True
        ),
        {"reduction": "add"},
        (),
    ),
    Case("TopK", "TopK", [apart(BATCH, 4, 5), ints(3)], lambda x: x.topk(3).values),
    Case(
        "TopK smallest",
        "TopK",
        [apart(BATCH, 4, 5), ints(2)],
        lambda x: x.topk(2, dim=1, largest=False).values,
        {"axis": 1, "largest": 0},
    ),
]
