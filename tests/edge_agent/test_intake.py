"""Samples from outside: good files become segments, every bad one is moved aside with a reason."""

import io
import os
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_fleet import blobs, tiny_spec

from edge_agent import intake
from edge_agent.sample_inbox import KEPT_REJECTS, IntakeJob, IntakeResult, reject
from edge_agent.samples import segments
from edge_agent.trainer import read_samples
from models.spec import ArraySpec, TaskSpec, encode_spec

X, Y = blobs(50, seed=3)


class World:
    """An inbox and a store."""

    def __init__(self, root: Path, spec: TaskSpec) -> None:
        self.inbox, self.train, self.holdout = (root / n for n in ("inbox", "samples", "holdout"))
        for folder in (self.inbox, self.train, self.holdout):
            folder.mkdir()
        self.spec = spec
        (root / "spec.json").write_bytes(encode_spec(spec))
        self.job = IntakeJob(
            entries=(),
            inbox=str(self.inbox),
            spec=str(root / "spec.json"),
            train=str(self.train),
            holdout=str(self.holdout),
            holdout_share=0.2,
            max_count=1000,
            max_holdout=200,
            max_bytes=10_000_000,
        )

    def take(self, *paths: Path) -> IntakeResult:
        return intake.take_in(msgspec.structs.replace(self.job, entries=tuple(map(str, paths))))

    def counts(self) -> tuple[int, int]:
        train, holdout = segments(self.train), segments(self.holdout)
        return sum(s.samples for s in train), sum(s.samples for s in holdout)

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        paths = [str(s.path) for s in segments(self.train)]
        return read_samples(paths, self.spec, max_bytes=10**9)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, tiny_spec())


def test_a_good_file_is_split_stored_and_deleted(world: World) -> None:
    path = world.inbox / "a.npz"
    np.savez_compressed(path, x=X, y=Y)
    result = world.take(path)
    assert result == IntakeResult(added=50, rejected=())
    train, holdout = world.counts()
    assert (train + holdout, holdout) in ((50, 10), (50, 11))
    assert not path.exists()
    x, y = world.stored()
    for row, label in zip(x, y, strict=True):
        assert label == Y[np.flatnonzero((row == X).all(axis=1))[0]]


def test_a_test_column_decides_what_is_held_out(world: World) -> None:
    path = world.inbox / "a.npz"
    np.savez(path, x=X, y=Y, test=np.arange(50) >= 45, user=np.zeros(50))
    world.take(path)
    assert world.counts() == (45, 5)
    np.testing.assert_array_equal(world.stored()[0], X[:45])


def test_the_holdout_share_is_right_in_the_mean_for_single_samples_too(world: World) -> None:
    for number in range(100):
        path = world.inbox / f"{number}.npz"
        np.savez(path, x=X[:1], y=Y[:1])
        world.take(path)
    assert 8 <= world.counts()[1] <= 35


def test_an_intake_that_a_crash_ended_adds_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.inbox / "a.npz"
    np.savez(path, x=X, y=Y)
    monkeypatch.setattr(intake, "SEGMENT_SAMPLES", 8)

    class CrashError(BaseException):
        pass

    write = intake.atomic_write
    left = 0

    def crash(target: Path, data: bytes) -> None:
        nonlocal left
        if not left:
            raise CrashError
        left -= 1
        write(target, data)

    monkeypatch.setattr(intake, "atomic_write", crash)
    for left in (0, 1, 2, 1):  # noqa: B007 (crash counts it down)
        with pytest.raises(CrashError):
            world.take(path)
    monkeypatch.setattr(intake, "atomic_write", write)
    world.take(path)
    assert sum(world.counts()) == 50
    assert not path.exists()


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 30,)}
        )
        archive.writestr("x.npy", header.getvalue() + bytes(50_000_000))
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.array([{}], dtype=object), y=np.zeros(1))
    return file.getvalue()


def saved(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "npz"),
        (b"PK\3\4 and then nothing", "npz"),
        (bomb(), "bytes"),
        (pickled(), "no objects"),
        (saved(x=X), "no array 'y'"),
        (saved(y=Y), "no array 'x'"),
        (saved(x=X, y=Y[:-1]), "50 samples with 49 labels"),
        (saved(x=X[:, :3], y=Y), "x has shape (50, 3)"),
        (saved(x=X, y=Y + 9), "the classes are 0 to 2"),
        (saved(x=X, y=-Y - 1), "the classes are 0 to 2"),
        (saved(x=np.full_like(X, np.nan), y=Y), "not finite"),
        (saved(x=X.astype(complex).view(float)[:, :4], y=Y.astype(float)), "y is float64"),
        (saved(x=X[:0], y=Y[:0]), "0 samples"),
        (saved(x=X, y=Y, test=np.zeros(3)), "test has shape"),
    ],
)
def test_a_bad_file_is_moved_aside_with_one_line_of_reason(
    world: World, data: bytes, reason: str
) -> None:
    good, bad = world.inbox / "a.npz", world.inbox / "b.npz"
    good.write_bytes(saved(x=X, y=Y))
    bad.write_bytes(data)
    result = world.take(bad, good)
    assert sum(world.counts()) == 50
    assert len(result.rejected) == 1
    said = (world.inbox / "rejected" / "b.npz.reason.txt").read_text()
    assert reason in said
    assert len(said.splitlines()) == 1
    assert sorted(path.name for path in world.inbox.iterdir()) == ["rejected"]


def test_what_is_no_plain_file_is_not_opened(world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret.npz"
    secret.write_bytes(saved(x=X, y=Y))
    link, pipe = world.inbox / "a.npz", world.inbox / "b.npz"
    link.symlink_to(secret)
    os.mkfifo(pipe)
    result = world.take(link, pipe)
    assert len(result.rejected) == 2
    assert secret.exists()
    assert world.counts() == (0, 0)


def test_a_folder_of_one_label_is_taken_file_by_file(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    world = World(root, tiny_spec(x=ArraySpec("uint8", (2, 2))))
    folder = world.inbox / "2"
    folder.mkdir()
    for number in range(6):
        np.save(folder / f"{number}.npy", np.full((2, 2), number, np.uint8))
    np.save(folder / "wrong.npy", np.zeros((3, 3), np.uint8))
    (folder / "notes.txt").write_text("hello")
    result = world.take(folder)
    assert sum(world.counts()) == 6
    assert set(world.stored()[1]) == {2}
    assert [line.split(":")[0] for line in result.rejected] == ["2/notes.txt", "2/wrong.npy"]
    assert sorted(path.name for path in world.inbox.iterdir()) == ["rejected"]


@pytest.mark.parametrize("name", ["cat", "3", "-1"])
def test_a_folder_that_is_no_class_is_rejected(world: World, name: str) -> None:
    (world.inbox / name).mkdir()
    np.save(world.inbox / name / "a.npy", X[0])
    assert "class" in world.take(world.inbox / name).rejected[0]
    assert (world.inbox / "rejected" / name / "a.npy").exists()


def test_images_are_read_with_pillow_or_refused_with_its_name(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    world = World(root, tiny_spec(x=ArraySpec("uint8", (2, 2))))
    folder = world.inbox / "1"
    folder.mkdir()
    (folder / "a.pgm").write_bytes(b"P5\n2 2\n255\n\x01\x02\x03\x04")
    result = world.take(folder)
    try:
        import PIL  # noqa: F401
    except ImportError:
        assert "pip install pillow" in result.rejected[0]
    else:
        x, y = read_samples(
            [str(s.path) for s in segments(world.train) + segments(world.holdout)],
            world.spec,
            max_bytes=1000,
        )
        assert x.tolist() == [[[1, 2], [3, 4]]]
        assert y.tolist() == [1]


def test_rejected_files_do_not_fill_the_disk(world: World) -> None:
    for number in range(KEPT_REJECTS + 5):
        path = world.inbox / f"{number}.npz"
        path.write_bytes(b"?")
        os.utime(path, (number, number))
        reject(world.inbox, path, "no")
    left = {path.name for path in (world.inbox / "rejected").iterdir()}
    assert len(left) == 2 * KEPT_REJECTS
    assert "24.npz" in left
    assert "0.npz" not in left


def test_a_full_disk_leaves_the_file_in_the_inbox(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.inbox / "a.npz"
    path.write_bytes(saved(x=X, y=Y))

    def full(target: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(intake, "atomic_write", full)
    with pytest.raises(OSError, match="No space"):
        world.take(path)
    assert path.exists()


def test_an_entry_that_cannot_be_moved_does_not_keep_the_others_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, bad, good = (world.inbox / name for name in ("stuck.npz", "bad.npz", "good.npz"))
    stuck.write_bytes(saved(x=X, y=Y))
    bad.write_bytes(b"?")
    good.write_bytes(saved(x=X + 1, y=Y))

    def remove(path: Path) -> None:
        if path == stuck:
            raise PermissionError(13, "Permission denied", str(path))
        path.unlink()

    def refuse(inbox: Path, path: Path, reason: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(intake, "remove", remove)
    monkeypatch.setattr(intake, "reject", refuse)
    result = world.take(stuck, bad, good)
    assert [name for name, _ in result.left] == ["stuck.npz", "bad.npz"]
    assert sum(world.counts()) == 100
    world.take(stuck)  # later, again: nothing is added twice
    assert sum(world.counts()) == 100
