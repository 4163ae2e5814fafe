"""A fleet of arrays: the pure code of device and server, played without files, clocks or network.

What an experiment of hundreds of devices and thousands of updates needs, and the same functions as
the product's: `training_loop.train_by`, `local_update`, `aggregator.fold`, `with_published`,
`next_step`, and real payloads both ways. A test plays the events of a simulated fleet in it and
gets releases of the same digests.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edge_agent.training.local_update import local_update
from models.codec.feedback import Carried, history_digest
from models.learning.measurement import evaluate
from models.learning.onnx_session import open_session
from models.learning.scoring import Score
from models.learning.training_loop import Stepper, TrainingRows, train_by, training_rows
from models.protocol.manifest import TrainingPlan
from models.task.bundle import Bundle
from models.task.onnx_weights import read_weights
from models.task.params import Tensor, Vector, flatten, unflatten
from models.task.spec import Role
from tools.author.data.labeled_data import Array, Rows
from tools.experiments.arena_server import ArenaServer, Plans, Release, Sent

__all__ = ["Arena", "Course", "Device", "Member", "Timing"]


class Member(NamedTuple):
    """One device: its samples, and how long one training takes it."""

    train: Rows
    holdout: Rows
    seconds: float


class Timing(NamedTuple):
    """How unevenly devices take part; seconds of simulated time."""

    jitter: float = 0.2  # standard deviation of the logarithm of each training's time
    offline: float = 0.3  # chance of a pause after a training
    pause: float = 10.0  # its mean
    straggler: float = 1.0  # standard deviation of the logarithm of a device's own speed


class Course(NamedTuple):
    """How good a fleet was, and when: one point for each look."""

    updates: list[int]
    seconds: list[float]
    bytes_up: list[int]
    bytes_down: list[int]
    runs: list[float]  # the metric of what devices run
    trained_from: list[float]  # and of what they train from

    def last(self, count: int = 5) -> float:
        """Return the mean of the last looks at what devices run."""
        return float(np.mean(self.runs[-count:]))

    def seconds_to(self, metric: float) -> float:
        """Return when what devices run was that good first; infinite: never."""
        found = (s for s, value in zip(self.seconds, self.runs, strict=True) if value >= metric)
        return next(found, float("inf"))


class Device:
    """The device's side of the recursion, with its state in memory."""

    def __init__(self, number: int, rows: TrainingRows) -> None:
        self.number = number
        self.rows = rows
        self.carried = Carried()
        self.personal: Vector | None = None
        self.held: Release | None = None  # the newest that it fetched
        self.before: Release | None = None  # the one that it had until then
        self.step: float | None = None  # of the codec, from its last payload
        self.tuned: Mapping[str, Tensor] = {}  # what its last training left

    def fetched(self, release: Release) -> None:
        """Install ``release``; the one before stays in the other slot."""
        if self.held is None or release.number != self.held.number:
            self.before, self.held = self.held, release

    def settled(self, sent: Sent, *, is_folded: bool) -> None:
        """The server has answered."""
        if is_folded and sent.after.history is not None:
            self.carried = sent.after


class Arena:
    """One fleet: what trains, what is measured, and what it costs."""

    def __init__(
        self, bundle: Bundle, x: Array, y: Array, members: Sequence[Member], plans: Plans
    ) -> None:
        self.bundle, self.spec = bundle, bundle.spec
        self.plans = plans
        self.members = members
        self.server = ArenaServer(bundle, plans)
        self.devices = [
            Device(number, training_rows(self.spec, x[rows], y[rows], plans.training))
            for number, (rows, _, _) in enumerate(members)
        ]
        self.bytes_up = self.bytes_down = 0
        self._session = open_session(bundle.train)
        self._steppers: dict[int, Stepper] = {}  # by batch
        personal = self.spec.with_role(Role.PERSONAL)
        values = read_weights(bundle.infer, personal) if personal else {}
        self._personal = {name: np.array(value) for name, value in values.items()}

    # -- one device

    def tensors(self, device: Device, vector: Vector) -> dict[str, Tensor]:
        """Return ``vector`` with the personal values of ``device``, by name."""
        personal = self.spec.with_role(Role.PERSONAL)
        own = self._personal if device.personal is None else unflatten(device.personal, personal)
        return unflatten(vector, self.spec.shared) | own

    def train(
        self, device: Device, release: Release, *, seed: int, plan: TrainingPlan | None = None
    ) -> Sent:
        """Train ``device`` on ``release``, by ``plan`` if given; code what it learned."""
        tensors = self.tensors(device, release.published)
        stepper = self._stepper(device.rows.batch, tensors)
        trained = train_by(stepper, device.rows, plan or self.plans.training, seed=seed)
        device.tuned = {name: value.copy() for name, value in trained.tensors.items()}
        if personal := self.spec.with_role(Role.PERSONAL):
            device.personal = flatten(trained.tensors, personal)
        delta = flatten(trained.tensors, self.spec.shared) - release.published
        return self.said(device, release, delta)

    def said(self, device: Device, release: Release, delta: Vector) -> Sent:
        """Return the update that says ``delta``; the device carries on the rest."""
        plans, carried, before = self.plans, device.carried, device.before
        memory = history_digest(carried.history)
        samples = len(device.rows.counted)
        if plans.codec is None:  # nothing is lost, so nothing is owed
            after = carried
            if plans.learning.feedback != "residual":
                raise ValueError("a memory without a codec: take method transform, nmse 1e-6")
            return Sent(device.number, release.number, samples, b"", delta, memory, after)
        context = None
        if plans.codec.context == "own":
            context = carried.history if memory else None
        elif (
            plans.codec.context == "release"
            and before is not None
            and before.number == release.number - 1
        ):
            change = release.published - before.published
            context = change if change.any() else None
        moved = None if before is None else release.published - before.published
        made = local_update(
            delta,
            carried,
            tensors=self.spec.shared,
            plan=plans.learning,
            codec=plans.codec,
            context=context,
            moved=moved,
            hint=device.step,
        )
        device.step = made.step
        if made.carried.history is None and plans.has_feedback:
            device.carried = made.carried
        return Sent(
            device.number, release.number, samples, made.payload, None, memory, made.carried
        )

    def _stepper(self, batch: int, tensors: Mapping[str, Tensor]) -> Stepper:
        stepper = self._steppers.get(batch)
        if stepper is None:
            stepper = Stepper(self._session, self.spec, tensors, batch, self.plans.training)
            self._steppers[batch] = stepper
        else:
            stepper.reset(flatten(tensors, self.spec.trainable))
        return stepper

    # -- the whole fleet

    def play(
        self,
        timing: Timing,
        *,
        updates: int,
        seed: int,
        every: int,
        measure: Callable[[Vector], float],
        on_look: Callable[[int], None] = lambda done: None,
    ) -> Course:
        """Let devices train, send and pause until ``updates`` came; look at the model ``every``.

        Asynchronous, as FedBuff: a device begins its next training on the newest release as soon as
        its pause is over, whatever the others do. ``measure`` returns the metric of parameters.
        """
        random = np.random.default_rng([seed, 7])
        course = Course([], [], [], [], [], [])
        events: list[tuple[float, int, int]] = []  # when its training ends, device, release
        for device in self.devices:
            ends = self._duration(device, timing, random, is_first=True)
            heapq.heappush(events, (ends, device.number, self.server.newest.number))
        waiting: list[Sent] = []
        unanswered: set[int] = set()
        done = 0
        while done < updates:
            now, number, base = heapq.heappop(events)
            device = self.devices[number]
            release = self.server.release(base)
            self._download(device, release)
            sent = self.train(device, release, seed=int(random.integers(1 << 32)))
            has_memory = sent.after.history is not None
            if not has_memory or number not in unanswered:  # else it is not sent: one at a time
                waiting.append(sent)
                unanswered.add(number)
                self.bytes_up += sent.size
                done += 1
                if len(waiting) >= self.plans.policy.at_once:
                    for one, is_folded in self.server.fold(waiting):
                        self.devices[one.device].settled(one, is_folded=is_folded)
                        unanswered.discard(one.device)
                    waiting = []
                if done % every == 0:
                    self._look(course, done, now, measure)
                    on_look(done)
            pause = self._duration(device, timing, random)
            heapq.heappush(events, (now + pause, number, self.server.newest.number))
        return course

    def play_rounds(
        self,
        timing: Timing,
        *,
        rounds: int,
        chosen: int,
        seed: int,
        every: int,
        measure: Callable[[Vector], float],
        on_look: Callable[[int], None] = lambda done: None,
    ) -> Course:
        """Play synchronous rounds of ``chosen`` devices: each waits for its slowest (FedAvg)."""
        random = np.random.default_rng([seed, 7])
        course = Course([], [], [], [], [], [])
        now = 0.0
        for number in range(1, rounds + 1):
            release = self.server.newest
            sents, longest = [], 0.0
            for place in random.choice(len(self.devices), chosen, replace=False):
                device = self.devices[int(place)]
                self._download(device, release)
                sents.append(self.train(device, release, seed=int(random.integers(1 << 32))))
                self.bytes_up += sents[-1].size
                longest = max(longest, self._duration(device, timing, random))
            now += longest
            for one, is_folded in self.server.fold(sents):
                self.devices[one.device].settled(one, is_folded=is_folded)
            if number % every == 0:
                self._look(course, number * chosen, now, measure)
                on_look(number)
        return course

    def _duration(
        self, device: Device, timing: Timing, random: np.random.Generator, *, is_first: bool = False
    ) -> float:
        seconds = self.members[device.number].seconds * np.exp(random.normal(0, timing.jitter))
        if not is_first and random.random() < timing.offline:
            seconds += random.exponential(timing.pause)
        return float(seconds)

    def _download(self, device: Device, release: Release) -> None:
        """Count what ``device`` fetches: patches from what it holds, or the parameters whole."""
        whole = release.published.nbytes
        if device.held is None:
            self.bytes_down += whole
        elif device.held.number < release.number:
            way = self.server.releases[device.held.number : release.number]
            self.bytes_down += min(whole, sum(step.patch_bytes for step in way))
        device.fetched(release)

    def _look(
        self, course: Course, done: int, now: float, measure: Callable[[Vector], float]
    ) -> None:
        newest = self.server.newest
        course.updates.append(done)
        course.seconds.append(now)
        course.bytes_up.append(self.bytes_up)
        course.bytes_down.append(self.bytes_down)
        course.trained_from.append(measure(newest.published))
        same = newest.average is None
        course.runs.append(course.trained_from[-1] if same else measure(newest.runs))

    def score(self, tensors: Mapping[str, Tensor], x: Array, y: Array) -> Score:
        """Return how good a model with ``tensors`` is (`tensors`, or `Device.tuned`)."""
        return evaluate(self.bundle.infer, self.spec, tensors, x, y)
