"""Which tensors of a model are shared, personal or frozen, by the author's patterns."""

import difflib
import fnmatch
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import onnx

from models.errors import UsageError
from models.graph.reading.forward_graph import (
    statistics,
    tensors_behind,
    weights,
)
from models.task.spec import Role, TensorSpec
from tools.author.bundle.task_options import TaskOptions
from tools.author.model.model_words import shown

__all__ = ["tensor_specs"]


def tensor_specs(
    infer: onnx.ModelProto, options: TaskOptions, on_warning: Callable[[str], None]
) -> tuple[TensorSpec, ...]:
    """Return all tensors of the model with their roles, in the order of the graph."""
    values = weights(infer)
    output = infer.graph.output[0].name
    elsewhere = set(values) - tensors_behind(infer, output)

    def matching(patterns: Sequence[str], option: str) -> set[str]:
        found: set[str] = set()
        for pattern in patterns:
            hits = set(fnmatch.filter(values, pattern))
            if not hits:
                raise UsageError(f"{option} {pattern}: no such tensor; {_meant(pattern, values)}")
            if hits <= elsewhere:
                raise UsageError(
                    f"{option} {pattern}: {min(hits)} has no influence on output {output!r}, which "
                    "is learned: choose the output that it makes, --output NAME, or other tensors"
                )
            found |= hits
        return found - elsewhere

    if not values:
        raise UsageError("the model has no weights that could be trained")
    trainable = matching(options.trainable, "--trainable")
    personal = matching(options.personal, "--personal")
    if personal - trainable:
        raise UsageError(f"--personal {min(personal - trainable)}: it is not trainable")
    if elsewhere:
        on_warning(
            f"{len(elsewhere)} of the model's tensors serve only outputs other than {output!r}, "
            f"and are frozen: {shown(sorted(elsewhere))}"
        )
    norms = _adapting(infer, options, trainable, personal)
    own = Role.PERSONAL if options.norms == "personal" else Role.SHARED

    def role(name: str) -> Role:
        if name in norms.statistics or (name in norms.affine and name not in personal):
            return own
        return (
            Role.PERSONAL if name in personal else Role.SHARED if name in trainable else Role.FROZEN
        )

    tensors = tuple(
        TensorSpec(name=name, shape=value.shape, role=role(name), kind=norms.kind(name))
        for name, value in {**values, **statistics(infer)}.items()
    )
    if not any(tensor.role is Role.SHARED for tensor in tensors):
        raise UsageError("all tensors would be personal: nothing could be learned together")
    return tensors


class _Norms(NamedTuple):
    """What belongs to batch norms that adapt, by name."""

    affine: frozenset[str] = frozenset()  # scales and shifts that are trained
    statistics: frozenset[str] = frozenset()

    def kind(self, name: str) -> Literal["weight", "norm", "statistic"]:
        if name in self.statistics:
            return "statistic"
        return "norm" if name in self.affine else "weight"


def _adapting(
    infer: onnx.ModelProto,
    options: TaskOptions,
    trainable: Collection[str],
    personal: Collection[str],
) -> _Norms:
    """Return the tensors of the batch norms that adapt: of those that --trainable names.

    Raises:
        UsageError: they should, and there are none.
    """
    if options.norms == "frozen":
        return _Norms()
    output = infer.graph.output[0].name
    reached = tensors_behind(infer, output)
    there = [n for n in infer.graph.node if n.op_type == "BatchNormalization"]
    there = [node for node in there if node.output[0] in reached or node.output[0] == output]
    if not there:
        raise UsageError(
            f"--norms {options.norms}: the net {options.net} has no batch norm; cnn_norm has"
            if options.net
            else f"--norms {options.norms}: the model has no batch norm; an exporter folds it into "
            "the layer before, unless it is told not to: torch.onnx.export with optimize=False, or "
            "do_constant_folding=False (older exporter)"
        )
    chosen = [
        node
        for node in there
        if any(name in trainable for name in node.input[1:3])
        or any(fnmatch.filter(node.input[3:5], pattern) for pattern in options.trainable)
    ]
    if not chosen:
        raise UsageError(
            f"--norms {options.norms}: none of the model's batch norms is among the tensors that "
            f"--trainable names; the first has {there[0].input[1]}"
        )
    affine = {name for node in chosen for name in node.input[1:3] if name in trainable}
    if options.norms == "shared" and (own := affine.intersection(personal)):
        raise UsageError(f"--personal {min(own)}: it is of a batch norm that is shared")
    return _Norms(frozenset(affine), frozenset(name for node in chosen for name in node.input[3:5]))


def _meant(pattern: str, names: Collection[str]) -> str:
    """Return which of ``names`` somebody may have meant, and which there are."""
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.6)
    prefixes = {f"{name.rsplit('.', 1)[0]}.*" for name in names if "." in name}
    near = near or difflib.get_close_matches(pattern, sorted(prefixes), n=1, cutoff=0.5)
    question = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{question}there are {', '.join(list(names)[:12])}{more}"
