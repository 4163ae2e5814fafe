"""The manifest of a release: what it consists of and how to learn from it. Pure.

One JSON object in the retained message ``task/<task>/release``, at most 32 KiB. A later format
wraps it into signed metadata; until then a device trusts whoever may write that topic.
"""

from typing import Annotated, Literal

import msgspec

from models.errors import PayloadError
from models.protocol.learning import LearningPlan
from models.protocol.names import Digest, Name

__all__ = [
    "FOLLOWS",
    "MAX_ARTIFACT_BYTES",
    "MAX_BYTES",
    "MAX_PATCHES",
    "REQUIRED",
    "Artifact",
    "CodecPlan",
    "Kind",
    "Manifest",
    "TrainingPlan",
    "decode_manifest",
    "encode_manifest",
    "release_in",
]

MAX_BYTES = 32 * 1024
MAX_ARTIFACT_BYTES = 1 << 30
MAX_PATCHES = 64
# Which manifests this version understands (`Manifest.needs`): 0 had no `learning`.
FOLLOWS = 1

Kind = Literal["infer", "train", "spec", "parameters", "average"]
REQUIRED: tuple[Kind, ...] = ("infer", "train", "spec", "parameters")


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a release, named by its digest."""

    sha256: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_ARTIFACT_BYTES)]


class TrainingPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How devices train on this release. ``open``: whether they shall at all.

    ``repeat``: whether they shall also with nothing but samples that they have trained on before,
    because others changed the model. Without it, who has new samples trains on.
    """

    open: bool
    epochs: Annotated[float, msgspec.Meta(gt=0, le=1000)]
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=100)]
    mu: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 0.0
    max_steps: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    repeat: bool = True


class CodecPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How devices compress what they learned on this release.

    ``transform`` (the rule) is the smallest; it holds ``bytes``, or ``nmse`` (squared error over
    squared length) if that is 0. ``coreset`` keeps a share of the coordinates as few centers: a
    few lines in any language can read it. ``context``: what ``transform`` may use because device
    and server both hold it: that release minus its parent, or the device's own memory, where the
    release is learned from with one.
    """

    keep: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.05  # coreset: share of the coordinates
    centers: Annotated[int, msgspec.Meta(ge=2, le=256)] = 16  # coreset
    method: Literal["transform", "coreset"] = "transform"
    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_ARTIFACT_BYTES)] = 0  # 0: as ``nmse`` says
    nmse: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.3
    context: Literal["release", "none", "own"] = "release"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An immutable, numbered version of a task's model.

    ``patches`` is a chain: the payload at number k takes the parameters of release k, which all
    releases up to the next number share, to those of the next number; the last one leads to this
    release's. Whoever applies them must find the digest of ``artifacts["parameters"]``.
    ``folded`` is the number of updates in it, those in all releases before included, so that a
    device knows whether anybody but itself has changed the model; 0: not told.
    ``averaged``: how often the artifact ``average`` was moved (`models.codec.average`), which
    devices run and make themselves from the patches; 0: there is none, they run the parameters.
    ``learning``: None stands for `LearningPlan` with nothing but defaults.
    """

    format: Literal[1]
    task: Name
    release: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    parent: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]  # 0: none
    artifacts: dict[Kind, Artifact]
    chunk_size: Annotated[int, msgspec.Meta(ge=1024, le=120 * 1024)]
    training: TrainingPlan
    codec: CodecPlan
    accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    patches: Annotated[
        dict[Annotated[int, msgspec.Meta(ge=1, le=1 << 53)], Artifact],
        msgspec.Meta(max_length=MAX_PATCHES),
    ] = {}
    folded: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    learning: LearningPlan | None = None
    averaged: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0

    def __post_init__(self) -> None:
        if missing := [kind for kind in REQUIRED if kind not in self.artifacts]:
            raise ValueError(f"artifact missing: {', '.join(missing)}")
        if self.parent >= self.release:
            raise ValueError(f"release {self.release} cannot descend from {self.parent}")
        if any(number >= self.release for number in self.patches):
            raise ValueError(f"release {self.release} cannot be a patch of a later one")
        if ("average" in self.artifacts) != (self.averaged > 0):
            raise ValueError("an average without its number, or a number without an average")
        if self.averaged and not self.plan.average:
            raise ValueError("an average, and no plan of how it is made")

    @property
    def needs(self) -> int:
        """Which level of manifests (`FOLLOWS`) a device must follow for this one."""
        return 1 if self.learning or self.averaged else 0

    @property
    def plan(self) -> LearningPlan:
        """How this release is learned from."""
        return self.learning or LearningPlan()

    @property
    def runs(self) -> Kind:
        """Which of its vectors devices answer with; they train from ``parameters``."""
        return "average" if self.averaged else "parameters"

    def is_same_as(self, other: "Manifest") -> bool:
        """Whether ``other`` is this release, maybe cut into other chunks."""
        return msgspec.structs.replace(other, chunk_size=self.chunk_size) == self

    def patches_from(self, release: int) -> tuple[Artifact, ...]:
        """Return what leads from ``release`` to this one's parameters, in order; () if nothing."""
        first = max((number for number in self.patches if number <= release), default=None)
        if first is None:
            return ()
        return tuple(self.patches[number] for number in sorted(self.patches) if number >= first)

    @property
    def files(self) -> tuple[Artifact, ...]:
        """All artifacts that it names, patches included."""
        return (*self.artifacts.values(), *self.patches.values())


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as JSON, keys sorted."""
    plain = msgspec.to_builtins(manifest, str_keys=True)
    return msgspec.json.encode(plain, order="sorted")


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        PayloadError: not a manifest that this version understands.
    """
    if len(data) > MAX_BYTES:
        raise PayloadError(f"manifest of {len(data)} bytes, at most {MAX_BYTES} are allowed")
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PayloadError(f"manifest: {error}") from None


class _Numbered(msgspec.Struct, frozen=True):
    release: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0


def release_in(data: bytes) -> int:
    """Return the number of the release in ``data``, also where a newer version wrote it; 0: none.

    Nothing else of it is believed.
    """
    try:
        return msgspec.json.decode(data, type=_Numbered).release
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return 0
