"""Constants that exporters merged because they were equal get tensors of their own. Pure.

In a fresh net all biases are zero and all scales one; exporters write one tensor for them. Training
it would train all these layers as one. Tensors whose values differ among themselves stay as they
are: when such are equal, they are tied on purpose (an embedding that is the head as well).
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from models.graph.facts.constants import (
    BIAS_OPERATORS,
    MOVING_OPERATORS,
    STATISTIC_INPUTS,
    WEIGHT_INPUTS,
)

__all__ = ["separate_merged"]


class _Use(NamedTuple):
    node: onnx.NodeProto
    place: int
    alias: str  # the name that it is read by, where an Identity stands between
    layer: tuple[str, ...]  # the other weights of the same layer; () where there are none


def separate_merged(graph: onnx.GraphProto, on_note: Callable[[str], None]) -> None:
    """Give every layer, in place, its own tensors of equal values, and every norm its statistics.

    ``on_note`` is told of weights that were merged (not of statistics). A layer that is used twice
    reads the same other weights both times, and stays one.
    """
    constants = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    aliases = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in constants
    }
    level = {name for name, tensor in constants.items() if _is_level(tensor)}
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(constants)
    own: dict[str, str] = {}  # new tensor -> that of which it is a copy
    separated: dict[str, int] = {}
    for source, uses in _uses(graph, constants, aliases, level).items():
        keys: dict[object, str] = {}
        layers: set[object] = set()
        aliased = any(use.alias for use in uses)
        for use in uses:
            is_statistic = use.place in STATISTIC_INPUTS.get(use.node.op_type, ())
            if is_statistic:
                key: object = (id(use.node), use.place)
            elif source not in level:
                continue  # tied on purpose, if at all
            elif not _may_be_weight(use, constants[source]):
                key = "a factor"
            else:
                # Where the merged have an Identity each, who reads the tensor itself is one layer.
                key = use.alias or (source if aliased else use.layer or (id(use.node), use.place))
                layers.add(key)
            if key not in keys:
                wish = use.alias
                is_alone = not is_statistic or len(uses) == 1
                if not wish and is_alone and source not in keys.values():
                    wish = source
                if not wish or wish in own:
                    kind = "statistic" if is_statistic else "weight"
                    wish = _free(f"{use.node.output[0]}/{kind}_{use.place}", taken)
                if wish != source:
                    own[wish] = source
                keys[key] = wish
            use.node.input[use.place] = keys[key]
        if len(layers) > 1:
            separated[source] = len(layers)
    kept = [node for node in graph.node if node.output[0] not in own]
    del graph.node[:]
    graph.node.extend(kept)
    for name, source in own.items():
        tensor = graph.initializer.add()
        tensor.CopyFrom(constants[source])
        tensor.name = name
    if separated:
        most = max(separated, key=lambda name: separated[name])
        on_note(
            f"the exporter had merged equal tensors of several layers ({most!r}: "
            f"{separated[most]} of them): each layer has its own again"
        )


def _uses(
    graph: onnx.GraphProto,
    constants: Mapping[str, onnx.TensorProto],
    aliases: Mapping[str, str],
    level: Collection[str],
) -> dict[str, list[_Use]]:
    """Return who reads each constant, by the constant."""
    makers = {name: node for node in graph.node for name in node.output}
    uses: dict[str, list[_Use]] = {}
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] in aliases:
            continue
        for i, name in enumerate(node.input):
            source = aliases.get(name, name)
            if source in constants:
                others = [_origin(n, makers) for n in _companions(node, i, makers)]
                layer = tuple(n for n in others if n in constants and n not in level)
                alias = name if name in aliases else ""
                uses.setdefault(source, []).append(_Use(node, i, alias, layer))
    return uses


def _is_level(tensor: onnx.TensorProto) -> bool:
    value = numpy_helper.to_array(tensor)
    return bool(value.size and (value == value.reshape(-1)[0]).all())


def _may_be_weight(use: _Use, tensor: onnx.TensorProto) -> bool:
    op = use.node.op_type
    plural = int(np.prod(tensor.dims)) > 1
    is_bias = op in BIAS_OPERATORS or (op in MOVING_OPERATORS and use.place == 0)
    return use.place in WEIGHT_INPUTS.get(op, ()) or (plural and is_bias)


def _companions(
    node: onnx.NodeProto, place: int, makers: Mapping[str, onnx.NodeProto]
) -> list[str]:
    """Return the other weights of the layer that reads a constant at ``place``."""
    if node.op_type in WEIGHT_INPUTS:
        return [name for i, name in _weights_of(node) if i != place]
    for i, name in enumerate(node.input):
        maker = makers.get(name)
        if i != place and node.op_type in BIAS_OPERATORS and maker is not None:
            return [name for _, name in _weights_of(maker)]
    return []


def _weights_of(node: onnx.NodeProto) -> list[tuple[int, str]]:
    places = WEIGHT_INPUTS.get(node.op_type, ())
    return [(i, node.input[i]) for i in places if i < len(node.input) and node.input[i]]


def _origin(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Return what was moved to make a value: the weight, for one that is transposed before use."""
    while (maker := makers.get(name)) is not None and maker.op_type in MOVING_OPERATORS:
        name = maker.input[0]
    return name


def _free(wish: str, taken: set[str]) -> str:
    while wish in taken:
        wish += "_"
    taken.add(wish)
    return wish
