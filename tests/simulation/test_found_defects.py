"""What the simulator has found in the product, each as small as it can be told."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.state.artifact_store import ArtifactStore
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_contents import Trained
from tools.simulation.fleet_world import Settings, simulate
from tools.simulation.machines.disk_watch import mounted
from tools.simulation.machines.virtual_disk import VirtualDisk
from tools.simulation.scenario.fault_plan import PLANS


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


def test_learning_goes_on_when_all_that_was_sent_stays_unanswered(tmp_path: Path) -> None:
    """A month without the server ended learning after four updates: all had left the device."""
    outbox = Outbox(
        tmp_path / "outbox.db", max_bytes=100_000, max_waiting=4, installation="0123abcd"
    )
    for job in range(1, 11):
        assert outbox.has_room()
        trained = Trained(job, 1, b"header", b"payload", f"residual-{job}", None, (), 0)
        outbox.commit(trained, chunk_size=1024, facts={})
        if outbox.may_leave(newest := outbox.waiting()[-1]):
            outbox.begin(seq := newest.seq, 1024)
            outbox.was_sent(seq)
    assert len(outbox.waiting()) == 4
    assert len(outbox.carried.refunds()) == 6


@pytest.mark.slow
def test_a_repair_that_a_failing_disk_interrupted_is_not_forgotten() -> None:
    """Which chunks the server lacked was forgotten, and nobody asked again: stuck for ever."""
    assert simulate(103, Settings(devices=2, plan=PLANS["harsh"])).violations == ()


@pytest.mark.slow
def test_an_announcement_that_the_broker_dropped_is_fetched_again() -> None:
    """It was retained and acknowledged; two devices stayed a release behind while connected."""
    assert simulate(134, Settings(devices=2, plan=PLANS["harsh"])).violations == ()
