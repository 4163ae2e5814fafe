"""An artifact's name promises its bytes, also where the disk does not keep them."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from server_world import World, good_direction

from broker.state import artifact_store
from broker.state.artifact_store import ArtifactStore
from models.errors import TransientError
from models.protocol.manifest import Kind

MakeWorld = Callable[..., World]


def flip_a_byte(path: Path) -> bytes:
    damaged = bytearray(path.read_bytes())
    damaged[5] ^= 1
    path.write_bytes(damaged)
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["infer", "train", "spec"])
def test_a_damaged_artifact_is_made_whole_at_the_next_start(
    make_world: MakeWorld, kind: Kind
) -> None:
    """Also where the broker retains the damaged bytes already."""
    world = make_world()
    artifact = world.manifest().artifacts[kind]
    damaged = flip_a_byte(world.directory / "server" / "artifacts" / artifact.sha256)
    world.broker.retained[world.topics.blob(artifact.sha256, 0)] = damaged[: 8 * 1024]
    world.restart()
    world.run(10.0)
    assert world.manifest().artifacts[kind] == artifact
    assert hashlib.sha256(world.blob(artifact.sha256)).hexdigest() == artifact.sha256


def test_what_cannot_be_read_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = ArtifactStore(tmp_path).put(b"a graph")

    def bad_block(path: str) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with monkeypatch.context() as here:
        here.setattr(artifact_store, "content_of", bad_block)
        ArtifactStore(tmp_path).put(b"a graph")
    assert ArtifactStore(tmp_path).get(artifact) == b"a graph"


def test_what_was_looked_at_once_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are put for every release, and may be large."""
    ArtifactStore(tmp_path).put(b"a graph")
    store = ArtifactStore(tmp_path)
    store.put(b"a graph")
    monkeypatch.setattr(artifact_store, "content_of", None)
    artifact = store.put(b"a graph")
    store.keep_only(())
    assert not store.has(artifact)
    assert store.put(b"a graph") == artifact
    assert store.has(artifact)


@pytest.mark.parametrize("which", ["parameters", "spec", "folded"])
def test_a_disk_that_does_not_read_at_the_start_is_waited_for(
    make_world: MakeWorld, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing of what it holds: neither that a backup is needed, nor that work is lost."""
    world = make_world("[task.aggregation]\nupdates = 1\nseconds = 60\n")
    device = world.device("dev-1")
    device.send(*device.update(good_direction() * 0.01))
    world.run(5.0)
    manifest = world.manifest()
    assert manifest.release == 2
    line = world.server.lanes["leaves"].line
    row = world.server.books.releases.folded("leaves")
    assert row is not None
    artifact = row.artifact if which == "folded" else manifest.artifacts[which]  # type: ignore[index]
    before = line.exact
    real = artifact_store.content_of

    def bad_block(path: str) -> bytes:
        if path.endswith(artifact.sha256):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path)

    with monkeypatch.context() as here:
        here.setattr(artifact_store, "content_of", bad_block)
        here.setattr("models.host.files.READ_AGAIN_S", (0.0, 0.0))
        with pytest.raises(TransientError, match="cannot be read: Input/output error"):
            world.restart()
    world.restart()
    after = world.server.lanes["leaves"].line.exact
    assert (before == after).all()
