"""npz files: written by the book, read as if an enemy had sent them. Pure.

The reader is our own, because ``numpy.load`` believes what a file says of itself: a megabyte may
inflate to a gigabyte, of two members of one name the last one wins in silence, and 200,000 empty
members cost five seconds. Here every size is checked before anything is allocated. Members are
stored or deflated; encryption, other methods, ZIP64 and object arrays are refused.
"""

import re
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import ForeignError, PayloadError, TooLargeError

__all__ = [
    "array_names",
    "begins_as",
    "read_arrays",
    "read_npy",
    "read_vector",
    "write_array",
    "write_vector",
]

MAX_MEMBERS = 4096
MAX_NAME_BYTES = 512
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 1 << 40  # also bounds the shapes of empty arrays
HEADER_ALLOWANCE = 4096  # bytes of npy header that a member may have

_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_ZIP_MAGIC = (b"PK\3\4", b"PK\5\6")
_NPY_MAGIC = b"\x93NUMPY"
_DOS_EPOCH = (0, 0x21)  # 1980-01-01, 00:00: the same values give the same bytes on every day
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1 | 0x40
_NPY = re.compile(
    rb"\{\s*'descr'\s*:\s*'(?P<dtype>[<>|=]?[biuf][0-9]{1,2})'\s*,"
    rb"\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,"
    rb"\s*'shape'\s*:\s*\((?P<shape>[0-9, ]{0,700})\)\s*,?\s*\}\s*"
)
_TEXT = re.compile(
    _NPY.pattern.replace(rb"[<>|=]?[biuf][0-9]{1,2}", rb"[<>=]U[1-9][0-9]{0,3}|\|S[1-9][0-9]{0,4}")
)  # numpy's own spelling of texts; the widths bound what one row may take
MAX_CHARACTER = 0x10FFFF
_DTYPES = {
    np.dtype(code).str: np.dtype(code)
    for letter, widths in (("b", (1,)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)), ("f", (2, 4, 8)))
    for width in widths
    for code in (f"<{letter}{width}", f">{letter}{width}")
}


class _Member(NamedTuple):
    name: str
    method: int
    crc: int
    packed: memoryview
    size: int  # bytes, unpacked, as the directory says


def write_array(name: str, values: npt.NDArray[Any]) -> bytes:
    """Return an npz with the one member ``name``, stored, in as few bytes as the formats allow.

    The npy header is not padded to 64 bytes as numpy does; numpy reads it nevertheless.
    """
    body = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    shape = f"({body.shape[0]},)" if body.ndim == 1 else str(body.shape)
    header = f"{{'descr': '{body.dtype.str}', 'fortran_order': False, 'shape': {shape}}}\n"
    npy = b"".join(
        [b"\x93NUMPY\x01\x00", struct.pack("<H", len(header)), header.encode("ascii"), body.data]
        if body.size
        else [b"\x93NUMPY\x01\x00", struct.pack("<H", len(header)), header.encode("ascii")]
    )
    file_name = f"{name}.npy".encode("ascii")
    about = (*_DOS_EPOCH, zlib.crc32(npy), len(npy), len(npy), len(file_name))
    local = _LOCAL.pack(b"PK\3\4", 20, 0, _STORED, *about, 0) + file_name
    entry = _ENTRY.pack(b"PK\1\2", 20, 20, 0, _STORED, *about, 0, 0, 0, 0, 0, 0) + file_name
    end = _END.pack(b"PK\5\6", 0, 0, 1, 1, len(entry), len(local) + len(npy), 0)
    return b"".join([local, npy, entry, end])


def write_vector(vector: npt.NDArray[np.float32], name: str = "parameters") -> bytes:
    """Return ``vector``, float32 of shape (d,), as an npz with one stored member.

    Raises:
        ValueError: another dtype or shape, or values that are not finite.
    """
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise ValueError(f"{name}: {vector.dtype} {vector.shape}, a float32 vector was expected")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}: not all values are finite")
    return write_array(name, vector)


def read_vector(data: bytes, *, size: int, name: str = "parameters") -> npt.NDArray[np.float32]:
    """Return the float32 vector of ``size`` values that is the only member of ``data``.

    The result is a writable copy.

    Raises:
        PayloadError: it is not that, or not all values are finite.
    """
    arrays = read_arrays(data, max_bytes=4 * size + HEADER_ALLOWANCE)
    if list(arrays) != [name]:
        raise PayloadError(f"npz: members {sorted(arrays)[:8]}, expected only {name!r}")
    found = arrays[name]
    if found.dtype.newbyteorder("=") != np.float32 or found.shape != (size,):
        raise PayloadError(f"{name}: {found.dtype} {found.shape}, expected float32 ({size},)")
    vector: npt.NDArray[np.float32] = found.astype(np.float32)
    if not np.isfinite(vector).all():
        raise PayloadError(f"{name}: not all values are finite")
    return vector


def read_arrays(
    data: bytes,
    *,
    max_bytes: int,
    only: Collection[str] | None = None,
    texts: Collection[str] = (),
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an npz file, by name: booleans, integers and floats of any shape.

    The arrays are read-only; those of stored members are views into ``data``. Values may be NaN.
    With ``only``, other members are left alone, whatever they are: a user's file may have names of
    classes or notes beside what we ask for. Those of ``texts`` may hold texts too (dtype U or S).

    Raises:
        TooLargeError: it takes more than ``max_bytes`` when unpacked.
        PayloadError: not such a file, or damaged.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    left = max_bytes
    for member in _members(memoryview(data).cast("B")):
        name = member.name.removesuffix(".npy")
        if only is not None and name not in only:
            continue
        if name == member.name:
            raise PayloadError(f"npz: member {member.name!r} is not an array (.npy)")
        if name in arrays:
            raise PayloadError(f"npz: two members are named {member.name!r}")
        left -= member.size
        if left < 0:
            raise TooLargeError(f"npz: unpacked it takes more than the {max_bytes} bytes allowed")
        arrays[name] = _array(name, _unpack(member), texts=name in texts)
    return arrays


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """Return the array of an ``.npy`` file, read-only, as the members of an npz are read.

    Raises:
        PayloadError: not such a file, or damaged.
    """
    prefix = "npz: 'array' "
    try:
        return _array("array", memoryview(data).cast("B"), texts=False)
    except PayloadError as error:
        raise type(error)(str(error).removeprefix(prefix)) from None


def begins_as(data: memoryview | bytes, magics: Collection[bytes]) -> bool:
    """Whether ``data`` may be, or become, a file that begins with one of ``magics``.

    A copy may have room before it has bytes: zeros may become anything.
    """
    head = bytes(data[: max(map(len, magics))])
    return not any(head) or any(head[: len(m)] == m[: len(head)] for m in magics)


def array_names(data: bytes) -> list[str]:
    """Return what the members of an npz file are called, readable or not.

    Raises:
        PayloadError: not such a file, or cut off.
    """
    return [member.name.removesuffix(".npy") for member in _members(memoryview(data).cast("B"))]


def _members(data: memoryview) -> Iterator[_Member]:
    end_at = _end_record(data)
    _, _, _, _, count, directory_size, directory_at, _ = _END.unpack_from(data, end_at)
    if count > MAX_MEMBERS:
        raise PayloadError(f"npz: {count} members, at most {MAX_MEMBERS} are read")
    if directory_at + directory_size != end_at:
        raise PayloadError("npz: the directory of the zip file is not where it should be")
    at, packed_in_all = directory_at, 0
    for _ in range(count):
        if at + _ENTRY.size > end_at:
            raise PayloadError("npz: the directory of the zip file is cut off")
        entry = _ENTRY.unpack_from(data, at)
        signature, flags, method, crc, packed_size, size = (entry[i] for i in (0, 3, 4, 7, 8, 9))
        name_length, extra_length, comment_length, local_at = (entry[i] for i in (10, 11, 12, 16))
        name_at = at + _ENTRY.size
        at = name_at + name_length + extra_length + comment_length
        if signature != b"PK\1\2" or at > end_at or name_length > MAX_NAME_BYTES:
            raise PayloadError("npz: the directory of the zip file is damaged")
        try:
            name = bytes(data[name_at : name_at + name_length]).decode("utf-8")
        except UnicodeDecodeError:
            raise PayloadError("npz: a member's name is not UTF-8") from None
        if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
            raise PayloadError(f"npz: {name!r} is encrypted or packed by method {method}")
        start = _body_start(data, local_at, directory_at)
        packed_in_all += packed_size
        if start + packed_size > directory_at or packed_in_all > directory_at:
            raise PayloadError(f"npz: {name!r} reaches beyond the file or overlaps another member")
        yield _Member(name, method, crc, data[start : start + packed_size], size)
    if at != end_at:
        raise PayloadError("npz: the directory of the zip file is longer than it says")


def _end_record(data: memoryview) -> int:
    """Return where the end-of-directory record stands; a comment may follow it."""
    tail_at = max(0, len(data) - _END.size - 0xFFFF)
    at = tail_at + bytes(data[tail_at:]).rfind(b"PK\5\6")
    if at < tail_at or at + _END.size > len(data):
        if not begins_as(data, _ZIP_MAGIC):
            raise ForeignError("npz: not a zip file")
        raise PayloadError("npz: empty, or cut off")
    if at + _END.size + _END.unpack_from(data, at)[7] != len(data):
        raise PayloadError("npz: bytes after the end of the zip file")
    return at


def _body_start(data: memoryview, local_at: int, limit: int) -> int:
    if local_at + _LOCAL.size > limit:
        raise PayloadError("npz: a member begins beyond the file")
    local = _LOCAL.unpack_from(data, local_at)
    if local[0] != b"PK\3\4":
        raise PayloadError("npz: a member does not begin where the directory says")
    return int(local_at + _LOCAL.size + local[9] + local[10])


def _unpack(member: _Member) -> memoryview:
    if member.method == _STORED:
        unpacked = member.packed
    else:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            inflated = inflater.decompress(member.packed, member.size + 1)
        except zlib.error as error:
            raise PayloadError(f"npz: {member.name!r}: {error}") from None
        if not inflater.eof:
            raise PayloadError(f"npz: {member.name!r} unpacks to more than {member.size} bytes")
        unpacked = memoryview(inflated)
    if len(unpacked) != member.size or zlib.crc32(unpacked) != member.crc:
        raise PayloadError(f"npz: {member.name!r} is damaged: wrong size or checksum")
    return unpacked


def _array(name: str, npy: memoryview, *, texts: bool) -> npt.NDArray[Any]:
    if not begins_as(npy, (_NPY_MAGIC,)):
        raise ForeignError(f"npz: {name!r} is not an npy array")
    if bytes(npy[:6]) != _NPY_MAGIC or len(npy) < 12 or npy[6] not in (1, 2, 3):
        raise PayloadError(f"npz: {name!r} is not an npy array")
    start = 10 if npy[6] == 1 else 12
    length = int.from_bytes(npy[8:start], "little")
    found = dtype = None
    if length <= HEADER_ALLOWANCE:
        header = bytes(npy[start : start + length])
        if found := _NPY.fullmatch(header):
            dtype = _DTYPES.get(_canonical(found["dtype"].decode("ascii")))
        elif texts and (found := _TEXT.fullmatch(header)):
            dtype = np.dtype(found["dtype"].decode("ascii"))
    if found is None or dtype is None:
        kinds = "floats and texts are read, no objects"
        if not texts:
            kinds = "floats are read, no objects, texts"
        is_whole = start + length <= len(npy)
        raise (ForeignError if is_whole else PayloadError)(
            f"npz: {name!r} does not have a plain header: only arrays of booleans, integers and "
            f"{kinds} or records"
        )
    sides = [side.strip() for side in found["shape"].decode("ascii").split(",")]
    if sides[-1] == "":
        sides.pop()
    if len(sides) > MAX_DIMENSIONS or not all(side.isdigit() and len(side) < 14 for side in sides):
        raise PayloadError(f"npz: {name!r} has an impossible shape")
    shape = tuple(int(side) for side in sides)
    elements = bound = 1
    for dimension in shape:
        elements *= dimension
        bound *= max(dimension, 1)
    body = npy[start + length :]
    if bound > MAX_ELEMENTS or elements * dtype.itemsize != len(body):
        raise PayloadError(f"npz: {name!r} says {dtype} {shape}, but has {len(body)} bytes")
    if dtype.kind == "b" and len(body) and int(np.frombuffer(body, np.uint8).max()) > 1:
        raise PayloadError(f"npz: {name!r} has booleans that are neither 0 nor 1")
    if dtype.kind == "U" and len(body):
        codes = np.frombuffer(body, np.dtype(f"{dtype.byteorder}u4"))
        if int(codes.max()) > MAX_CHARACTER:
            raise PayloadError(f"npz: {name!r} has characters that are not Unicode")
    flat: npt.NDArray[Any] = np.frombuffer(body, dtype)
    flat.flags.writeable = False
    if found["fortran"] == b"True":
        return flat.reshape(shape[::-1]).T
    return flat.reshape(shape)


def _canonical(code: str) -> str:
    """Return numpy's own spelling of a dtype: ``|u1``, ``<f4``, ``>i8``."""
    order, kind = code[0], code[1:]
    if kind in ("b1", "i1", "u1"):
        return "|" + kind
    return ("<" if order == "=" else order) + kind
