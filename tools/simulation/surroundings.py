"""What stands in for the world around agent and server while a fleet is simulated.

How often they look, and where their identities come from, are arguments of theirs (`Pace`). What
is replaced here by name: always what the books must hear of (`witnessed`); in a small fleet the
server's limits, so that it meets them (`short_of_room`); in a large one, whose disks do not fail,
what costs time (`quick`): databases lie in memory, nothing is synced, and pure functions remember
their last answers, since all devices read the same release. The decisions are the product's in all.
"""

import contextlib
import gc
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import broker.assembly
import broker.releases.release_line
import broker.server
import edge_agent.releases.downlink
import edge_agent.releases.model_slots
import edge_agent.samples.sample_files
import edge_agent.samples.segment_reading
import edge_agent.training.trainer
import models.host.durable
import models.protocol.manifest
import models.protocol.npz
from broker.receiving.update_inbox import UpdateInbox as Intake
from broker.records.memory_records import MemoryRecords
from broker.records.partial_records import PartialRecords
from broker.records.settled_ranges import SettledRanges
from broker.records.update_records import UpdateKey, UpdateRecords, WaitingUpdate
from broker.state.device_memory import DeviceMemory, MemoryChange
from models.protocol.messages import Receipt
from models.protocol.update_life import ON_SERVER, ReceiptEvent, ReceiptState
from models.task.params import Vector
from tools.simulation.promises.ledger import Ledger
from tools.substituted import substituted, told

__all__ = ["REACHED", "quick", "short_of_room", "witnessed"]

HEADERS_KEPT = 1  # so that what was settled is known from its range as often as from its header
REACHED = (  # what `short_of_room` counts
    "answered from ranges",
    "no room for it",
    "others dropped for it",
    "refused before it was whole",
    "damaged when it was whole",
    "garbage counted",
)
REMEMBERED = 64  # answers of a pure function


@contextlib.contextmanager
def witnessed(idle_s: float, ledger_of: Callable[[], Ledger]) -> Iterator[None]:
    """Tell the books what the server settles; an idle one looks around after ``idle_s``."""
    settle = UpdateRecords.settle

    def watched(
        self: UpdateRecords,
        update: WaitingUpdate,
        event: ReceiptEvent,
        *,
        release: int = 0,
        reason: str = "",
        reset: bool = False,
    ) -> None:
        settle(self, update, event, release=release, reason=reason, reset=reset)
        state = ON_SERVER.after(ReceiptState.STORED, event)
        ledger_of().server.on_settle(update, state, release)

    def forgotten(found: object, self: MemoryRecords, device: str) -> None:
        ledger_of().server.on_forget_memory(device)

    def dropped(found: object, self: MemoryRecords, task: str, device: str) -> None:
        if not with_a_release:
            ledger_of().server.on_forget_memory(device)

    commit, with_a_release = DeviceMemory.commit, []

    def committed(self: DeviceMemory, change: MemoryChange) -> None:
        with_a_release.append(change)
        try:
            commit(self, change)
        finally:
            with_a_release.clear()

    with substituted(
        (UpdateRecords, "settle", watched),
        told(MemoryRecords, "forget", forgotten),
        told(MemoryRecords, "drop", dropped),
        (DeviceMemory, "commit", committed),
        (broker.server, "IDLE_S", idle_s),
    ):
        yield


@contextlib.contextmanager
def short_of_room(megabyte: int, ledger_of: Callable[[], Ledger]) -> Iterator[None]:
    """Let the server meet its limits: ``megabyte`` bytes are one to it, and one header is a lot.

    From there on only the ranges in ``settled`` keep an update from being folded again, as after
    100,000 headers. The books are told what the inbox gave up.
    """
    forget = UpdateRecords.forget_old_headers

    def count(name: str) -> None:
        ledger_of().counts[name] += 1

    def forget_old_headers(self: UpdateRecords) -> None:
        forget(self, HEADERS_KEPT)

    def answered(found: object, self: SettledRanges, key: UpdateKey) -> None:
        if found:
            count("answered from ranges")

    def dropped(found: ReceiptState, self: PartialRecords, key: UpdateKey, event: Any) -> None:
        ledger_of().server.on_drop(key)

    def refused(found: None, self: UpdateRecords, key: UpdateKey, *rest: Any) -> None:
        ledger_of().server.on_refuse_unseen(key)
        count("refused before it was whole")

    def finished(found: Receipt | None, *rest: Any) -> None:
        if found is not None and found.state is ReceiptState.UNKNOWN:
            count("damaged when it was whole")

    def looked_for_room(found: bool, self: Intake) -> None:
        if not found:
            ledger_of().server.on_no_room()
            count("no room for it")

    make_room = Intake.evict

    def evict(self: Intake, key: UpdateKey, largest: int) -> None:
        before = ledger_of().server.given_up
        make_room(self, key, largest)
        if ledger_of().server.given_up > before:
            count("others dropped for it")

    with substituted(
        (broker.assembly, "MB", megabyte),
        (broker.releases.release_line, "MB", megabyte),
        (UpdateRecords, "forget_old_headers", forget_old_headers),
        told(SettledRanges, "find", answered),
        told(PartialRecords, "drop_partial", dropped),
        told(UpdateRecords, "refuse_unseen", refused),
        told(Intake, "has_room", looked_for_room),
        told(Intake, "count_garbage", lambda found, *rest: count("garbage counted")),
        told(Intake, "take_chunk", finished),
        (Intake, "evict", evict),
    ):
        yield


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Save time: remember answers, touch files with fewer calls, collect no garbage."""
    vector, arrays = models.protocol.npz.read_vector, models.protocol.npz.read_arrays

    @lru_cache(REMEMBERED)
    def read_vector(data: bytes, *, size: int, name: str = "parameters") -> Vector:
        found = vector(data, size=size, name=name)
        found.flags.writeable = False
        return found

    @lru_cache(REMEMBERED)
    def read_arrays(data: bytes, **options: Any) -> Any:
        found = arrays(data, **options)
        for array in found.values():
            array.flags.writeable = False
        return found

    slots, trainer = edge_agent.releases.model_slots, edge_agent.training.trainer
    decode_manifest = lru_cache(REMEMBERED)(models.protocol.manifest.decode_manifest)

    gc.collect()
    gc.disable()  # nothing here is in a ring but a process that ends, and those are few
    try:
        with substituted(
            (Path, "read_bytes", _read_bytes),
            (shutil, "rmtree", _delete),
            (models.host.durable, "atomic_write_pieces", _write),
            (slots, "atomic_write_pieces", _write),
            (slots, "decode_manifest", decode_manifest),
            (edge_agent.releases.downlink, "decode_manifest", decode_manifest),
            (trainer, "read_vector", read_vector),
            (edge_agent.samples.segment_reading, "read_arrays", read_arrays),
            (edge_agent.samples.sample_files, "read_arrays", read_arrays),
        ):
            yield
    finally:
        gc.enable()


# Files where nothing crashes and nothing fails: with fewer calls, since a fleet has many.


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """As `atomic_write_pieces`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        data = b"".join(pieces)
        assert os.write(descriptor, data) == len(data)  # it lies in memory
    finally:
        os.close(descriptor)


def _delete(folder: Path | str, ignore_errors: bool = False) -> None:
    """As `shutil.rmtree` where nobody puts a link in the place of a folder meanwhile."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (_delete if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
        os.rmdir(folder)  # noqa: PTH106 (called often)
    except OSError:
        if not ignore_errors:
            raise


def _read_bytes(path: Path) -> bytes:
    """As that of `Path`, without a buffer for what is read in one go."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
