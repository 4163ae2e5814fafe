"""Cases of `models.graph.gradients.gradients_linear`: products, soft maxima and normalizations."""

import torch
from gradient_case import BATCH, IMAGE, Case, Const, X, floats, unary
from torch.nn import functional as nnf

MEAN, VARIANCE = floats(4), floats(4, low=0.5)


LINEAR = [
    Case("Gemm", "Gemm", [X[:, 0], floats(5, 7), floats(7)], lambda a, b, c: a @ b + c),
    Case(
        "Gemm transposed B",
        "Gemm",
        [X[:, 0], floats(7, 5), floats(1, 7)],
        lambda a, b, c: 2 * a @ b.T + 0.5 * c,
        {"transB": 1, "alpha": 2.0, "beta": 0.5},
    ),
    Case(
        "Gemm transposed A",
        "Gemm",
        [floats(5, 3), floats(5, 7)],
        lambda a, b: a.T @ b,
        {"transA": 1},
        (),
    ),
    Case(
        "Gemm transposed both",
        "Gemm",
        [floats(5, 3), floats(7, 5), floats(3, 1)],
        lambda a, b, c: a.T @ b.T + c,
        {"transA": 1, "transB": 1},
        (),
    ),
    Case("MatMul 2-D", "MatMul", [X[:, 0], floats(5, 7)], torch.matmul),
    Case("MatMul 3-D by 2-D", "MatMul", [X, floats(5, 7)], torch.matmul),
    Case("MatMul 2-D by 3-D", "MatMul", [floats(2, 4), X], torch.matmul, {}, (1,)),
    Case("MatMul batched", "MatMul", [X, floats(BATCH, 5, 7)], torch.matmul, {}, (0, 1)),
    Case("MatMul broadcast", "MatMul", [floats(BATCH, 2, 4, 5), floats(2, 5, 7)], torch.matmul),
    Case("MatMul stretched", "MatMul", [floats(BATCH, 1, 4, 5), floats(6, 5, 7)], torch.matmul),
    Case("MatMul by vector", "MatMul", [X, floats(5)], torch.matmul),
    Case("MatMul vector by", "MatMul", [floats(4), X], torch.matmul, {}, (1,)),
    Case("MatMul vectors", "MatMul", [floats(4), floats(4, high=1)], torch.matmul, {}, ()),
    unary("Softmax", lambda x: x.softmax(-1)),
    unary("Softmax", lambda x: x.softmax(1), axis=1),
    unary("LogSoftmax", lambda x: x.log_softmax(-1)),
    unary("LogSoftmax", lambda x: x.log_softmax(1), axis=1),
    Case(
        "BatchNormalization",
        "BatchNormalization",
        [IMAGE, floats(4), floats(4, high=1), Const(MEAN), Const(VARIANCE)],
        lambda x, s, b: nnf.batch_norm(
            x, torch.from_numpy(MEAN), torch.from_numpy(VARIANCE), s, b, eps=1e-3
        ),
        {"epsilon": 1e-3},
    ),
    Case(
        "LayerNormalization",
        "LayerNormalization",
        [X, floats(5), floats(5, high=1)],
        lambda x, s, b: nnf.layer_norm(x, (5,), s, b),
    ),
    Case(
        "LayerNormalization over two axes",
        "LayerNormalization",
        [X, floats(4, 5)],
        lambda x, s: nnf.layer_norm(x, (4, 5), s),
        {"axis": 1},
    ),
    Case(
        "InstanceNormalization",
        "InstanceNormalization",
        [IMAGE, floats(4), floats(4, high=1)],
        lambda x, s, b: nnf.instance_norm(x, weight=s, bias=b),
    ),
]
