"""Arrays and archives that strangers put into an inbox: stored, left or put aside, none lost.

Each example lies between two good files, which must be taken whatever it is.
"""

import contextlib
import io
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis.extra.numpy as hnp
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from strange_entries import good, lying, saved, zipped
from tiny_fleet import CLASSES, FEATURES, tiny_spec

from edge_agent.inbox import intake
from edge_agent.inbox.intake_job import Entry, IntakeJob, IntakeResult
from edge_agent.samples.entry_fate import CUT_OFF_S
from edge_agent.samples.sample_store import segments
from models.errors import PayloadError
from models.protocol.npz import read_arrays
from models.task.spec import encode_spec

EXAMPLES = int(os.environ.get("EDGEFOLD_EXAMPLES", "40"))
LONGEST_REASON = 700
quiet = settings(
    max_examples=EXAMPLES,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DTYPES = [
    *("<f4", ">f4", "<f2", "<f8", "<f16", "<i8", ">i8", "<i4", "<u8", "|i1", "|u1", "|b1", "<c8"),
    *("<U3", "|S3", "|O", "<M8[s]", "<m8[s]", "|V3", "<i3", "f", "x", "<f4,<f4", "[('a','<f4')]"),
]
SHAPES = st.one_of(
    st.lists(st.integers(-2, 2**63), max_size=4).map(
        lambda dims: f"({', '.join(map(str, dims))},)"
    ),
    st.sampled_from(
        ["()", "(5, 4)", "(0, 4)", "5", "(5, 4", "(" * 200, "(1e3,)", "(٣, 4)", "('a',)"]
    ),
)
ARRAYS = hnp.arrays(
    dtype=st.one_of(
        hnp.scalar_dtypes(), hnp.unicode_string_dtypes(max_len=3), hnp.byte_string_dtypes(max_len=3)
    ),
    shape=st.one_of(
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), st.just((3, 4))
    ),
)


class Box:
    """An inbox and a store, with two good files around the one that is tried."""

    def __init__(self, root: Path) -> None:
        for name in ("inbox/1", "intake", "samples", "holdout"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "spec.json").write_bytes(encode_spec(tiny_spec()))
        self.root = root
        self.job = IntakeJob(
            entries=(),
            inbox=str(root / "inbox"),
            workspace=str(root / "intake"),
            spec=str(root / "spec.json"),
            train=str(root / "samples"),
            holdout=str(root / "holdout"),
            holdout_share=0.2,
            max_count=1000,
            max_holdout=200,
            max_bytes=1_000_000,
            keep_rejected_bytes=10_000_000,
            keep_rejected_s=1e7,
            wall=2e9,
        )

    def take(self, name: str, data: bytes, unchanged_s: float = CUT_OFF_S) -> IntakeResult:
        """Take in ``data`` as the file ``name``; check what must hold whatever it is."""
        inbox = self.root / "inbox"
        (inbox / "a.npz").write_bytes(saved(**good(11)))
        (inbox / "z.npz").write_bytes(saved(**good(22)))
        path = inbox / name
        path.write_bytes(data)
        names = ("a.npz", name.partition("/")[0], "z.npz")
        entries = tuple(Entry(one.encode(), unchanged_s, unchanged_s) for one in names)
        result = intake.take_in(msgspec.structs.replace(self.job, entries=entries))
        numbers = [n for n in self.stored() if n in (11.0, 22.0)]
        assert sorted(numbers)[:1] + sorted(numbers)[-1:] == [11.0, 22.0]
        aside = [p for p in (inbox / "rejected").rglob("m*") if p.is_file()]
        waits = [group for _, groups in result.waiting for group in groups]
        if not path.exists() and not aside:
            assert result.added >= 3  # it was taken
        elif path.exists():
            assert waits
            assert path.read_bytes() == data
        else:
            assert result.rejected
        for sentence in (*result.rejected, *(group.reason for group in waits)):
            assert sentence.isprintable()
            assert len(sentence) < LONGEST_REASON
            assert "Traceback" not in sentence
            assert "reading it failed" not in sentence, "an exception that nobody has thought of"
        msgspec.json.encode(result)
        return result

    def stored(self) -> list[float]:
        found: list[float] = []
        for folder in ("samples", "holdout"):
            for segment in segments(self.root / folder):
                arrays = read_arrays(Path(segment.path).read_bytes(), max_bytes=10**7)
                assert np.isfinite(arrays["x"]).all()
                assert ((arrays["y"] >= 0) & (arrays["y"] < CLASSES)).all()
                found += arrays["x"][:, 0].tolist()
        return found


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # nobody cuts the power here


@contextlib.contextmanager
def box() -> Iterator[Box]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as root:
        yield Box(Path(root))


@quiet
@given(x=ARRAYS, y=ARRAYS, more=st.dictionaries(st.text(max_size=9), ARRAYS, max_size=2))
@example(x=np.float32(1), y=np.int64(0), more={})
@example(x=np.zeros((3, FEATURES), ">f4"), y=np.zeros(3, ">i2"), more={"test": np.zeros(3, "U1")})
@example(x=np.zeros((3, FEATURES)), y=np.zeros(3, int), more={"test": np.full(3, np.nan)})
@example(x=np.zeros((3, FEATURES)), y=np.zeros(3, int), more={"test": np.zeros(3, complex)})
@example(x=np.full((3, FEATURES), 1e300), y=np.zeros(3, int), more={})
@example(x=np.zeros((3, FEATURES)), y=np.array([0, 2**63, 1], np.uint64), more={})
def test_any_arrays_are_stored_or_said(
    x: np.ndarray, y: np.ndarray, more: dict[str, np.ndarray]
) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in {**more, "x": x, "y": y}.items():
            one = io.BytesIO()
            np.save(one, array, allow_pickle=True)
            archive.writestr(f"{name}.npy".encode("utf-8", "replace").decode(), one.getvalue())
    with box() as tried:
        tried.take("m.npz", file.getvalue())


@quiet
@given(
    shape=SHAPES, dtype=st.sampled_from(DTYPES), body=st.binary(max_size=80), as_npz=st.booleans()
)
@example(shape="(1000000000000, 4)", dtype="<f4", body=b"", as_npz=True)
@example(shape="(4,)", dtype="|O", body=b"cos\nsystem\n(S'x'\ntR.", as_npz=False)
def test_any_header_is_believed_only_as_far_as_there_are_bytes(
    shape: str, dtype: str, body: bytes, as_npz: bool
) -> None:
    array = lying(shape, dtype, body)
    with box() as tried:
        if as_npz:
            y = io.BytesIO()
            np.save(y, np.zeros(5, np.int64))
            tried.take("m.npz", zipped(("x.npy", array), ("y.npy", y.getvalue())))
        else:
            tried.take("1/m.npy", array)


@quiet
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5),
    cut=st.integers(0, 10**6),
    put=st.binary(max_size=30),
    name=st.sampled_from(["m.npz", "1/m.npy", "1/m.png", "1/m.jpg", "1/m.pgm"]),
    unchanged_s=st.sampled_from([0.0, CUT_OFF_S]),
)
def test_any_damage_to_a_file_costs_that_file(
    flips: list[tuple[int, int]],
    cut: int,
    put: bytes,
    name: str,
    unchanged_s: float,
) -> None:
    data = bytearray(WHOLE[name.rpartition(".")[2]])
    for place, value in flips:
        data[place % len(data)] = value
    place = cut % (2 * len(data))
    with box() as tried:
        tried.take(
            name, bytes(data[:place] + put + data[place:] if cut % 3 else data[:place]), unchanged_s
        )


def picture(kind: str) -> bytes:
    image = pytest.importorskip("PIL.Image").new("L", (2, 2), 7)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def one_sample() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(FEATURES, dtype=np.float32))
    return file.getvalue()


WHOLE = {
    "npz": saved(**good(5, rows=3)),
    "npy": one_sample(),
    "png": picture("PNG"),
    "jpg": picture("JPEG"),
    "pgm": picture("PPM"),
}


@quiet
@given(
    members=st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from(["x.npy", "y.npy", "../x.npy", "/x.npy", "x", " "]),
                st.text(min_size=1, max_size=5),
            ),
            st.sampled_from([0, 1, 2]),
        ),
        max_size=5,
    ),
    numbers=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2**32 - 1)), max_size=3),
)
def test_any_archive_is_read_or_refused(
    members: list[tuple[str, int]], numbers: list[tuple[int, int]]
) -> None:
    """Members of any name, twice too, and any number of the directory another one."""
    bodies = (one_sample(), lying("(5, 4)"), bytes(100_000))
    pairs = [(name.encode("utf-8", "replace").decode(), bodies[which]) for name, which in members]
    data = bytearray(zipped(*pairs))
    for back, number in numbers:
        place = len(data) - back - 4
        if place >= 0:
            data[place : place + 4] = struct.pack("<I", number)
    with box() as tried:
        tried.take("m.npz", bytes(data))
    with contextlib.suppress(PayloadError):
        read_arrays(bytes(data), max_bytes=10**6)
