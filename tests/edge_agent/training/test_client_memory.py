"""A device with a memory: its h is the server's, to the bit, whenever nothing is unanswered."""

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tiny_fleet import DEVICE, Clock, Device, Files, Server, launch_here, tiny_spec

from edge_agent.board.children import Child
from edge_agent.training.training_job import TRAINER, Job, decode_job
from edge_agent.updates.outbox_file import OutboxFile
from models.codec.feedback import history_after, history_digest
from models.codec.payload import decompress
from models.codec.transform.shared_basis import context_digest
from models.protocol.learning import LearningPlan
from models.protocol.manifest import CodecPlan
from models.protocol.messages import Receipt
from models.protocol.npz import read_vector
from models.protocol.topics import Topics
from models.protocol.update import UpdateHeader, context_in
from models.task.params import Vector
from models.task.spec import Role
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink

SPEC = tiny_spec()
ZEROS = np.zeros(SPEC.shared_size, np.float32)
BETAS = {"memory": 1.0, "gd-sec": 0.1}


class Remembering(Server):
    """The server's side of the memory in a few lines.

    ``verdict`` says ``folded``, ``refused``, or ``stored``; `decide` settles what is stored.
    """

    def __init__(self, broker: MemoryBroker, topics: Topics) -> None:
        super().__init__(MemoryLink(broker, client_id="server"), topics)
        self.feedback = "memory"
        self.history: Vector | None = None
        self.settled: dict[str, Receipt] = {}
        self.has_forgotten = False  # which the device learns with its next update
        self.is_mute = False  # decides, and no receipt comes through

    def receipt(self, update_id: str) -> Receipt:
        if update_id in self.settled:
            return self.settled[update_id]
        if update_id not in self.updates or self.verdict == "stored":
            return super().receipt(update_id)
        found = self._settled(update_id, self.headers[update_id])
        self.settled[update_id] = found
        return found

    def _settled(self, update_id: str, header: UpdateHeader) -> Receipt:
        if header.extras is None:  # of a release without a plan
            return Receipt(update_id, "folded", release=self.release)  # type: ignore[arg-type]
        self.has_forgotten = False
        if header.extras.memory == 0:
            self.history = None  # the device began anew
        if header.extras.memory != history_digest(self.history):
            return Receipt(update_id, "refused", reason="another memory", reset=True)  # type: ignore[arg-type]
        if self.verdict == "refused":
            return Receipt(update_id, "refused", reason="no")  # type: ignore[arg-type]
        payload = self.updates[update_id]
        said = decompress(payload, SPEC.shared, context=self.context(payload))
        self.history = history_after(self.history, said, BETAS[self.feedback])
        return Receipt(update_id, "folded", release=self.release)  # type: ignore[arg-type]

    def context(self, payload: bytes) -> Vector | None:
        digest = context_in(payload)
        if digest is None:
            return None
        values = [np.full(SPEC.shared_size, number / 100, np.float32) for number in range(60)]
        known = [b - a for a, b in itertools.pairwise(values)]
        if self.history is not None:
            known.append(self.history)
        return next(vector for vector in known if context_digest(vector) == digest)

    def forget(self) -> None:
        self.history, self.has_forgotten = None, True

    def answer(self, *receipts: Receipt) -> None:
        if not self.is_mute:
            super().answer(*receipts)

    def tell(self) -> None:
        """Decide what is open, and tell all."""
        self.answer(*(self.receipt(update) for update in self.updates))


def files(number: int, *, feedback: str = "memory", context: str = "own", **plan: Any) -> Files:
    found = Files(number)
    learning = LearningPlan(feedback=feedback, **plan)  # type: ignore[arg-type]
    codec = CodecPlan(context=context)  # type: ignore[arg-type]
    found.manifest = msgspec.structs.replace(found.manifest, learning=learning, codec=codec)
    return found


@pytest.fixture
def remembering(broker: MemoryBroker, topics: Topics) -> Remembering:
    return Remembering(broker, topics)


@pytest.fixture
def board(tmp_path: Path, broker: MemoryBroker, clock: Clock, remembering: Remembering) -> Device:
    device = Device(tmp_path, broker, clock, remembering, training__min_minutes=1)
    device.add_samples(64)
    return device


def vector(device: Device, name: str | None, member: str) -> Vector:
    if name is None:
        return ZEROS
    data = (device.config.storage.directory / "codec" / name).read_bytes()
    return read_vector(data, size=SPEC.shared_size, name=member)


def history(device: Device) -> Vector:
    return vector(device, device.agent.parts.outbox.codec().history, "history")


def agreed(device: Device, server: Remembering) -> bool:
    """Whether nothing is open; then both hold the same bits."""
    if server.has_forgotten or any(entry.has_left for entry in device.agent.parts.outbox.waiting()):
        return False
    ours = ZEROS if server.history is None else server.history
    np.testing.assert_array_equal(history(device).view(np.uint32), ours.view(np.uint32))
    return True


@pytest.mark.parametrize(("feedback", "context"), [("memory", "own"), ("gd-sec", "release")])
@pytest.mark.parametrize("seed", range(3))
def test_both_sides_remember_the_same_bits_whatever_is_lost_refused_or_restarted(
    board: Device,
    remembering: Remembering,
    broker: MemoryBroker,
    feedback: str,
    context: str,
    seed: int,
) -> None:
    rng = random.Random(seed)
    print("seed", seed)
    remembering.feedback = feedback
    agreements = 0
    for number in range(1, 41):
        remembering.verdict = rng.choice(["folded", "folded", "folded", "refused", "stored"])
        remembering.is_mute = rng.random() < 0.2
        if rng.random() < 0.1:
            remembering.forget()
        broker.set_reachable(DEVICE, True)
        remembering.release = number
        remembering.publish(files(number, feedback=feedback, context=context, threshold=0.01))
        assert board.run(900, until=lambda n=number: board.status.release == n)  # type: ignore[misc]
        broker.set_reachable(DEVICE, rng.random() < 0.7)
        board.run(rng.choice([1, 100, 600]))
        if rng.random() < 0.3:
            board.restart()
        left = [e for e in board.agent.parts.outbox.waiting() if e.has_left]
        assert len(left) <= 1, "no second one leaves before the answer"
        codec = board.config.storage.directory / "codec"
        assert len(list(codec.glob("history-*"))) <= 3
        agreements += agreed(board, remembering)
        remembering.tell()
    facts = board.agent.parts.outbox.facts.read()
    assert agreements > 5
    assert facts.folded > 3
    assert facts.merged_back == 0
    assert board.agent.parts.outbox.carried.refunds() == []
    remembering.verdict, remembering.is_mute = "folded", False
    broker.set_reachable(DEVICE, True)
    assert board.run(4 * 3600, until=lambda: not board.agent.parts.outbox.waiting())
    assert agreed(board, remembering)


class Watched:
    """A launch that keeps the jobs of all trainings."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def __call__(self, module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        if module == TRAINER:
            job = decode_job(Path(arguments[0]).read_bytes())
            self.jobs += [job] if job.do == "train" else []
        return launch_here(module, arguments, log=log)


def test_while_one_is_unanswered_trainings_are_for_this_device_alone(
    board: Device, remembering: Remembering
) -> None:
    board.launch = watched = Watched()
    remembering.verdict = "stored"
    for number in range(1, 5):
        remembering.publish(files(number))
        board.run(300)
    assert board.status.updates_made == 1
    assert [job.sends for job in watched.jobs] == [True, False, False, False]
    assert [job.release for job in watched.jobs] == [1, 2, 3, 4]
    remembering.verdict = "folded"
    remembering.tell()
    board.run(300)
    assert watched.jobs[-1].sends, "the release that was trained on in silence is taught from, too"
    assert watched.jobs[-1].release == 4
    assert board.status.updates_made == 2
    assert agreed(board, remembering)


def test_who_keeps_nothing_does_not_train_in_vain(board: Device, remembering: Remembering) -> None:
    board.launch = watched = Watched()
    remembering.verdict = "stored"
    for number in range(1, 4):
        remembering.publish(files(number, serve="released"))
        board.run(300)
    assert len(watched.jobs) == 1
    assert "not answered" in board.agent.parts.learner.verdict.reason


def test_whose_owner_wants_the_release_does_not_train_in_vain_either(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, remembering: Remembering
) -> None:
    board = Device(tmp_path, broker, clock, **{"inference.serve": '"released"'})
    board.add_samples(64)
    board.launch = watched = Watched()
    remembering.verdict = "stored"
    for number in range(1, 4):
        remembering.publish(files(number))
        board.run(300)
    assert len(watched.jobs) == 1


def test_one_that_never_left_gives_way_to_the_next(
    board: Device, remembering: Remembering, broker: MemoryBroker
) -> None:
    remembering.publish(files(1))
    assert board.run(60, until=lambda: board.status.release == 1)
    broker.set_reachable(DEVICE, False)
    for seed in range(3):
        board.add_samples(64, seed=seed + 20)
        board.run(200)
    outbox = board.agent.parts.outbox
    (entry,) = outbox.waiting()
    facts = outbox.facts.read()
    assert facts.made > 2
    assert facts.replaced == facts.made - 1
    assert (facts.merged_back, outbox.carried.refunds()) == (0, [])
    broker.set_reachable(DEVICE, True)
    assert board.run(600, until=lambda: board.status.updates_folded == 1)
    assert list(remembering.updates) == [f"{outbox.installation}-{entry.seq}"]
    assert agreed(board, remembering)


def test_a_refused_update_leaves_the_memory_as_it_was(
    board: Device, remembering: Remembering
) -> None:
    remembering.publish(files(1))
    assert board.run(60, until=lambda: board.status.updates_folded == 1)
    before = history(board)
    assert before.any()
    remembering.verdict = "refused"
    remembering.publish(files(2))
    assert board.run(600, until=lambda: board.status.updates_refused == 1)
    np.testing.assert_array_equal(history(board), before)
    assert agreed(board, remembering)


def test_a_reset_begins_at_zeros_and_the_next_update_says_so(
    board: Device, remembering: Remembering
) -> None:
    remembering.publish(files(1))
    assert board.run(60, until=lambda: board.status.updates_folded == 1)
    remembering.forget()
    remembering.publish(files(2))
    assert board.run(900, until=lambda: board.status.updates_folded == 2)
    memories = [h.extras.memory for h in remembering.headers.values() if h.extras]
    assert memories[0] == memories[2] == 0 != memories[1]
    assert board.status.updates_refused == 1
    assert agreed(board, remembering)


def test_a_lost_memory_begins_anew_on_both_sides(board: Device, remembering: Remembering) -> None:
    remembering.publish(files(1))
    assert board.run(60, until=lambda: board.status.updates_folded == 1)
    name = board.agent.parts.outbox.codec().history
    assert name is not None
    (board.config.storage.directory / "codec" / name).write_bytes(b"PK, and no more")
    remembering.publish(files(2))
    assert board.run(900, until=lambda: board.status.updates_folded == 2)
    assert board.status.updates_refused == 0
    assert [h.extras.memory for h in remembering.headers.values() if h.extras] == [0, 0]
    assert agreed(board, remembering)


@pytest.mark.parametrize(
    ("before", "after"), list(itertools.permutations(["memory", "gd-sec", "residual"], 2))
)
def test_another_method_takes_what_is_owed_along_once_and_begins_with_an_empty_memory(
    board: Device, remembering: Remembering, before: str, after: str
) -> None:
    """h = 0, and e of the old method is said with the first delta of the new one."""
    board.launch = watched = Watched()
    remembering.feedback = before if before in BETAS else "memory"
    remembering.publish(_of(1, before))
    assert board.run(60, until=lambda: board.status.updates_folded == 1)
    old = board.agent.parts.outbox.codec()
    owed = vector(board, old.residual, "residual")
    assert owed.any() == (before != "memory")
    remembering.history = None
    remembering.feedback = after if after in BETAS else "memory"
    remembering.publish(_of(2, after))
    assert board.run(600, until=lambda: board.status.updates_folded == 2)
    job = watched.jobs[-1]
    assert job.history is None
    assert (job.residual or "").endswith(str(old.residual or ""))
    new = board.agent.parts.outbox.codec()
    assert new.feedback == after
    assert (new.history is None) == (after == "residual")
    assert (new.residual is None) == (after == "memory")


def _of(number: int, feedback: str) -> Files:
    return Files(number) if feedback == "residual" else files(number, feedback=feedback)


def test_an_update_of_an_old_release_has_the_header_of_before(
    board: Device, remembering: Remembering
) -> None:
    """A release without a plan: what a server of before can read."""
    remembering.publish(Files(1))
    assert board.run(60, until=lambda: board.status.updates_folded == 1)
    (header,) = remembering.headers.values()
    assert header.extras is None


def test_the_extras_say_how_long_it_took(board: Device, remembering: Remembering) -> None:
    remembering.publish(files(1))
    assert board.run(60, until=lambda: board.status.updates_folded == 1)
    (header,) = remembering.headers.values()
    assert header.extras is not None
    assert header.extras.seconds > 0
    assert header.extras.ms_per_step > 0


def own_values(board: Device) -> Path | None:
    active = board.agent.parts.slots.active
    return board.agent.parts.learner.own.values(active).personal if active else None


def test_personal_values_are_kept_of_trainings_without_an_update(
    board: Device, remembering: Remembering
) -> None:
    remembering.verdict = "stored"
    spec = tiny_spec(Role.PERSONAL)

    def with_personal(number: int) -> Files:
        found = Files(number, spec=spec)
        plan = LearningPlan(feedback="memory", serve="released")
        found.manifest = msgspec.structs.replace(found.manifest, learning=plan)
        return found

    remembering.publish(with_personal(1))
    assert board.run(60, until=lambda: board.status.updates_made == 1)
    first = own_values(board)
    remembering.publish(with_personal(2))
    assert board.run(300, until=lambda: own_values(board) != first)
    assert board.status.updates_made == 1
    assert board.agent.parts.outbox.facts.read().trained_release == 1


class CutError(BaseException):
    """The process ends here."""


class Cut:
    """Ends the agent at its ``number``-th transaction, before or after that is committed."""

    def __init__(self, number: int, moment: str) -> None:
        self.left = number
        self.moment = moment
        self._transaction = OutboxFile.transaction

    @contextmanager
    def __call__(self, file: OutboxFile, *tables: Any) -> Iterator[None]:
        self.left -= 1
        with self._transaction(file, *tables):
            yield
            if self.left == 0 and self.moment == "before":
                raise CutError
        if self.left == 0:
            raise CutError


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ended_at_any_transaction_both_sides_agree_in_the_end(
    tmp_path: Path, topics: Topics, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Folded, refused, and refused with a reset; each crash is one more start."""
    for number in range(1, 40):
        clock = Clock()
        broker = MemoryBroker(clock)
        server = Remembering(broker, topics)
        server.feedback = "gd-sec"
        board = Device(tmp_path / str(number), broker, clock, server, training__min_minutes=1)
        board.add_samples(64)
        cut = Cut(number, moment)
        monkeypatch.setattr(OutboxFile, "transaction", lambda *a, cut=cut: cut(*a))
        crashes = 0
        for release, verdict in enumerate(("folded", "refused", "folded", "folded"), start=1):
            if release == 3:
                server.forget()
            server.verdict, server.release = verdict, release
            server.publish(files(release, feedback="gd-sec", threshold=0.01))
            end = clock.now + (100 if verdict == "refused" else 600)  # refusals slow the pace
            while clock.now < end:
                try:
                    board.run(end - clock.now)
                except CutError:
                    crashes += 1
                    board.restart()
        outbox = board.agent.parts.outbox
        assert board.run(4 * 3600, until=lambda o=outbox: not o.waiting())  # type: ignore[misc]
        assert agreed(board, server), f"ended {moment} transaction {number}"
        assert outbox.facts.read().folded >= 2
        monkeypatch.undo()
        if not crashes:
            break
    else:
        raise AssertionError("it never got through")
    assert number > 12
