"""What seldom happens to memories, moments and averages, counted while a fleet is simulated."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from broker.folding.memory_fold import Memory, MemoryFold
from broker.folding.server_step import ServerState
from broker.state.device_memory import DeviceMemory, Forgotten
from broker.state.state_store import StateStore
from edge_agent.releases.model_slots import Slots
from edge_agent.releases.patching import Patching
from edge_agent.releases.vectors_to_make import ToMake
from edge_agent.updates.codec_table import CodecTable
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_contents import Committed
from models.protocol.manifest import Manifest
from tools.simulation.promises.ledger import Ledger
from tools.substituted import substituted, told

__all__ = ["LEARNING_EVENTS", "learning_counted"]

LEARNING_EVENTS = (
    "memory reset",  # on a device, which was told so
    "memory began anew",  # at the server, which had another
    "memory evicted",
    "update replaced",  # by a newer one, before it left
    "trained for itself",  # while an update was unanswered
    "average made here",
    "average fetched whole",
    "moments read back",  # after a restart
)


@contextlib.contextmanager
def learning_counted(ledger_of: Callable[[], Ledger]) -> Iterator[None]:
    """Count `LEARNING_EVENTS`."""

    def count(name: str) -> None:
        ledger_of().counts[name] += 1

    def took(found: Memory, self: MemoryFold, said: Any, memory: Memory | None, *rest: Any) -> None:
        if memory is not None and not rest[0]["made_against"]:
            count("memory began anew")

    def committed(found: Committed, *rest: Any) -> None:
        for _ in range(found.replaced):
            count("update replaced")
        if not found.seq and not rest[1].payload:
            count("trained for itself")

    def bounded(found: Forgotten, *rest: Any) -> None:
        for _ in found.devices:
            count("memory evicted")

    def loaded(found: tuple[ServerState, object], *rest: Any) -> None:
        if found[0].velocity is not None:
            count("moments read back")

    made: set[str] = set()  # averages that some device made itself

    def patched(found: str | None, self: Patching, wanted: Manifest, make: ToMake, at: Any) -> None:
        if found == "" and make.average:
            made.add(wanted.artifacts["average"].sha256)
            count("average made here")

    def activated(found: None, self: Slots, manifest: Manifest) -> None:
        average = manifest.artifacts.get("average")
        if average not in (None, manifest.artifacts["parameters"]) and average.sha256 not in made:
            count("average fetched whole")

    with substituted(
        told(CodecTable, "forget_history", lambda found, *rest: count("memory reset")),
        told(MemoryFold, "take", took),
        told(Outbox, "commit", committed),
        told(DeviceMemory, "bounded", bounded),
        told(StateStore, "load", loaded),
        told(Patching, "advance", patched),
        told(Slots, "activate", activated),
    ):
        yield
