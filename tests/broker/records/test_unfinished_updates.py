"""What unfinished updates may take, also of a device that never says how large they are."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.receiving.incoming import arrived
from broker.receiving.update_inbox import MAX_CHUNK, InboxLimits, TaskView, UpdateInbox
from broker.records import update_records
from broker.records.device_records import DeviceRecords
from broker.records.partial_records import Partial, PartialRecords
from broker.records.registry import Registry
from broker.records.schema import MIN_CHUNK
from broker.records.update_records import UpdateKey, UpdateRecords
from models.errors import PayloadError
from models.host.durable import open_database
from models.protocol.chunked_transfer import split
from models.protocol.topics import UpdateChunk

LARGEST = 400_000
LIMIT = 1_000_000
TASKS = {"leaves": TaskView(5, LARGEST)}
Send = Callable[..., None]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Those that registries open."""
    opened = []

    def watched(path: Path) -> sqlite3.Connection:
        opened.append(open_database(path))
        return opened[-1]

    monkeypatch.setattr("broker.records.registry.open_database", watched)
    return opened


@pytest.fixture
def registry(tmp_path: Path, connections: list[sqlite3.Connection]) -> Iterator[Registry]:
    registry = Registry(tmp_path / "registry.db", "fleet")
    yield registry
    registry.close()


@pytest.fixture
def updates(registry: Registry) -> UpdateRecords:
    return UpdateRecords(registry, is_owner=True)


@pytest.fixture
def send(registry: Registry, updates: UpdateRecords) -> Send:
    """Return a function by which a device sends a chunk, each a second after the last."""
    inbox = UpdateInbox(DeviceRecords(registry), updates, InboxLimits(LIMIT, 10**9, 1000))
    now = 1000.0

    def send(device: str, sequence: int, number: int, size: int) -> None:
        nonlocal now
        now += 1
        with registry.transaction():
            chunk = UpdateChunk(device, f"a0a0a0a0-{sequence}", number)
            inbox.take_chunk(arrived(chunk, bytes(size)), TASKS, now)

    return send


def key(device: str, sequence: int) -> UpdateKey:
    return UpdateKey(device, 0xA0A0A0A0, sequence)


def test_a_device_that_withholds_chunk_0_keeps_to_one_update(
    updates: UpdateRecords, send: Send
) -> None:
    send("honest", 1, 1, 32_768)
    for number in range(1, 4):
        send("evil", 1, number, MAX_CHUNK)
    for number in range(4, 40):
        with pytest.raises(PayloadError, match="without the first"):
            send("evil", 1, number, MAX_CHUNK)
    assert updates.partials.partial_bytes("evil") <= LARGEST
    assert updates.partials.partial(key("honest", 1))


def test_where_all_have_too_much_a_device_makes_room_with_its_own_first(
    updates: UpdateRecords, send: Send
) -> None:
    """The honest one is longest untouched, and small."""
    send("honest", 1, 1, 32_768)
    for sequence in range(1, 12):
        for number in (1, 2):
            send("evil", sequence, number, MAX_CHUNK)
            assert updates.partials.partial_bytes() <= LIMIT
    assert updates.partials.partial(key("honest", 1))
    for number in (1, 2):  # it has nothing else: now the one longest untouched goes
        send("other", 1, number, MAX_CHUNK)
    assert updates.partials.partial(key("honest", 1)) is None
    assert updates.partials.partial(key("other", 1))
    assert updates.partials.partial_bytes() <= LIMIT


def test_short_chunks_do_not_pile_up(updates: UpdateRecords, send: Send) -> None:
    """Only the last of an update may be short; whatever comes before chunk 0 may be that one."""
    send("dev-1", 1, 9, MIN_CHUNK - 1)
    send("dev-1", 1, 9, MIN_CHUNK - 1)
    send("dev-1", 1, 3, MIN_CHUNK)
    with pytest.raises(PayloadError, match="only the last"):
        send("dev-1", 1, 8, 1)
    assert updates.partials.chunk_sizes(key("dev-1", 1)) == {9: MIN_CHUNK - 1, 3: MIN_CHUNK}
    send("dev-1", 1, 11, 20)  # so the ninth was not the last, but lost a part on its way
    assert updates.partials.chunk_sizes(key("dev-1", 1)) == {11: 20, 3: MIN_CHUNK}


def test_updates_that_are_refused_unseen_are_forgotten_without_a_fold(
    registry: Registry, updates: UpdateRecords, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage as the first chunk of ever new updates: what became of them stays, as one range."""
    monkeypatch.setattr(update_records, "TRIM_EVERY", 10)
    monkeypatch.setattr(UpdateRecords.forget_old_headers, "__defaults__", (20,))
    for sequence in range(1, 101):
        send("evil", sequence, 0, 1)
    assert registry.query("SELECT COUNT(*) FROM updates") == [(20,)]
    assert updates.settled.ranges_of("evil") == 1
    assert updates.receipt(key("evil", 1)).state == "refused"


def test_what_a_chunk_costs_does_not_grow_with_what_others_have_sent(
    connections: list[sqlite3.Connection], send: Send
) -> None:
    """Counted in rows of the registry that a chunk makes SQLite look at."""
    (database,) = connections
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def cost_of(sequence: int) -> int:
        nonlocal steps
        steps = 0
        database.set_progress_handler(count, 10)  # instructions
        send("probe", sequence, 1, 8192)
        database.set_progress_handler(None, 0)
        return steps

    send("probe", 1, 2, 8192)
    few = cost_of(1)
    for device in range(80):
        send(f"dev-{device}", 1, 1, 8192)
    send("probe", 2, 2, 8192)
    assert cost_of(2) <= few + 20


@given(st.binary(min_size=1, max_size=300), st.integers(1, 64), st.data())
def test_any_order_with_any_repeats_gives_the_payload_exactly_once(
    payload: bytes, chunk_size: int, data: st.DataObject
) -> None:
    chunks = list(split(payload, chunk_size))
    once = data.draw(st.permutations(range(len(chunks))))
    repeats = data.draw(st.lists(st.integers(0, len(chunks) - 1), max_size=20))
    places = data.draw(st.lists(st.integers(0, len(chunks)), min_size=20, max_size=20))
    order = list(once)
    for number, place in zip(repeats, places, strict=False):
        order.insert(place, number)
    registry = Registry(":memory:", "fleet")
    records, partial = PartialRecords(registry, is_owner=True), Partial(len(payload), chunk_size)
    seen: set[int] = set()
    for number in order:
        missing = records.missing(key("dev-1", 1), partial)
        assert missing == tuple(i for i in range(len(chunks)) if i not in seen)
        is_new = records.keep_chunk(key("dev-1", 1), number, chunks[number])
        assert is_new == (number not in seen)
        seen.add(number)
    assert records.missing(key("dev-1", 1), partial) == ()
    assert records.assemble(key("dev-1", 1)) == payload
    assert records.held(key("dev-1", 1)) == (len(chunks), len(payload))
    registry.close()
