"""The power cut of the harness loses what was not synced, and nothing else."""

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from loop_disk import LoopDisk, SmallDisk

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_mount")]
ROOT = Path(__file__).parents[2]

WRITERS = {
    "careful": """
from models.host.durable import atomic_write
def save(n): atomic_write(root / "value", b"%d\\n" % n * 500)
""",
    "rename_without_fsync": """
def save(n):
    (root / "draft").write_bytes(b"%d\\n" % n * 500)
    (root / "draft").replace(root / "value")
""",
    "database": """
from models.host.durable import open_database
base = open_database(root / "value.db")
base.execute("CREATE TABLE IF NOT EXISTS v (n INTEGER)")
def save(n): base.execute("INSERT INTO v VALUES (?)", (n,))
""",
}
PROGRAM = """
import sys, time; sys.path.insert(0, {root!r})
from pathlib import Path
root = Path({disk!r})
{writer}
n = 0
while True:
    n += 1
    save(n)
    print(n, flush=True)
    time.sleep(0.002)
"""


def read(kind: str, disk: Path) -> int | None:
    """Return the number that a rebooted machine finds; None: nothing, or garbage."""
    if kind == "database":
        import sqlite3

        base = sqlite3.connect(disk / "value.db")
        try:
            if base.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                return None
            return int(base.execute("SELECT coalesce(max(n), 0) FROM v").fetchone()[0])
        except sqlite3.Error:
            return None
        finally:
            base.close()
    try:
        numbers = set((disk / "value").read_bytes().split())
    except FileNotFoundError:
        return None
    return int(numbers.pop()) if len(numbers) == 1 else None


def cuts(kind: str, directory: Path, count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    with LoopDisk(directory) as disk:
        code = PROGRAM.format(root=str(ROOT), disk=str(disk.path), writer=WRITERS[kind])
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, bufsize=0
        ) as process:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            promised = 0
            for _ in range(count):
                time.sleep(0.1)
                # what it said before the cut, it must hold after the cut
                for line in (process.stdout.read() or b"").split():
                    promised = int(line)
                with disk.after_a_power_cut(process.pid) as left:
                    value = read(kind, left)
                if value is None:
                    found["corrupt" if promised else "nothing yet"] += 1
                else:
                    found["kept" if value >= promised else "lost"] += 1
            process.kill()
    return found


@pytest.mark.parametrize("kind", ["careful", "database"])
def test_what_was_promised_is_there_after_a_power_cut(kind: str, tmp_path: Path) -> None:
    found = cuts(kind, tmp_path, int(os.environ.get("EDGEFOLD_POWER_CUTS", "8")))
    assert found["kept"] >= 6
    assert found["lost"] == found["corrupt"] == 0


def test_the_harness_finds_a_rename_without_fsync(tmp_path: Path) -> None:
    found = cuts("rename_without_fsync", tmp_path, 8)
    assert found["lost"] + found["corrupt"] >= 6


def test_a_small_disk_fills_up_and_recovers(tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "small", kilobytes=64) as disk:
        disk.fill()
        with pytest.raises(OSError, match="No space"):
            (disk.path / "more").write_bytes(b"x" * 8192)
        disk.drain()
        (disk.path / "more").write_bytes(b"x" * 8192)


def test_an_atomic_write_on_a_full_disk_leaves_the_old_value(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from models.host.durable import atomic_write

    with SmallDisk(tmp_path / "small", kilobytes=64) as disk:
        atomic_write(disk.path / "value", b"old")
        for size in itertools.chain([1 << 20], range(4096, 65536, 8192)):
            disk.fill()
            with pytest.raises(OSError, match="No space"):
                atomic_write(disk.path / "value", b"n" * size)
            assert (disk.path / "value").read_bytes() == b"old"
            disk.drain()
        atomic_write(disk.path / "value", b"new")
        assert (disk.path / "value").read_bytes() == b"new"
