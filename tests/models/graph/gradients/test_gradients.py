"""Every rule of GRADIENTS against torch's autograd, at two batch sizes with the same graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from activation_cases import ACTIVATION
from adaptive_cases import ADAPTIVE
from einsum_cases import EINSUM
from elementwise_cases import ELEMENTWISE
from gradient_case import BATCH, Case, Const
from index_cases import INDEX
from linear_cases import LINEAR
from onnx import ModelProto, TensorProto, helper, numpy_helper
from recurrent_cases import RECURRENT
from reduce_cases import REDUCE
from resize_cases import RESIZE
from sessions import session_of
from shape_cases import SHAPE
from spatial_cases import SPATIAL

from models.errors import UsageError
from models.graph.backward import Backward
from models.graph.gradients.gradients import GRADIENTS
from models.graph.gradients.gradients_adaptive import ADAPTIVE_NORM, forward_of
from models.graph.graph_builder import IR_VERSION, OPSET, GraphBuilder, read_node

TOLERANCE = 1e-4  # of the largest element, float32
CASES = [
    *ACTIVATION,
    *ADAPTIVE,
    *EINSUM,
    *ELEMENTWISE,
    *INDEX,
    *LINEAR,
    *RECURRENT,
    *REDUCE,
    *RESIZE,
    *SHAPE,
    *SPATIAL,
]


def symbolic(shape: tuple[int, ...], follows: bool) -> tuple[int | None, ...]:
    return (None, *shape[1:]) if follows and shape else shape


def gradient_model(case: Case, results: Sequence[torch.Tensor]) -> tuple[ModelProto, list[str]]:
    """Build the node and its gradients; returns the model and its inputs' names in order."""
    names = [f"in{i}" if value is not None else "" for i, value in enumerate(case.inputs)]
    outputs = [f"out{i}" for i in range(len(results))]
    proto = helper.make_node(case.op, names, outputs, case.label, **case.attributes)
    shapes: dict[str, tuple[int | None, ...]] = {}
    constants, wanted, declared = {}, set(), []
    for i, (name, value) in enumerate(zip(names, case.inputs, strict=True)):
        if value is None:
            continue
        array = value.value if isinstance(value, Const) else value
        follows = i in case.follows
        shapes[name] = symbolic(array.shape, follows)
        if isinstance(value, Const) and not follows:
            constants[name] = np.asarray(array)
            continue
        if not isinstance(value, Const):
            wanted.add(name)
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        dims = ["batch" if d is None else d for d in shapes[name]]
        declared.append(helper.make_tensor_value_info(name, dtype, dims))
    g = GraphBuilder(names)
    node = read_node(proto)
    if node.op == ADAPTIVE_NORM:  # no runtime knows it
        forward_of(g, node, shapes["in0"])
    else:
        g.emit_many(node.op, node.inputs, node.outputs, **node.attributes)
    for name, result in zip(outputs, results, strict=True):
        keeps_batch = bool(case.follows) and result.shape[:1] == (BATCH,)
        shapes[name] = symbolic(tuple(result.shape), keeps_batch)
    if case.label == "flatten axis":  # [batch * 4, 5]
        shapes["out0"] = (None, *results[0].shape[1:])
    backward = Backward(g, shapes, constants, wanted)
    for i, (name, result) in enumerate(zip(outputs, results, strict=True)):
        if i in case.unread:
            continue
        dtype = TensorProto.DOUBLE if result.dtype == torch.float64 else TensorProto.FLOAT
        declared.append(helper.make_tensor_value_info(f"d{name}", dtype, None))
        backward.collect(name, f"d{name}")
    gradients = GRADIENTS[case.op](backward, node, "dout0")
    assert len(gradients) == len(node.inputs)
    for name, gradient in zip(node.inputs, gradients, strict=True):
        if name in wanted:
            if gradient is None:
                gradient = g.mul(name, g.scalar(0))
            g.emit("Identity", gradient, output=f"d{name}")
    results_info = [
        helper.make_tensor_value_info(f"d{name}", TensorProto.FLOAT, None)
        for name in sorted(wanted)
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(
        g.nodes, "case", declared, results_info, [*initializers, *g.initializers()]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    return model, sorted(wanted)


def oracle_gradients(
    case: Case, batch: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[Any]]:
    """Return torch's outputs, the gradients of them that we feed, and those of the inputs."""
    variables = [
        torch.from_numpy(np.array(value[:batch] if i in case.follows else value)).requires_grad_()
        for i, value in enumerate(case.inputs)
        if value is not None and not isinstance(value, Const)
    ]
    found = case.oracle(*variables)
    outputs = list(found) if isinstance(found, tuple) else [found]
    generator = torch.Generator().manual_seed(5)
    upstream = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    return outputs, upstream, list(torch.autograd.grad(outputs, variables, upstream))


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_a_rule_gives_torch_s_gradients(case: Case) -> None:
    outputs, _, _ = oracle_gradients(case, BATCH)
    model, wanted = gradient_model(case, outputs)
    session = session_of(model)
    constant_rows = any(isinstance(case.inputs[i], Const) for i in case.follows)
    for batch in (BATCH,) if constant_rows or not case.follows else (BATCH, 1):
        _, upstream, expected = oracle_gradients(case, batch)
        feed = {
            f"in{i}": np.array(value[:batch] if i in case.follows else value)
            for i, value in enumerate(v.value if isinstance(v, Const) else v for v in case.inputs)
            if value is not None
        }
        feed |= {f"dout{i}": gradient.numpy() for i, gradient in enumerate(upstream)}
        names = {value.name for value in session.get_inputs()}
        found = session.run(
            [f"d{name}" for name in wanted], {k: v for k, v in feed.items() if k in names}
        )
        for name, ours, theirs in zip(wanted, found, expected, strict=True):
            reference = theirs.numpy()
            assert ours.shape == reference.shape, f"{name}, batch {batch}"
            scale = max(np.abs(reference).max(), 1e-6)
            assert np.abs(ours - reference).max() / scale < TOLERANCE, f"{name}, batch {batch}"


def test_every_rule_has_a_case() -> None:
    assert {case.op for case in CASES} == set(GRADIENTS)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "words"),
    [
        ("ScatterND", [(4,), (2, 1), (2,)], {"reduction": "mul"}, "ScatterND.*'mul'"),
        ("ScatterElements", [(4,), (2,), (2,)], {"reduction": "max"}, "ScatterElements.*'max'"),
        ("ScatterElements", [(4,), (2,), (2,)], {"reduction": "min"}, "ScatterElements.*'min'"),
        ("MeanVarianceNormalization", [(None, 4, 5, 5)], {}, "over the batch"),
        (
            "AveragePool",
            [(None, 1, 6)],
            {"kernel_shape": [1], "strides": [3], "auto_pad": "SAME_UPPER"},
            "AveragePool.*export it with pads",
        ),
        ("ReduceL2", [(None, 4)], {"noop_with_empty_axes": 1}, "ReduceL2.*over no axis"),
    ],
)
def test_what_a_rule_does_not_do_is_refused_by_name(
    op: str, shapes: list[tuple[int | None, ...]], attributes: dict[str, Any], words: str
) -> None:
    names = [f"in{i}" for i in range(len(shapes))]
    proto = helper.make_node(op, names, ["out0"], "here", **attributes)
    g = GraphBuilder(names)
    known = {**dict(zip(names, shapes, strict=True)), "out0": shapes[0]}
    with pytest.raises(UsageError, match=f"'here'.*{words}"):
        GRADIENTS[op](Backward(g, known, {}, {*names}), read_node(proto), "dout0")
