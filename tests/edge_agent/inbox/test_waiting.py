"""What becomes of an entry, when it is looked at again, and how it is said: decisions alone."""

import errno

import pytest

from edge_agent.inbox.waiting import FOLDER_REST_S, Waitlist, sentence
from edge_agent.samples.entry_fate import (
    CUT_OFF_S,
    DAY_S,
    Group,
    NotHereError,
    Wait,
    fate_of,
    pause_s,
    unchanged_in_folder,
)
from models.errors import PayloadError, TooLargeError, UsageError


@pytest.mark.parametrize(
    ("error", "unchanged_s", "do", "wait"),
    [
        (PayloadError("cut off"), 0.0, "wait", Wait.WRITING),
        (PayloadError("cut off"), CUT_OFF_S, "reject", Wait.UNKNOWN),
        (TooLargeError("large"), CUT_OFF_S, "wait", Wait.LIMIT),
        (UsageError("no y"), 0.0, "reject", Wait.UNKNOWN),
        (NotHereError(Wait.SPEC, "size"), DAY_S, "wait", Wait.SPEC),
        (MemoryError(), DAY_S, "wait", Wait.ENDED),
        (OSError(errno.ENOSPC, "full"), DAY_S, "wait", Wait.NO_ROOM),
        (OSError(errno.EDQUOT, "full"), DAY_S, "wait", Wait.NO_ROOM),
        (OSError(errno.EROFS, "read-only"), DAY_S, "wait", Wait.NO_ROOM),
        (PermissionError(errno.EACCES, "denied"), DAY_S, "wait", Wait.REFUSED),
        (OSError(errno.EIO, "bad sector"), DAY_S, "wait", Wait.REFUSED),
        (OSError(errno.ELOOP, "links"), DAY_S, "wait", Wait.REFUSED),
        (FileNotFoundError(errno.ENOENT, "gone"), 0.0, "nothing", Wait.UNKNOWN),
    ],
)
def test_only_what_is_broken_in_itself_is_put_aside(
    error: Exception, unchanged_s: float, do: str, wait: Wait
) -> None:
    fate = fate_of(error, unchanged_s=unchanged_s)
    assert (fate.do, fate.wait) == (do, wait)


def test_what_a_mistake_of_our_own_meets_waits_for_a_better_release() -> None:
    fate = fate_of(KeyError("x"), unchanged_s=CUT_OFF_S)
    assert (fate.do, fate.wait) == ("wait", Wait.ENDED)
    assert fate.reason == "reading it failed: KeyError: 'x'"


@pytest.mark.parametrize("wait", Wait)
def test_nothing_is_tried_again_and_again_and_everything_is_tried_daily(wait: Wait) -> None:
    for tries in (1, 2, 10, 1000):
        pause = pause_s(wait, tries=tries, unchanged_s=0.0)
        assert wait is Wait.NO_ROOM or 60 <= pause <= DAY_S


def test_a_clock_that_jumps_makes_no_file_older_than_we_know_its_folder() -> None:
    assert unchanged_in_folder(1e9, folder_unchanged_s=3, folder_known_s=20) == 20
    assert unchanged_in_folder(-1e9, folder_unchanged_s=3, folder_known_s=20) == 3
    assert unchanged_in_folder(5, folder_unchanged_s=3, folder_known_s=20) == 5


def group(wait: Wait = Wait.SPEC, count: int = 1, name: str = "a", reason: str = "why") -> Group:
    return Group(wait, count, name, reason)


def test_a_file_that_changes_is_looked_at_when_it_has_come_to_rest() -> None:
    waiting = Waitlist()
    waiting.note("a", 1, 0.0, [group(Wait.WRITING)], is_folder=False)
    for now in range(1, 20):  # it grows all the time
        assert not waiting.is_due("a", now + 1, float(now), is_settled=True, is_folder=False)
    assert not waiting.is_due("a", 20, 20.0, is_settled=True, is_folder=False)
    assert waiting.is_due("a", 20, 22.0, is_settled=True, is_folder=False)


def test_a_folder_that_changes_all_the_time_is_looked_at_all_the_same() -> None:
    waiting = Waitlist()
    looks = 0
    for now in range(1000):
        if waiting.is_due("a", now, float(now), is_settled=now > 0, is_folder=True):
            waiting.note("a", now, float(now), [], is_folder=True)
            looks += 1
    assert 1000 / FOLDER_REST_S - 20 <= looks <= 1000 / FOLDER_REST_S + 2


def test_a_file_whose_time_lies_in_the_future_is_looked_at_when_it_was_seen_at_rest() -> None:
    waiting = Waitlist()
    assert not waiting.is_due("a", 1, 0.0, is_settled=False, is_folder=False)
    assert waiting.is_due("a", 1, 2.0, is_settled=False, is_folder=False)


def test_the_sentence_counts_and_says_why_most_frequent_first() -> None:
    waiting = Waitlist()
    assert sentence(waiting.groups(0.0)) == ""
    waiting.note("b", 1, 0.0, [group(name="b", reason="odd")], is_folder=False)
    assert sentence(waiting.groups(0.0)) == "1 waits in the inbox: b: odd"
    library = group(Wait.LIBRARY, 600, "0/1.png", "images need Pillow")
    waiting.note("0", 1, 0.0, [library], is_folder=True)
    waiting.note("c", 1, 0.0, [group(Wait.WRITING, 1, "c", "cut off")], is_folder=False)
    assert sentence(waiting.groups(5.0)) == (
        "601 wait in the inbox: 0/1.png and 599 more: images need Pillow; b: odd"
    )
    assert sentence(waiting.groups(15.0)).endswith("; c: cut off")
    waiting.keep_only({"b"})
    assert sentence(waiting.groups(15.0)) == "1 waits in the inbox: b: odd"


def test_an_example_stands_for_others_only_if_the_same_is_the_matter_with_them() -> None:
    waiting = Waitlist()
    for name, reason in (("11", "no class"), ("12", "no class"), ("a", "x has shape (9, 9)")):
        waiting.note(name, 1, 0.0, [group(Wait.SPEC, 5, f"{name}/0.npy", reason)], is_folder=True)
    assert sentence(waiting.groups(0.0)) == (
        "15 wait in the inbox: 11/0.npy and 9 more: no class; "
        "a/0.npy and 4 more: x has shape (9, 9)"
    )
    for number in range(100):  # each of another size
        odd = group(Wait.SPEC, 1, f"{number}.npz", f"x has shape ({number},)")
        waiting.note(f"{number}.npz", 1, 0.0, [odd], is_folder=False)
    waiting.note("u", 1, 0.0, [group(Wait.UNKNOWN, 1, "u", "unknown")], is_folder=False)
    assert len(said := waiting.groups(0.0)) == 6
    assert sentence(said) == (
        "116 wait in the inbox: 11/0.npy and 9 more: no class; "
        "a/0.npy and 4 more: x has shape (9, 9); 0.npz: x has shape (0,); 1.npz: x has shape (1,); "
        "u: unknown; 2.npz and 97 more: for other reasons, which are said when these are gone"
    )
    assert sum(group.count for group in said) == 116
