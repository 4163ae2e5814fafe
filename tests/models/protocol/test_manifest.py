"""A manifest names all files of a release and the way to it, or is refused."""

import json

import msgspec
import pytest

from models.errors import PayloadError
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
