"""Starts, supervises and feeds the process that answers applications with the active release."""

import logging
import math
import random
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from edge_agent.board.children import Child, Launch
from edge_agent.board.problems import Problems
from edge_agent.inference.inference_client import call
from edge_agent.releases.model_slots import Slots
from models.errors import PayloadError, TransientError
from models.host.backoff import Backoff
from models.protocol.manifest import Manifest

__all__ = ["INFERENCE", "InferenceProcess", "NoInference", "OwnValues", "load_request"]

log = logging.getLogger("edge_agent")

INFERENCE = "edge_agent.inference.inference_program"  # the child program
SILENT_S = 60.0  # without an answer, from its start or the last one: then it is restarted
LOOK_EVERY_S = 5.0
STARTING_LOOK_S = 0.25
FIRST_REST_S = 1.0  # after it ended by itself; doubles
LONGEST_REST_S = 300.0
STEADY_S = 60.0  # a process that lived this long has not failed to start
FIRST_RELOAD_S = 60.0  # the active release is tried again after it did not load; doubles
LONGEST_RELOAD_S = 3600.0
LOAD_WITHIN_S = 60.0  # resnet18 on a Pi Zero 2 W takes some 10 s
PING_WITHIN_S = 2.0
MOST_INSTEAD = 4  # remembered: of the active release, of the one that is tried, and before


class OwnValues(NamedTuple):
    """Files of this device's own."""

    personal: Path | None = None  # its personal values
    tuned: Path | None = None  # the shared ones, where it runs what it tuned


_Asked = tuple[int, OwnValues]  # a release, and this device's own with which it shall run


class _Less(NamedTuple):
    own: OwnValues
    why: str = ""


def load_request(
    manifest: Manifest, slots: Slots, own: OwnValues, *, is_trial: bool = False
) -> dict[str, object]:
    """Return the request that makes the inference process switch to ``manifest``.

    ``is_trial``: it only tries whether it could.
    """
    return {
        "do": "load",
        "infer": slots.path(manifest, "infer"),
        "spec": slots.path(manifest, "spec"),
        "parameters": str(own.tuned or slots.path(manifest, manifest.runs)),
        "personal": None if own.personal is None else str(own.personal),
        "release": manifest.release,
        "serves": "released" if own.tuned is None else "tuned",
        "is_trial": is_trial,
    }


class NoInference:
    """For devices that only learn: every release that is whole may be installed."""

    rss_mb = 0.0

    def load(self, manifest: Manifest) -> str:
        return ""

    def tick(self, now: float) -> float:
        return math.inf

    def stop(self) -> None:
        return


class InferenceProcess:
    """The one inference process of this device; its owner passes on the time."""

    def __init__(
        self,
        *,
        control: Path,
        arguments: Sequence[str],
        slots: Slots,
        own: Callable[[Manifest], OwnValues],
        launch: Launch,
        problems: Problems,
        rng: random.Random,
    ) -> None:
        self._control = control
        self._slots = slots
        self._own = own
        self._begin = partial(launch, INFERENCE, [str(control), *arguments], log=None)
        self._problems = problems
        self._child: Child | None = None
        self._started_at = 0.0
        self._heard_at = 0.0
        # Shorter now and then, never longer: applications are without answers meanwhile.
        self.backoff = Backoff(
            FIRST_REST_S, LONGEST_REST_S, uniform=lambda *_: rng.uniform(0.5, 1.0)
        )
        self._look_at = 0.0
        self._loaded: tuple[int, OwnValues] = (0, OwnValues())
        self._instead: dict[_Asked, _Less] = {}  # of what does not run, with what the release does
        self._unfit: tuple[int, OwnValues] | None = None  # what could not be loaded,
        self._reload = Backoff(FIRST_RELOAD_S, LONGEST_RELOAD_S)  # and when to try it again
        self.rss_mb = 0.0

    @property
    def _is_ready(self) -> bool:
        """Whether the process has answered since it started."""
        return self._child is not None and self._heard_at > self._started_at

    def load(self, manifest: Manifest) -> str:
        """Switch to ``manifest``; return "" or why it does not run; the old one answers then.

        Raises:
            TransientError: the process is not up now.
        """
        if not self._is_ready:
            raise TransientError("the inference process is not up yet")
        asked = (manifest.release, self._own(manifest))
        own, why = self._instead.get(asked, _Less(asked[1]))
        reason = ""
        if own.tuned is not None and manifest != self._slots.active:
            # What is tuned goes on running; the release must be able to, all the same.
            alone = OwnValues(own.personal)
            reason = self._ask(load_request(manifest, self._slots, alone, is_trial=True))
            if reason and own.personal is None:
                return reason
        reason = reason or self._ask(load_request(manifest, self._slots, own))
        if reason:
            return reason if own == OwnValues() else self._load_with_less(manifest, own, reason)
        self._loaded = (manifest.release, own)
        self._problems.say("inference", why)
        return ""

    def _load_with_less(self, manifest: Manifest, own: OwnValues, reason: str) -> str:
        """Load ``manifest`` without what of ``own`` may be why it did not run; see `load`."""
        less = _Less(OwnValues(), f"this device's personal values do not run: {reason}")
        if own.tuned is not None:
            less = _Less(OwnValues(own.personal), f"the tuned model does not run: {reason}")
        asked = (manifest.release, self._own(manifest))
        self._instead.pop(asked, None)
        if len(self._instead) == MOST_INSTEAD:
            del self._instead[next(iter(self._instead))]
        self._instead[asked] = less
        if self._child is None or self._child.poll() is not None:
            raise TransientError("the inference process is started again")
        if not_even := self.load(manifest):
            self._instead.pop(asked, None)  # the release is to blame
        return not_even

    def _wanted(self, manifest: Manifest) -> OwnValues:
        asked = (manifest.release, self._own(manifest))
        return self._instead.get(asked, _Less(asked[1])).own

    def _ask(self, request: dict[str, object]) -> str:
        """Have the process load something; return "" or why it does not run.

        Raises:
            TransientError: not able to try now.
        """
        try:
            answer, _ = call(self._control, request, timeout_s=LOAD_WITHIN_S)
        except PayloadError as error:
            raise TransientError(str(error)) from None
        except TransientError:
            if self._child is None or self._child.poll() is not None:
                return "the inference process crashed on it"
            raise
        if answer.get("ok") is True:
            return ""
        reason = str(answer.get("error", "no reason given"))
        if answer.get("transient"):  # busy, or out of memory: says nothing of the release
            raise TransientError(reason)
        return reason

    def tick(self, now: float) -> float:
        """Keep the process alive and on the active release; return when to look again."""
        if now < self._look_at:
            return self._look_at
        self._look_at = now + LOOK_EVERY_S
        if self._child is None:
            self._start(now)
        elif (code := self._child.poll()) is not None:
            self._ended(code, now)
        elif self._ping():
            self._heard_at = now
            if now - self._started_at > STEADY_S:
                self.backoff.worked()
            self._catch_up(now)
        elif now - self._heard_at > SILENT_S:
            log.warning("inference process does not answer, it is restarted")
            self._child.kill()
            self._ended(self._child.poll() or 0, now)
        else:
            self._look_at = now + STARTING_LOOK_S
        return self._look_at

    def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None
            self._control.unlink(missing_ok=True)

    def _start(self, now: float) -> None:
        try:
            self._child = self._begin()
        except OSError as error:
            self._problems.say("inference", f"cannot be started: {error.strerror}")
            self._look_at = now + self.backoff.failed(now)
            return
        self._started_at = self._heard_at = now
        self._loaded = (0, OwnValues())
        self._look_at = now + STARTING_LOOK_S

    def _ended(self, code: int, now: float) -> None:
        self._child = None
        if code in (0, -signal.SIGTERM):  # somebody stops it, and perhaps us next: nothing is wrong
            log.info("inference process was stopped, it is started again")
        else:
            self._problems.say("inference", f"its process ended with code {code}; it is restarted")
        self._look_at = now + self.backoff.failed(now)

    def _ping(self) -> bool:
        try:
            answer, _ = call(self._control, {"do": "ping"}, timeout_s=PING_WITHIN_S)
        except (TransientError, PayloadError):
            return False
        rss = answer.get("rss_mb")
        self.rss_mb = float(rss) if isinstance(rss, int | float) else 0.0
        self._problems.say("applications", str(answer.get("problem") or ""))
        return True

    def _catch_up(self, now: float) -> None:
        """Load the active release if it does not answer yet, or with new personal values."""
        active = self._slots.active
        if active is None:
            return
        wanted = (active.release, self._wanted(active))
        if wanted == self._loaded or (wanted == self._unfit and not self._reload.due(now)):
            return
        try:
            reason = self.load(active)
        except TransientError as error:
            reason = str(error)
        else:
            if reason:
                if wanted != self._unfit:
                    self._unfit = wanted
                    self._reload.worked()
                self._reload.failed(now)
        if reason:
            self._problems.say("inference", f"release {active.release} does not load: {reason}")
