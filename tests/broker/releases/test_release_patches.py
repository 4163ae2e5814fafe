"""What devices hold follows what was folded, in few bytes and without losing anything."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_world import World, linear_spec

from broker.config import DownlinkPlan
from broker.releases.release_patches import chained, next_step
from broker.state.artifact_store import ARTIFACTS
from models.codec.release_patch import patched
from models.errors import PayloadError
from models.protocol.manifest import (
    Artifact,
    CodecPlan,
    Kind,
    Manifest,
    TrainingPlan,
    decode_manifest,
    encode_manifest,
)
from models.protocol.messages import Status
from models.task.params import Vector
from models.task.spec import Role, TensorSpec

MakeWorld = Callable[..., World]
FOLD_AT_1 = "[task.aggregation]\nupdates = 1\nseconds = 60\n"
WIDE = linear_spec(features=600)  # 1803 parameters, too many to go whole
TENSORS = (TensorSpec("w", (40, 50), Role.SHARED), TensorSpec("b", (50,), Role.SHARED))
SIZE = 2050


def vectors(seed: int, count: int) -> list[Vector]:
    """Return deltas as learning makes them: a product of few factors, and noise."""
    rng = np.random.default_rng(seed)
    return [
        np.concatenate(
            [
                (rng.standard_normal((40, 2)) @ rng.standard_normal((2, 50))).reshape(-1)
                + 0.3 * rng.standard_normal(2000),
                rng.standard_normal(50),
            ]
        ).astype(np.float32)
        for _ in range(count)
    ]


def some_delta(world: World, seed: int) -> Vector:
    """Return a delta that the tests' codec carries exactly: of few different values."""
    rng = np.random.default_rng(seed)
    return (rng.integers(-8, 9, world.spec.shared_size) / 64).astype(np.float32)


def learn(world: World, seed: int) -> None:
    """Let a device send one update, which makes a release."""
    before = world.manifest().release
    world.device().send_delta(some_delta(world, seed), base=before)
    world.run(1.0)
    assert world.manifest().release == before + 1


def folded(world: World) -> Vector:
    line = next(iter(world.server.lanes.values())).line
    return line.exact


@pytest.mark.parametrize("plan", [DownlinkPlan(), DownlinkPlan(nmse=0.4)])
def test_what_a_patch_leaves_out_is_part_of_the_next(plan: DownlinkPlan) -> None:
    """The distance of p from x stays bounded, and dies out when nothing new is learned."""
    published = np.zeros(SIZE, np.float32)
    exact = published
    for delta in vectors(1, 5):
        exact = exact + delta
        step = next_step(published, exact, TENSORS, plan)
        assert step.patch is not None
        np.testing.assert_array_equal(step.exact, exact)
        np.testing.assert_array_equal(patched(published, step.patch, TENSORS), step.published)
        published = step.published
    distance = float(np.linalg.norm(exact - published))
    assert distance < np.linalg.norm(exact)
    for _ in range(5):
        published = next_step(published, exact, TENSORS, plan).published
    assert float(np.linalg.norm(exact - published)) < 0.8 * distance


@pytest.mark.parametrize("plan", [DownlinkPlan(), DownlinkPlan(bytes=400)])
def test_a_patch_that_begins_at_the_step_of_the_last_one_keeps_the_budget(
    plan: DownlinkPlan,
) -> None:
    """And the same last patch makes the same one."""
    published = exact = np.zeros(SIZE, np.float32)
    last = None
    for delta in vectors(5, 8):
        exact = exact + delta
        step = next_step(published, exact, TENSORS, plan, last)
        again = next_step(published, exact, TENSORS, plan, last)
        assert step.patch is not None
        assert step.patch == again.patch
        if plan.bytes:
            assert 0.5 * plan.bytes < len(step.patch) <= plan.bytes
        else:
            left = np.square(exact - step.published).sum() / np.square(exact - published).sum()
            assert 0.85 * plan.nmse < left < 1.15 * plan.nmse
        published, last = step.published, step.patch


@pytest.mark.parametrize("last", [b"", b"\xe2", b"\xe2\xff\xff\xff", bytes(100), b"PK nothing"])
def test_a_last_patch_that_is_damaged_only_costs_time(last: bytes) -> None:
    (delta,) = vectors(6, 1)
    step = next_step(0 * delta, delta, TENSORS, DownlinkPlan(), last)
    assert step.patch is not None
    assert np.square(delta - step.published).sum() < 0.12 * np.square(delta).sum()


def test_the_budget_of_bytes_holds() -> None:
    zeros = np.zeros(SIZE, np.float32)
    for delta in vectors(2, 2):
        step = next_step(zeros, delta, TENSORS, DownlinkPlan(bytes=400))
        assert step.patch is not None
        assert len(step.patch) <= 400


def test_small_models_and_the_method_full_go_whole() -> None:
    small = (TensorSpec("w", (100,), Role.SHARED),)
    delta = np.ones(100, np.float32)
    assert next_step(0 * delta, delta, small, DownlinkPlan()) == (pytest.approx(delta),) * 2 + (
        None,
    )
    (delta,) = vectors(3, 1)
    step = next_step(0 * delta, delta, TENSORS, DownlinkPlan(method="full"))
    assert step.patch is None
    np.testing.assert_array_equal(step.published, delta)


def test_where_a_patch_cannot_be_made_the_parameters_go_whole() -> None:
    huge = np.full(SIZE, 3e38, np.float32)
    step = next_step(-huge, huge, TENSORS, DownlinkPlan())  # the difference overflows
    assert step.patch is None
    np.testing.assert_array_equal(step.published, huge)


def test_nothing_learned_is_no_patch() -> None:
    (same,) = vectors(4, 1)
    step = next_step(same, same, TENSORS, DownlinkPlan())
    assert step.patch is None
    np.testing.assert_array_equal(step.published, same)


@settings(deadline=None, max_examples=200)
@given(
    sizes=st.dictionaries(st.integers(1, 40), st.integers(1, 1000), min_size=1, max_size=30),
    most=st.integers(1, 20),
    whole=st.integers(1, 4000),
    oldest=st.integers(0, 40),
)
def test_a_chain_is_unbroken_bounded_and_no_longer_than_devices_need(
    sizes: dict[int, int], most: int, whole: int, oldest: int
) -> None:
    patches = {number: Artifact("0" * 64, size) for number, size in sizes.items()}
    kept = chained(patches, most=most, whole=whole, oldest=oldest)
    numbers = sorted(kept)
    assert numbers == sorted(patches)[-len(numbers) :], "it ends with the newest, without a gap"
    assert 1 <= len(numbers) <= most
    assert len(numbers) == 1 or sum(kept[n].size for n in numbers) < whole
    assert sum(number <= oldest for number in numbers[1:]) == 0


# The whole server


def test_a_release_is_its_parent_and_a_patch_and_nothing_folded_is_lost(
    make_world: MakeWorld,
) -> None:
    world = make_world(FOLD_AT_1, spec=WIDE)
    exact = before = world.parameters()
    for seed in range(1, 6):
        learn(world, seed)
        manifest = world.manifest()
        (patch,) = manifest.patches_from(manifest.release - 1)
        data = world.blob(patch.sha256)
        assert len(data) == patch.size < manifest.artifacts["parameters"].size / 4
        now = world.parameters()
        np.testing.assert_array_equal(patched(before, data, world.spec.shared), now)
        before = now
        exact = exact + some_delta(world, seed)
        np.testing.assert_array_equal(folded(world), exact)
    assert 0 < np.linalg.norm(exact - before) < 0.6 * np.linalg.norm(some_delta(world, 5))
    release = world.report().tasks[0].releases[-1]
    assert release.bytes_down == patch.size + len(encode_manifest(world.manifest()))


def test_a_restart_finds_both_vectors(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_1, spec=WIDE)
    learn(world, 1)
    exact = folded(world)
    assert not np.array_equal(exact, world.parameters())
    world.restart()
    world.run(1.0)
    np.testing.assert_array_equal(folded(world), exact)
    assert world.manifest().release == 2, "a restart is no reason for a release"
    learn(world, 2)
    np.testing.assert_array_equal(folded(world), exact + some_delta(world, 2))
    assert len(world.manifest().patches_from(2)) == 1


def test_a_lost_exact_vector_costs_only_what_was_not_published(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_1, spec=WIDE)
    learn(world, 1)
    published = world.parameters()
    kept = {artifact.sha256 for artifact in world.manifest().files}
    for path in (world.directory / "server" / ARTIFACTS).iterdir():
        if path.name not in kept:
            path.write_bytes(b"rot")
    world.restart()
    world.run(1.0)
    np.testing.assert_array_equal(folded(world), published)
    learn(world, 2)


def test_new_settings_keep_the_parameters_and_the_chain(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_1, spec=WIDE)
    learn(world, 1)
    before = world.manifest()
    world.restart(releases=2)
    world.run(1.0)
    manifest = world.manifest()
    assert manifest.release > before.release
    assert manifest.artifacts["parameters"] == before.artifacts["parameters"]
    assert manifest.patches == before.patches
    world.restart(releases=0)
    world.run(1.0)
    learn(world, 2)
    manifest = world.manifest()
    assert len(manifest.patches_from(1)) == 2
    assert len(manifest.patches_from(manifest.parent)) == 1, "settings need no patch"


def test_the_chain_reaches_as_far_back_as_devices_are(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_1, spec=WIDE)
    task = world.spec.task
    world.device("dev-1").report(Status(online=True, task=task, release=1))
    world.device("dev-2").report(Status(online=True, task=task, release=1))
    first = world.parameters()
    for seed in range(1, 5):
        learn(world, seed)
    manifest = world.manifest()
    assert sorted(manifest.patches) == [1, 2, 3, 4]
    moved = first
    for patch in manifest.patches_from(1):
        moved = patched(moved, world.blob(patch.sha256), world.spec.shared)
    np.testing.assert_array_equal(moved, world.parameters())
    world.device("dev-1").report(Status(online=True, task=task, release=5))
    world.device("dev-2").report(Status(online=True, task=task, release=3))
    learn(world, 5)
    assert sorted(world.manifest().patches) == [3, 4, 5]
    gone = manifest.patches[1]
    learn(world, 6)
    assert world.blob(gone.sha256) == b"", "what nobody needs is cleared"


def test_a_chain_ends_where_devices_have_releases_that_are_not_known_here(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(FOLD_AT_1, spec=WIDE)
    learn(world, 1)
    line = next(iter(world.server.lanes.values())).line
    published = world.parameters()
    line.overtake(9, world.wall)
    world.run(1.0)
    manifest = world.manifest()
    assert (manifest.release, manifest.patches) == (10, {})
    np.testing.assert_array_equal(world.parameters(), published)
    learn(world, 2)
    assert sorted(world.manifest().patches) == [10]
    assert world.manifest().patches_from(9) == ()


def test_the_accuracy_is_that_of_what_devices_run(make_world: MakeWorld, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 3, 400)
    x = rng.normal(0, 1, (400, 600)).astype(np.float32)
    np.savez(tmp_path / "wide.npz", x=x, y=y)
    evaluation = f'[task.evaluation]\ndata = "{tmp_path / "wide.npz"}"\n'
    world = make_world(FOLD_AT_1 + evaluation, spec=WIDE)
    learn(world, 1)
    parameters = world.parameters()
    weight, bias = parameters[:1800].reshape(600, 3), parameters[1800:]
    own = np.random.default_rng(0)
    own.normal(0, 0.01, (600, 3))
    own_bias = own.normal(0, 0.01, 3).astype(np.float32)
    right = (x @ weight + bias + own_bias).argmax(axis=1) == y
    assert world.manifest().accuracy == pytest.approx(right.mean())


@pytest.mark.parametrize("number", [0, -1, 7, 8])
def test_a_manifest_with_patches_from_no_older_release_is_refused(number: int) -> None:
    text = encode_manifest(_manifest()).replace(b'"1":', f'"{number}":'.encode())
    with pytest.raises(PayloadError):
        decode_manifest(text)


def test_a_manifest_survives_its_bytes_and_without_patches_has_none_in_them() -> None:
    manifest = _manifest()
    assert decode_manifest(encode_manifest(manifest)) == manifest
    bare = msgspec.structs.replace(manifest, patches={})
    assert b"patches" not in encode_manifest(bare)
    assert decode_manifest(encode_manifest(bare)) == bare


def _manifest() -> Manifest:
    file = Artifact("a" * 64, 10)
    kinds: tuple[Kind, ...] = ("infer", "train", "spec", "parameters")
    return Manifest(
        format=1,
        task="leaves",
        release=7,
        parent=6,
        artifacts=dict.fromkeys(kinds, file),
        chunk_size=8192,
        training=TrainingPlan(open=True, epochs=1, batch=1, learning_rate=0.1),
        codec=CodecPlan(),
        patches={1: Artifact("b" * 64, 5), 4: Artifact("c" * 64, 6)},
    )
