"""The sample store: bounded, counted by name, oldest out first."""

import errno
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_agent.samples.sample_store import Samples, add_samples, segment_name, segments


def fill(folder: Path, *counts: int) -> None:
    first = 0
    for part, count in enumerate(counts):
        (folder / segment_name(first, count, "a" * 16, part)).write_bytes(bytes(100))
        first += count


def open_store(path: Path, max_count: int = 1000, max_bytes: int = 10**6) -> Samples:
    return Samples(path, max_count=max_count, max_bytes=max_bytes, holdout_share=0.2)


def test_counts_come_from_names_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store.train, 30, 20)
    fill(store.holdout, 7)
    (store.train / "something-else.npz").write_bytes(b"")
    assert store.refresh() == (50, 7, 50)


def test_the_oldest_go_first_and_what_ever_came_is_remembered(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_count=50)
    fill(store.train, 30, 20, 20)
    assert store.refresh() == (40, 0, 70)
    assert [segment.first for segment in segments(store.train)] == [30, 50]


def test_a_job_gets_the_segments_that_were_counted(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_count=50)
    fill(store.train, 30, 20, 20)
    fill(store.holdout, 7)
    train, holdout = store.paths()
    assert train == tuple(segment.path for segment in segments(store.train))
    assert holdout == tuple(segment.path for segment in segments(store.holdout))
    fill(store.train, 30)  # comes while nobody has counted it
    assert store.paths() == (train, holdout)
    assert len(train) == 2


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_bytes=300)
    fill(store.train, 5, 5, 5)
    assert store.refresh().train == 10  # 200 bytes, of 240 for training


def test_the_newest_segment_stays_whatever_its_size(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_count=10)
    fill(store.train, 5, 500)
    assert store.refresh().train == 500


def test_an_application_hands_over_whole_files_only(tmp_path: Path) -> None:
    """A watcher that lists the inbox all the time never sees a file that cannot be read."""
    x, y = np.zeros((1000, 50), np.float32), np.zeros(1000, np.int64)
    done = threading.Event()
    broken = []

    def watch() -> None:
        while not done.is_set():
            for path in tmp_path.glob("*.npz"):
                try:
                    with np.load(path) as arrays:
                        assert len(arrays["x"]) == 1000
                except Exception as error:
                    broken.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    paths = {add_samples(tmp_path, x, y) for _ in range(10)}
    done.set()
    watcher.join()
    assert broken == []
    assert len(paths) == 10


def test_an_application_is_told_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 samples with 2 labels"):
        add_samples(tmp_path, np.zeros((3, 2)), np.zeros(2))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_lets_nothing_go_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that became read-only: what is too much is counted, and goes when it can."""

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    store = open_store(tmp_path, max_count=50)
    fill(store.train, 30, 20, 20)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        assert store.refresh() == (70, 0, 70)
    assert store.refresh() == (40, 0, 70)
