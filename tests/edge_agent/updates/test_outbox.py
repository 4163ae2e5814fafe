"""The outbox: nothing that was learned is lost or counted twice."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge_agent.updates import outbox_schema
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_contents import Contents, Trained, read_only
from edge_agent.updates.outbox_facts import Noted, OutboxFacts
from models.errors import TransientError
from models.protocol.messages import Receipt
from models.protocol.update_life import OutboxState

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
    before = (outbox.waiting(), outbox.carried.refunds(), outbox.facts.read())
    assert outbox.settle(seq, receipt(seq, state)) is None
    assert (outbox.waiting(), outbox.carried.refunds(), outbox.facts.read()) == before


def test_a_refused_payload_is_refunded_exactly_once(outbox: Outbox) -> None:
    seq = commit(outbox, 1, b"refused work")
    outbox.settle(seq, receipt(seq, "refused", reason="too old"))
    assert outbox.carried.refunds() == [seq]
    assert outbox.carried.refund(seq) == b"refused work"
    commit(outbox, 2, merged=(seq,))
    assert outbox.carried.refunds() == []


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
    seq, merged_back, _ = outbox.commit(trained(4), chunk_size=64, facts={})
    assert merged_back == 1
    assert [entry.seq for entry in outbox.waiting()] == [1, 3, seq]
    assert outbox.carried.refund(2) == bytes([2]) * 10
    assert outbox.facts.read().merged_back == 1


def test_bytes_are_bounded_too(outbox: Outbox) -> None:
    commit(outbox, 1, bytes(600))
    commit(outbox, 2, bytes(600))
    assert [entry.seq for entry in outbox.waiting()] == [2]
    assert outbox.carried.refunds() == [1]


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
        assert list(outbox.carried.refunds()) == refunds

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


OLD = Path(__file__).parents[2] / "vectors" / "outbox_0_1.sql"  # dumped from one of that version


def old_file(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(OLD.read_text())


def test_a_file_of_before_goes_on(path: Path) -> None:
    old_file(path)
    before = read_only(path)  # `status` beside an agent that is not started anew yet
    assert [entry.seq for entry in before.waiting] == [3, 4, 5, 6]
    for _ in range(2):
        outbox = Outbox(path, max_bytes=1000, max_waiting=5, installation="ffffffff")
        assert outbox.installation == "0123abcd"
        assert Contents(list(outbox.waiting()), outbox.facts.read(), outbox.codec()) == before
        assert outbox.codec() == (6, "residual-6.npz", "personal-6.npz", None, None, None)
        assert outbox.carried.refund(2) == b"payload 2"
        assert outbox.folds.count(after=4, until=5) == 1
        outbox.close()
    assert read_only(path) == before
    outbox = Outbox(path, max_bytes=1000, max_waiting=5, installation="ffffffff")
    assert commit(outbox, 7, merged=(2,)) == 7
    assert outbox.settle(3, receipt(3, "refused")) == "refused"
    assert outbox.carried.refunds() == [3]
    outbox.close()


def test_old_and_new_files_have_the_same_columns(path: Path, tmp_path: Path) -> None:
    """Rows are read by position."""
    old_file(path)
    Outbox(path, max_bytes=1, max_waiting=1, installation="0123abcd").close()
    new = tmp_path / "new.db"
    Outbox(new, max_bytes=1, max_waiting=1, installation="0123abcd").close()
    found = []
    for file in (path, new):
        with closing(sqlite3.connect(file)) as database:
            tables = ("updates", "codec", "refunds", "facts", "folds", "owner")
            found.append(
                {
                    table: [row[1:4] for row in database.execute(f"PRAGMA table_info({table})")]
                    for table in tables
                }
                | {"version": database.execute("PRAGMA user_version").fetchone()}
            )
    assert found[0] == found[1]


def test_a_step_to_the_next_version_that_dies_is_made_at_the_next_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_file(path)
    whole = outbox_schema.STEPS[0]
    statements = whole.split(";")[:-1]
    for count in range(1, len(statements)):
        broken = ";".join(statements[:count]) + "; SELECT no_such_function();"
        monkeypatch.setitem(outbox_schema.STEPS, 0, broken)
        with pytest.raises(TransientError):
            Outbox(path, max_bytes=1000, max_waiting=5, installation="ffffffff")
        assert read_only(path).codec.job == 6
    monkeypatch.setitem(outbox_schema.STEPS, 0, whole)
    outbox = Outbox(path, max_bytes=1000, max_waiting=5, installation="ffffffff")
    assert len(outbox.waiting()) == 4
    outbox.close()


def test_a_file_of_a_later_version_is_left_alone(outbox: Outbox, path: Path) -> None:
    outbox.close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    with pytest.raises(TransientError, match="version 2, this edgefold knows 1"):
        Outbox(path, max_bytes=1000, max_waiting=3, installation="0123abcd")
    assert path.read_bytes() == before


# -- made against a memory


def against(job: int, history: str | None, *, feedback: str = "memory", **more: Any) -> Trained:
    """Return what a training leaves that was made against the memory in ``history``."""
    found = trained(job)._replace(
        residual=None,
        feedback=feedback,
        history=history,
        next_history=f"history-{job}.npz",
        next_owed=f"owed-{job}.npz" if feedback == "gd-sec" else None,
    )
    return found._replace(**more)


def say(outbox: Outbox, made: Trained) -> int:
    facts: Noted = {"trained_release": made.job, "tuned_release": made.job, "codec_step": 0.5}
    return outbox.commit(made, chunk_size=64, facts=facts).seq


def send(outbox: Outbox, seq: int) -> None:
    (entry,) = [e for e in outbox.waiting() if e.seq == seq]
    assert outbox.may_leave(entry)
    outbox.begin(seq, 64)
    outbox.was_sent(seq)


def carried(outbox: Outbox) -> tuple[str | None, str | None]:
    codec = outbox.codec()
    return codec.history, codec.residual


@pytest.mark.parametrize("feedback", ["memory", "gd-sec"])
def test_what_an_update_leaves_counts_when_it_is_folded(outbox: Outbox, feedback: str) -> None:
    seq = say(outbox, against(1, None, feedback=feedback))
    assert carried(outbox) == (None, None)
    assert outbox.carried.next_files() >= {"history-1.npz"}
    send(outbox, seq)
    assert outbox.settle(seq, receipt(seq, "stored")) == "stored"
    assert carried(outbox) == (None, None)
    assert outbox.settle(seq, receipt(seq, "folded", release=5)) == "folded"
    owed = "owed-1.npz" if feedback == "gd-sec" else None
    assert carried(outbox) == ("history-1.npz", owed)
    assert outbox.carried.next_files() == set()
    assert outbox.settle(seq, receipt(seq, "folded", release=5)) is None
    assert outbox.facts.read().folded == 1


@pytest.mark.parametrize("resets", [False, True])
def test_refused_with_a_memory_nothing_is_taken_back(outbox: Outbox, resets: bool) -> None:
    first = say(outbox, against(1, None, feedback="gd-sec"))
    send(outbox, first)
    outbox.settle(first, receipt(first, "folded"))
    second = say(outbox, against(2, "history-1.npz", feedback="gd-sec", residual="owed-1.npz"))
    send(outbox, second)
    assert outbox.settle(second, receipt(second, "refused", reset=resets)) == "refused"
    assert carried(outbox) == (None if resets else "history-1.npz", "owed-1.npz")
    assert (outbox.waiting(), outbox.carried.refunds()) == ([], [])
    facts = outbox.facts.read()
    assert (facts.refused, facts.owed) == (1, 1)


def test_one_that_has_left_is_the_only_one(outbox: Outbox) -> None:
    first = say(outbox, against(1, None))
    assert not outbox.must_wait("memory")
    send(outbox, first)
    assert outbox.must_wait("memory")
    assert outbox.must_wait("residual"), "what is owed is not settled either"
    (left,) = outbox.waiting()
    assert not outbox.may_leave(left._replace(seq=first + 1, state=OutboxState.QUEUED))
    assert say(outbox, against(2, None)) == 0, "it was being trained when the first one left"
    facts = outbox.facts.read()
    assert (facts.trained_release, facts.tuned_release) == (1, 2)
    assert outbox.codec().job == 2
    assert [entry.seq for entry in outbox.waiting()] == [first]
    outbox.settle(first, receipt(first, "folded"))
    assert carried(outbox) == ("history-1.npz", None)


def test_one_that_was_made_against_a_memory_that_is_no_more_is_not_said(outbox: Outbox) -> None:
    first = say(outbox, against(1, None))
    send(outbox, first)
    outbox.settle(first, receipt(first, "folded"))
    assert say(outbox, against(2, None, personal="personal-2.npz")) == 0
    assert outbox.codec().personal == "personal-2.npz"
    assert carried(outbox) == ("history-1.npz", None)
    assert say(outbox, against(3, "history-1.npz")) > first


def test_a_newer_update_replaces_one_that_never_left(outbox: Outbox) -> None:
    first, second = say(outbox, against(1, None)), say(outbox, against(2, None))
    assert [entry.seq for entry in outbox.waiting()] == [second] != [first]
    assert outbox.carried.refunds() == []
    facts = outbox.facts.read()
    assert (facts.made, facts.replaced, facts.merged_back) == (2, 1, 0)
    assert outbox.carried.next_files() == {"history-2.npz"}


def test_without_a_payload_only_what_is_this_devices_own_changes(outbox: Outbox) -> None:
    commit(outbox, 1)
    assert say(outbox, trained(2, b"")._replace(personal="p", tuned="t", residual=None)) == 0
    assert outbox.codec() == (2, "residual-1.npz", "p", None, "t", "residual")
    assert outbox.facts.read().made == 1


def test_before_a_memory_begins_what_never_left_is_taken_back(outbox: Outbox) -> None:
    commit(outbox, 1)
    commit(outbox, 2)
    outbox.begin(1, 64)
    assert outbox.must_wait("memory")
    outbox.settle(1, receipt(1, "folded"))
    assert outbox.take_back("memory") == 1
    assert outbox.carried.refunds() == [2]
    seq = say(outbox, against(3, None, residual="residual-3.npz", merged=(2,)))
    assert outbox.carried.refunds() == []
    assert carried(outbox) == (None, "residual-3.npz"), "owed until it is folded"
    send(outbox, seq)
    outbox.settle(seq, receipt(seq, "folded"))
    assert carried(outbox) == ("history-3.npz", None)


def test_another_method_begins_with_an_empty_memory_and_what_is_owed(outbox: Outbox) -> None:
    first = say(outbox, against(1, None, feedback="gd-sec"))
    send(outbox, first)
    outbox.settle(first, receipt(first, "folded"))
    assert outbox.codec().history_for("memory") is None
    say(outbox, against(2, None, residual="owed-1.npz"))
    assert outbox.codec()[1:] == ("owed-1.npz", None, None, None, "memory")
    assert commit(outbox, 3)
    assert outbox.codec()[1:] == ("residual-3.npz", None, None, None, "residual")
    assert [entry.has_memory for entry in outbox.waiting()] == [False], "the second was replaced"


@pytest.mark.parametrize("feedback", ["residual", "memory"])
def test_before_another_method_begins_what_never_left_of_the_last_one_is_dropped(
    outbox: Outbox, feedback: str
) -> None:
    """Both begin with the same that is owed: with it folded meanwhile, that would be said twice."""
    first = say(outbox, against(1, None, feedback="gd-sec"))
    send(outbox, first)
    outbox.settle(first, receipt(first, "folded"))
    say(outbox, against(2, "history-1.npz", feedback="gd-sec", residual="owed-1.npz"))
    assert outbox.take_back("gd-sec") == 0
    assert outbox.take_back(feedback) == 1
    assert outbox.waiting() == []
    assert carried(outbox) == ("history-1.npz", "owed-1.npz")
    facts = outbox.facts.read()
    assert (facts.replaced, facts.merged_back, facts.owed) == (1, 0, 1)


@pytest.mark.parametrize("keeps_learned", [True, False])
def test_a_new_owner_begins_with_an_empty_memory(outbox: Outbox, keeps_learned: bool) -> None:
    first = say(outbox, against(1, None, feedback="gd-sec"))
    send(outbox, first)
    outbox.settle(first, receipt(first, "folded"))
    say(outbox, against(2, "history-1.npz", feedback="gd-sec", residual="owed-1.npz"))
    assert outbox.begin_anew("89abcdef", keeps_learned=keeps_learned) == (0, 1)
    assert carried(outbox) == (None, "owed-1.npz" if keeps_learned else None)
    assert (outbox.waiting(), outbox.carried.refunds()) == ([], [])
    assert outbox.facts.read().owed == keeps_learned, "its work is in the next training"
