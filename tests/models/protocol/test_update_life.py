"""The life of an update: what outbox, registry and wire hold of it, and what can never happen."""

import pytest

from models.life import Life
from models.protocol.update_life import (
    FINAL,
    ON_DEVICE,
    ON_SERVER,
    WAITING,
    WITH_MEMORY,
    OutboxEvent,
    OutboxState,
    ReceiptEvent,
    ReceiptState,
)


def test_databases_and_receipts_hold_these_words() -> None:
    """Of devices and servers that were there before."""
    assert WAITING == ("queued", "sending", "sent", "stored")
    assert tuple(ReceiptState) == ("unknown", "partial", "stored", "folded", "refused")
    assert {"folded", "refused"} == FINAL


@pytest.mark.parametrize("life", [ON_DEVICE, WITH_MEMORY, ON_SERVER])
def test_each_state_can_be_reached(life: Life) -> None:
    reached, before = {life.first}, set()
    while reached != before:
        before = set(reached)
        reached |= {step.then for step in life.steps if step.state in before}
    assert reached == set(life.durable)


def test_the_tables_have_all_states_and_events_and_no_others() -> None:
    sides = (
        ((ON_DEVICE, WITH_MEMORY), OutboxState, OutboxEvent),
        ((ON_SERVER,), ReceiptState, ReceiptEvent),
    )
    for lives, states, events in sides:
        assert {state for life in lives for state in life.durable} == set(states)
        assert {step.event for life in lives for step in life.steps} == set(events)


def test_what_was_made_against_a_memory_waits_as_others_do_and_is_never_taken_back() -> None:
    waits = [s for s in WITH_MEMORY.durable if WITH_MEMORY.allows(s, OutboxEvent.FOLDED)]
    assert tuple(waits) == WAITING
    assert OutboxState.REFUNDED not in WITH_MEMORY.durable
    shared = {OutboxEvent.BEGUN, OutboxEvent.ACKNOWLEDGED, OutboxEvent.STORED, OutboxEvent.FOLDED}
    for state in WAITING:
        for event in shared:
            allowed = ON_DEVICE.allows(state, event)
            assert WITH_MEMORY.allows(state, event) == allowed
            assert not allowed or WITH_MEMORY.after(state, event) is ON_DEVICE.after(state, event)


@pytest.mark.parametrize("state", WAITING)
def test_only_what_never_left_is_replaced(state: OutboxState) -> None:
    assert WITH_MEMORY.allows(state, OutboxEvent.OVERTAKEN) == (state is OutboxState.QUEUED)


@pytest.mark.parametrize("state", WAITING)
def test_only_what_never_left_a_device_is_taken_back_without_an_answer(state: OutboxState) -> None:
    for event in (OutboxEvent.CROWDED, OutboxEvent.READDRESSED):
        is_kept = ON_DEVICE.allows(state, event) and (
            ON_DEVICE.after(state, event) is OutboxState.REFUNDED
        )
        assert is_kept == (state is OutboxState.QUEUED)


@pytest.mark.parametrize("state", ReceiptState)
@pytest.mark.parametrize("event", ReceiptEvent)
def test_nothing_follows_a_final_receipt(state: ReceiptState, event: ReceiptEvent) -> None:
    assert not (state in FINAL and ON_SERVER.allows(state, event))
