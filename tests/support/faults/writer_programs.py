"""Programs that change durable state once, for harnesses that kill them while they do.

``python writer_programs.py outbox|memory|inbox|install|intake PREPARE|CHANGE DIRECTORY``: PREPARE
makes the old state, CHANGE does one step of the product's own code; `found` reads what is there
after.
They run hundreds of times: what loads numpy is imported only by the one that needs it.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from broker.receiving.incoming import arrived
from broker.receiving.update_inbox import InboxLimits, TaskView, UpdateInbox
from broker.records.device_records import DeviceRecords
from broker.records.registry import DATABASE, Registry
from broker.records.update_records import UpdateKey, UpdateRecords
from edge_agent.inbox.intake_job import Entry, IntakeJob
from edge_agent.releases.model_slots import Slots
from edge_agent.releases.release_life import ReleaseState, TrackedRelease
from edge_agent.samples.entry_fate import CUT_OFF_S
from edge_agent.samples.sample_store import segments
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_contents import Trained
from models.host.durable import atomic_write
from models.protocol.manifest import Artifact, CodecPlan, Kind, Manifest, TrainingPlan
from models.protocol.messages import Receipt
from models.protocol.topics import UpdateChunk
from models.protocol.update import UpdateHeader, encode_update
from models.task.spec import ArraySpec, Role, TaskSpec, TensorSpec, encode_spec

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
        merged=tuple(box.carried.refunds()),
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
    state = (codec.job, tuple(e.seq for e in box.waiting()), tuple(box.carried.refunds()))
    box.close()
    return state


OUTBOX_STATES = {(2, (1, 2), ()), (3, (1, 2, 3), ()), (3, (2, 3), (1,)), (3, (3,), (1,))}


def prepare_memory(directory: Path) -> None:
    """An update made against no memory has left."""
    box = outbox(directory)
    say(box, directory, 1, None)
    box.begin(1, 1024)
    box.was_sent(1)
    box.close()


def say(box: Outbox, directory: Path, job: int, history: str | None) -> None:
    """One training's worth with a memory: the files of its next state, then the transaction."""
    for kind in ("history", "owed"):
        atomic_write(directory / f"{kind}-{job}.npz", f"{kind} after job {job}".encode() * 50)
    trained = Trained(
        job=job,
        base=1,
        header=b"header",
        payload=PAYLOAD,
        residual=box.codec().residual,
        personal=None,
        merged=(),
        lost=0,
        feedback="gd-sec",
        history=history,
        next_history=f"history-{job}.npz",
        next_owed=f"owed-{job}.npz",
    )
    box.commit(trained, chunk_size=1024, facts={})


def change_memory(directory: Path) -> None:
    """Carry out the fold of update 1, and commit two trainings, of which the first never leaves."""
    box = outbox(directory)
    box.settle(1, Receipt("abcdef01-1", "folded", 2))
    for job in (2, 3):
        say(box, directory, job, "history-1.npz")
    box.close()


def found_memory(directory: Path) -> object:
    """h and e are of one update, and whatever is named is whole."""
    box = outbox(directory)
    codec = box.codec()
    named = [name for name in (codec.history, codec.residual) if name is not None]
    assert [name.partition("-")[2] for name in named] in ([], ["1.npz"] * 2)
    for name in (*named, *box.carried.next_files()):
        kind, _, job = name.removesuffix(".npz").partition("-")
        assert (directory / name).read_bytes() == f"{kind} after job {job}".encode() * 50
    state = (codec.job, codec.history, tuple(entry.seq for entry in box.waiting()))
    box.close()
    return state


REMEMBERED = "history-1.npz"
MEMORY_STATES = {
    (1, None, (1,)),
    (1, REMEMBERED, ()),
    (2, REMEMBERED, (2,)),
    (3, REMEMBERED, (3,)),
}


def inbox(directory: Path) -> tuple[Registry, UpdateRecords, UpdateInbox]:
    registry = Registry(directory / DATABASE, "fleet")
    updates = UpdateRecords(registry)
    return (
        registry,
        updates,
        UpdateInbox(DeviceRecords(registry), updates, InboxLimits(10**6, 10**6, 10)),
    )


def update_bytes() -> bytes:
    digest = hashlib.sha256(PAYLOAD).hexdigest()
    header = UpdateHeader("task", 1, 10, 4, 1.0, 0.5, None, len(PAYLOAD), digest)
    return encode_update(header, PAYLOAD)


def feed(directory: Path, numbers: range) -> None:
    registry, _, box = inbox(directory)
    data = update_bytes()
    tasks = {"task": TaskView(1, 10**6)}
    for number in numbers:
        place = UpdateChunk(KEY.device, KEY.update_id, number)
        with registry.transaction():
            box.take_chunk(arrived(place, data[number * 2048 :][:2048]), tasks, 1000.0)
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
    slots.stage(TrackedRelease(release, ReleaseState.WHOLE))
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

FILES = 10  # of one sample each; and two more in an npz


def intake_job(directory: Path) -> IntakeJob:
    return IntakeJob(
        entries=(Entry(b"1"), Entry(b"two.npz"), Entry(b"bad.npz", CUT_OFF_S)),
        inbox=str(directory / "inbox"),
        workspace=str(directory / "intake"),
        spec=str(directory / "spec.json"),
        train=str(directory / "samples"),
        holdout=str(directory / "holdout"),
        holdout_share=0.3,
        max_count=1000,
        max_holdout=1000,
        max_bytes=10**6,
        keep_rejected_bytes=10**6,
        keep_rejected_s=1e6,
        wall=2e9,
    )


def prepare_intake(directory: Path) -> None:
    import numpy as np

    for name in ("inbox/1", "intake", "samples", "holdout"):
        (directory / name).mkdir(parents=True)
    spec = TaskSpec(
        format=1,
        task="task",
        net="",
        tensors=(TensorSpec("w", (1,), Role.SHARED),),
        x=ArraySpec("int32", ()),
        y=ArraySpec("int64", ()),
        classes=2,
        loss="cross_entropy",
        metric="accuracy",
        optimizer="sgd",
        proximal=False,
        infer_input="x",
        infer_output="y",
        slots=(),
    )
    (directory / "spec.json").write_bytes(encode_spec(spec))
    for number in range(FILES):
        np.save(directory / "inbox" / "1" / f"{number}.npy", np.array(number, np.int32))
    x = np.array([FILES, FILES + 1], np.int32)
    np.savez(directory / "inbox" / "two.npz", x=x, y=np.ones(2, np.int64))
    (directory / "inbox" / "bad.npz").write_bytes(b"?")


def change_intake(directory: Path) -> None:
    """Take in a folder, a file, and put a bad one aside; exit code 1 if not all of it was done."""
    from edge_agent.inbox import intake
    from edge_agent.samples import segment_writer

    segment_writer.SEGMENT_SAMPLES = 2
    result = intake.take_in(intake_job(directory))
    if result.no_room or result.waiting:
        raise SystemExit(result.no_room or str(result.waiting))


def found_intake(directory: Path) -> object:
    """Each sample is in the store once, or in the inbox; the bad file is somewhere."""
    from models.protocol.npz import read_arrays

    box, stored = directory / "inbox", []
    for name in ("samples", "holdout"):
        for segment in segments(directory / name):
            stored += read_arrays(Path(segment.path).read_bytes(), max_bytes=10**6)["x"].tolist()
    assert len(stored) == len(set(stored)), f"taken twice: {sorted(stored)}"
    waiting = {int(path.stem) for path in (box / "1").glob("*.npy")}
    waiting |= {FILES, FILES + 1} if (box / "two.npz").exists() else set()
    assert waiting | set(stored) == set(range(FILES + 2)), f"lost: {waiting} {stored}"
    bad = [path for path in (box / "bad.npz", box / "rejected" / "bad.npz") if path.exists()]
    assert len(bad) == 1
    return "taken" if not waiting and bad[0].parent != box else "kept"


PROGRAMS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "outbox": (prepare_outbox, change_outbox),
    "memory": (prepare_memory, change_memory),
    "inbox": (prepare_inbox, change_inbox),
    "install": (prepare_install, change_install),
    "intake": (prepare_intake, change_intake),
}
FOUND: dict[str, tuple[Callable[[Path], object], set[object], object]] = {
    "outbox": (found_outbox, set(OUTBOX_STATES), (3, (3,), (1,))),
    "memory": (found_memory, set(MEMORY_STATES), (3, REMEMBERED, (3,))),
    "inbox": (found_inbox, set(INBOX_STATES), ("stored", ())),
    "install": (found_install, set(INSTALL_STATES), 3),
    "intake": (found_intake, {"kept", "taken"}, "taken"),
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]][sys.argv[2] == "CHANGE"](Path(sys.argv[3]))
