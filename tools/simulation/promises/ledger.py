"""Keeps the books of a simulated fleet and says which promise was broken.

The numbers are those of docs/reliability.md: (1) an update is folded at most once; (2) what a
receipt says survives; (3) residual + in flight + folded = learned, and what was folded is in the
weights (`folded_sum.py`); (4) a device always has a whole release; (7) disk use is
bounded. Looked at after every step and every crash of every machine.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.records.update_records import UpdateKey, WaitingUpdate
from broker.releases.artifact_store import ARTIFACTS
from edge_agent.training.training_job import CONTEXT
from models.errors import PayloadError
from models.protocol.manifest import decode_manifest
from models.protocol.messages import Receipts, decode_message
from models.protocol.npz import read_vector
from models.protocol.topics import DeviceTopic, Topics, UpdateChunk
from models.protocol.update import UpdateHeader, context_in, decode_header
from models.task.params import Vector
from models.transport.link import Received
from tools.simulation.learning.light_learning import Learning
from tools.simulation.machines.machines import DeviceMachine, Machine, ServerMachine
from tools.simulation.machines.timeline import Timeline
from tools.simulation.machines.virtual_disk import Database, DatabaseError, untouched
from tools.simulation.machines.virtual_network import Damaged
from tools.simulation.promises.folded_sum import FoldedSum, Share
from tools.simulation.promises.pace_law import PaceLaw
from tools.simulation.scenario.fleet_settings import Violation

__all__ = ["TOLERANCE", "Ledger", "Violation"]

TOLERANCE = 1e-5  # of all that a device has learned
FINAL = ("folded", "refused")
UNSEEN = -1  # instead of a release: refused before it was whole, in no fold


class _Book:
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


class Ledger:
    """The books of one fleet; an `Observer` of its machines.

    ``watched``: how many of the devices have books; promise 1 is checked for all of them.
    """

    def __init__(
        self,
        timeline: Timeline,
        learning: Learning,
        fleet: str,
        *,
        traced: bool,
        pace: PaceLaw,
        watched: int | None = None,
    ) -> None:
        self._watched = (
            None if watched is None else frozenset(f"device-{number}" for number in range(watched))
        )
        self._learning = learning
        self._pace = pace
        self.violations: list[Violation] = []
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._timeline = timeline
        self._spec = learning.bundle.spec
        self._topics = Topics(fleet)
        self._traced = traced
        self._books: dict[str, _Book] = {}
        self._server: ServerMachine | None = None
        self._settling: list[tuple[UpdateKey, str, int]] = []
        self._settled: dict[UpdateKey, tuple[str, int]] = {}
        self._promised: dict[UpdateKey, str] = {}
        self.given_up: set[UpdateKey] = set()  # in this step of the server
        self._had_room = True  # likewise
        self._server_life = -1
        self._server_changes = -1  # of its registry, when we last looked
        self._registry = ""
        self._is_set_back = False
        self._sum: FoldedSum | None = None  # None: the weights are not looked at

    # -- `Observer`

    def say(self, machine: str, what: str) -> None:
        line = f"{_clock(self._timeline.now)} {machine:>12}  {what}"
        self._digest.update(line.encode())
        if self._traced:
            self.trace.append(line)

    def broken(self, machine: str, what: str) -> None:
        self.say(machine, f"BROKEN: {what}")
        self.violations.append(Violation(self._timeline.now, machine, what))
        self._timeline.is_over = True  # what follows would only follow from this

    def looked_at(self, machine: Machine) -> None:
        if isinstance(machine, DeviceMachine):
            if self._keeps_books_of(machine.name):
                self._look_at_device(machine)
        elif isinstance(machine, ServerMachine):
            self._look_at_server(machine)

    def _keeps_books_of(self, device: str) -> bool:
        return self._watched is None or device in self._watched

    # -- what the world tells

    def watch_server(self, machine: ServerMachine) -> None:
        self._server = machine
        self._registry = str(machine.disk.at / "registry.db")
        policy = machine.config.task[0].aggregation
        if self._watched is None and policy.rule == "mean":
            artifacts, size = machine.disk.at / ARTIFACTS, self._spec.shared_size
            self._sum = FoldedSum(artifacts, size, policy)
        machine.on_publish = self._on_publish
        machine.on_acknowledge = self._on_acknowledge

    def on_learned(self, machine: DeviceMachine, job: Any, delta: Vector) -> None:
        self.counts["trainings"] += 1
        if not self._keeps_books_of(machine.name):
            return
        self._book(machine).pending[job.number] = delta
        self._pace.learned(machine.name, job, machine.beginnings[job.number])
        self.say(machine.name, f"learned in job {job.number} on release {job.release}")

    def on_settle(self, update: WaitingUpdate, state: str, release: int) -> None:
        """The server is about to commit the fate of an update."""
        self._settling.append((update.key, state, release))

    def on_refuse_unseen(self, key: UpdateKey) -> None:
        """The server is about to commit that it will never fold an update that is not whole."""
        self._settling.append((key, "refused", UNSEEN))

    def on_drop(self, key: UpdateKey) -> None:
        """The server gives up what it has of an unfinished update."""
        self.given_up.add(key)

    def on_no_room(self) -> None:
        """The server has no room for a chunk."""
        self._had_room = False

    def ask_to_forget(self, device: str) -> None:
        """An operator wants ``device`` forgotten, in a process of his own; the server may be down.

        It is all the same to every promise: nothing of it is taken out of these books.
        """
        database = self._database()
        if (
            database is None
            or not database.execute(
                "SELECT 1 FROM sqlite_master WHERE name = 'forgotten'"
            ).fetchone()
        ):
            return
        self.say("operator", f"forget {device}")
        database.execute("INSERT OR REPLACE INTO forgotten VALUES (?, 0.0, 0)", (device,))
        self.counts["forgets"] += 1

    def forgetting(self, devices: set[str]) -> list[str]:
        """Return what is not yet as it should be of those who were forgotten and came back."""
        database = self._database()
        if database is None:
            return []
        asked = database.execute("SELECT device FROM forgotten WHERE step = 0").fetchall()
        known = {device for (device,) in database.execute("SELECT device FROM devices")}
        return [f"{device} is not forgotten" for (device,) in asked] + [
            f"{device} was forgotten and did not come back" for device in devices - known
        ]

    def forget(self, lost: Collection[UpdateKey]) -> None:
        """The server was set back to a time at which it had not settled ``lost``.

        What it folded since is gone with it, so that no imbalance is reported any more.
        """
        self._settled = {k: v for k, v in self._settled.items() if k not in lost}
        self._promised.clear()
        self._is_set_back = True
        if self._sum is not None:
            self._sum.begin_anew()

    def digest(self) -> str:
        """Return a number for everything that happened, to compare two runs."""
        return self._digest.hexdigest()[:16]

    # -- devices

    def _book(self, machine: DeviceMachine) -> _Book:
        return self._book_of(machine.name)

    def _book_of(self, device: str) -> _Book:
        if device not in self._books:
            self._books[device] = _Book(self._spec.shared_size)
        return self._books[device]

    def _look_at_device(self, machine: DeviceMachine) -> None:
        book = self._book(machine)
        database = machine.disk.databases.get(str(machine.disk.at / "outbox.db"))
        if database is None or database.total_changes == book.changes:
            return
        book.changes = database.total_changes
        if not book.jobs:  # one that was lost before it held anything is made anew, with others
            book.installation = _digits(database) or book.installation
        self._check_release(machine, book)
        self.check_mass(machine, database, book)

    def check_mass(self, machine: DeviceMachine, database: Database, book: _Book) -> None:
        """Invariant 3: nothing learned is lost, nothing counts twice."""
        try:
            job, residual = database.execute("SELECT job, residual FROM codec").fetchone()
        except (DatabaseError, TypeError):
            return  # the schema is not there yet
        if job != book.job:
            delta = book.pending.pop(job, None)
            if delta is None:
                self.broken(machine.name, f"job {job} was committed twice or never computed")
                return
            book.job = job
            book.jobs += 1
            if (wrong := self._pace.committed(machine.name, job)) and not self._is_set_back:
                self.broken(machine.name, wrong)
            book.learned += delta
            book.scale += float(np.linalg.norm(delta))
        in_flight = set()
        for seq, header_size, data in database.execute(
            "SELECT seq, header_size, data FROM updates"
        ):
            in_flight.add(seq)
            if seq not in book.payloads:
                book.payloads[seq] = self._decoded(machine, data[header_size:])
                book.headers[seq], _ = decode_header(data[:header_size])
                self.say(machine.name, f"queued update {seq}, {len(data)} bytes")
        refunds = [row[0] for row in database.execute("SELECT seq FROM refunds")]
        total = np.zeros_like(book.learned)
        if residual is not None:
            try:
                data = _read(machine.disk.at / "codec" / residual)
                total += read_vector(data, size=self._spec.shared_size, name="residual")
            except (OSError, PayloadError) as error:
                self.broken(machine.name, f"the residual is lost: {error}")
        for seq in (*sorted(in_flight | book.folded), *refunds):
            if seq in book.payloads:
                total += book.payloads[seq]
        gap = float(np.linalg.norm(total - book.learned)) / book.scale
        book.worst = max(book.worst, gap)
        if gap > TOLERANCE and not self._is_set_back:
            self.broken(
                machine.name,
                f"residual + in flight + folded differs from learned by {gap:.2g}: "
                f"in flight {sorted(in_flight)}, folded {sorted(book.folded)}, refunds {refunds}",
            )

    def _decoded(self, machine: DeviceMachine, payload: bytes) -> Vector:
        context = None
        if (digest := context_in(payload)) is not None:
            self.counts["with context"] += 1
            data = _read(machine.disk.at / "codec" / CONTEXT.format(digest))
            context = read_vector(data, size=self._spec.shared_size, name="context")
        return self._learning.decompress(payload, context=context)

    def _check_release(self, machine: DeviceMachine, book: _Book) -> None:
        """Invariant 4: the active release is whole, and never an older one."""
        if machine.agent is None or not machine.is_running:
            return
        slots = machine.agent.parts.slots
        active = slots.active
        if active is None:
            if book.release:
                self.broken(machine.name, f"release {book.release} was active, now there is none")
                book.release = 0
            return
        if active.release == book.release:
            return
        if active.release < book.release:
            self.broken(machine.name, f"release {active.release} follows {book.release}")
        book.release = active.release
        self.say(machine.name, f"runs release {active.release}")
        for kind, artifact in active.artifacts.items():
            if hashlib.sha256(_read(slots.path(active, kind))).hexdigest() != artifact.sha256:
                self.broken(machine.name, f"the {kind} file of the active release is damaged")

    def check_disk(self, machine: Machine, limit: int) -> None:
        """Invariant 7: disk use is bounded."""
        used = machine.disk.used()
        self.counts["disk checks"] += 1
        if used > limit:
            self.broken(machine.name, f"{used} bytes on disk, {limit} are allowed")

    # -- the server

    def _database(self) -> Database | None:
        assert self._server is not None
        return self._server.disk.databases.get(self._registry)

    def _look_at_server(self, machine: ServerMachine) -> None:
        database = self._database()
        if database is None:
            return
        settling, self._settling = self._settling, []
        self.given_up.clear()
        self._had_room = True
        settled = []
        for key, state, release in settling:
            found = self._state_of(database, key)
            if release > 0:
                is_made = database.execute("SELECT 1 FROM releases WHERE number = ?", (release,))
                if not is_made.fetchone():
                    continue  # it was not committed after all
                if found != state:
                    self.broken("server", f"{key.update_id} was {state}, and nobody knows it")
            elif found != state:
                continue
            self._settle(key, state, max(release, 0))
            if release != UNSEEN:
                settled.append((key, state))
        if self._sum is not None and database.total_changes != self._server_changes:
            self._server_changes = database.total_changes
            self._look_at_weights(self._sum, database, settled)
        if settled:
            self._look_at_count(database)
        if machine.is_running and machine.crashes != self._server_life:
            self._server_life = machine.crashes
            self.check_promises()

    def _look_at_count(self, database: Database) -> None:
        """Invariant 3 for devices: a manifest tells how many updates are in its release."""
        (text,) = database.execute(
            "SELECT manifest FROM releases ORDER BY number DESC LIMIT 1"
        ).fetchone()
        manifest = decode_manifest(text)
        known = self._pace.folded_until(manifest.release)
        if manifest.folded != known and not self._is_set_back:
            self.broken(
                "server",
                f"release {manifest.release} says that {manifest.folded} updates are in it, "
                f"{known} were folded",
            )

    def _look_at_weights(
        self, sums: FoldedSum, database: Database, settled: Sequence[tuple[UpdateKey, str]]
    ) -> None:
        """Invariant 3 again: what is said to be folded is in the parameters, once."""
        shares = []
        for key, state in settled:
            book = self._book_of(key.device)
            header = book.headers.get(key.sequence)
            if header is None:
                self.broken("server", f"{state} {key.update_id}, which {key.device} never made")
                return
            delta = book.payloads[key.sequence]
            shares.append(Share(delta, header.base, header.samples, state == "folded"))
        if wrong := sums.look(database, shares):
            self.broken("server", wrong)

    def _settle(self, key: UpdateKey, state: str, release: int) -> None:
        """Invariant 1: an update is folded at most once, and never both folded and refused."""
        before = self._settled.get(key)
        self.say("server", f"{state} {key.device} {key.update_id} release {release}")
        if before is not None:
            self.broken(
                "server", f"{key.device} {key.update_id} was {before[0]}, and now is {state} again"
            )
        self._settled[key] = (state, release)
        self._pace.settled(key.device, key.sequence, state, release)
        self.counts[state] += 1
        book = self._books.get(key.device)
        if book is not None and state == "folded":
            if f"{key.installation:08x}" != book.installation:
                self.broken("server", f"folded an update of installation {key.installation:08x}")
            book.folded.add(key.sequence)
            book.changes = -1  # look again

    def check_promises(self) -> None:
        """Invariant 2: what a receipt said is still so."""
        database = self._database()
        if database is None:
            return
        for key, promised in self._promised.items():
            state = self._state_of(database, key)
            if state is None or (promised in FINAL and state != promised):
                self.broken(
                    "server", f"{key.device} {key.update_id}: receipt said {promised}, is {state}"
                )

    @staticmethod
    def _state_of(database: Database, key: UpdateKey) -> str | None:
        place = "device = ? AND installation = ? AND"
        row = database.execute(
            f"SELECT state FROM updates WHERE {place} sequence = ?", key
        ).fetchone()
        if row is None:
            row = database.execute(
                f"SELECT state FROM settled WHERE {place} first <= ? AND last >= ?",
                (*key, key.sequence),
            ).fetchone()
        return row[0] if row else None

    def _on_publish(self, topic: str, payload: bytes) -> None:
        if not topic.endswith("/receipt"):
            return
        try:
            place = self._topics.parse(topic)
        except PayloadError:
            return
        if not isinstance(place, DeviceTopic) or place.kind != "receipt":
            return
        if not self._keeps_books_of(place.device):
            return
        database = self._database()
        if database is not None and database.in_transaction:
            self.broken("server", "a receipt left before its transaction was committed")
        for receipt in decode_message(payload, Receipts).receipts:
            if receipt.state in ("stored", *FINAL):
                key = UpdateKey.parse(place.device, receipt.update)
                self._promised[key] = receipt.state
                if database is not None and self._state_of(database, key) is None:
                    self.broken("server", f"a receipt for {receipt.update}, which is not kept")

    def _on_acknowledge(self, message: Received) -> None:
        """What the broker need not repeat is kept (as long as the disk takes it)."""
        assert self._server is not None
        if "/update/" not in message.topic:
            return
        try:
            place = self._topics.parse(message.topic)
        except PayloadError:
            return
        if not isinstance(place, UpdateChunk) or not self._keeps_books_of(place.device):
            return
        database = self._database()
        if database is None:
            return
        if database.in_transaction:
            self.broken("server", f"{message.topic} was acknowledged before it was committed")
        key = UpdateKey.parse(place.device, place.update_id)
        kept = (
            self._state_of(database, key)
            or database.execute(
                "SELECT 1 FROM chunks WHERE device = ? AND installation = ? AND sequence = ? "
                "AND number = ?",
                (*key, place.number),
            ).fetchone()
        )
        if key in self.given_up or not self._had_room or isinstance(message.payload, Damaged):
            return  # it need not be: its device was promised nothing, and sends it again
        if not kept and self._server.disk_is_fine and not self._server.disk_was_bad:
            self.broken("server", f"{message.topic} was acknowledged and is not kept")

    # -- at the end

    def worst_imbalance(self) -> float:
        return max((book.worst for book in self._books.values()), default=0.0)

    def worst_fold(self) -> float:
        return self._sum.worst if self._sum is not None else 0.0

    def jobs(self) -> int:
        return sum(book.jobs for book in self._books.values())


def _digits(outbox: Database) -> str:
    """Return whose ``outbox`` is; "" while it is being made."""
    try:
        return str(outbox.execute("SELECT installation FROM owner").fetchone()[0])
    except (DatabaseError, TypeError):
        return ""


def _read(path: Path | str) -> bytes:
    """Read a file without the simulated disk noticing."""
    with untouched():
        return Path(path).read_bytes()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours:4d}:{minutes:02d}:{rest:06.3f}"
