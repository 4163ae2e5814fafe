"""What waits in the inbox, entry by entry: why, since when, and when it is looked at again. Pure.

Times are seconds of the agent's monotonic clock: what the wall clock says of a file may be wrong.
"""

from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

from edge_agent.samples.entry_fate import Group, Wait, pause_s
from models.host.backoff import doubled

__all__ = ["SETTLED_S", "Announcement", "Waitlist", "merged", "sentence"]

SETTLED_S = 1.0  # unchanged for so long, an entry is looked at
MOST_REASONS = 4  # in one sentence, or one for each thing that is waited for;
OTHERS = "for other reasons, which are said when these are gone"  # and what is beyond is counted
LONGEST_SETTLED_S = 60.0  # the same, of one that was cut off whenever we looked
FOLDER_REST_S = 10.0  # what comes into a folder meanwhile is taken together
HOPELESS_S = 0.25  # rest per file of a folder that will be looked at in vain
LONGEST_REST_S = 3600.0
SAID_AFTER_S = 10.0  # of what may still be written: a pause of a copy is no problem
SAID_EVERY_S = 60.0  # how many wait: that changes with every file
RELEASE_SAID_S = 30.0  # without a release, before one says that samples wait for it


class _Row(NamedTuple):
    stamp: int  # other bytes, another stamp
    since: float  # it has been like this, as far as we saw
    known: float  # when we saw it first
    tries: int  # how often it was looked at and had to wait
    due: float
    not_before: float  # though it may change
    groups: tuple[Group, ...]
    after: bytes  # of a folder: it was looked through up to the file of this name


class Waitlist:
    """The entries of the inbox that cannot be taken now, by name."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._texts: dict[str, str] = {}  # the same few sentences for thousands of entries

    def is_due(
        self, name: str, stamp: int, now: float, *, is_settled: bool, is_folder: bool
    ) -> bool:
        """Whether to look into the entry ``name`` now; take note of how it is.

        ``is_settled`` is what the wall clock says of an entry that is new to us. A file must
        have been left alone for a while; of a folder each file is judged by itself.
        """
        row = self._rows.get(name)
        if row is None:
            if is_settled:
                return True
            row = _Row(stamp, now, now, 0, now + SETTLED_S, 0.0, (), b"")
        elif row.stamp != stamp:
            if is_folder:
                due = max(row.not_before, min(row.due, now + FOLDER_REST_S))
            else:
                due = now + doubled(SETTLED_S, row.tries, LONGEST_SETTLED_S)
            row = row._replace(stamp=stamp, since=now, due=due)
        self._rows[name] = row
        return now >= row.due

    def is_known(self, name: str) -> bool:
        """Whether the entry was looked at before, and had to wait."""
        row = self._rows.get(name)
        return row is not None and row.tries > 0

    def unchanged_s(self, name: str, now: float) -> float:
        """Return how long the entry has been as it is, as far as we saw."""
        row = self._rows.get(name)
        return now - row.since if row else 0.0

    def known_s(self, name: str, now: float) -> float:
        """Return how long we have known the entry."""
        row = self._rows.get(name)
        return now - row.known if row else 0.0

    def after(self, name: str) -> bytes:
        """Return the file in a folder after which to go on."""
        row = self._rows.get(name)
        return row.after if row else b""

    def note(
        self,
        name: str,
        stamp: int,
        now: float,
        groups: Iterable[Group],
        *,
        is_folder: bool,
        after: bytes = b"",
    ) -> None:
        """Take note of what was found when the entry was looked into, with ``stamp`` then.

        ``after``: the folder was not looked through to its end, but up to this file.
        """
        row = self._rows.pop(name, None)
        earlier = row.groups if row and row.after else ()  # of the same folder, in front of this
        found = tuple(
            Group(g.wait, g.count, g.example, self._texts.setdefault(g.reason, g.reason))
            for g in merged((*earlier, *groups))
        )
        if not found and not is_folder:
            return
        if row is None or row.stamp != stamp:
            known, tries = (row.known, row.tries) if row else (now, 0)
            row = _Row(stamp, now, known, tries, now, now, (), b"")
        tries = row.tries + 1 if found else 0
        due, rest = now + LONGEST_REST_S, 0.0
        if found:
            unchanged_s = now - row.since
            due = now + min(pause_s(g.wait, tries=tries, unchanged_s=unchanged_s) for g in found)
        if is_folder:
            in_vain = sum(g.count for g in found if g.wait is not Wait.LIBRARY)
            rest = min(max(FOLDER_REST_S, HOPELESS_S * in_vain), LONGEST_REST_S)
        if after:
            due, rest = now, 0.0
        self._rows[name] = row._replace(
            tries=tries, due=max(due, now + rest), not_before=now + rest, groups=found, after=after
        )

    def wake(self, wait: Wait, now: float) -> None:
        """Let all that wait for ``wait`` be looked at again: it may have come."""
        for name, row in self._rows.items():
            if any(group.wait is wait for group in row.groups):
                self._rows[name] = row._replace(due=now, not_before=now)

    def keep_only(self, names: Set[str]) -> None:
        """Forget the entries that are gone."""
        if len(self._rows) > len(names) or not self._rows.keys() <= names:
            self._rows = {name: row for name, row in self._rows.items() if name in names}
        if not self._rows:
            self._texts.clear()

    def waits_for(self, wait: Wait) -> bool:
        return any(group.wait is wait for row in self._rows.values() for group in row.groups)

    def groups(self, now: float) -> list[Group]:
        """Return what waits, by what it waits for, most of them first."""
        found = merged(
            group
            for row in self._rows.values()
            for group in row.groups
            if group.wait is not Wait.WRITING or now - row.since >= SAID_AFTER_S
        )
        return sorted(found, key=lambda group: (group.reason == OTHERS, -group.count))


class Announcement:
    """What is said of all that waits: also of what was never given to a child."""

    def __init__(self) -> None:
        self.unfinished: Sequence[Group] = ()  # by their names
        self.foreign: Sequence[Group] = ()  # what somebody put among the rejected
        self.no_room = ""  # the first that could not be stored, and why
        self._without_release: Sequence[Group] = ()
        self._no_release_since: float | None = None
        self._kinds: frozenset[Wait] = frozenset()  # as they were said,
        self._said_at = 0.0  # and when

    @property
    def lacks_release(self) -> bool:
        """Whether samples wait for a release."""
        return self._no_release_since is not None

    def without_release(self, names: Sequence[str], now: float) -> None:
        """Take note of the entries that nobody can judge without a release; none if there is one.

        ``names`` are as people can read them.
        """
        self._without_release = ()
        if not names:
            self._no_release_since = None
            return
        if self._no_release_since is None:
            self._no_release_since = now
        if now - self._no_release_since >= RELEASE_SAID_S:
            reason = "no release has come yet that says what a sample is"
            self._without_release = (Group(Wait.RELEASE, len(names), min(names), reason),)

    def due(self, waiting: Waitlist, now: float) -> str | None:
        """Return what to say: at once when something else is waited for, else at times.

        Empty when nothing waits; None when it is not time to say anything.
        """
        groups = [*waiting.groups(now), *self.unfinished, *self._without_release, *self.foreign]
        if self.no_room:
            name, _, reason = self.no_room.rpartition(": ")
            groups.append(Group(Wait.NO_ROOM, 1, name, f"{reason}: make room on the disk"))
        kinds = frozenset(group.wait for group in groups)
        if kinds == self._kinds and now < self._said_at + SAID_EVERY_S:
            return None
        self._kinds, self._said_at = kinds, now
        return sentence(groups)


def merged(groups: Iterable[Group]) -> list[Group]:
    """Return one group for each reason, while these are few, and for each thing that is waited for.

    An example stands for others only if the same is the matter with them.
    """
    found: dict[tuple[Wait, str], Group] = {}
    waits: set[Wait] = set()
    for group in groups:
        key = (group.wait, group.reason)
        if key not in found and len(found) >= MOST_REASONS and group.wait in waits:
            key = (group.wait, OTHERS)
        waits.add(group.wait)
        if (first := found.get(key)) is None:
            found[key] = group
        else:
            count = first.count + group.count
            reason = first.reason if first.reason == group.reason else OTHERS
            found[key] = Group(first.wait, count, first.example, reason)
    return list(found.values())


def sentence(groups: Sequence[Group]) -> str:
    """Return what waits, why and what to do, as one sentence; empty if nothing does."""
    parts = [
        f"{group.example}{f' and {group.count - 1} more' if group.count > 1 else ''}: "
        f"{group.reason}"
        for group in groups
    ]
    count = sum(group.count for group in groups)
    if not parts:
        return ""
    return f"{count} {'wait' if count > 1 else 'waits'} in the inbox: {'; '.join(parts)}"
