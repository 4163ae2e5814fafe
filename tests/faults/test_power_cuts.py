"""Power cuts under the product's own stores: what they said is done, is there after the cut.

EDGEFOLD_POWER_CUTS=200 (`make power-cuts`) for the long run.
"""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import writer_programs
from loop_disk import LoopDisk

CUTS = int(os.environ.get("EDGEFOLD_POWER_CUTS", "8"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("_mount"),
    pytest.mark.timeout(60 + 10 * CUTS),
]
WRITER = """
import itertools, sys
sys.path.insert(0, {programs!r})
import writer_programs as product
from pathlib import Path
disk = Path({disk!r})
{body}
"""
BODIES = {
    "outbox": """
box = product.outbox(disk)
for job in itertools.count(1):
    product.commit(box, disk, job)
    (disk / f"residual-{job - 2}.npz").unlink(missing_ok=True)  # as the learner tidies up
    for entry in box.waiting()[:-1]:
        box.settle(entry.seq, product.Receipt(f"abcdef01-{entry.seq}", "folded", 2))
    print(job, flush=True)
""",
    "install": """
for number in itertools.count(1):
    product.install(disk, number)
    print(number, flush=True)
""",
    "inbox": """
registry, updates, box = product.inbox(disk)
tasks = {"task": product.TaskView(1, 10**6)}
data = product.update_bytes()
for sequence in itertools.count(1):
    key = product.UpdateKey("device-1", 0xABCDEF01, sequence)
    for chunk in range(3):
        place = product.UpdateChunk(key.device, key.update_id, chunk)
        with registry.transaction():
            box.take_chunk(product.arrived(place, data[chunk * 2048 :][:2048]), tasks, 1.0)
    with registry.transaction():
        for update in updates.waiting("task", 10**6)[:-50]:  # the disk is small
            updates.settle(update, "folded", release=2)
        updates.forget_old_headers(100)
    print(sequence, flush=True)
""",
}


def last_kept(kind: str, disk: Path) -> int:
    """Return the number of the last step that is there; whatever is damaged fails the test."""
    if kind == "install":
        release = writer_programs.found_install(disk)
        assert isinstance(release, int)
        return release
    if kind == "outbox":
        box = writer_programs.outbox(disk)
        job = box.codec().job
        assert box.codec().residual is not None
        writer_programs.found_outbox(disk)
        return job
    registry, updates, _ = writer_programs.inbox(disk)
    waiting = updates.waiting("task", 10**6)
    for row in (waiting[0], waiting[-1]):
        assert updates.payload(row.row) == writer_programs.PAYLOAD
    folded, _ = updates.settled.settled_counts().get("device-1", (0, 0))
    assert [one.key.sequence for one in waiting] == [folded + 1 + n for n in range(len(waiting))]
    registry.close()
    return folded + len(waiting)


@pytest.mark.parametrize("kind", BODIES)
def test_what_was_said_to_be_done_is_there_after_a_power_cut(kind: str, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    with LoopDisk(tmp_path, megabytes=32) as disk:
        code = WRITER.format(
            programs=str(Path(writer_programs.__file__).parent),
            disk=str(disk.path),
            body=BODIES[kind],
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, bufsize=0)
        try:
            assert process.stdout is not None
            promised = int(process.stdout.readline())
            os.set_blocking(process.stdout.fileno(), False)
            for number in range(CUTS):
                time.sleep(0.05 + 0.037 * (number % 7))
                lines = (process.stdout.read() or b"").split()
                promised = int(lines[-1]) if lines else promised
                with disk.after_a_power_cut(process.pid) as left:
                    copy = tmp_path / "left"
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(left, copy)
                kept = last_kept(kind, copy)
                found["kept" if kept >= promised else "lost"] += 1
                assert process.poll() is None, "the writer ended by itself"
        finally:
            process.kill()
            process.wait()
    print(kind, dict(found), "promised at the last cut:", promised)
    assert found == {"kept": CUTS}
