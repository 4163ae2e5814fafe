"""Which tensors of a model are shared, personal or frozen, by the author's patterns."""

import difflib
import fnmatch
from collections.abc import Callable, Collection, Sequence

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
    if trainable == personal:
        raise UsageError("all tensors would be personal: nothing could be learned together")
    roles = {
        name: Role.PERSONAL
        if name in personal
        else Role.SHARED
        if name in trainable
        else Role.FROZEN
        for name in values
    }
    fixed = statistics(infer)
    return tuple(
        TensorSpec(name=name, shape=value.shape, role=roles[name]) for name, value in values.items()
    ) + tuple(
        TensorSpec(name=name, shape=value.shape, role=Role.FROZEN) for name, value in fixed.items()
    )


def _meant(pattern: str, names: Collection[str]) -> str:
    """Return which of ``names`` somebody may have meant, and which there are."""
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.6)
    prefixes = {f"{name.rsplit('.', 1)[0]}.*" for name in names if "." in name}
    near = near or difflib.get_close_matches(pattern, sorted(prefixes), n=1, cutoff=0.5)
    question = f"did you mean {near[0]!r}? " if near else ""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{question}there are {', '.join(list(names)[:12])}{more}"
