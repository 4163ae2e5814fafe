"""Makes what strangers put into an inbox, from a seed: names of every kind, and what is there.

Each good sample carries a number as its first value, so that one can tell which were stored.
"""

import io
import os
import random
import socket
import stat
import struct
import sys
import unicodedata
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

FEATURES, CLASSES = 4, 3
LONGEST = 255  # bytes of a name
PLAIN = [
    *("-rf", "--", "~", "*", "?", "$(reboot)", "`id`", "a;b", "a'b\"c", "%s%n", "{}", "CON", "nul"),
    *("0", "1", "2", "3", "-1", "01", "1e3", "²", "٣", "Ⅷ", "rejected", "rejected ", "reasons.txt"),
    *("lost+found", ".", "..", " ", "  x", "x ", "a.npz.part", "a~", "#a#", ".#a", "a.npz.tmp"),
    *("\x1b[31mred", "a\nb", "a\r\nb", "\t", "\x7f", "\x01", "\u202egpj", "\u200f", "\ufeff"),
    *("\uffff", "\U0010ffff", "e\u0301", "\u00e9", "ﬀ", "İ", "ß", "👩‍👩‍👧", "a\u2028b", "a\x85b"),
]
BYTES = [b"K\xfcche", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"a\x80b"]


@cache
def letters() -> list[str]:
    """Return the letters of each category of Unicode that a name may have."""
    found: dict[str, str] = defaultdict(str)
    for letter in map(chr, range(1, 0x20000)):
        if letter != "/" and (category := unicodedata.category(letter)) != "Cs":
            found[category] += letter
    return [found[category] for category in sorted(found)]


def stem(chance: random.Random) -> bytes:
    """Return the beginning of a name; what follows makes it one of its kind."""
    match chance.randrange(8):
        case 0:
            return chance.choice(PLAIN).encode().replace(b"/", b"")
        case 1:
            return chance.choice(BYTES)
        case 2:
            return bytes(chance.choice(range(128, 256)) for _ in range(chance.randrange(1, 60)))
        case 3:
            return b"x" * chance.choice((100, 200, LONGEST))
        case 4:
            return unicodedata.normalize("NFD", "Küche Ångström").encode()
        case _:
            some, count = chance.choice(letters()), chance.randrange(1, 20)
            return "".join(chance.choice(some) for _ in range(count)).encode()


def saved(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def good(number: int, rows: int = 1) -> dict[str, object]:
    """Return the arrays of a file with one sample, ``number`` its first value."""
    x = np.zeros((rows, FEATURES), np.float32)
    x[:, 0] = number
    return {"x": x, "y": np.full(rows, number % CLASSES)}


def npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)  # type: ignore[arg-type]
    return file.getvalue()


def zipped(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # a name that is there twice
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def lying(shape: str, dtype: str = "<f4", body: bytes = bytes(64)) -> bytes:
    """Return an .npy whose header says what is not so."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def broken(chance: random.Random) -> bytes:
    """Return what no sample can be made of here and now."""
    whole = saved(**good(-1, 50))
    x, y = np.zeros((5, FEATURES), np.float32), np.zeros(5, np.int64)
    kinds: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: whole[: chance.randrange(len(whole))],
        lambda: chance.randbytes(chance.randrange(1, 300)),
        lambda: saved(x=x),
        lambda: saved(x=x[:, :3], y=y),
        lambda: saved(x=np.full_like(x, np.nan), y=y),
        lambda: saved(x=x, y=y + 99),
        lambda: saved(x=x.astype(complex), y=y),
        lambda: saved(x=np.array([["a"] * FEATURES] * 5), y=y),
        lambda: zipped(("x.npy", npy(np.array([{}], object))), ("y.npy", npy(y))),
        lambda: zipped(("x.npy", lying("(1000000000000, 4)")), ("y.npy", npy(y))),
        lambda: zipped(("x.npy", lying("(-1, 4)")), ("y.npy", npy(y))),
        lambda: zipped(("x.npy", lying("(9, 4)", "<f4")), ("y.npy", npy(y))),
        lambda: zipped(("x.npy", npy(x)), ("x.npy", npy(x)), ("y.npy", npy(y))),
        lambda: zipped(("\u202e\x1b[31m" + "n" * 200 + ".npy", npy(x)), ("Y.npy", npy(y))),
        lambda: zipped(("x.npy", bytes(3_000_000)), ("y.npy", npy(y))),
        lambda: saved(x=np.float32(1), y=np.int64(0)),
        lambda: _flipped(whole, chance),
    ]
    return chance.choice(kinds)()


def _flipped(data: bytes, chance: random.Random) -> bytes:
    """Damage what the checksums of the archive cover."""
    changed = bytearray(data)
    changed[chance.randrange(200, 400)] ^= 0xFF
    return bytes(changed)


class StrangeInbox:
    """An inbox that strangers fill; knows which numbers are to be stored."""

    def __init__(self, folder: Path, outside: Path, seed: int) -> None:
        self.folder = os.fsencode(folder)
        self.outside = os.fsencode(outside)
        self.chance = random.Random(seed)
        self.good: set[int] = set()
        self.bad = 0
        self.outside_names: set[str] = set()  # of what is none of the inbox, and must stay
        self._number = 0
        outside.mkdir(exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)

    def fill(self, count: int) -> None:
        for _ in range(count):
            self._add()

    def _add(self) -> None:
        kind = self.chance.randrange(20)
        if kind < 6:
            self._put(self._path(b".npz"), saved(**self._next()))
        elif kind < 8:
            label, data = self.chance.randrange(CLASSES), npy(self._next()["x"][0])  # type: ignore[index]
            self._put(self._path(b".npy", b"/%d" % label), data)
        elif kind < 14:
            self._put(self._path(self.chance.choice((b".npz", b".NPZ"))), broken(self.chance))
            self.bad += 1
        else:
            self._odd()
            self.bad += 1

    def _next(self) -> dict[str, object]:
        self._number += 1
        self.good.add(self._number)
        return good(self._number)

    def _path(self, ending: bytes, below: bytes = b"") -> bytes:
        """Return a path that is free, and is looked at: its name begins with no dot."""
        folder = self.folder + below
        os.makedirs(folder, exist_ok=True)
        beginning = stem(self.chance)
        if beginning.startswith(b"."):
            beginning = b"_" + beginning
        tail = ending
        while True:
            path = folder + b"/" + beginning[: LONGEST - len(tail)] + tail
            if not os.path.lexists(path) and beginning + tail not in (b"rejected", b"lost+found"):
                return path
            tail = b"-%d" % self.chance.randrange(10**9) + ending

    @staticmethod
    def _put(path: bytes, data: bytes) -> None:
        with open(path, "xb") as file:
            file.write(data)

    def _odd(self) -> None:
        """Put what is no file of samples at all, or is one that cannot be taken as it is."""
        chance = self.chance
        path = self._path(chance.choice((b"", b".npz", b".txt")))
        match chance.randrange(14):
            case 0:
                os.symlink(b"/etc/passwd", path)
            case 1:
                os.symlink(self.folder, path)
            case 2:
                os.symlink(os.path.basename(path), path)
            case 3:
                os.symlink(self.outside + b"/nowhere", path)
            case 4:
                os.mkfifo(path)
            case 5:
                self._socket(path)
            case 6:
                self._device(path)
            case 7:
                with open(path, "xb") as file:
                    file.truncate(chance.choice((10**9, 10**12)))
            case 8:
                self._put(path, broken(chance))
                os.chmod(path, 0)
            case 9:
                os.mkdir(path)
                self._put(path + b"/" + stem(chance).lstrip(b".")[:250] + b"_", b"?")
            case 10:
                deep = path + b"/0" * 30
                os.makedirs(deep)
                self._put(deep + b"/a.npy", b"?")
            case 11:
                self._put(path, b"?")
                moment = chance.choice((0, 2**31, 4e9, -1e9))
                os.utime(path, (moment, moment))
            case 12:
                name = str(chance.randrange(10**12))
                self.outside_names.add(name)
                other = self.outside + b"/" + name.encode()
                self._put(other, broken(chance))
                os.link(other, path)
            case _:
                below = b"/%d" % chance.randrange(CLASSES)
                self._put(self._path(chance.choice((b".npy", b".txt", b"")), below), b"?")

    def _socket(self, path: bytes) -> None:
        here = os.path.join(self.outside, b"s%d" % self.chance.randrange(10**12))
        if len(here) > 100:
            os.mkfifo(path)
            return
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(here)
        os.rename(here, path)

    @staticmethod
    def _device(path: bytes) -> None:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            os.mkfifo(path)


if __name__ == "__main__":
    folder, outside, count, seed = sys.argv[1:]
    StrangeInbox(Path(folder), Path(outside), int(seed)).fill(int(count))
