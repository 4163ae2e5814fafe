"""Kill a program at, or fail, every system call with which it touches its state (strace).

As MCUboot's simulator cuts the power at every flash operation: first count, then repeat the
program once for each call, each time from a fresh copy of its state.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["CHANGING", "Fault", "Outcome", "each_fault", "restore", "touched_paths"]

CHANGING = (  # what can change a disk
    "openat",
    "write",
    "pwrite64",
    "writev",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "ftruncate",
    "mkdir",
    "link",
)
_LINE = re.compile(r"^(?:\d+\s+)?(\w+)\((.*)$")
_PATH = re.compile(r'"((?:/|\.)[^"]*)"|<(/[^>]*)>')


class Fault(NamedTuple):
    """The ``number``-th (from 1) call of ``call`` fails with ``error``, or kills if None."""

    call: str
    number: int
    error: str | None

    def __str__(self) -> str:
        return f"{self.error or 'SIGKILL'} at {self.call} number {self.number}"


class Outcome(NamedTuple):
    """How one run with a fault went; ``state`` is what it left behind."""

    fault: Fault
    status: int
    output: str
    state: Path


def touched_paths(
    command: Sequence[str], state: Path, calls: Sequence[str] = CHANGING
) -> list[str]:
    """Run ``command`` once; return the paths at and below ``state`` that it touched.

    Raises:
        RuntimeError: it fails without any fault.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".trace") as trace:
        options = ["-f", "-y", "-s", "4096", "-o", trace.name, "-e", f"trace={','.join(calls)}"]
        done = subprocess.run(
            ["strace", *options, *command], capture_output=True, text=True, env=_environment()
        )
        if done.returncode:
            raise RuntimeError(f"{command} fails without a fault: {done.stderr[-2000:]}")
        paths: dict[str, None] = {}
        for line in trace.read().splitlines():
            for match in _PATH.finditer(line):
                path = (match[1] or match[2]).removesuffix(" (deleted)")
                if path == str(state) or path.startswith(f"{state}/"):
                    paths[path] = None
    return list(paths)


def each_fault(
    command: Sequence[str],
    state: Path,
    *,
    prepare: Callable[[], None],
    errors: Sequence[str | None] = (None,),
    calls: Sequence[str] = CHANGING,
    fail_only: Sequence[str] = ("write", "pwrite64", "fsync", "fdatasync", "rename", "ftruncate"),
    timeout_s: float = 60,
) -> Iterator[Outcome]:
    """Run ``command`` once per state-touching call and error; yield what each run left.

    ``prepare`` brings ``state`` into being before every run. Only the calls of ``fail_only``
    are made to fail (what is opened or removed for reading cannot fill a disk); killed is at all.
    Counts are per thread of ``command``, which should therefore have one.
    """
    prepare()
    paths = touched_paths(command, state, calls)
    filters = [part for path in paths for part in ("-P", path)]
    prepare()
    counts = _count(command, filters, calls)
    if not counts:
        raise RuntimeError(f"{command} touches nothing below {state}")
    for error in errors:
        for call, count in sorted(counts.items()):
            if error is not None and call not in fail_only:
                continue
            for number in range(1, count + 1):
                prepare()
                fault = Fault(call, number, error)
                action = f"error={error}" if error else "signal=KILL"
                inject = f"inject={call}:{action}:when={number}"
                options = ["-f", "-o", "/dev/null", *filters, "-e", f"trace={call}", "-e", inject]
                done = subprocess.run(
                    ["strace", *options, *command],
                    capture_output=True,
                    text=True,
                    env=_environment(),
                    timeout=timeout_s,
                )
                yield Outcome(fault, done.returncode, done.stdout + done.stderr, state)


def _count(
    command: Sequence[str], filters: Sequence[str], calls: Sequence[str]
) -> Mapping[str, int]:
    with tempfile.NamedTemporaryFile("r", suffix=".trace") as trace:
        options = ["-f", "-o", trace.name, *filters, "-e", f"trace={','.join(calls)}"]
        subprocess.run(["strace", *options, *command], capture_output=True, env=_environment())
        lines = trace.read().splitlines()
    return Counter(match[1] for line in lines if (match := _LINE.match(line)))


def _environment() -> dict[str, str]:
    """Make two runs of one Python program do the same calls in the same order."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}


def restore(saved: Path, state: Path) -> None:
    """Make ``state`` a fresh copy of the directory ``saved``."""
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(saved, state)
