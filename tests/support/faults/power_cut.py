"""Every disk that a power cut can leave behind: record the calls, then list the outcomes.

The model: bytes that were not synced may be lost, torn in the middle, or whole. A name that was
created, moved or removed stays so for sure only once its directory was synced; before, each such
change may or may not have happened, in any combination. That is harsher than ext4, so what passes
does not depend on mount options.

It stands in for ``open`` and the ``os`` module of one module under test, which therefore calls
``os.replace`` and ``open`` and not the methods of `pathlib.Path`.
"""

import builtins
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Self

Disk = dict[str, bytes]  # what a reboot finds: name -> content


def disks_after_power_cuts(
    module: ModuleType, action: Callable[[], None], disk: Disk
) -> Iterator[tuple[bool, Disk]]:
    """Cut the power at every step of ``action``, starting from ``disk``.

    Yields whether ``action`` had returned, and a disk that can be found afterwards; every one.
    ``action`` uses ``module``'s ``open`` and ``os``.
    """
    for steps in itertools.count():
        recorder = _Recorder(disk, steps)
        finished = recorder.run(module, action)
        for outcome in recorder.outcomes():
            yield finished, outcome
        if finished:
            return


class _PowerCutError(BaseException):
    """Not an `Exception`: the code under test cannot catch a power cut."""


class _Inode:
    def __init__(self, content: bytes = b"") -> None:
        self.durable = content
        self.latest = content

    def outcomes(self) -> set[bytes]:
        torn = self.latest[: len(self.latest) // 2]
        return {self.durable} if self.latest == self.durable else {self.durable, torn, self.latest}


class _Change(NamedTuple):
    """A directory entry that went from one name (None: created) to another (None: removed)."""

    old: str | None
    new: str | None
    inode: _Inode


class _File:
    def __init__(self, recorder: "_Recorder", inode: _Inode) -> None:
        self._recorder = recorder
        self._inode = inode
        recorder.files[id(self)] = inode

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self._recorder.step()
            self._inode.latest += bytes(part)
        return len(data)

    def flush(self) -> None:
        return

    def fileno(self) -> int:
        return id(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class _Recorder:
    """Stands in for ``open`` and ``os``, and cuts the power after ``steps`` changes."""

    O_RDONLY = os.O_RDONLY
    O_DIRECTORY = os.O_DIRECTORY
    path = os.path
    _DIRECTORY = -1  # the one descriptor that `open` hands out

    def __init__(self, disk: Disk, steps: int) -> None:
        self._names = {name: _Inode(content) for name, content in disk.items()}
        self._durable_names = dict(self._names)
        self._pending: list[_Change] = []
        self._left = steps
        self.files: dict[int, _Inode] = {}

    def run(self, module: ModuleType, action: Callable[[], None]) -> bool:
        """Run ``action`` on us; return whether it got to its end."""
        had_open = "open" in vars(module)
        saved = vars(module)["os"], vars(module).get("open", builtins.open)
        vars(module).update(os=self, open=self.open_file)
        try:
            action()
        except _PowerCutError:
            return False
        else:
            return True
        finally:
            vars(module)["os"], vars(module)["open"] = saved
            if not had_open:
                del vars(module)["open"]

    def outcomes(self) -> Iterator[Disk]:
        for kept in itertools.product([False, True], repeat=len(self._pending)):
            names = dict(self._durable_names)
            for keep, (old, new, inode) in zip(kept, self._pending, strict=True):
                if keep and old is not None:
                    names.pop(old, None)
                if keep and new is not None:
                    names[new] = inode
            ordered = sorted(names)
            for contents in itertools.product(*(sorted(names[n].outcomes()) for n in ordered)):
                yield dict(zip(ordered, contents, strict=True))

    def step(self) -> None:
        if self._left == 0:
            raise _PowerCutError
        self._left -= 1

    def open_file(self, path: Path | str, mode: str) -> _File:
        assert mode == "wb", "only whole files are written"
        self.step()
        name = str(path)
        if name not in self._names:
            self._names[name] = _Inode()
            self._pending.append(_Change(None, name, self._names[name]))
        self._names[name].latest = b""
        return _File(self, self._names[name])

    # What the code under test calls as ``os.…``.

    def open(self, path: Path | str, flags: int) -> int:
        assert flags == os.O_RDONLY | os.O_DIRECTORY
        return self._DIRECTORY

    def close(self, descriptor: int) -> None:
        assert descriptor == self._DIRECTORY

    def fsync(self, descriptor: int) -> None:
        self.step()
        if descriptor == self._DIRECTORY:
            self._durable_names = dict(self._names)
            self._pending.clear()
        else:
            inode = self.files[descriptor]
            inode.durable = inode.latest

    def replace(self, old: Path | str, new: Path | str) -> None:
        self.step()
        inode = self._names.pop(str(old))
        self._names[str(new)] = inode
        self._pending.append(_Change(str(old), str(new), inode))

    def unlink(self, path: Path | str) -> None:
        self.step()
        if str(path) not in self._names:
            raise FileNotFoundError(path)
        self._pending.append(_Change(str(path), None, self._names.pop(str(path))))
