"""The books of the server of a simulated fleet: what it settled, and what it has promised."""

from collections.abc import Collection, Sequence

from broker.records.update_records import UpdateKey, WaitingUpdate
from broker.state.artifact_store import ARTIFACTS
from models.errors import PayloadError
from models.protocol.manifest import decode_manifest
from models.protocol.messages import Receipts, decode_message
from models.protocol.topics import DeviceTopic, Topics, UpdateChunk
from models.transport.link import Received
from tools.simulation.machines.server_machine import ServerMachine
from tools.simulation.machines.virtual_disk import Database, DatabaseError
from tools.simulation.machines.virtual_network import Damaged
from tools.simulation.promises.device_books import DeviceBooks
from tools.simulation.promises.folded_sum import FoldedSum
from tools.simulation.promises.operator import Operator
from tools.simulation.promises.pace_law import PaceLaw
from tools.simulation.promises.trace import Trace

__all__ = ["ServerBooks"]

FINAL = ("folded", "refused")
UNSEEN = -1  # instead of a release: refused before it was whole, in no fold


class _Step:
    """What the server said within one step: perhaps committed, perhaps not."""

    def __init__(self) -> None:
        self.given_up: set[UpdateKey] = set()
        self.had_room = True
        self.settling: list[tuple[UpdateKey, str, int]] = []
        self.forgotten: list[str] = []  # devices, before anything was settled


class ServerBooks:
    """Promises 1 and 2, and that what was folded is in the weights.

    Promise 1 is checked for all devices, the others for those that have books.
    """

    def __init__(
        self, trace: Trace, devices: DeviceBooks, pace: PaceLaw, *, fleet: str, size: int
    ) -> None:
        self.settled: dict[UpdateKey, tuple[str, int]] = {}  # how, and in which release
        self._step = _Step()  # of the server, that is under way
        self.operator = Operator(trace, self.database)
        self._promised: dict[UpdateKey, str] = {}
        self._trace = trace
        self._devices = devices
        self._pace = pace
        self._topics = Topics(fleet)
        self._size = size
        self._server: ServerMachine | None = None
        self._registry = ""
        self._life = -1
        self._changes = -1  # of its registry, when we last looked
        self._sum: FoldedSum | None = None  # None: the weights are not looked at

    def watch(self, machine: ServerMachine) -> None:
        self._server = machine
        self._registry = str(machine.disk.at / "registry.db")
        policy = machine.config.task[0].aggregation
        if self._devices.watches_all and policy.rule == "mean":
            self._sum = FoldedSum(machine.disk.at / ARTIFACTS, self._size, machine.config.task[0])
        self._devices.remembered = self._remembered
        machine.on_publish = self._on_publish
        machine.on_acknowledge = self._on_acknowledge

    def _remembered(self, device: str) -> int | None:
        """Return the digest of the memory of ``device``, 0: none; None: nobody can be asked."""
        database = self.database()
        if database is None or database.in_transaction:
            return None
        try:
            row = database.execute(
                "SELECT digest FROM memories WHERE device = ?", (device,)
            ).fetchone()
        except DatabaseError:  # the tables are not there yet
            return None
        return int(row[0]) if row else 0

    @property
    def given_up(self) -> int:
        """Of how many unfinished updates the server gave up what it had, in this step."""
        return len(self._step.given_up)

    # -- what the server tells

    def on_settle(self, update: WaitingUpdate, state: str, release: int) -> None:
        """The server is about to commit the fate of an update."""
        self._step.settling.append((update.key, state, release))

    def on_forget_memory(self, device: str) -> None:
        """The server is about to commit that it remembers nothing of ``device``."""
        if not self._step.settling:  # else it was part of the fold: see `ServerMemory.look`
            self._step.forgotten.append(device)

    def on_refuse_unseen(self, key: UpdateKey) -> None:
        """The server is about to commit that it will never fold an update that is not whole."""
        self._step.settling.append((key, "refused", UNSEEN))

    def on_drop(self, key: UpdateKey) -> None:
        """The server gives up what it has of an unfinished update."""
        self._step.given_up.add(key)

    def on_no_room(self) -> None:
        """The server has no room for a chunk."""
        self._step.had_room = False

    def set_back(self, lost: Collection[UpdateKey]) -> None:
        """The server was set back to a time at which it had not settled ``lost``.

        What it folded since is gone with it, so that no imbalance is reported any more.
        """
        self.settled = {k: v for k, v in self.settled.items() if k not in lost}
        self._promised.clear()
        self._devices.is_set_back = True
        if self._sum is not None:
            self._sum.begin_anew()

    # -- the promises

    def look(self, machine: ServerMachine) -> None:
        """The server has made a step, or has started."""
        database = self.database()
        if database is None:
            return
        step, self._step = self._step, _Step()
        settled = []
        for key, state, release in step.settling:
            found = _state_of(database, key)
            if release > 0:
                is_made = database.execute("SELECT 1 FROM releases WHERE number = ?", (release,))
                if not is_made.fetchone():
                    continue  # it was not committed after all
                if found != state:
                    self._broken(f"{key.update_id} was {state}, and nobody knows it")
            elif found != state:
                continue
            self._settle(key, state, max(release, 0))
            if release != UNSEEN:
                settled.append((key, state))
        if self._sum is not None and database.total_changes != self._changes:
            self._changes = database.total_changes
            self._sum.forget(database, step.forgotten)
            self._look_at_weights(self._sum, database, settled)
        if settled:
            self._look_at_count(database)
        if machine.is_running and machine.crashes != self._life:
            self._life = machine.crashes
            self.check_promises()

    def check_promises(self) -> None:
        """Promise 2: what a receipt said is still so."""
        database = self.database()
        if database is None:
            return
        for key, promised in self._promised.items():
            state = _state_of(database, key)
            if state is None or (promised in FINAL and state != promised):
                self._broken(f"{key.device} {key.update_id}: receipt said {promised}, is {state}")

    def worst_fold(self) -> float:
        return self._sum.worst if self._sum is not None else 0.0

    def _broken(self, what: str) -> None:
        self._trace.broken("server", what)

    def database(self) -> Database | None:
        assert self._server is not None
        return self._server.disk.databases.get(self._registry)

    def _look_at_count(self, database: Database) -> None:
        """Promise 3 for devices: a manifest tells how many updates are in its release."""
        (text,) = database.execute(
            "SELECT manifest FROM releases ORDER BY number DESC LIMIT 1"
        ).fetchone()
        manifest = decode_manifest(text)
        known = self._pace.folded_until(manifest.release)
        if manifest.folded != known and not self._devices.is_set_back:
            self._broken(
                f"release {manifest.release} says that {manifest.folded} updates are in it, "
                f"{known} were folded",
            )

    def _look_at_weights(
        self, sums: FoldedSum, database: Database, settled: Sequence[tuple[UpdateKey, str]]
    ) -> None:
        """Promise 3 again: what is said to be folded is in the parameters, once."""
        shares = []
        for key, state in settled:
            share = self._devices.share(key, is_folded=state == "folded")
            if share is None:
                self._broken(f"{state} {key.update_id}, which {key.device} never made")
                return
            shares.append(share)
        if wrong := sums.look(database, shares):
            self._broken(wrong)

    def _settle(self, key: UpdateKey, state: str, release: int) -> None:
        """Promise 1: an update is folded at most once, and never both folded and refused."""
        before = self.settled.get(key)
        self._trace.say("server", f"{state} {key.device} {key.update_id} release {release}")
        if before is not None:
            self._broken(f"{key.device} {key.update_id} was {before[0]}, and now is {state} again")
        self.settled[key] = (state, release)
        self._pace.settled(key.device, key.sequence, state, release)
        self._trace.counts[state] += 1
        if state == "folded":
            self._devices.on_folded(key)

    def _on_publish(self, topic: str, payload: bytes) -> None:
        if not topic.endswith("/receipt"):
            return
        try:
            place = self._topics.parse(topic)
        except PayloadError:
            return
        if not isinstance(place, DeviceTopic) or place.kind != "receipt":
            return
        if not self._devices.watches(place.device):
            return
        database = self.database()
        if database is not None and database.in_transaction:
            self._broken("a receipt left before its transaction was committed")
        for receipt in decode_message(payload, Receipts).receipts:
            if receipt.state in ("stored", *FINAL):
                key = UpdateKey.parse(place.device, receipt.update)
                self._promised[key] = receipt.state
                if database is not None and _state_of(database, key) is None:
                    self._broken(f"a receipt for {receipt.update}, which is not kept")

    def _on_acknowledge(self, message: Received) -> None:
        """What the broker need not repeat is kept (as long as the disk takes it)."""
        if "/update/" not in message.topic:
            return
        try:
            place = self._topics.parse(message.topic)
        except PayloadError:
            return
        if not isinstance(place, UpdateChunk) or not self._devices.watches(place.device):
            return
        database = self.database()
        if database is None:
            return
        if database.in_transaction:
            self._broken(f"{message.topic} was acknowledged before it was committed")
        key = UpdateKey.parse(place.device, place.update_id)
        kept = (
            _state_of(database, key)
            or database.execute(
                "SELECT 1 FROM chunks WHERE device = ? AND installation = ? AND sequence = ? "
                "AND number = ?",
                (*key, place.number),
            ).fetchone()
        )
        if (
            key in self._step.given_up
            or not self._step.had_room
            or isinstance(message.payload, Damaged)
        ):
            return  # it need not be: its device was promised nothing, and sends it again
        server = self._server
        if not kept and server and server.disk_is_fine and not server.disk_was_bad:
            self._broken(f"{message.topic} was acknowledged and is not kept")


def _state_of(database: Database, key: UpdateKey) -> str | None:
    place = "device = ? AND installation = ? AND"
    row = database.execute(f"SELECT state FROM updates WHERE {place} sequence = ?", key).fetchone()
    if row is None:
        row = database.execute(
            f"SELECT state FROM settled WHERE {place} first <= ? AND last >= ?",
            (*key, key.sequence),
        ).fetchone()
    return row[0] if row else None
