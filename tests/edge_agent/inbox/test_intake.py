"""Samples from outside: good files become segments, every bad one is moved aside with a reason."""

import io
import os
import socket
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tiny_fleet import blobs, tiny_spec

from edge_agent.inbox import class_folders, examination, intake
from edge_agent.inbox.intake_job import Entry, IntakeJob, IntakeResult
from edge_agent.samples import segment_writer
from edge_agent.samples.entry_fate import CUT_OFF_S, Wait
from edge_agent.samples.sample_files import read_x
from edge_agent.samples.sample_store import segments
from edge_agent.samples.segment_reading import read_samples
from models.task.spec import ArraySpec, TaskSpec, encode_spec

X, Y = blobs(50, seed=3)


class World:
    """An inbox and a store."""

    def __init__(self, root: Path, spec: TaskSpec) -> None:
        names = ("inbox", "intake", "samples", "holdout")
        self.inbox, self.workspace, self.train, self.holdout = (root / n for n in names)
        for folder in (self.inbox, self.workspace, self.train, self.holdout):
            folder.mkdir(parents=True)
        self.spec = spec
        (root / "spec.json").write_bytes(encode_spec(spec))
        self.job = IntakeJob(
            entries=(),
            inbox=str(self.inbox),
            workspace=str(self.workspace),
            spec=str(root / "spec.json"),
            train=str(self.train),
            holdout=str(self.holdout),
            holdout_share=0.2,
            max_count=1000,
            max_holdout=200,
            max_bytes=10_000_000,
            keep_rejected_bytes=10_000_000,
            keep_rejected_s=30 * 86400.0,
            wall=2e9,
        )

    def take(self, *paths: Path, unchanged_s: float = CUT_OFF_S, **job: Any) -> IntakeResult:
        """Take in ``paths``, which nobody has touched for so long."""
        entries = tuple(Entry(os.fsencode(p.name), unchanged_s, unchanged_s) for p in paths)
        return intake.take_in(msgspec.structs.replace(self.job, entries=entries, **job))

    def waiting(self, result: IntakeResult) -> dict[str, tuple[Wait, int]]:
        """Return what waits, and how many of it, by entry: of entries that wait for one thing."""
        return {os.fsdecode(name): (group.wait, group.count) for name, (group,) in result.waiting}

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
    assert result == IntakeResult(added=50, rejected=(), examined=1)
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


def test_names_and_notes_beside_the_samples_of_a_file_are_not_looked_at(world: World) -> None:
    path = world.inbox / "a.npz"
    notes = {"classes": np.array(["cat", "dog"]), "who": np.array([{"a": 1}], object)}
    np.savez(path, x=X, y=Y, **notes)
    assert world.take(path).added == 50
    np.savez(path, x=X, **notes)
    np.testing.assert_array_equal(read_x(path, world.spec, max_bytes=10**6), X)
    (reason,) = world.take(path).rejected
    assert "no array 'y' among classes, who, x" in reason


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
    monkeypatch.setattr(segment_writer, "SEGMENT_SAMPLES", 8)

    class CrashError(BaseException):
        pass

    write = segment_writer.atomic_write
    left = 0

    def crash(target: Path, data: bytes) -> None:
        nonlocal left
        if not left:
            raise CrashError
        left -= 1
        write(target, data)

    monkeypatch.setattr(segment_writer, "atomic_write", crash)
    for left in (0, 1, 2, 1):  # noqa: B007 (crash counts it down)
        with pytest.raises(CrashError):
            world.take(path)
    monkeypatch.setattr(segment_writer, "atomic_write", write)
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


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def saved(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


BROKEN = {
    "empty": (b"", "npz"),
    "cut off": (saved(x=X, y=Y)[:-200], "npz"),
    "no zip": (b"PK\3\4 and then nothing", "npz"),
    "pickled": (pickled(), "no objects"),
    "no y": (saved(x=X), "no array 'y'"),
    "no x": (saved(y=Y), "no array 'x'"),
    "y too short": (saved(x=X, y=Y[:-1]), "50 samples with 49 labels"),
    "not finite": (saved(x=np.full_like(X, np.nan), y=Y), "not finite"),
    "no samples": (saved(x=X[:0], y=Y[:0]), "0 samples"),
    "test too short": (saved(x=X, y=Y, test=np.zeros(3)), "test has shape"),
}
ELSEWHERE = {  # nothing is wrong with them: another task, release or device takes them
    "another size": (saved(x=X[:, :3], y=Y), Wait.SPEC, "x has shape (50, 3)"),
    "a new class": (saved(x=X, y=Y + 9), Wait.SPEC, "the classes are 0 to 2"),
    "a class below": (saved(x=X, y=-Y - 1), Wait.SPEC, "the classes are 0 to 2"),
    "another dtype": (saved(x=X.astype(int), y=Y), Wait.SPEC, "x is int64"),
    "between two classes": (saved(x=X, y=Y + 0.5), Wait.SPEC, "not a whole number"),
    "too much at a time": (bomb(), Wait.LIMIT, "bytes"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_in_itself_is_put_aside_with_its_reason(world: World, kind: str) -> None:
    data, reason = BROKEN[kind]
    good, bad = world.inbox / "a.npz", world.inbox / "b.npz"
    good.write_bytes(saved(x=X, y=Y))
    bad.write_bytes(data)
    result = world.take(bad, good)
    assert sum(world.counts()) == 50
    assert len(result.rejected) == 1
    assert (world.inbox / "rejected" / "b.npz").read_bytes() == data
    (line,) = (world.inbox / "rejected" / "reasons.txt").read_text().splitlines()
    assert line.startswith("2033-05-18 03:33:20\tb.npz\t")
    assert reason in line
    assert sorted(path.name for path in world.inbox.iterdir()) == ["rejected"]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_is_only_not_for_us_waits_where_it_lies(world: World, kind: str) -> None:
    data, wait, reason = ELSEWHERE[kind]
    good, other = world.inbox / "a.npz", world.inbox / "b.npz"
    good.write_bytes(saved(x=X, y=Y))
    other.write_bytes(data)
    result = world.take(other, good)
    assert sum(world.counts()) == 50
    assert world.waiting(result) == {"b.npz": (wait, 1)}
    assert reason in result.waiting[0][1][0].reason
    assert other.read_bytes() == data
    assert [path.name for path in world.inbox.iterdir()] == ["b.npz"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_file_that_is_cut_off_and_young_waits_for_its_other_half(
    world: World, share: float
) -> None:
    whole = saved(x=X, y=Y)
    path = world.inbox / "slow.npz"
    path.write_bytes(whole[: int(share * len(whole))])
    for unchanged_s in (0.0, CUT_OFF_S - 1):
        result = world.take(path, unchanged_s=unchanged_s)
        assert world.waiting(result) == {"slow.npz": (Wait.WRITING, 1)}
    path.write_bytes(whole)
    assert world.take(path, unchanged_s=0.0).added == 50


NO_NPZ = {
    "text": (b"no zip at all", "npz: not a zip file"),
    "an array": (npy(X), "npz: not a zip file: it is one numpy array (.npy): x = np.load("),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(90), "npz: not a zip file: it is one picture"),
    "one letter": (b"x", "npz: not a zip file"),
    "objects": (pickled(), "npz: 'x' does not have a plain header"),
    "records": (saved(x=np.zeros(3, "f4,i4"), y=Y[:3]), "npz: 'x' does not have a plain header"),
}


@pytest.mark.parametrize("kind", NO_NPZ)
def test_what_no_more_bytes_would_make_an_npz_is_put_aside_at_once(world: World, kind: str) -> None:
    data, reason = NO_NPZ[kind]
    path = world.inbox / "slow.npz"
    path.write_bytes(data)
    result = world.take(path, unchanged_s=0.0)
    assert result.rejected[0].startswith(f"slow.npz: {reason}")
    assert world.waiting(result) == {}


@pytest.mark.parametrize("data", [b"", b"P", b"PK\3", bytes(900)], ids=repr)
def test_what_may_still_become_an_npz_is_waited_for(world: World, data: bytes) -> None:
    """Some programs make room for a copy first: zeros."""
    path = world.inbox / "slow.npz"
    path.write_bytes(data)
    result = world.take(path, unchanged_s=0.0)
    assert world.waiting(result) == {"slow.npz": (Wait.WRITING, 1)}


@pytest.mark.parametrize("name", ["a.npy", "a.png", "a.jpg"])
def test_what_does_not_begin_as_its_name_says_is_put_aside_at_once(world: World, name: str) -> None:
    folder = world.inbox / "0"
    folder.mkdir()
    (folder / name).write_bytes(b"<!DOCTYPE html>")
    result = world.take(folder, unchanged_s=0.0)
    assert len(result.rejected) == 1
    assert world.waiting(result) == {}


def test_a_broken_file_is_not_put_aside_while_a_program_has_it_open_to_write(world: World) -> None:
    path = world.inbox / "slow.npz"
    with open(path, "wb") as copy:
        copy.write(saved(x=X, y=Y)[:500])
        copy.flush()
        result = world.take(path)
        assert world.waiting(result) == {"slow.npz": (Wait.WRITING, 1)}
    assert len(world.take(path).rejected) == 1


def test_what_is_no_plain_file_is_neither_opened_nor_moved(world: World, tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret.npz", tmp_path / "0"
    secret.write_bytes(saved(x=X, y=Y))
    folder.mkdir()
    np.save(folder / "a.npy", X[0])
    (world.inbox / "a.npz").symlink_to(secret)
    os.mkfifo(world.inbox / "b.npz")
    (world.inbox / "0").symlink_to(folder)
    (world.inbox / "loop.npz").symlink_to("loop.npz")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(world.inbox / "s.npz"))
        there = sorted(world.inbox.iterdir())
        result = world.take(*there)
        assert set(world.waiting(result).values()) == {(Wait.UNKNOWN, 1)}
        assert len(result.waiting) == 5
        assert sorted(world.inbox.iterdir()) == there
    assert secret.exists()
    assert (folder / "a.npy").exists()
    assert world.counts() == (0, 0)


@pytest.fixture
def pictures(tmp_path: Path) -> World:
    """A task of 2 x 2 pixels, whose classes have names."""
    spec = tiny_spec(x=ArraySpec("uint8", (2, 2)), class_names=("cat", "dog", "fox \u00e9"))
    return World(tmp_path / "images", spec)


def png(value: int, side: int = 2) -> bytes:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.fromarray(np.full((side, side), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, count: int = 6) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        np.save(folder / f"{number}.npy", np.full((2, 2), number % 256, np.uint8))


def test_a_folder_of_one_label_is_taken_file_by_file(pictures: World) -> None:
    """Of 600 files, the three bad ones go to rejected/LABEL/; nobody else is concerned."""
    folder = pictures.inbox / "2"
    fill(folder, 597)
    (folder / "cut.npy").write_bytes((folder / "0.npy").read_bytes()[:-1])
    (folder / "empty.npy").write_bytes(b"")
    (folder / "text.npy").write_bytes(b"hello")
    result = pictures.take(folder)
    assert result.added == sum(pictures.counts()) == 597
    assert set(pictures.stored()[1]) == {2}
    aside = pictures.inbox / "rejected" / "2"
    assert sorted(p.name for p in aside.iterdir()) == ["cut.npy", "empty.npy", "text.npy"]
    assert [p.name for p in (pictures.inbox / "rejected").iterdir() if p.is_file()] == [
        "reasons.txt"
    ]
    assert list(folder.iterdir()) == []


def test_what_lies_beside_the_samples_of_a_folder_stays_there(pictures: World) -> None:
    folder = pictures.inbox / "1"
    fill(folder)
    others = ["notes.txt", "Thumbs.db", ".DS_Store", "more.part", "all.npz", "desktop.ini"]
    for name in others:
        (folder / name).write_text("hello")
    (folder / "older").mkdir()
    (folder / "older" / "a.npy").write_bytes(b"?")
    (folder / "link.npy").symlink_to("/etc/passwd")
    result = pictures.take(folder, wall=time.time())
    assert result.added == 6
    assert result.rejected == ()
    assert pictures.waiting(result) == {"1": (Wait.UNKNOWN, 4)}
    assert {path.name for path in folder.iterdir()} == {*others, "older", "link.npy"}
    assert (folder / "older" / "a.npy").exists()


@pytest.mark.parametrize(
    ("name", "label"),
    [("cat", 0), ("0", 0), ("dog", 1), ("2", 2), ("fox \u00e9", 2), ("fox e\u0301", 2)],
)
def test_a_folder_is_named_by_the_class_or_by_its_number(
    pictures: World, name: str, label: int
) -> None:
    fill(pictures.inbox / name)
    assert pictures.take(pictures.inbox / name).added == 6
    assert set(pictures.stored()[1]) == {label}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Cat", "did you mean 'cat'?"),
        ("3", "the classes are cat, dog"),
        ("-1", "0 to 2"),
        ("\u00b2", "0 to 2"),  # isdigit(), and no number
        ("9" * 200, "0 to 2"),
    ],
)
def test_a_folder_that_is_no_class_waits_and_says_what_the_classes_are(
    pictures: World, name: str, hint: str
) -> None:
    fill(pictures.inbox / name)
    result = pictures.take(pictures.inbox / name)
    assert pictures.waiting(result) == {name: (Wait.SPEC, 6)}
    assert hint in result.waiting[0][1][0].reason
    assert len(list((pictures.inbox / name).iterdir())) == 6


def test_a_name_that_is_also_another_classs_number_is_not_guessed(tmp_path: Path) -> None:
    names = ("1", "2", "3")
    world = World(tmp_path / "w", tiny_spec(x=ArraySpec("uint8", (2, 2)), class_names=names))
    for name in names:
        fill(world.inbox / name)
    result = world.take(*(world.inbox / name for name in names))
    assert world.waiting(result) == {"1": (Wait.SPEC, 6), "2": (Wait.SPEC, 6)}
    assert set(world.stored()[1]) == {2}


def test_without_pillow_pictures_wait_and_with_it_they_are_taken(
    pictures: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures.inbox / "cat"
    fill(folder, 5)
    for number in range(600):
        (folder / f"{number:03d}.png").write_bytes(png(number % 256))
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    result = pictures.take(folder)
    assert result.added == 5
    assert pictures.waiting(result) == {"cat": (Wait.LIBRARY, 600)}
    reason = result.waiting[0][1][0].reason
    assert str(Path(sys.executable).parent) in reason
    assert reason.endswith("install pillow")
    assert len(list(folder.iterdir())) == 600
    monkeypatch.undo()
    assert pictures.take(folder).added == 600
    assert list(folder.iterdir()) == []


def test_pictures_of_another_size_wait(pictures: World) -> None:
    folder = pictures.inbox / "cat"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number}.png").write_bytes(png(1, side=3))
    (folder / "flat.pgm").write_bytes(b"P5\n4 1\n255\n\x01\x02\x03\x04")  # as many pixels
    result = pictures.take(folder)
    assert pictures.waiting(result) == {"cat": (Wait.SPEC, 601)}
    assert "image of 3 x 3 pixels, task blobs takes (2, 2)" in result.waiting[0][1][0].reason
    assert len(list(folder.iterdir())) == 601


def test_a_picture_is_read_in_the_shape_of_the_task(pictures: World) -> None:
    pytest.importorskip("PIL")
    fill(pictures.inbox / "1", 0)
    (pictures.inbox / "1" / "a.PGM").write_bytes(b"P5\n2 2\n255\n\x01\x02\x03\x04")
    assert pictures.take(pictures.inbox / "1", holdout_share=0.0).added == 1
    x, y = pictures.stored()
    assert x.tolist() == [[[1, 2], [3, 4]]]
    assert y.tolist() == [1]


def test_a_large_folder_is_taken_in_steps_and_none_of_it_is_looked_at_twice(
    pictures: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_folders, "FILES_AT_A_TIME", 10)
    folder = pictures.inbox / "0"
    fill(folder, 35)
    for number in range(30):
        np.save(folder / f"{number}-wide.npy", np.zeros((2, 3), np.uint8))
    looked_at, after, steps = 0, b"", 0
    while steps == 0 or after:
        entry = Entry(b"0", CUT_OFF_S, CUT_OFF_S, after)
        result = intake.take_in(msgspec.structs.replace(pictures.job, entries=(entry,)))
        looked_at += sum(group.count for _, groups in result.waiting for group in groups)
        after = dict(result.more).get(b"0", b"")
        steps += 1
    assert steps == 4
    assert looked_at == 30
    assert sum(pictures.counts()) == 35


NAMES = [b"K\xfcche.npz", b"a\nb.npz", b"-rf.npz", b"\xff\xfe", b"caf\xc3\xa9.npz", b"~.npz", b" "]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_taken_or_put_aside_under_that_name(
    pictures: World, world: World, name: bytes
) -> None:
    root = os.fsencode(world.inbox)
    for data in (saved(x=X, y=Y), b"?"):
        path = Path(os.fsdecode(root + b"/" + name))
        path.write_bytes(data)
        result = world.take(path)
        msgspec.json.encode(result)
        if not name.endswith(b".npz"):
            assert [wait for _, (wait, *_) in result.waiting]
        elif data == b"?":
            assert os.path.lexists(root + b"/rejected/" + name)
            assert len((world.inbox / "rejected" / "reasons.txt").read_text().splitlines()) == 1
        else:
            assert result.added == 50


def test_nothing_that_was_put_aside_is_ever_written_over(world: World) -> None:
    names = ["bad.npz"] * 3 + ["a" * 250 + ".npz"] * 2
    for number, name in enumerate(names):
        path = world.inbox / name
        path.write_bytes(str(number).encode())
        assert len(world.take(path).rejected) == 1
    aside = world.inbox / "rejected"
    contents = sorted(p.read_text() for p in aside.iterdir() if p.name != "reasons.txt")
    assert contents == ["0", "1", "2", "3", "4"]
    assert (aside / "bad-3.npz").read_text() == "2"


def test_what_is_put_aside_stays_for_its_days_and_no_newer_one_drives_it_out(world: World) -> None:
    day, room = 86400.0, 5 * 4096
    for number in range(7):
        path = world.inbox / f"{number}.npz"
        path.write_bytes(b"?" * 100)
        world.take(path, wall=2e9 + number * day, keep_rejected_bytes=room)
    aside = world.inbox / "rejected"
    assert {p.name for p in aside.iterdir()} == {f"{n}.npz" for n in range(5)} | {"reasons.txt"}
    full = world.take(world.inbox / "5.npz", world.inbox / "6.npz", keep_rejected_bytes=room)
    assert set(world.waiting(full).values()) == {(Wait.ASIDE, 1)}
    assert "keep_rejected_mb" in full.waiting[0][1][0].reason
    later = 2e9 + 31.5 * day  # two are older than 30 days
    assert world.take(wall=later, keep_rejected_bytes=room).expired == 2
    assert len((aside / "reasons.txt").read_text().splitlines()) == 3
    rest = world.take(
        world.inbox / "5.npz", world.inbox / "6.npz", wall=later, keep_rejected_bytes=room
    )
    assert len(rest.rejected) == 2
    assert world.take(wall=later + 31 * day).expired == 5


def test_what_somebody_puts_among_the_rejected_is_never_deleted_and_said_if_it_is_a_class(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, tiny_spec(class_names=("good", "rejected", "odd")))
    folder = world.inbox / "rejected"
    folder.mkdir()
    np.save(folder / "1.npy", X[0])
    (world.inbox / "bad.npz").write_bytes(b"?")
    result = world.take(world.inbox / "bad.npz")
    (group,) = result.foreign
    assert (group.count, group.example) == (1, "rejected/1.npy")
    assert group.reason.endswith("give the class a folder named by its number, 1")
    assert world.take(wall=2e9 + 400 * 86400).expired == 1
    assert {path.name for path in folder.iterdir()} == {"1.npy", "reasons.txt"}


def test_a_clock_that_was_not_set_when_a_file_was_put_aside_does_not_shorten_its_days(
    world: World,
) -> None:
    path = world.inbox / "bad.npz"
    path.write_bytes(b"?")
    world.take(path, wall=86400.0)  # in January 1970
    assert world.take(wall=2e9).expired == 0
    assert world.take(wall=2e9 + 29 * 86400).expired == 0
    assert world.take(wall=2e9 + 31 * 86400).expired == 1


def test_a_file_that_took_the_place_of_one_being_stored_is_taken_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.inbox / "latest.npz"
    np.savez(path, x=X[:20], y=Y[:20])
    write_parts = intake.write_parts

    def and_the_next_one_comes(*arguments: Any) -> int:
        added = write_parts(*arguments)
        np.savez(world.inbox / "draft.npz", x=X[20:], y=Y[20:])
        (world.inbox / "draft.npz").rename(path)
        return added

    monkeypatch.setattr(intake, "write_parts", and_the_next_one_comes)
    world.take(path)
    assert path.exists()
    monkeypatch.setattr(intake, "write_parts", write_parts)
    assert world.take(path).added == 30
    assert sum(world.counts()) == 50
    assert not path.exists()


def test_files_of_one_name_size_and_time_are_told_apart_by_what_they_hold(world: World) -> None:
    """As they come from a card whose file system counts two seconds as one, or from an archive."""
    path = world.inbox / "latest.npz"
    for first in (0, 20):
        np.savez(path, x=X[first : first + 20], y=Y[first : first + 20])
        os.utime(path, (1e9, 1e9))
        assert world.take(path).added == 20
    assert sum(world.counts()) == 40


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_images_with_more_than_8_bits_wait_since_they_would_be_cut_off(
    tmp_path: Path, kind: str
) -> None:
    image = pytest.importorskip("PIL.Image")
    world = World(tmp_path, tiny_spec(x=ArraySpec("uint8", (8, 8))))
    folder = world.inbox / "0"
    folder.mkdir()
    values = np.arange(64).reshape(8, 8).astype(kind) * 1000
    image.fromarray(values).save(folder / "deep.png", "PNG" if kind == "uint16" else "TIFF")
    assert world.waiting(world.take(folder)) == {"0": (Wait.SPEC, 1)}
    assert (folder / "deep.png").exists()


def test_an_image_of_very_many_pixels_is_not_broken_but_of_another_size(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    world = World(tmp_path, tiny_spec(x=ArraySpec("uint8", (8, 8))))
    folder = world.inbox / "0"
    folder.mkdir()
    image.new("1", (9000, 8000)).save(folder / "large.png")
    result = world.take(folder)
    assert world.waiting(result) == {"0": (Wait.SPEC, 1)}
    assert result.rejected == ()


def test_a_full_disk_leaves_the_file_in_the_inbox(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = world.inbox / "a.npz", world.inbox / "b.npz"
    for one in (path, other):
        one.write_bytes(saved(x=X, y=Y))

    def full(target: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment_writer, "atomic_write", full)
    result = world.take(path, other)
    assert "No space" in result.no_room
    assert result.examined == 0
    assert path.exists()
    assert other.exists()


def test_an_entry_that_cannot_be_removed_does_not_keep_the_others_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, good = (world.inbox / name for name in ("stuck.npz", "good.npz"))
    stuck.write_bytes(saved(x=X, y=Y))
    good.write_bytes(saved(x=X + 1, y=Y))

    def remove(path: Path, identity: object) -> None:
        if path == stuck:
            raise PermissionError(13, "Permission denied", str(path))
        path.unlink()

    monkeypatch.setattr(intake, "remove_same", remove)
    result = world.take(stuck, good)
    assert world.waiting(result) == {"stuck.npz": (Wait.REFUSED, 1)}
    assert sum(world.counts()) == 100
    world.take(stuck)  # later, again: nothing is added twice
    assert sum(world.counts()) == 100


def test_what_may_not_be_removed_is_not_taken(
    pictures: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be taken again and again."""
    fill(pictures.inbox / "1", 3)
    monkeypatch.setattr(examination, "may_remove", lambda path: False)
    result = pictures.take(pictures.inbox / "1")
    assert pictures.waiting(result) == {"1": (Wait.REFUSED, 3)}
    assert pictures.counts() == (0, 0)


def test_files_that_are_in_the_store_and_cannot_be_removed_are_not_taken_again(
    pictures: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures.inbox / "1"
    fill(folder, 6)
    unlink = os.unlink

    def refuse(path: str, **options: Any) -> None:
        if str(path).endswith("3.npy"):
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    for _ in range(3):
        result = pictures.take(folder)
        assert sum(pictures.counts()) == 6
        assert {wait for wait, _ in pictures.waiting(result).values()} == {Wait.REFUSED}
    monkeypatch.undo()
    pictures.take(folder)
    assert list(folder.iterdir()) == []
    assert sum(pictures.counts()) == 6
    assert list(pictures.workspace.iterdir()) == []


def test_what_ended_a_parser_before_is_not_opened_again(pictures: World) -> None:
    folder = pictures.inbox / "1"
    fill(folder, 6)
    noted: list[bytes] = []
    job = msgspec.structs.replace(pictures.job, entries=(Entry(b"1"),))
    intake.take_in(msgspec.structs.replace(job, max_bytes=1), noted.append)
    files = [note for note in noted if note.startswith(b"1/")]
    assert len(files) == 6
    result = intake.take_in(msgspec.structs.replace(job, skip=(files[2],)))
    assert result.added == 5
    assert pictures.waiting(result) == {"1": (Wait.ENDED, 1)}
    assert [path.name for path in folder.iterdir()] == ["2.npy"]


@pytest.mark.parametrize("stored", [False, True])
def test_a_folder_that_an_older_agent_had_begun_with_is_taken_once(
    pictures: World, stored: bool
) -> None:
    """It moved the folder to .taken-*/, wrote its segments, and removed the files."""
    taken = pictures.inbox / ".taken-0123456789abcdef"
    taken.mkdir()
    fill(taken / "1", 40)
    if stored:
        source = segment_writer.source_of(taken.name, "1", 0)
        x = np.stack([np.load(p) for p in sorted((taken / "1").iterdir())])
        y = np.full(40, 1)
        test = segment_writer.chosen(40, 0.2, source)
        rows = np.flatnonzero(~test)
        parts = list(segment_writer.parts_of(x, rows, str(pictures.train)))
        segment_writer.write_parts(x, y, parts, source, segment_writer.Shelves())
    (taken / "1" / "notes.txt").write_text("mine")
    pictures.take(taken)
    assert not taken.exists()
    assert (pictures.inbox / "1" / "notes.txt").exists()
    pictures.take(pictures.inbox / "1")
    assert sum(pictures.counts()) == 40
    assert [path.name for path in (pictures.inbox / "1").iterdir()] == ["notes.txt"]
