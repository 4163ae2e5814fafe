"""Settings of one task that cannot work together, or hardly are meant so. Pure.

``run`` refuses what `contradictions` finds, and ``check`` tells all of it, with the `doubts`. What
one section says wrongly by itself is refused where it is read (`broker.config`).
"""

from collections.abc import Iterator

from broker.config import FoldPolicy, TaskConfig
from broker.learning_policy import LearningPolicy
from models.task.spec import Role, TaskSpec

__all__ = ["contradictions", "doubts"]

BY_COORDINATE = ("trimmed_mean", "median", "multi_krum")
LARGE_KEEP = 0.2
WITHOUT = ", without a memory"
LARGE_RATE = 0.1  # of adam and yogi, which move each parameter by about so much
MB = 1_000_000
TRAINED_EVERY_S = 3600.0  # by devices, unless their owners say otherwise


def contradictions(task: TaskConfig, spec: TaskSpec) -> list[str]:
    """Return a sentence for each combination of settings that this server refuses."""
    return list(_contradictions(task, spec))


def _contradictions(task: TaskConfig, spec: TaskSpec) -> Iterator[str]:
    learning, policy = task.learning, task.aggregation
    if learning.has_memory and policy.rule != "mean":
        yield (
            f"[task.aggregation] rule = {policy.rule}: with [task.learning] feedback = "
            f"{learning.feedback} only mean keeps both sides' memory equal; take "
            f"feedback = residual"
        )
    if task.codec.context == "own" and not learning.has_memory:
        yield (
            "[task.codec] context = own needs [task.learning] feedback = memory or gd-sec: nobody "
            "else keeps what a device sent"
        )
    if policy.updates == "all" and not learning.has_memory:
        yield (
            "[task.aggregation] updates = all waits for the devices that the server remembers: "
            "take [task.learning] feedback = memory or gd-sec, or a number"
        )
    if learning.gradient and learning.feedback != "gd-sec":
        yield (
            f"[task.learning] gradient = true is a step of gd-sec, and feedback = "
            f"{learning.feedback}: take feedback = gd-sec, or gradient out"
        )
    elif learning.gradient and spec.optimizer == "adam":
        yield (
            f"[task.learning] gradient = true wants plain gradients; {spec.task} was created with "
            f"--optimizer adam: create it with --optimizer sgd"
        )
    if learning.gradient and learning.steps != "epochs":
        yield (
            f"[task.learning] steps = {learning.steps}: gradient = true makes one step; take "
            f"steps out"
        )
    size = 4 * spec.shared_size
    if learning.has_memory and size > learning.max_memory_mb * MB:
        yield (
            f"[task.learning] max_memory_mb = {learning.max_memory_mb} has no room for the memory "
            f"of one device, which takes {size / MB:.0f} MB"
        )
    if spec.norms_adapt and task.training.batch < 2:
        yield (
            "[task.training] batch = 1 is no batch for batch norm that adapts (--norms personal), "
            "as one sample has no variance: take at least 2, or 16"
        )
    personal = spec.with_role(Role.PERSONAL)
    if personal and task.evaluation is not None and task.evaluation.max_drop is not None:
        yield (
            f"the server cannot measure personal models (of {personal[0].name}) on "
            f"[task.evaluation] data; remove max_drop (devices report: edgefold-broker personal)"
        )


def doubts(task: TaskConfig, spec: TaskSpec) -> list[str]:
    """Return a sentence for each combination that is allowed and hardly meant so."""
    return [*_doubts(task, spec), *_without_effect(task)]


def _without_effect(task: TaskConfig) -> Iterator[str]:
    """Yield a sentence for each setting of something that is not switched on."""
    learning, policy = task.learning, task.aggregation
    is_aged = not learning.has_memory  # age damps no memory
    for section, chosen, usual, names, is_used, of in (
        ("learning", learning, LearningPolicy(), ("beta", "threshold"),
         learning.feedback == "gd-sec", "[task.learning] feedback = gd-sec"),
        ("learning", learning, LearningPolicy(), ("forget_after", "max_memory_mb"),
         learning.has_memory, "[task.learning] feedback = memory or gd-sec"),
        ("aggregation", policy, FoldPolicy(), ("momentum",),
         policy.optimizer == "momentum", "optimizer = momentum"),
        ("aggregation", policy, FoldPolicy(), ("half_life",),
         is_aged and policy.staleness == "half_life", f"staleness = half_life{WITHOUT}"),
        ("aggregation", policy, FoldPolicy(), ("staleness_exponent",),
         is_aged and policy.staleness == "polynomial", f"staleness = polynomial{WITHOUT}"),
        ("aggregation", policy, FoldPolicy(), ("staleness_slope", "staleness_after"),
         is_aged and policy.staleness == "hinge", f"staleness = hinge{WITHOUT}"),
    ):  # fmt: skip
        for name in names:
            value = getattr(chosen, name)
            if not is_used and value != getattr(usual, name):
                yield f"[task.{section}] {name} = {value:g} has no effect: it is of {of}"


def _doubts(task: TaskConfig, spec: TaskSpec) -> Iterator[str]:
    learning, policy = task.learning, task.aggregation
    if learning.feedback == "gd-sec" and not learning.gradient:
        yield (
            "feedback = gd-sec without gradient = true: with local training the threshold sends "
            "54-92 % of the coordinates (docs/papers.md); [task.codec] bytes bounds it"
        )
    is_sparse = task.codec.method == "coreset" and task.codec.keep < LARGE_KEEP
    if policy.rule in BY_COORDINATE and is_sparse:
        yield (
            f"rule = {policy.rule} with [task.codec] method = coreset and keep = "
            f"{task.codec.keep:g}: a coordinate that few devices send does not move; take "
            f"method = transform, or keep above {LARGE_KEEP:g}"
        )
    rate = policy.learning_rate
    if policy.optimizer in ("adam", "yogi") and rate != "auto" and rate > LARGE_RATE:
        yield (
            f"[task.aggregation] learning_rate = {rate:g} with optimizer = {policy.optimizer} "
            f"moves each parameter by about so much in a fold: take auto, which is 0.01"
        )
    if learning.has_memory and policy.min_seconds > TRAINED_EVERY_S:
        yield (
            f"feedback = {learning.feedback}: a device has at most one unanswered update, so it "
            f"contributes at most once between two folds, which are min_seconds = "
            f"{policy.min_seconds:g} apart: only what it learns last before a fold counts"
        )
    is_gated = task.evaluation is not None and task.evaluation.max_drop is not None
    if learning.has_memory and is_gated:
        yield (
            f"max_drop with feedback = {learning.feedback}: each fold moves by the memories of all "
            f"devices, so where those of devices that are away pull the wrong way, it refuses what "
            f"the others send until an operator forgets them; leave max_drop out"
        )
    if learning.has_memory and policy.max_staleness and policy.max_staleness < 4:
        yield (
            f"max_staleness = {policy.max_staleness} refuses updates of devices whose memory is "
            f"still valid: age does not damp a memory; leave it at 0"
        )
