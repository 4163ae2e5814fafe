"""Programs that change durable state once, for harnesses that kill them while they do.

``python writer_programs.py outbox|inbox|install PREPARE|CHANGE DIRECTORY``: PREPARE makes the old
state, CHANGE does one step of the product's own code; `found` reads what is there afterwards.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from broker.inbox import Inbox, InboxLimits, TaskView
from broker.registry import DATABASE, Registry
from broker.update_records import UpdateKey, UpdateRecords
from edge_agent.model_slots import Slots
from edge_agent.outbox import Outbox, Trained
from models.durable import atomic_write
from models.payload.manifest import Artifact, CodecPlan, Kind, Manifest, TrainingPlan
from models.payload.messages import Receipt
from models.payload.update import UpdateHeader, encode_update
from models.transport.topics import UpdateChunk

PAYLOAD = bytes(range(256)) * 20
KEY = UpdateKey("device-1", 0xABCDEF01, 7)


def outbox(directory: Path) -> Outbox:
    return Outbox(
        directory / "outbox.db", max_bytes=1_000_000, max_waiting=4, installation="0123abcd"
    )


def prepare_outbox(directory: Path) -> None:
    box = outbox(directory)
    for job in (1, 2):
        commit(box, directory, job)
    box.close()


def commit(box: Outbox, directory: Path, job: int) -> None:
    """One training's worth: the residual's file, then the transaction that names it."""
    name = f"residual-{job}.npz"
    atomic_write(directory / name, f"residual after job {job}".encode() * 50)
    trained = Trained(
        job=job,
        base=1,
        header=b"header",
        payload=PAYLOAD,
        residual=name,
        personal=None,
        merged=tuple(box.refunds()),
        lost=0,
    )
    box.commit(trained, chunk_size=1024, facts={"accuracy": 0.5})


def change_outbox(directory: Path) -> None:
    """Commit job 3, and carry out a refusal of update 1 and a fold of update 2."""
    box = outbox(directory)
    commit(box, directory, 3)
    box.settle(1, Receipt("abcdef01-1", "refused", reason="too old"))
    box.settle(2, Receipt("abcdef01-2", "folded", 2))
    box.close()


def found_outbox(directory: Path) -> object:
    box = outbox(directory)
    codec = box.codec()
    assert codec.residual is not None
    whole = f"residual after job {codec.job}".encode() * 50
    assert (directory / codec.residual).read_bytes() == whole
    state = (codec.job, tuple(e.seq for e in box.waiting()), tuple(box.refunds()))
    box.close()
    return state


OUTBOX_STATES = {(2, (1, 2), ()), (3, (1, 2, 3), ()), (3, (2, 3), (1,)), (3, (3,), (1,))}


def inbox(directory: Path) -> tuple[Registry, UpdateRecords, Inbox]:
    registry = Registry(directory / DATABASE, "fleet")
    updates = UpdateRecords(registry)
    return registry, updates, Inbox(registry, updates, InboxLimits(10**6, 10**6, 10))


def update_bytes() -> bytes:
    digest = hashlib.sha256(PAYLOAD).hexdigest()
    header = UpdateHeader("task", 1, 10, 4, 1.0, 0.5, None, len(PAYLOAD), digest)
    return encode_update(header, PAYLOAD)


def feed(directory: Path, numbers: range) -> None:
    registry, _, box = inbox(directory)
    data = update_bytes()
    tasks = {"task": TaskView(1, 10**6)}
    for number in numbers:
        chunk = UpdateChunk(KEY.device, KEY.update_id, number)
        with registry.transaction():
            box.take_chunk(chunk, data[number * 2048 :][:2048], tasks, 1000.0)
    registry.close()


def prepare_inbox(directory: Path) -> None:
    feed(directory, range(1))


def change_inbox(directory: Path) -> None:
    """Take in the other chunks, one transaction each; the last one makes the update whole."""
    feed(directory, range(3))


def found_inbox(directory: Path) -> object:
    registry, updates, _ = inbox(directory)
    receipt = updates.receipt(KEY)
    state: tuple[str, tuple[int, ...]] = (receipt.state, receipt.missing)
    if receipt.state == "stored":
        row = updates.waiting("task", 10)[0].row
        assert updates.payload(row) == PAYLOAD
    registry.close()
    return state


INBOX_STATES = {("partial", (1, 2)), ("partial", (2,)), ("stored", ())}


def manifest(number: int) -> tuple[Manifest, dict[Kind, bytes]]:
    kinds: tuple[Kind, ...] = ("infer", "train", "spec", "parameters")
    files: dict[Kind, bytes] = {kind: f"{kind} of {number}".encode() * 300 for kind in kinds}
    return (
        Manifest(
            format=1,
            task="task",
            release=number,
            parent=number - 1,
            artifacts={
                kind: Artifact(hashlib.sha256(data).hexdigest(), len(data))
                for kind, data in files.items()
            },
            chunk_size=1024,
            training=TrainingPlan(open=True, epochs=1, batch=8, learning_rate=0.1),
            codec=CodecPlan(),
        ),
        files,
    )


def install(directory: Path, number: int) -> None:
    slots = Slots(directory)
    release, files = manifest(number)
    for kind, data in files.items():
        slots.add(release.artifacts[kind], [data])
    slots.stage(release)
    slots.activate(release)
    slots.collect_garbage()


def prepare_install(directory: Path) -> None:
    install(directory, 1)
    install(directory, 2)


def change_install(directory: Path) -> None:
    """Install release 3 over release 2, with release 1 in the other slot."""
    install(directory, 3)


def found_install(directory: Path) -> object:
    slots = Slots(directory)
    active = slots.active
    assert active is not None, slots.damaged
    for kind, data in manifest(active.release)[1].items():
        assert Path(slots.path(active, kind)).read_bytes() == data
    return active.release


INSTALL_STATES = {2, 3}

PROGRAMS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "outbox": (prepare_outbox, change_outbox),
    "inbox": (prepare_inbox, change_inbox),
    "install": (prepare_install, change_install),
}
FOUND: dict[str, tuple[Callable[[Path], object], set[object], object]] = {
    "outbox": (found_outbox, set(OUTBOX_STATES), (3, (3,), (1,))),
    "inbox": (found_inbox, set(INBOX_STATES), ("stored", ())),
    "install": (found_install, set(INSTALL_STATES), 3),
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]][sys.argv[2] == "CHANGE"](Path(sys.argv[3]))
