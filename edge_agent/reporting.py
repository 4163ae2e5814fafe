"""How the device is, said to the fleet and left in its directory, when it is worth it."""

import contextlib
from typing import Protocol

from edge_agent.parts import Parts
from edge_agent.reports.silence import Silence
from edge_agent.reports.status_file import LocalStatus, summary, waits_for
from edge_agent.training.governor import Vitals
from models.errors import TransientError
from models.protocol.doing import Doing
from models.protocol.manifest import FOLLOWS
from models.protocol.messages import Status, encode_message

__all__ = ["Publish", "Reporting"]

VITALS_EVERY_S = 60.0
NOTED_APART_S = 3.0  # two writes of the local status: a burst of changes becomes one
NOTED_AGAIN_S = 60.0  # after one that the disk did not take


class Publish(Protocol):
    """Hands a message to the link, which takes one now."""

    def __call__(self, topic: str, payload: bytes, *, retain: bool) -> None: ...


class Reporting:
    """Looks at all parts and changes none; ``silence`` knows of the connection."""

    def __init__(self, parts: Parts, silence: Silence) -> None:
        self._parts = parts
        self._silence = silence
        self._nothing_new: tuple[object, ...] | None = None  # of this the fleet knows already
        self._vitals: Vitals | None = None
        self._vitals_at = 0.0
        self._noted: tuple[object, ...] = ()  # what the local status was made of
        self._noted_matters: tuple[object, ...] = ()
        self._noted_at = 0.0
        self.summary = "starting"  # one sentence: what the agent does, or what is wrong

    def started(self, now: float) -> None:
        self._noted_at = now - NOTED_APART_S

    def connected(self) -> None:
        """The fleet may have missed what it was told before."""
        self._parts.heartbeat.forget()
        self._nothing_new = None

    def tell(self, now: float, publish: Publish) -> float | None:
        """Tell the fleet what is worth it by ``publish``, while connected; return when due."""
        if self._vitals is None or now >= self._vitals_at + VITALS_EVERY_S:
            self._vitals, self._vitals_at = self._parts.vitals(), now
        if not self._silence.is_connected:  # with the next connection everything is told
            return None
        with self._parts.problems.contained("outbox"):
            facts = self._worth_telling()
            if facts == self._nothing_new:
                return None
            status = self.status()
            if self._parts.heartbeat.due(status, now):
                if self._parts.link.window() == 0:
                    return None
                topic = self._parts.topics.status(self._parts.identity.device)
                publish(topic, encode_message(status), retain=True)
                self._parts.heartbeat.sent(status, now)
            due_at = self._parts.heartbeat.next_at(status)
            self._nothing_new = facts if due_at is None else None
            return due_at
        return None

    def note(self, now: float) -> float | None:
        """Leave what the agent says of itself in its directory, if it matters; return when due."""
        parts, silence = self._parts, self._silence
        verdict, problems = parts.learner.verdict, tuple(parts.problems.all())
        facts: tuple[object, ...] = (
            *(silence.is_connected, silence.connection.last_error, silence.is_unsteady),
            *(problems, "" if verdict.do != "wait" else verdict.reason),
        )
        with contextlib.suppress(TransientError, OSError):  # outbox, samples: said elsewhere
            facts = (*facts, *self._worth_telling())
            if facts == self._noted:
                return None
            status = self.status()
            waiting = waits_for(status, "" if verdict.do != "wait" else verdict.reason)
            self.summary = summary(
                status, problems, connected=silence.is_connected, waits_for=waiting
            )
            found = LocalStatus(
                status=status,
                summary=self.summary,
                connected=silence.is_connected,
                since=silence.connection.since,
                last_error=silence.connection.last_error,
                error_at=silence.connection.error_at,
                heard_at=silence.heard_at,
                waits_for=waiting,
                problems=problems,
                is_unsteady=silence.is_unsteady,
            )
            if (matters := found.what_matters()) != self._noted_matters:
                if now < self._noted_at + NOTED_APART_S:
                    return self._noted_at + NOTED_APART_S
                self._noted_at = now
                try:
                    parts.on_status(found)
                except OSError:  # a full disk: said by those who need it
                    self._noted_at = now + NOTED_AGAIN_S - NOTED_APART_S
                    return now + NOTED_AGAIN_S
                self._noted_matters = matters
            self._noted = facts
        return None

    def _worth_telling(self) -> tuple[object, ...]:
        """Return what decides whether a status is due: while it stays, none is, as before."""
        parts = self._parts
        return (
            self.state,
            parts.slots.release,
            parts.samples.counts().ever,
            parts.outbox.changes,
            parts.problems.most_urgent,
        )

    @property
    def state(self) -> str:
        """What the agent is doing, in one word."""
        parts = self._parts
        doing = parts.learner.state or parts.downlink.state or parts.uplink.state
        return doing or parts.learner.rest or Doing.WAITING

    def status(self) -> Status:
        """Return what this device says of itself now."""
        parts = self._parts
        facts = parts.outbox.facts.read()
        vitals, traffic = self._vitals, parts.link.traffic()
        active = parts.slots.active
        return Status(
            online=True,
            task=parts.identity.task,
            state=self.state,
            boot=parts.identity.boot,
            run=parts.identity.run,
            installation=parts.identity.installation,
            release=parts.slots.release,
            samples=parts.samples.counts().train,
            samples_ever=parts.samples.counts().ever,
            updates_made=facts.made,
            updates_folded=facts.folded,
            updates_refused=facts.refused,
            updates_waiting=len(parts.outbox.waiting()),
            accuracy_first=facts.accuracy_first,
            accuracy=facts.accuracy,
            accuracy_shared=facts.accuracy_shared,
            accuracy_after=facts.accuracy_after,
            accuracy_alone=facts.accuracy_alone,
            serves=parts.learner.own.serves(active) if active else "",
            holdout=parts.samples.counts().holdout,
            bytes_up=traffic.bytes_up,
            bytes_down=traffic.bytes_down,
            rss_mb=round(vitals.rss_mb, 1) if vitals else 0.0,
            peak_rss_mb=round(vitals.peak_rss_mb, 1) if vitals else 0.0,
            trainer_peak_rss_mb=round(facts.trainer_peak_rss_mb or 0.0, 1),
            problem=parts.problems.most_urgent,
            version=parts.identity.version,
            follows=FOLLOWS,
        )
