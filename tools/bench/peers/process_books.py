"""What the processes of a role cost: CPU and memory, from /proc, ended ones included; and bytes.

The CPU time of a role is that of the living processes below its root, with what each has in its
books for children that it waited for. So the root must be one that nothing escapes: a supervisor
of ours (`tools.bench.peers.supervisor`), or a program that waits for all of its children itself.
"""

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tools.bench.peers.course import Reading, Sample

__all__ = ["Books", "Root"]

LOOKS_PER_S = 4
PSS_EVERY = 8  # looks: it is dearer to read
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Root(NamedTuple):
    """The process at the top of a role; a supervisor does not count itself."""

    pid: int
    counts_itself: bool


class Books(threading.Thread):
    """Reads all roles some times a second, from `start` to `close`, into ``samples``."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._roles: dict[str, Root] = {}
        self._lines: list[Callable[[], tuple[int, int]]] = []
        self._last: dict[str, float] = {}
        self._over = threading.Event()

    def add(self, role: str, root: Root) -> None:
        self._roles = {**self._roles, role: root}

    def add_line(self, count: Callable[[], tuple[int, int]]) -> None:
        """Count the bytes of one more client: ``count`` returns those that went up and down."""
        self._lines.append(count)

    def run(self) -> None:
        looks = 0
        while not self._over.is_set():
            began = time.time()
            self.samples.append(self._look(with_pss=looks % PSS_EVERY == 0))
            looks += 1
            self._over.wait(max(0.02, 1 / LOOKS_PER_S - (time.time() - began)))

    def close(self) -> None:
        """Look once more, and stop."""
        self._over.set()
        self.join()
        self.samples.append(self._look(with_pss=True))

    def _look(self, *, with_pss: bool) -> Sample:
        at = time.time()
        tree = _tree()
        readings = {}
        for role, root in self._roles.items():
            below = _below(tree, root.pid)
            cpu_s = sum(tree[pid].own_s + tree[pid].children_s for pid in below)
            if top := tree.get(root.pid):
                cpu_s += top.children_s
                if root.counts_itself:
                    cpu_s += top.own_s
                    below.append(root.pid)
            # A process that ends between two of our looks at files may be missed for a moment.
            self._last[role] = max(self._last.get(role, 0.0), cpu_s)
            rss = sum(_megabytes(pid, "status", "VmRSS") for pid in below)
            pss = sum(_megabytes(pid, "smaps_rollup", "Pss") for pid in below) if with_pss else None
            readings[role] = Reading(self._last[role], rss, pss)
        return Sample(at, readings, tuple(count() for count in self._lines))


class _Process(NamedTuple):
    parent: int
    own_s: float
    children_s: float  # of those that it waited for, and that they waited for


def _tree() -> dict[int, _Process]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):  # it has ended
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                user, system, of_children, of_children_system = map(int, fields[11:15])
                found[int(entry.name)] = _Process(
                    int(fields[1]),
                    (user + system) / TICKS_PER_S,
                    (of_children + of_children_system) / TICKS_PER_S,
                )
    return found


def _below(tree: dict[int, _Process], root: int) -> list[int]:
    children = defaultdict(list)
    for pid, process in tree.items():
        children[process.parent].append(pid)
    found, todo = [], [*children[root]]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children[pid]
    return found


def _megabytes(pid: int, file: str, field: str) -> float:
    """Return a field of /proc in MB; 0 for a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
