"""An intake that is killed, or whose power is cut, at any operation: each sample is stored once."""

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from tiny_fleet import tiny_spec

from edge_agent.inbox import class_folders, intake, takings
from edge_agent.inbox.intake_job import Entry, IntakeJob
from edge_agent.samples import segment_writer
from edge_agent.samples.entry_fate import CUT_OFF_S
from edge_agent.samples.sample_store import segments
from models.protocol.npz import read_arrays
from models.task.spec import ArraySpec, encode_spec
from tools.simulation.machines.disk_watch import mounted
from tools.simulation.machines.virtual_disk import Crash, VirtualDisk, untouched
from tools.substituted import substituted

FILES = 9  # of one sample each; and three more in an npz
SPEC = tiny_spec(x=ArraySpec("uint8", ()))
FOLDERS = ("inbox/1", "intake", "samples", "holdout")


def fill(root: Path) -> IntakeJob:
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
    (root / "spec.json").write_bytes(encode_spec(SPEC))
    for number in range(FILES):
        np.save(root / "inbox/1" / f"{number}.npy", np.array(number, np.uint8))
    np.savez(root / "inbox/three.npz", x=np.arange(FILES, FILES + 3, dtype=np.uint8), y=[1, 1, 1])
    (root / "inbox/1/bad.npy").write_bytes(b"bad")
    return IntakeJob(
        entries=(Entry(b"1", CUT_OFF_S), Entry(b"three.npz")),
        inbox=str(root / "inbox"),
        workspace=str(root / "intake"),
        spec=str(root / "spec.json"),
        train=str(root / "samples"),
        holdout=str(root / "holdout"),
        holdout_share=0.2,
        max_count=100,
        max_holdout=100,
        max_bytes=10**6,
        keep_rejected_bytes=10**6,
        keep_rejected_s=1e6,
        wall=2e9,
    )


def broken_promise(root: Path) -> str:
    """Return what is wrong after the last intake has done all of its work; empty if nothing."""
    stored: list[int] = []
    for name in ("samples", "holdout"):
        for segment in segments(root / name):
            stored += read_arrays(Path(segment.path).read_bytes(), max_bytes=10**6)["x"].tolist()
    if sorted(stored) != list(range(FILES + 3)):
        return f"stored are {sorted(stored)}"
    if left := [path for path in (root / "inbox").rglob("*.np?") if path.stem != "bad"]:
        return f"left are {left}"
    bad = [path for path in root.rglob("bad*.npy") if path.read_bytes() == b"bad"]
    return "" if len(bad) == 1 else f"the bad one is {bad}"


def crash_everywhere(tmp_path: Path, *, power_cut: bool, seeds: range) -> Iterator[str]:
    """End an intake before each of its operations, let the next ones finish; yield what is wrong.

    Both the first and the second one are ended: the second at an operation that chance chooses.
    """
    chance = random.Random(1)
    for step in itertools.count():
        for seed in seeds:
            disk = VirtualDisk(tmp_path / f"disk-{step}-{seed}")
            with untouched():
                job = fill(disk.at)
            crashed = False
            for fuse in (step, chance.randrange(60), 10**6):
                left = [fuse]

                def before_io(what: str, left: list[int] = left) -> None:
                    if left[0] == 0:
                        disk.dead = True  # noqa: B023 (called within this turn only)
                        raise Crash
                    left[0] -= 1

                disk.before_io = before_io
                try:
                    intake.take_in(job)
                except Crash:
                    crashed = crashed or fuse == step
                    disk.reboot(random.Random(seed), power_cut=power_cut)
            with untouched():
                if wrong := broken_promise(disk.at):
                    yield f"step {step}, seed {seed}: {wrong}"
            if not crashed:
                assert step > 40
                return


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_writer, "SEGMENT_SAMPLES", 4)


@pytest.mark.slow
@pytest.mark.parametrize("power_cut", [False, True])
def test_a_crash_at_any_operation_loses_no_sample_and_doubles_none(
    tmp_path: Path, power_cut: bool
) -> None:
    seeds = range(3) if power_cut else range(1)
    with mounted(tmp_path):
        assert list(crash_everywhere(tmp_path, power_cut=power_cut, seeds=seeds)) == []


def no_list() -> AbstractContextManager[None]:
    """Nobody writes down which files a segment is made of."""
    return substituted((class_folders, "begin", lambda *_: None))


def no_look_at_the_list() -> AbstractContextManager[None]:
    """Nobody reads what the one before had begun."""
    return substituted((intake, "finish_all", lambda *_: set()))


def files_first() -> AbstractContextManager[None]:
    """The files go before their samples are stored."""

    def begin(workspace: Path, taking: takings.Taking) -> None:
        takings.complete(workspace, workspace.parent / "inbox", taking, taking.parts)

    return substituted((class_folders, "begin", begin), (class_folders, "complete", _nothing))


def names_not_synced() -> AbstractContextManager[None]:
    """The list goes before the disk knows for sure that its files are gone."""
    return substituted((takings, "sync_directory", _nothing))


def _nothing(*_: object) -> None:
    return


BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    function.__name__: function
    for function in (no_list, no_look_at_the_list, files_first, names_not_synced)
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_books_of_these_tests_find_a_planted_bug(tmp_path: Path, bug: str) -> None:
    with mounted(tmp_path), BUGS[bug]():
        found = crash_everywhere(tmp_path, power_cut=bug == "names_not_synced", seeds=range(3))
        assert next(found, "")
