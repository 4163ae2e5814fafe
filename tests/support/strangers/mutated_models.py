"""Small ONNX models, and what becomes of them when strangers damage them: from a seed.

As a program it makes tasks of many of them and says of each how that ended: one line of JSON.
"""

import json
import random
import resource
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from models.errors import EdgefoldError
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset

CLASSES = 3
ADDRESS_SPACE = 6 << 30
HUGE = (0, -1, -2, 1, 2, 7, 10**6, 2**31, 2**40, 10**12, 2**62, -(2**63))
OPERATORS = (
    *("Relu", "Gemm", "MatMul", "Conv", "Reshape", "Expand", "Tile", "ConstantOfShape", "Range"),
    *("Concat", "Gather", "Slice", "Pad", "Resize", "Softmax", "Transpose", "Squeeze", "LSTM"),
    *("BatchNormalization", "MaxPool", "ReduceMean", "Einsum", "OneHot", "NonZero", "Loop", "If"),
    *("Cast", "Where", "Split", "TopK", "CumSum", "Dropout", "Identity", "Shape", "Trilu", "Nope"),
)


ATTRIBUTES = (
    *("axis", "axes", "pads", "strides", "kernel_shape", "perm", "to", "value", "keepdims"),
    *("group", "transB", "alpha", "epsilon", "dilations", "auto_pad", "body", "num_outputs"),
)


def _model(shape: list[int], nodes: list[onnx.NodeProto], **weights: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def models() -> dict[str, tuple[onnx.ModelProto, tuple[int, ...]]]:
    """Return nets that task create takes, and the shape of one sample of each."""
    node, rng = helper.make_node, np.random.default_rng(0)

    def f(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 0.3).astype(np.float32)

    def i(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    mlp = [
        node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w2"], ["m"]),
        node("Add", ["m", "b2"], ["y"]),
    ]
    conv = [
        node("Conv", ["x", "k", "kb"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("BatchNormalization", ["c", "g", "o", "mean", "var"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    shapes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "tail"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["t"]),
        node("Expand", ["token", "many"], ["e"]),
        node("ConstantOfShape", ["many"], ["z"]),
        node("Add", ["e", "z"], ["ez"]),
        node("Tile", ["ez", "times"], ["tiled"]),
        node("MatMul", ["t", "w"], ["m"]),
        node("Add", ["m", "tiled"], ["a"]),
        node("Softmax", ["a"], ["soft"], axis=-1),
        node("ReduceMean", ["soft"], ["mean"], axes=[1], keepdims=0),
        node("MatMul", ["mean", "w2"], ["y"]),
    ]
    return {
        "mlp": (_model([4], mlp, w1=f(8, 4), b1=f(8), w2=f(8, CLASSES), b2=f(CLASSES)), (4,)),
        "conv": (
            _model(
                [1, 4, 4],
                conv,
                k=f(2, 1, 3, 3),
                kb=f(2),
                g=np.ones(2, np.float32),
                o=f(2),
                mean=f(2),
                var=np.ones(2, np.float32),
                w=f(8, CLASSES),
                b=f(CLASSES),
            ),
            (1, 4, 4),
        ),
        "shapes": (
            _model(
                [8],
                shapes,
                zero=i(0),
                tail=i(2, 4),
                token=f(1, 1, 4),
                many=i(1, 1, 4),
                times=i(1, 2, 1),
                w=f(4, 4),
                w2=f(4, CLASSES),
            ),
            (8,),
        ),
    }


def mutated(model: onnx.ModelProto, chance: random.Random) -> onnx.ModelProto | bytes:
    """Return a damaged copy; as bytes where it may be no model at all."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(MUTATIONS)(copy, chance)
    if chance.random() < 0.15:
        data = bytearray(copy.SerializeToString())
        for _ in range(chance.choice((1, 3, 20))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
    return copy


def _node(model: onnx.ModelProto, chance: random.Random) -> onnx.NodeProto:
    return chance.choice(model.graph.node) if model.graph.node else model.graph.node.add()


def _weight(model: onnx.ModelProto, chance: random.Random) -> onnx.TensorProto:
    weights = model.graph.initializer
    return chance.choice(weights) if weights else weights.add()


def _names(model: onnx.ModelProto) -> list[str]:
    found = {name for node in model.graph.node for name in (*node.input, *node.output)}
    return [*sorted(found), "x", "y", "", "nowhere", "\u202e\n", "n" * 3000]


def _remove_node(model: onnx.ModelProto, chance: random.Random) -> None:
    if model.graph.node:
        del model.graph.node[chance.randrange(len(model.graph.node))]


def _copy_node(model: onnx.ModelProto, chance: random.Random) -> None:
    model.graph.node.add().CopyFrom(_node(model, chance))


def _shuffle(model: onnx.ModelProto, chance: random.Random) -> None:
    nodes = list(model.graph.node)
    chance.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _rewire(model: onnx.ModelProto, chance: random.Random) -> None:
    node = _node(model, chance)
    ends = chance.choice((node.input, node.output))
    name = chance.choice(_names(model))
    if ends and chance.random() < 0.8:
        ends[chance.randrange(len(ends))] = name
    else:
        ends.append(name)


def _drop_end(model: onnx.ModelProto, chance: random.Random) -> None:
    node = _node(model, chance)
    ends = chance.choice((node.input, node.output))
    if ends:
        del ends[chance.randrange(len(ends))]


def _operator(model: onnx.ModelProto, chance: random.Random) -> None:
    _node(model, chance).op_type = chance.choice(OPERATORS)


def _domain(model: onnx.ModelProto, chance: random.Random) -> None:
    _node(model, chance).domain = chance.choice(("ai.onnx", "ai.onnx.ml", "com.microsoft", "\n"))


def _attribute(model: onnx.ModelProto, chance: random.Random) -> None:
    node = _node(model, chance)
    name = chance.choice(ATTRIBUTES)
    value = chance.choice(
        [
            chance.choice(HUGE),
            [chance.choice(HUGE) for _ in range(chance.randrange(5))],
            *(float("nan"), 1e38, "\ud7ff\n", b"\xff", ["a"], "SAME_UPPER"),
            numpy_helper.from_array(np.array([chance.choice(HUGE)]), "v"),
        ]
    )
    for number in reversed(range(len(node.attribute))):
        if node.attribute[number].name == name:
            del node.attribute[number]
    try:
        node.attribute.append(helper.make_attribute(name, value))
    except (ValueError, TypeError):  # an empty list
        node.attribute.append(AttributeProto(name=name, type=chance.choice((0, 2, 7, 14))))


def _drop_weight(model: onnx.ModelProto, chance: random.Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[chance.randrange(len(model.graph.initializer))]


def _dims(model: onnx.ModelProto, chance: random.Random) -> None:
    weight = _weight(model, chance)
    if weight.dims and chance.random() < 0.7:
        weight.dims[chance.randrange(len(weight.dims))] = chance.choice(HUGE)
    else:
        weight.dims.append(chance.choice((0, 1, 2)))


def _type(model: onnx.ModelProto, chance: random.Random) -> None:
    _weight(model, chance).data_type = chance.choice((0, 1, 6, 7, 8, 9, 10, 11, 14, 16, 17, 99))


def _values(model: onnx.ModelProto, chance: random.Random) -> None:
    weight = _weight(model, chance)
    try:
        array = numpy_helper.to_array(weight).copy()
    except Exception:  # damaged before
        return
    if array.dtype == np.int64 and array.size:
        array.flat[chance.randrange(array.size)] = chance.choice(HUGE)
    elif array.dtype == np.float32 and array.size:
        array.flat[chance.randrange(array.size)] = chance.choice((np.nan, np.inf, -1e38, 0))
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))


def _raw(model: onnx.ModelProto, chance: random.Random) -> None:
    weight = _weight(model, chance)
    weight.raw_data = weight.raw_data[: chance.randrange(len(weight.raw_data) + 1)]


def _outside(model: onnx.ModelProto, chance: random.Random) -> None:
    weight = _weight(model, chance)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    place = chance.choice(("/etc/passwd", "../../x", "", "w.bin", "/dev/zero", "\0"))
    weight.external_data.add(key="location", value=place)


def _rename_weight(model: onnx.ModelProto, chance: random.Random) -> None:
    _weight(model, chance).name = chance.choice(_names(model))


def _end(model: onnx.ModelProto, chance: random.Random) -> None:
    """Damage an input or output of the graph."""
    ends = chance.choice((model.graph.input, model.graph.output))
    match chance.randrange(6):
        case 0:
            if ends:
                del ends[0]
        case 1:
            ends.add().CopyFrom(
                model.graph.input[0] if model.graph.input else onnx.ValueInfoProto()
            )
        case 2:
            for end in ends:
                end.type.tensor_type.elem_type = chance.choice((0, 1, 7, 8, 9, 11, 99))
        case 3:
            for end in ends:
                for dim in end.type.tensor_type.shape.dim:
                    dim.dim_value = chance.choice(HUGE)
        case 4:
            for end in ends:
                end.ClearField("type")
        case _:
            for end in ends:
                end.name = chance.choice(_names(model))


def _opset(model: onnx.ModelProto, chance: random.Random) -> None:
    match chance.randrange(3):
        case 0:
            del model.opset_import[:]
        case 1:
            for opset in model.opset_import:
                opset.version = chance.choice((0, -1, 1, 6, 7, 13, 21, 99, 2**62))
        case _:
            model.ir_version = chance.choice((0, -1, 3, 99))


def _nested(model: onnx.ModelProto, chance: random.Random) -> None:
    """Put graphs within graphs, as deep as protobuf writes them and deeper."""
    graph = helper.make_graph([], "g", [], [])
    for _ in range(chance.choice((1, 20, 30))):
        node = helper.make_node(
            "If", ["x"], ["q"], then_branch=graph, else_branch=graph.__class__()
        )
        graph = helper.make_graph([node], "g", [], [])
    model.graph.node.extend(graph.node)


def _function(model: onnx.ModelProto, chance: random.Random) -> None:
    """Let a function call itself, or one that is not there."""
    name = chance.choice(("F", "G"))
    inner = helper.make_node(name, ["a"], ["b"], domain="f")
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    model.functions.append(helper.make_function("f", "F", ["a"], ["b"], [inner], opset))
    model.opset_import.append(helper.make_opsetid("f", 1))
    node = _node(model, chance)
    node.op_type, node.domain = "F", "f"


MUTATIONS = (
    *(_remove_node, _copy_node, _shuffle, _rewire, _rewire, _drop_end, _operator, _operator),
    *(_domain, _attribute, _attribute, _attribute, _drop_weight, _dims, _type, _values, _values),
    *(_raw, _outside, _rename_weight, _end, _end, _opset, _nested, _function),
)


def outcome(seed: int, folder: Path) -> str:
    """Return how a task of the model of ``seed`` is refused; "" if it is not."""
    chance = random.Random(seed)
    model, shape = MODELS[chance.choice(sorted(MODELS))]
    damaged = mutated(model, chance)
    x = np.random.default_rng(0).normal(size=(12, *shape)).astype(np.float32)
    y = np.arange(12) % CLASSES
    data = Dataset("data.npz", x, y, None, y == 0, test_is_ours=True)
    path = folder / "model.onnx"
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.SerializeToString())
    try:
        create_task("t", data, TaskOptions(model=path))
    except EdgefoldError as error:
        return str(error) or "(nothing)"
    return ""


def main(arguments: list[str]) -> None:
    """Print how each of so many seeds ended, and before each that it begins."""
    first, count, folder = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in range(first, first + count):
        print(json.dumps({"seed": seed}), flush=True)
        began = time.monotonic()
        told: dict[str, object] = {"seed": seed}
        try:
            told["sentence"] = outcome(seed, folder)
        except BaseException:
            told["error"] = traceback.format_exc()[-1500:]
        told["seconds"] = round(time.monotonic() - began, 2)
        print(json.dumps(told), flush=True)


MODELS = models()

if __name__ == "__main__":
    main(sys.argv[1:])
