"""The life of an update: what outbox, registry and wire hold of it, and what can never happen."""

import pytest

from models.life import Life
from models.protocol.update_life import (
    FINAL,
    ON_DEVICE,
    ON_SERVER,
    WAITING,
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


@pytest.mark.parametrize("life", [ON_DEVICE, ON_SERVER])
def test_each_state_can_be_reached(life: Life) -> None:
    reached, before = {life.first}, set()
    while reached != before:
        before = set(reached)
        reached |= {step.then for step in life.steps if step.state in before}
    assert reached == set(life.durable)


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
