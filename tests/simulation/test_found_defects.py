"""What the simulator has found in the product, each as small as it can be told."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.artifact_store import ArtifactStore
from tools.simulation.virtual_disk import VirtualDisk, mounted


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[VirtualDisk]:
    with mounted(tmp_path):
        yield VirtualDisk(tmp_path / "disk")


@pytest.mark.parametrize("seed", range(8))
def test_an_artifact_whose_directory_once_failed_to_sync_survives_a_power_cut(
    disk: VirtualDisk, seed: int
) -> None:
    """The file was there when the fold was repeated, so it was believed to be durable."""
    store = ArtifactStore(disk.at / "artifacts")

    def fail_at_the_directory(what: str) -> None:
        if what == f"sync {disk.at / 'artifacts'}":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.before_io = fail_at_the_directory
    with pytest.raises(OSError, match="Input/output"):
        store.put(b"parameters of release 4")
    disk.before_io = lambda what: None
    artifact = store.put(b"parameters of release 4")
    disk.dead = True
    disk.reboot(random.Random(seed), power_cut=True)
    assert store.get(artifact) == b"parameters of release 4"
