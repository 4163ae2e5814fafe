"""A disk whose power can be cut: ext4 in a file, and copies of what reached that file.

What a program wrote but did not sync is in the page cache of the mounted file system and not in
the file; so a copy of the file is what a power cut would leave. The kernel needs neither
device-mapper nor netem for this. It does not model the controller of an SD card.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType

__all__ = ["LoopDisk", "SmallDisk", "why_no_mount"]

HELD_STILL_WITHIN_S = 30.0  # on a busy machine the kernel may write back for seconds


@cache
def why_no_mount() -> str:
    """Return why file systems cannot be mounted here, or an empty string."""
    if os.geteuid() != 0:
        return "mounting needs root"
    for tool in ("mount", "umount", "mkfs.ext4"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"mounting is not allowed: {tried.stderr.strip()}"


class LoopDisk:
    """An ext4 file system of ``megabytes`` in ``directory``, mounted at ``.path``."""

    def __init__(self, directory: Path, *, megabytes: int = 24) -> None:
        self.image = directory / "disk.img"
        self.path = directory / "disk"
        self._copy = directory / "copy.img"
        self._copy_path = directory / "copy"
        self._megabytes = megabytes

    def __enter__(self) -> "LoopDisk":
        self.path.mkdir()
        self._copy_path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(self._megabytes << 20)
        _run("mkfs.ext4", "-q", "-F", "-J", "size=4", str(self.image))
        _run("mount", "-o", "loop", str(self.image), str(self.path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        _unmount(self.path)

    @contextmanager
    def after_a_power_cut(self, *writers: int) -> Iterator[Path]:
        """Yield, mounted, what a power cut just now would have left behind.

        ``writers`` are processes to hold still meanwhile. The copy is read twice and must agree
        with itself, so it is the disk of one moment although the kernel may be writing back.
        """
        for writer in writers:
            os.kill(writer, signal.SIGSTOP)
        try:
            content = self._one_moment()
        finally:
            for writer in writers:
                os.kill(writer, signal.SIGCONT)
        self._copy.write_bytes(content)
        _run("mount", "-o", "loop", str(self._copy), str(self._copy_path))
        try:
            yield self._copy_path
        finally:
            _unmount(self._copy_path)

    def _one_moment(self) -> bytes:
        before = self.image.read_bytes()
        until = time.monotonic() + HELD_STILL_WITHIN_S
        while time.monotonic() < until:
            after = self.image.read_bytes()
            if after == before:
                return after
            before = after
        raise RuntimeError(
            f"the disk image did not hold still for two readings in {HELD_STILL_WITHIN_S:.0f} s"
        )


class SmallDisk:
    """A tmpfs of ``kilobytes`` at ``path``, which can also be made read-only."""

    def __init__(self, path: Path, *, kilobytes: int) -> None:
        self.path = path
        self._kilobytes = kilobytes

    def __enter__(self) -> "SmallDisk":
        self.path.mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={self._kilobytes}k", "none", str(self.path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        _unmount(self.path)

    def resize(self, kilobytes: int) -> None:
        """Change the size; an operator freed space, or somebody else filled it."""
        _run("mount", "-o", f"remount,size={kilobytes}k", str(self.path))

    def set_read_only(self, read_only: bool) -> None:
        """Let the kernel refuse all writes; files that are open for writing are dealt with, too."""
        if read_only:  # a busy tmpfs cannot be remounted read-only; a bind mount of it can
            _run("mount", "--bind", str(self.path), str(self.path))
            _run("mount", "-o", "remount,ro,bind", str(self.path))
        else:
            _unmount(self.path)

    def fill(self) -> None:
        """Take all free space with a file ``filler``."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            for piece in (65536, 4096, 512, 1):
                try:
                    while file.write(b"\0" * piece) == piece:
                        pass
                except OSError:
                    continue

    def drain(self) -> None:
        (self.path / "filler").unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _unmount(path: Path) -> None:
    for _ in range(50):
        if subprocess.run(["umount", str(path)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    _run("umount", "--lazy", str(path))
