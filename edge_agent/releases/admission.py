"""Whether an announced release is for this device. Pure."""

from typing import NamedTuple

from models.protocol.manifest import Manifest
from models.task.spec import TaskSpec

__all__ = ["ReleaseLimits", "refusal", "stuck", "unfit"]


class ReleaseLimits(NamedTuple):
    """What a release may cost, in bytes."""

    max_artifact: int
    max_release: int


def refusal(
    manifest: Manifest, *, task: str, active: Manifest | None, limits: ReleaseLimits
) -> str:
    """Return why a release is not for this device, from its manifest alone; "" if it is."""
    installed = active.release if active else 0
    max_artifact, max_release = limits
    if manifest.task != task:
        return f"release {manifest.release} is of task {manifest.task}, this device learns {task}"
    if manifest.release < installed:
        return f"release {manifest.release} is older than the installed {installed}: no rollback"
    for kind, artifact in manifest.artifacts.items():
        if artifact.size == 0:
            return f"release {manifest.release}: its {kind} file is empty"
        if artifact.size > max_artifact:
            return (
                f"release {manifest.release}: its {kind} file has {artifact.size / 1e6:.1f} MB, "
                f"limits.max_artifact_mb allows {max_artifact / 1e6:.0f}"
            )
    sizes = {artifact.sha256: artifact.size for artifact in manifest.artifacts.values()}
    total = sum(sizes.values())
    if total > max_release:
        halves = "; average = 0 in the task's [task.learning] halves it"
        return (
            f"release {manifest.release} has {total / 1e6:.1f} MB; with storage.max_mb as it is, "
            f"a release may have {max_release / 1e6:.1f}{halves if manifest.averaged else ''}"
        )
    if active and manifest.release == installed and manifest.artifacts != active.artifacts:
        return f"release {manifest.release} was published twice, with different files"
    return ""


def unfit(spec: TaskSpec, *, task: str, installed: TaskSpec | None) -> str:
    """Return why a release with ``spec`` cannot follow the installed one; "" if it can."""
    if spec.task != task:
        return f"its spec is of task {spec.task}, this device learns {task}"
    if installed is None:
        return ""
    if (spec.x, spec.y, spec.classes) != (installed.x, installed.y, installed.classes):
        return "it expects other samples than the installed release"
    if spec.trainable != installed.trainable:
        return (
            "it changes the tensors that are learned, so that what this device has learned would "
            "not fit; publish it as a task of its own"
        )
    return ""


def stuck(manifest: Manifest) -> str:
    """Return what to look at when nothing arrives of a release that is announced."""
    return (
        f"release {manifest.release} is announced, but nothing of it arrives: is the server "
        "running, and does the broker's ACL let this device read blob/#?"
    )
