"""The outbox: nothing that was learned is lost or counted twice."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_contents import Contents, Trained, read_only
from edge_agent.updates.outbox_facts import Noted, OutboxFacts
from models.errors import TransientError
from models.protocol.messages import Receipt

HEADER = b"header"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    outbox = Outbox(path, max_bytes=1000, max_waiting=3, installation="0123abcd")
    yield outbox
    outbox.close()


def trained(job: int, payload: bytes = b"payload", *, merged: tuple[int, ...] = ()) -> Trained:
    return Trained(
        job=job,
        base=4,
        header=HEADER,
        payload=payload,
        residual=f"residual-{job}.npz",
        personal=None,
        merged=merged,
        lost=0,
    )


def commit(outbox: Outbox, job: int, payload: bytes = b"payload", **more: object) -> int:
    return outbox.commit(trained(job, payload, **more), chunk_size=64, facts={})[0]  # type: ignore[arg-type]


def receipt(seq: int, state: str, **more: object) -> Receipt:
    return Receipt(f"0123abcd-{seq}", state, **more)  # type: ignore[arg-type]


def test_update_and_codec_state_come_together(outbox: Outbox) -> None:
    seq = commit(outbox, 1)
    (entry,) = outbox.waiting()
    assert (entry.seq, entry.state, entry.base, entry.size) == (seq, "queued", 4, 13)
    assert outbox.read(seq, 4, 5) == b"erpay"
    assert outbox.codec().residual == "residual-1.npz"


def test_a_job_counts_once_however_often_it_is_committed(outbox: Outbox) -> None:
    commit(outbox, 1)
    assert commit(outbox, 1) == 0
    assert len(outbox.waiting()) == 1
    assert outbox.facts.read().made == 1


def test_an_update_leaves_only_by_a_final_receipt(outbox: Outbox) -> None:
    seq = commit(outbox, 1)
    outbox.begin(seq, 64)
    outbox.was_sent(seq)
    assert outbox.settle(seq, receipt(seq, "stored")) == "stored"
    assert outbox.settle(seq, receipt(seq, "partial")) == "partial"
    assert outbox.settle(seq, receipt(seq, "unknown")) == "unknown"
    assert len(outbox.waiting()) == 1
    assert outbox.settle(seq, receipt(seq, "folded", release=5)) == "folded"
    assert outbox.waiting() == []
    assert outbox.facts.read().folded == 1


def test_a_receipt_that_says_stored_again_writes_nothing(outbox: Outbox) -> None:
    """A device asks about once an hour while it waits: an SD card should not wear out by that."""
    seq = commit(outbox, 1)
    assert outbox.settle(seq, receipt(seq, "stored")) == "stored"
    before = outbox.changes
    assert outbox.settle(seq, receipt(seq, "stored")) == "stored"
    assert outbox.changes == before
    assert outbox.settle(seq, receipt(seq, "folded", release=5)) == "folded"
    assert outbox.changes > before


@pytest.mark.parametrize("state", ["folded", "refused", "stored", "unknown", "partial"])
def test_a_repeated_final_receipt_changes_nothing(outbox: Outbox, state: str) -> None:
    seq = commit(outbox, 1)
    outbox.settle(seq, receipt(seq, "refused"))
    before = (outbox.waiting(), outbox.refunds(), outbox.facts.read())
    assert outbox.settle(seq, receipt(seq, state)) is None
    assert (outbox.waiting(), outbox.refunds(), outbox.facts.read()) == before


def test_a_refused_payload_is_refunded_exactly_once(outbox: Outbox) -> None:
    seq = commit(outbox, 1, b"refused work")
    outbox.settle(seq, receipt(seq, "refused", reason="too old"))
    assert outbox.refunds() == [seq]
    assert outbox.refund(seq) == b"refused work"
    commit(outbox, 2, merged=(seq,))
    assert outbox.refunds() == []


def test_folds_of_one_task_are_none_of_the_next(outbox: Outbox) -> None:
    outbox.settle(commit(outbox, 1), receipt(1, "folded", release=40))
    assert outbox.folds.count(after=4, until=50) == 1
    outbox.begin_anew("89abcdef", keeps_learned=True)
    assert outbox.folds.count(after=4, until=50) == 1
    outbox.begin_anew("456789ab", keeps_learned=False)
    assert outbox.folds.count(after=4, until=50) == 0


def test_numbers_are_never_used_twice(outbox: Outbox, path: Path) -> None:
    first = commit(outbox, 1)
    outbox.settle(first, receipt(first, "folded"))
    outbox.close()
    again = Outbox(path, max_bytes=1000, max_waiting=3, installation="0123abcd")
    assert commit(again, 2) > first
    assert again.facts.next_job() < again.facts.next_job()
    again.close()


def test_the_oldest_that_never_left_is_merged_back_when_full(outbox: Outbox) -> None:
    for job in (1, 2, 3):
        commit(outbox, job, bytes([job]) * 10)
    outbox.begin(1, 64)  # the server may have it: only the server may end it
    seq, merged_back = outbox.commit(trained(4), chunk_size=64, facts={})
    assert merged_back == 1
    assert [entry.seq for entry in outbox.waiting()] == [1, 3, seq]
    assert outbox.refund(2) == bytes([2]) * 10
    assert outbox.facts.read().merged_back == 1


def test_bytes_are_bounded_too(outbox: Outbox) -> None:
    commit(outbox, 1, bytes(600))
    commit(outbox, 2, bytes(600))
    assert [entry.seq for entry in outbox.waiting()] == [2]
    assert outbox.refunds() == [1]


def test_there_is_no_room_when_everything_may_be_at_the_server(outbox: Outbox) -> None:
    for job in (1, 2, 3):
        outbox.begin(seq := commit(outbox, job), 64)
        outbox.was_sent(seq)
    assert not outbox.has_room()
    outbox.settle(2, receipt(2, "folded"))
    assert outbox.has_room()


def test_a_reader_beside_the_agent_changes_nothing(outbox: Outbox, path: Path) -> None:
    commit(outbox, 1)
    waiting, facts, codec = read_only(path)
    assert (len(waiting), facts.made, codec.job) == (1, 1, 1)
    with pytest.raises(TransientError):
        read_only(path.with_name("none.db"))
    assert not path.with_name("none.db").exists()


def test_a_damaged_file_is_our_error_and_nobody_elses(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(TransientError, match=r"outbox\.db"):
        Outbox(path, max_bytes=1, max_waiting=1, installation="0123abcd")


def test_facts_of_other_versions_harm_nobody(outbox: Outbox, path: Path) -> None:
    """The table holds floats by name: what is not there has a default, what is unknown stays."""
    outbox.facts.note(trained_asked=4_294_967_295, accuracy=0.5)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO facts VALUES ('of_a_later_version', 1.5)")
    assert read_only(path).facts == OutboxFacts(trained_asked=4_294_967_295, accuracy=0.5)
    assert set(Noted.__annotations__) < set(OutboxFacts._fields)


def test_whatever_is_written_the_answers_are_what_the_file_holds(
    outbox: Outbox, path: Path
) -> None:
    def check() -> None:
        found = Contents(list(outbox.waiting()), outbox.facts.read(), outbox.codec())
        assert found == read_only(path)
        with closing(sqlite3.connect(path)) as database:
            refunds = [seq for (seq,) in database.execute("SELECT seq FROM refunds ORDER BY seq")]
        assert list(outbox.refunds()) == refunds

    check()
    writes: list[Callable[[], object]] = [
        outbox.facts.next_job,
        lambda: outbox.facts.note(accuracy=0.5),
        *(partial(commit, outbox, job) for job in range(1, 6)),  # two become refunds
        lambda: outbox.begin(3, 64),
        lambda: outbox.was_sent(3),
        lambda: outbox.settle(3, receipt(3, "stored")),
        lambda: outbox.settle(3, receipt(3, "folded")),
        lambda: outbox.settle(4, receipt(4, "refused")),
        lambda: outbox.settle(5, receipt(5, "unknown")),
        lambda: commit(outbox, 6, merged=(1, 2, 4)),
    ]
    for write in writes:
        write()
        check()
    assert outbox.facts.next_job() == 2
    with pytest.raises(TransientError):  # facts cannot be this; nothing of it is done
        outbox.facts.note(accuracy=0.9, broken="x")  # type: ignore[call-arg]
    check()
