"""One board of a simulated fleet, with the agent that the product's own ``assemble`` makes."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

import edge_agent.build
from edge_agent.agent import Agent
from edge_agent.board.installation import open_installation
from edge_agent.board.pace import Pace
from edge_agent.config import Config
from edge_agent.inbox import intake
from edge_agent.inbox.intake_job import IntakeJob
from edge_agent.releases.apply_patches import apply_patches
from edge_agent.releases.patching import PATCHER
from edge_agent.reports.status_file import LocalStatus, write_local_status
from edge_agent.training.governor import Vitals
from edge_agent.training.training_job import TRAINER, Job
from models.protocol.messages import Status, encode_message
from models.protocol.topics import Topics
from models.task.params import Vector
from tools.simulation.learning.light_learning import Learning, job_of, plan_steps
from tools.simulation.machines.light_child import LightChild
from tools.simulation.machines.machine import Machine, Place
from tools.simulation.machines.virtual_disk import untouched
from tools.simulation.machines.virtual_network import VirtualLink
from tools.simulation.scenario.energy import Board

__all__ = ["Beginning", "DeviceMachine", "DeviceSetup"]

TRAINING_S = (30.0, 280.0)
OTHER_S = 1.0  # other children take
JOBS_KEPT = 8  # one may be found finished after a crash
VITALS = Vitals(celsius=50.0, throttled=False, free_mb=300.0, load=0.5, rss_mb=30, peak_rss_mb=31)


class Beginning(NamedTuple):
    """When a training began, and how wrong the board's clock was then."""

    at_s: float
    skew_s: float
    life: int  # how often the machine had crashed


class DeviceSetup(NamedTuple):
    """What a device is, learns and is told to do."""

    number: int
    learning: Learning
    config: Callable[[Path], Config]  # by where its disk lies
    pace: Pace
    on_learned: Callable[["DeviceMachine", Job, Vector], None]
    trainer_kills: float  # share of the trainings
    board: Board | None = None  # says how long a training takes; None: any time, as faults like it


class DeviceMachine(Machine):
    """One board with the agent."""

    def __init__(self, place: Place, setup: DeviceSetup) -> None:
        super().__init__(place)
        self.setup = setup
        self.config = setup.config(self.disk.at)
        self.agent: Agent | None = None
        self.trained_s = 0.0
        self.trainings = 0
        self.patched = 0  # releases made out of patches
        self.beginnings: dict[int, Beginning] = {}  # of trainings, by job
        self._identities = self.timeline.generator(f"identities/{self.name}")

    @property
    def number(self) -> int:
        return self.setup.number

    # -- its children

    def _launch(
        self, module: str, arguments: Sequence[str], *, log: Path | str | None
    ) -> LightChild:
        path = Path(arguments[0])
        work = {TRAINER: self._train, PATCHER: self._patch}.get(module, self._take_in)
        takes_s = OTHER_S if module != TRAINER else self._begin_training(job_of(_unseen(path)))
        if self.setup.board is not None:  # else whoever waits for it looks every few seconds
            self.timeline.at(self.timeline.now + takes_s, self.wake)
        dies = self.rng.random() < self.setup.trainer_kills
        return LightChild(
            self,
            lambda: work(arguments),
            takes_s=takes_s,
            dies_after=self.rng.randrange(1, 30) if dies else 0,
        )

    def _begin_training(self, job: Job) -> float:
        """Take note of a training that begins; return how long it takes."""
        self.beginnings = {
            job.number: Beginning(self.timeline.now, self.clock.skew_s, self.crashes),
            **{n: at for n, at in self.beginnings.items() if n > job.number - JOBS_KEPT},
        }
        board = self.setup.board
        if board is None:
            return self.rng.uniform(*TRAINING_S)
        steps = 0
        if job.do == "train":
            assert self.agent is not None  # it waits for us
            steps = plan_steps(job.plan, max(1, self.agent.parts.samples.counts().train))
        takes_s = board.start_s + steps * board.step_ms / 1000
        self.trained_s += takes_s
        return takes_s

    def _train(self, arguments: Sequence[str]) -> None:
        self.setup.learning.train(self.number, Path(arguments[0]), self._learned)

    def _learned(self, job: Job, delta: Vector) -> None:
        self.trainings += 1
        self.setup.on_learned(self, job, delta)

    def _patch(self, arguments: Sequence[str]) -> None:
        apply_patches(arguments)
        self.patched += 1

    def _take_in(self, arguments: Sequence[str]) -> None:
        path = Path(arguments[0])
        result = intake.take_in(msgspec.json.decode(path.read_bytes(), type=IntakeJob))
        (path.parent / "result.json").write_bytes(msgspec.json.encode(result))

    # -- its process

    def _digits(self) -> str:
        return self._identities.randbytes(4).hex()

    def _wake_published(self) -> None:
        """An acknowledgment: when planning, only that of a chunk is waited for."""
        is_planning = self.setup.board is not None
        if not is_planning or self.agent is None or self.agent.parts.uplink.chunks_under_way:
            self.wake()

    def _build(self) -> None:
        device, directory = self.config.device, self.config.storage.directory
        directory.mkdir(parents=True, exist_ok=True)
        installation = open_installation(
            directory, device=device.id, task=device.task, digits=self._digits
        )
        will = encode_message(Status(online=False, task=device.task))
        self.link = VirtualLink(
            self.place.network,
            client_id=device.id,
            line=self.line,
            will=(Topics(self.config.fleet.name).status(device.id), will),
            wake=self.wake,
            wake_published=self._wake_published,
            before_io=self.before_io,
        )
        surroundings = edge_agent.build.Surroundings(
            launch=self._launch,
            vitals=lambda: VITALS,
            wall_clock=self.clock.wall,
            rng=random.Random(self.rng.getrandbits(64)),
            pace=self.setup.pace,
            digits=self._digits,
            write_status=write_local_status if self.setup.board is None else _write_nothing,
        )
        self.agent = edge_agent.build.assemble(self.config, installation, self.link, surroundings)
        self.agent.start(self.clock.monotonic())

    def _run_once(self) -> float:
        assert self.agent is not None
        assert self.link is not None
        now = self.clock.monotonic()
        for event in self.link.poll(0):
            self.agent.handle(event, now)
        return self.agent.tick(now) - now


def _unseen(path: Path) -> bytes:
    """Read a file as nobody on the machine would."""
    with untouched():
        return path.read_bytes()


def _write_nothing(path: Path, status: LocalStatus) -> None:
    """Where nobody looks at a device's directory."""
