"""The books of the devices of a simulated fleet: what each has learned, and where it is."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from broker.records.update_records import UpdateKey
from edge_agent.training.training_job import CONTEXT, Job
from models.codec.feedback import history_digest
from models.errors import PayloadError
from models.protocol.npz import read_vector
from models.protocol.update import UpdateHeader, context_in, decode_header
from models.task.params import Vector
from tools.simulation.learning.light_learning import Learning
from tools.simulation.machines.device_machine import DeviceMachine
from tools.simulation.machines.virtual_disk import Database, DatabaseError, untouched
from tools.simulation.promises.device_memory_law import DeviceMemoryLaw
from tools.simulation.promises.own_model_law import OwnModelLaw
from tools.simulation.promises.pace_law import PaceLaw
from tools.simulation.promises.share import Share
from tools.simulation.promises.trace import Trace

__all__ = ["TOLERANCE", "Book", "DeviceBooks"]

TOLERANCE = 1e-5  # of all that a device has learned


class Book:
    """What one device has learned, and where it is."""

    def __init__(self, size: int) -> None:
        self.installation = ""
        self.pending: dict[int, Vector] = {}  # by job: computed, perhaps committed
        self.job = 0  # the last one committed
        self.jobs = 0
        self.learned: npt.NDArray[np.float64] = np.zeros(size)
        self.scale = 1e-9  # sum of the norms of all that was learned
        self.payloads: dict[int, Vector] = {}  # by number of the update
        self.headers: dict[int, UpdateHeader] = {}  # likewise
        self.folded: set[int] = set()
        self.changes = -1  # of the database, when we last looked
        self.release = 0
        self.worst = 0.0  # relative imbalance
        self.memory = DeviceMemoryLaw(size)
        self.own = OwnModelLaw()


class DeviceBooks:
    """Promises 3 and 4, and the pace, of those devices that are ``watched``; None: of all.

    Promise 3 is that of the method ``feedback``: mass, or the agreement of two memories.
    """

    def __init__(
        self,
        trace: Trace,
        learning: Learning,
        pace: PaceLaw,
        *,
        watched: int | None,
        feedback: str = "residual",
    ) -> None:
        # The digest of what the server remembers of a device; None: it cannot be asked.
        self.remembered: Callable[[str], int | None] = lambda device: None
        self._feedback = feedback
        self.is_set_back = False  # the server was: no imbalance is reported any more
        self.watches_all = watched is None
        self._watched = frozenset(f"device-{number}" for number in range(watched or 0))
        self._trace = trace
        self._learning = learning
        self._size = learning.bundle.spec.shared_size
        self._pace = pace
        self._books: dict[str, Book] = {}

    def watches(self, device: str) -> bool:
        return self.watches_all or device in self._watched

    # -- what machines tell

    def on_learned(self, machine: DeviceMachine, job: Job, delta: Vector) -> None:
        self._trace.counts["trainings"] += 1
        if not self.watches(machine.name):
            return
        self._book(machine.name).pending[job.number] = delta
        self._pace.learned(machine.name, job, machine.beginnings[job.number])
        self._trace.say(machine.name, f"learned in job {job.number} on release {job.release}")

    def look(self, machine: DeviceMachine) -> None:
        """A machine has made a step, or has started."""
        if not self.watches(machine.name):
            return
        book = self._book(machine.name)
        database = machine.disk.databases.get(str(machine.disk.at / "outbox.db"))
        if database is None or database.total_changes == book.changes:
            return
        book.changes = database.total_changes
        if not book.jobs:  # one that was lost before it held anything is made anew, with others
            book.installation = _digits(database) or book.installation
        self._check_release(machine, book)
        self._check_mass(machine, database, book)

    # -- what the server's books tell and ask

    def on_folded(self, key: UpdateKey) -> None:
        """An update was folded, and that is committed."""
        book = self._books.get(key.device)
        if book is None:
            return
        if f"{key.installation:08x}" != book.installation:
            self._trace.broken("server", f"folded an update of installation {key.installation:08x}")
        book.folded.add(key.sequence)
        book.changes = -1  # look again

    def share(self, key: UpdateKey, *, is_folded: bool) -> Share | None:
        """Return what the update of ``key`` brings to a fold; None: its device never made it."""
        book = self._book(key.device)
        header = book.headers.get(key.sequence)
        if header is None:
            return None
        memory = header.extras.memory if header.extras else 0
        delta = book.payloads[key.sequence]
        return Share(key.device, delta, header.base, header.samples, memory, is_folded)

    # -- at the end

    def worst_imbalance(self) -> float:
        return max((book.worst for book in self._books.values()), default=0.0)

    def jobs(self) -> int:
        return sum(book.jobs for book in self._books.values())

    # -- the promises

    def _book(self, device: str) -> Book:
        if device not in self._books:
            self._books[device] = Book(self._size)
        return self._books[device]

    def _check_mass(self, machine: DeviceMachine, database: Database, book: Book) -> None:
        """Promise 3: nothing learned is lost, nothing counts twice."""
        try:
            job, residual = database.execute("SELECT job, residual FROM codec").fetchone()
        except (DatabaseError, TypeError):
            return  # the schema is not there yet
        if wrong := book.own.look(database, self._reads(machine)):
            self._trace.broken(machine.name, wrong)
        rows = database.execute("SELECT seq, header_size, data FROM updates").fetchall()
        delta = None
        if job != book.job:
            is_said = any(seq not in book.payloads for seq, _, _ in rows)
            delta = book.pending.pop(job, None)
            if delta is None:
                self._trace.broken(machine.name, f"job {job} was committed twice or never computed")
                return
            book.job = job
            book.jobs += 1
            if (
                wrong := self._pace.committed(machine.name, job, is_said=is_said)
            ) and not self.is_set_back:
                self._trace.broken(machine.name, wrong)
            book.learned += delta
            book.scale += float(np.linalg.norm(delta))
        in_flight = set()
        for seq, header_size, data in rows:
            in_flight.add(seq)
            if seq not in book.payloads:
                book.payloads[seq] = self._decoded(machine, database, data[header_size:])
                book.headers[seq], _ = decode_header(data[:header_size])
                self._trace.say(machine.name, f"queued update {seq}, {len(data)} bytes")
                if delta is not None and self._feedback != "residual":
                    self._remember(machine, database, book, seq, delta)
        if self._feedback != "residual":
            self._check_agreement(machine, database, book)
            return
        refunds = [row[0] for row in database.execute("SELECT seq FROM refunds")]
        total = np.zeros_like(book.learned)
        if residual is not None:
            try:
                data = _unseen(machine.disk.at / "codec" / residual)
                total += read_vector(data, size=self._size, name="residual")
            except (OSError, PayloadError) as error:
                self._trace.broken(machine.name, f"the residual is lost: {error}")
        for seq in (*sorted(in_flight | book.folded), *refunds):
            if seq in book.payloads:
                total += book.payloads[seq]
        gap = float(np.linalg.norm(total - book.learned)) / book.scale
        book.worst = max(book.worst, gap)
        if gap > TOLERANCE and not self.is_set_back:
            self._trace.broken(
                machine.name,
                f"residual + in flight + folded differs from learned by {gap:.2g}: "
                f"in flight {sorted(in_flight)}, folded {sorted(book.folded)}, refunds {refunds}",
            )

    def _remember(
        self, machine: DeviceMachine, database: Database, book: Book, seq: int, delta: Vector
    ) -> None:
        """A training was committed whose update was made against a memory."""
        history, next_history = database.execute(
            "SELECT history, next_history FROM codec, updates WHERE seq = ?", (seq,)
        ).fetchone()
        said = book.payloads[seq]
        if next_history is None:
            self._trace.broken(machine.name, f"update {seq} names no memory to come")
            return
        book.memory.committed(seq, delta, said, history, next_history, self._reads(machine))

    def _check_agreement(self, machine: DeviceMachine, database: Database, book: Book) -> None:
        """Promise 3 of a method with a memory."""
        remembered = None if self.is_set_back else self.remembered(machine.name)
        try:
            wrong = book.memory.look(
                database, remembered, self._reads(machine), owes=self._feedback == "gd-sec"
            )
        except (OSError, PayloadError) as error:
            wrong = f"what is carried is lost: {error}"
        if wrong and not self.is_set_back:
            self._trace.broken(machine.name, wrong)

    def _reads(self, machine: DeviceMachine) -> Callable[[str], Vector]:
        def read(name: str) -> Vector:
            data = _unseen(machine.disk.at / "codec" / name)
            kind = name.partition("-")[0]
            member = {"owed": "residual", "tuned": "parameters"}.get(kind, kind)
            return read_vector(data, size=self._size, name=member)

        return read

    def _decoded(self, machine: DeviceMachine, database: Database, payload: bytes) -> Vector:
        context = None
        if (digest := context_in(payload)) is not None:
            self._trace.counts["with context"] += 1
            read = self._reads(machine)
            (history,) = database.execute("SELECT history FROM codec").fetchone()
            try:
                context = read(history) if history else None
            except FileNotFoundError:
                context = None
            if context is None or history_digest(context) != digest:
                context = read(CONTEXT.format(digest))
        return self._learning.decompress(payload, context=context)

    def _check_release(self, machine: DeviceMachine, book: Book) -> None:
        """Promise 4: the active release is whole, and never an older one."""
        if machine.agent is None or not machine.is_running:
            return
        name, broken = machine.name, self._trace.broken
        slots = machine.agent.parts.slots
        active = slots.active
        if active is None:
            if book.release:
                self._trace.broken(
                    machine.name, f"release {book.release} was active, now there is none"
                )
                book.release = 0
            return
        if active.release == book.release:
            return
        if active.release < book.release:
            broken(name, f"release {active.release} follows {book.release}")
        book.release = active.release
        self._trace.say(name, f"runs release {active.release}")
        for kind, artifact in active.artifacts.items():
            if hashlib.sha256(_unseen(slots.path(active, kind))).hexdigest() != artifact.sha256:
                self._trace.broken(
                    machine.name, f"the {kind} file of the active release is damaged"
                )


def _digits(outbox: Database) -> str:
    """Return whose ``outbox`` is; "" while it is being made."""
    try:
        return str(outbox.execute("SELECT installation FROM owner").fetchone()[0])
    except (DatabaseError, TypeError):
        return ""


def _unseen(path: Path | str) -> bytes:
    """Read a file without the simulated disk noticing."""
    with untouched():
        return Path(path).read_bytes()
