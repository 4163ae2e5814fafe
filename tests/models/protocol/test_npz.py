"""The npz reader against numpy's own files, and against files made to hurt."""

import io
import pickle
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.errors import PayloadError
from models.protocol.npz import array_names, read_arrays, read_vector, write_array, write_vector

LIMIT = 1 << 20


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, body in members:
            archive.writestr(name, body)
    return file.getvalue()


def npy_header(shape: object, descr: str = "<f4") -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


DTYPES = st.sampled_from(["?", "u1", "<i2", ">i4", "<i8", ">u8", "<f2", "<f4", ">f8"])


@given(
    hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    st.booleans(),
    st.sampled_from([np.savez, np.savez_compressed]),
)
def test_what_numpy_writes_is_read_as_numpy_reads_it(array, fortran, save) -> None:
    file = io.BytesIO()
    save(file, a=np.asfortranarray(array) if fortran else array, b=np.float32(1))
    found = read_arrays(file.getvalue(), max_bytes=LIMIT)
    assert list(found) == ["a", "b"]
    assert found["a"].dtype == array.dtype
    np.testing.assert_array_equal(found["a"], array)
    assert not found["a"].flags.writeable


@given(hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_what_we_write_is_read_by_numpy(array) -> None:
    data = write_array("z", array)
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        np.testing.assert_array_equal(file["z"], array)
    np.testing.assert_array_equal(read_arrays(data, max_bytes=LIMIT)["z"], array)


def test_the_frame_around_one_member_takes_176_bytes() -> None:
    assert len(write_array("z", np.zeros(100, np.uint8))) - 100 == 176


def test_a_vector_comes_back_writable_and_equal() -> None:
    vector = np.array([1.5, -0.0, 1e-45, 3e38], np.float32)
    found = read_vector(write_vector(vector), size=4)
    assert found.tobytes() == vector.tobytes()
    found[0] = 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_on_both_sides(bad: float) -> None:
    vector = np.array([1, bad], np.float32)
    with pytest.raises(ValueError, match="finite"):
        write_vector(vector)
    with pytest.raises(PayloadError, match="finite"):
        read_vector(npz(parameters=vector), size=2)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"other": np.zeros(3, np.float32)},
        {"parameters": np.zeros(3, np.float32), "more": np.zeros(1)},
        {"parameters": np.zeros(4, np.float32)},
        {"parameters": np.zeros((3, 1), np.float32)},
        {"parameters": np.zeros(3, np.float64)},
    ],
)
def test_a_file_that_is_not_the_vector_asked_for_is_refused(arrays: dict[str, object]) -> None:
    with pytest.raises(PayloadError):
        read_vector(npz(**arrays), size=3)


def bomb(method: int) -> bytes:
    """Sixty-four megabytes of zeros, packed: a thousand times less."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", method) as archive,
        archive.open("parameters.npy", "w") as member,
    ):
        member.write(npy_header(f"({1 << 24},)"))
        for _ in range(64):
            member.write(bytes(1 << 20))
    return file.getvalue()


def lying_bomb() -> bytes:
    """A deflate bomb whose directory says that it unpacks to 400 bytes."""
    data = bytearray(bomb(zipfile.ZIP_DEFLATED))
    at = data.rfind(b"PK\1\2") + 24
    data[at : at + 4] = (400).to_bytes(4, "little")
    return bytes(data)


def overlapping() -> bytes:
    """Two directory entries that name one and the same body."""
    data = bytearray(npz(aa=np.zeros(64, np.uint8)))
    at, end = data.rfind(b"PK\1\2"), data.rfind(b"PK\5\6")
    entry = bytes(data[at:end])
    tail = bytearray(data[end:])
    tail[8:12] = (64).to_bytes(2, "little") * 2
    tail[12:16] = (64 * len(entry)).to_bytes(4, "little")
    copies = [entry.replace(b"aa.npy", f"{i:02}.npy".encode()) for i in range(64)]
    return bytes(data[:at]) + b"".join(copies) + bytes(tail)


def crowd() -> bytes:
    """Members without end; the number in the end record is the largest that fits there."""
    data = zipped([("a.npy", b"")])
    at, end = data.rfind(b"PK\1\2"), data.rfind(b"PK\5\6")
    entries = data[at:end] * 200_000
    tail = bytearray(data[end:])
    tail[8:12] = b"\xff" * 4
    tail[12:16] = len(entries).to_bytes(4, "little")
    return data[:at] + entries + bytes(tail)


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


ATTACKS = {
    "deflate bomb": lambda: bomb(zipfile.ZIP_DEFLATED),
    "lying deflate bomb": lying_bomb,
    "LZMA": lambda: zipped([("a.npy", npy_header("(3,)") + bytes(12))], zipfile.ZIP_LZMA),
    "bzip2": lambda: zipped([("a.npy", npy_header("(3,)") + bytes(12))], zipfile.ZIP_BZIP2),
    "a shape of 64 GiB without data": lambda: zipped([("a.npy", npy_header(f"({1 << 34},)"))]),
    "a negative shape": lambda: zipped([("a.npy", npy_header("(-1,)"))]),
    "an empty array of astronomic shape": lambda: zipped(
        [("a.npy", npy_header(f"(0, {1 << 40}, {1 << 40})"))]
    ),
    "33 dimensions": lambda: zipped([("a.npy", npy_header((1,) * 33) + bytes(4))]),
    "200,000 members": crowd,
    "two members of one name": lambda: zipped([("a.npy", npy_header("(1,)") + bytes(4))] * 2),
    "overlapping members": overlapping,
    "pickled objects": lambda: npz(a=np.array([Harmful()], object)),
    "a bare pickle": lambda: pickle.dumps(Harmful()),
    "text": lambda: npz(a=np.array(["text"])),
    "a record": lambda: npz(a=np.zeros(2, [("b", "f4")])),
    "code for a shape": lambda: zipped([("a.npy", npy_header("(print(1),)"))]),
    "no array": lambda: zipped([("a.txt", b"hello")]),
    "booleans that are neither": lambda: zipped([("a.npy", npy_header("(1,)", "|b1") + b"\2")]),
    "bytes after the end": lambda: npz(a=np.zeros(3)) + b"more",
    "nothing": lambda: b"",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_quickly_and_in_little_memory(attack: str) -> None:
    data = ATTACKS[attack]()
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(PayloadError):
        read_arrays(data, max_bytes=LIMIT)
    took = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 0.5
    assert peak < 2 * LIMIT


VALUE = npy_header("(1,)") + bytes(4)


def test_members_that_nobody_asked_for_are_left_alone_and_named() -> None:
    data = zipped([("x.npy", VALUE), ("classes.npy", b"no array"), ("notes.txt", b"by hand")])
    assert list(read_arrays(data, max_bytes=1000, only=("x", "test"))) == ["x"]
    assert array_names(data) == ["x", "classes", "notes.txt"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_truncation_is_refused(save) -> None:
    file = io.BytesIO()
    save(file, a=np.arange(10), b=np.ones(2))
    data = file.getvalue()
    for length in range(len(data)):
        with pytest.raises(PayloadError):
            read_arrays(data[:length], max_bytes=LIMIT)


@given(st.data())
@settings(max_examples=400)
def test_mutated_files_give_a_payload_error_or_arrays(data: st.DataObject) -> None:
    file = io.BytesIO()
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(file, a=np.arange(10), b=np.ones((2, 3), np.float32))
    damaged = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        arrays = read_arrays(bytes(damaged), max_bytes=LIMIT)
    except PayloadError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= LIMIT


@given(st.binary(max_size=300))
def test_any_bytes_give_a_payload_error(data: bytes) -> None:
    with pytest.raises(PayloadError):
        read_arrays(data, max_bytes=LIMIT)


@pytest.mark.parametrize(
    "texts",
    [
        np.array(["cat", "dög", ""]),
        np.array(["cat", "日本"]).astype(">U4"),
        np.array([b"cat", b"dog"]),
        np.array([["a", "b"], ["c", "d"]], order="F"),
        np.array([], "U3"),
    ],
)
def test_texts_are_read_where_they_were_asked_for(texts: np.ndarray) -> None:
    file = io.BytesIO()
    np.savez(file, x=np.ones(2), y=texts)
    found = read_arrays(file.getvalue(), max_bytes=LIMIT, texts=("y",))["y"]
    assert found.tolist() == texts.tolist()
    with pytest.raises(PayloadError, match="no objects, texts or records"):
        read_arrays(file.getvalue(), max_bytes=LIMIT, texts=("x",))


@given(st.data())
@settings(max_examples=300)
def test_mutated_texts_give_a_payload_error_or_texts(data: st.DataObject) -> None:
    file = io.BytesIO()
    np.savez(file, y=np.array(["cat", "dog", "dög"]))
    damaged = bytearray(file.getvalue())
    member = file.getvalue().index(b"\x93NUMPY")
    size = len(damaged) - member - 100
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[member + data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    body = bytes(damaged[member : member + 128 + 36])
    try:
        found = read_arrays(zipped([("y.npy", body)]), max_bytes=LIMIT, texts=("y",))["y"]
    except PayloadError:
        return
    if found.dtype.kind in "US":
        assert all(isinstance(text, str | bytes) for text in found.reshape(-1).tolist())
