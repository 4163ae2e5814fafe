"""A manifest names all files of a release and the way to it, or is refused."""

import json

import msgspec
import pytest

from models.errors import PayloadError
from models.protocol.learning import LearningPlan, StepsPlan
from models.protocol.manifest import (
    MAX_BYTES,
    REQUIRED,
    Artifact,
    CodecPlan,
    Manifest,
    TrainingPlan,
    decode_manifest,
    encode_manifest,
)

PATCHES = {number: Artifact(f"{number:064x}", 100 + number) for number in (2, 5, 6)}
MANIFEST = Manifest(
    format=1,
    task="leaves",
    release=7,
    parent=6,
    artifacts={kind: Artifact("ab" * 32, 10) for kind in REQUIRED},
    chunk_size=65_536,
    training=TrainingPlan(open=True, epochs=1.0, batch=16, learning_rate=0.05),
    codec=CodecPlan(nmse=0.2),
    accuracy=0.5,
    patches=PATCHES,
)


def changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(encode_manifest(MANIFEST)), **changes}).encode()


def test_a_manifest_survives_the_wire_and_is_the_same_bytes_again() -> None:
    data = encode_manifest(MANIFEST)
    assert decode_manifest(data) == MANIFEST
    assert encode_manifest(decode_manifest(data)) == data
    assert len(MANIFEST.files) == 7


@pytest.mark.parametrize(
    ("release", "numbers"), [(1, ()), (2, (2, 5, 6)), (4, (2, 5, 6)), (5, (5, 6)), (6, (6,))]
)
def test_patches_lead_from_the_release_that_a_device_has(release: int, numbers: tuple) -> None:
    assert MANIFEST.patches_from(release) == tuple(PATCHES[number] for number in numbers)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "manifest: "),
        (b"{}", "format"),
        (b"[" * 20_000, "manifest: "),
        (b" " * (MAX_BYTES + 1), "at most"),
        (changed(format=2), "Invalid"),
        (changed(parent=7), "cannot descend"),
        (changed(release=0), "manifest: "),
        (changed(chunk_size=1 << 20), "manifest: "),
        (changed(artifacts={}), "artifact missing: infer, train, spec, parameters"),
        (changed(artifacts={"firmware": {"sha256": "ab" * 32, "size": 1}}), "manifest: "),
        (changed(patches={"7": {"sha256": "ab" * 32, "size": 1}}), "later"),
        (changed(surprise=1), "surprise"),
        (changed(accuracy=1.5), "accuracy"),
    ],
    ids=range(13),
)
def test_what_is_no_manifest_is_refused_in_a_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(PayloadError, match=reason):
        decode_manifest(data)


def test_plans_bound_what_a_release_may_ask_of_a_board() -> None:
    plan = json.loads(encode_manifest(MANIFEST))["training"]
    for field, value in (("epochs", 0), ("epochs", 1e9), ("batch", 0), ("learning_rate", -1.0)):
        with pytest.raises(PayloadError, match=field):
            decode_manifest(changed(training={**plan, field: value}))
    with pytest.raises(PayloadError, match="nmse"):
        decode_manifest(changed(codec={"nmse": 0.0}))
    assert msgspec.json.decode(b"{}", type=CodecPlan) == CodecPlan()


def test_a_manifest_without_a_learning_plan_has_the_bytes_of_before_there_was_one() -> None:
    names = json.loads(encode_manifest(MANIFEST)).keys()
    assert "learning" not in names
    assert "averaged" not in names
    assert MANIFEST.plan == LearningPlan()
    assert MANIFEST.runs == "parameters"


def test_a_learning_plan_and_an_average_survive_the_wire() -> None:
    plan = LearningPlan(feedback="memory", average=0.9, steps=StepsPlan(1.0, 2.0, 0.5, 0.025, 20.0))
    artifacts = MANIFEST.artifacts | {"average": Artifact("cd" * 32, 10)}
    manifest = msgspec.structs.replace(MANIFEST, artifacts=artifacts, learning=plan, averaged=3)
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert manifest.runs == "average"
    assert len(encode_manifest(manifest)) < 2000


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"averaged": 3}, "without its number"),
        ({"learning": {"feedback": "telepathy"}}, "Invalid"),
        ({"learning": {"average": 1.0}}, "< 1"),
        ({"learning": {"pruning": {}}}, "unknown field"),
    ],
)
def test_a_learning_plan_that_makes_no_sense_is_refused(changes: dict, reason: str) -> None:
    with pytest.raises(PayloadError, match=reason):
        decode_manifest(changed(**changes))
