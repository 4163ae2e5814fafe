"""Makes an agent out of its settings: the one place that knows all parts."""

import contextlib
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from edge_agent.agent import Agent
from edge_agent.board.children import Launch, launch
from edge_agent.board.installation import Installation, hold, new_digits, open_installation, renamed
from edge_agent.board.pace import Pace
from edge_agent.board.problems import Problems
from edge_agent.board.warm_children import WarmChildren
from edge_agent.config import Config
from edge_agent.inbox.inbox_folder import InboxFolder
from edge_agent.inbox.intake_job import IntakeJob
from edge_agent.inbox.sample_inbox import SampleInbox
from edge_agent.inference.application_socket import default_path
from edge_agent.inference.inference_process import InferenceProcess, NoInference
from edge_agent.parts import Identity, Parts
from edge_agent.releases.admission import ReleaseLimits
from edge_agent.releases.downlink import Downlink
from edge_agent.releases.model_slots import Slots
from edge_agent.releases.patching import PATCHER, Patching
from edge_agent.releases.release_pace import ReleasePace
from edge_agent.reports.heartbeat import Heartbeat, settling_time
from edge_agent.reports.status_file import LocalStatus, write_local_status
from edge_agent.samples.sample_store import Samples
from edge_agent.spending.allowance import DailyLimits
from edge_agent.spending.spending_book import SpendingBook
from edge_agent.training import governor
from edge_agent.training.job_folders import JobFolders
from edge_agent.training.job_results import JobResults
from edge_agent.training.learner import Learner
from edge_agent.training.timing import Timing
from edge_agent.training.training_job import TRAINER
from edge_agent.training.vitals import read_vitals
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_file import DamagedError, put_aside
from edge_agent.updates.uplink import Uplink
from models.access.broker_address import broker_address
from models.errors import UsageError
from models.host.ballast import with_ballast
from models.protocol.messages import Request, Status, encode_message
from models.protocol.topics import Topics
from models.transport.link import Link
from models.transport.mqtt import MqttLink
from models.version import VERSION

__all__ = [
    "Built",
    "Surroundings",
    "assemble",
    "build",
    "control_path",
    "daily_limits",
    "status_path",
]

log = logging.getLogger("edge_agent")

CHILD_LOOK_S = 2.0  # at a child whose end wakes us, in case that it did not


class Surroundings(NamedTuple):
    """What an agent needs of its surroundings; a simulation brings its own."""

    launch: Launch
    vitals: Callable[[], governor.Vitals]
    wall_clock: Callable[[], float]  # seconds since 1970, as wrong as the board's clock
    rng: random.Random
    pace: Pace = Pace()
    digits: Callable[[], str] = new_digits  # of a new outbox
    write_status: Callable[[Path, LocalStatus], None] = write_local_status
    warm: WarmChildren | None = None  # launches the jobs; None: ``launch`` does, all anew

    @property
    def launch_job(self) -> Launch:
        """What starts the children that end with their job."""
        return self.warm or self.launch


class Built(NamedTuple):
    """An agent on a real network; keep it as long as the agent shall hold its directory."""

    agent: Agent
    link: MqttLink
    lock: int


def build(config: Config, written_in: Path) -> Built:
    """Make the agent that runs on this machine; its settings are those in ``written_in``.

    Raises:
        UsageError: a setting or the directory is not usable.
        OSError: the storage directory cannot be written.
    """
    if config.training.min_minutes == 0:
        log.warning(
            "training.min_minutes = 0: trains as often as there is something new, which is for "
            "trials; a fleet wants its pace (default 60)"
        )
    try:
        host, port, _ = broker_address(config.fleet.broker)
    except UsageError as error:
        raise UsageError(f"fleet.broker: {error}") from None
    topics = Topics(config.fleet.name)
    offline = encode_message(Status(online=False, task=config.device.task))
    link = MqttLink(
        host,
        port,
        client_id=config.device.id,
        will=(topics.status(config.device.id), offline),
        login=config.fleet.login(written_in),
        protocol=config.fleet.protocol,
    )
    config.storage.directory.mkdir(parents=True, exist_ok=True)
    lock = hold(config.storage.directory)
    try:
        with contextlib.suppress(OSError):  # what the process before us said is not true of us
            status_path(config).unlink()
        installation = open_installation(
            config.storage.directory, device=config.device.id, task=config.device.task
        )
        surroundings = Surroundings(
            launch=launch,
            vitals=read_vitals,
            wall_clock=time.time,
            rng=random.Random(),
            pace=Pace(training_s=CHILD_LOOK_S, child_s=CHILD_LOOK_S),
            warm=WarmChildren(
                frozenset({TRAINER, PATCHER}),
                free_mb=lambda: read_vitals().free_mb,
                min_free_mb=config.training.min_free_mb,
                wake=link.wake,
            ),
        )
        agent = with_ballast(
            config.storage.directory, lambda: assemble(config, installation, link, surroundings)
        )
    except BaseException:
        os.close(lock)
        raise
    return Built(agent, link, lock)


def assemble(
    config: Config, installation: Installation, link: Link, surroundings: Surroundings
) -> Agent:
    """Put the parts together, over whatever network and processes there are.

    Raises:
        TransientError: the outbox cannot be opened now.
        OSError: the storage directory cannot be written.
    """
    directory = config.storage.directory
    problems = Problems()
    outbox, installation = _open_outbox(config, installation, problems, surroundings.digits)
    topics, status_file = Topics(config.fleet.name), status_path(config)
    requests: deque[Request] = deque()
    slots = Slots(directory)
    samples = Samples(
        directory,
        max_count=config.samples.max_count,
        max_bytes=config.max_sample_bytes,
        holdout_share=config.samples.holdout_share,
    )
    spending = SpendingBook(daily_limits(config), outbox.facts, lambda: sum(link.traffic()))
    learner = _learner(config, slots, samples, outbox, spending, problems, surroundings)
    inference = _inference(config, slots, learner, problems, surroundings)
    return Agent(
        Parts(
            link=link,
            topics=topics,
            identity=Identity(
                device=config.device.id,
                task=config.device.task,
                installation=installation.installation,
                boot=installation.boot,
                run=f"{surroundings.rng.getrandbits(32):08x}",
                version=VERSION,
            ),
            heartbeat=Heartbeat(settling_time(60 * config.training.min_minutes)),
            outbox=outbox,
            slots=slots,
            samples=samples,
            inbox=_inbox(config, slots, samples, problems, surroundings),
            learner=learner,
            inference=inference,
            downlink=Downlink(
                link=link,
                topics=topics,
                task=config.device.task,
                slots=slots,
                models=inference,
                directory=directory / "downloads",
                problems=problems,
                rng=surroundings.rng,
                limits=ReleaseLimits(
                    max_artifact=1_000_000 * config.limits.max_artifact_mb,
                    max_release=config.max_release_bytes,
                ),
                ask=requests.append,
                patching=Patching(
                    launch=surroundings.launch_job, slots=slots, directory=directory / "patching"
                ),
                pinned=lambda: learner.pinned(),
                pace=ReleasePace(patching_s=surroundings.pace.child_s),
            ),
            uplink=Uplink(
                link=link,
                topics=topics,
                device=config.device.id,
                outbox=outbox,
                problems=problems,
                rng=surroundings.rng,
                ask=requests.append,
            ),
            problems=problems,
            requests=requests,
            warm=surroundings.warm,
            vitals=surroundings.vitals,
            pace=surroundings.pace,
            on_status=lambda status: surroundings.write_status(status_file, status),
        )
    )


def status_path(config: Config) -> Path:
    """Return where an agent leaves its status for `edgefold-agent status`."""
    return config.storage.directory / "status.json"


def control_path(directory: Path) -> Path:
    """Return where the inference process answers the agent and its commands, and nobody else."""
    return directory / "control.sock"


def daily_limits(config: Config) -> DailyLimits:
    """Return what the owner lets training spend in a day."""
    ours = config.training
    return DailyLimits(
        seconds=60 * ours.minutes_per_day,
        bytes=1e6 * ours.megabytes_per_day,
        joules=ours.joules_per_day,
        watts=ours.watts,
        joules_per_byte=ours.joules_per_byte,
    )


def _inference(
    config: Config,
    slots: Slots,
    learner: Learner,
    problems: Problems,
    surroundings: Surroundings,
) -> InferenceProcess | NoInference:
    if not config.inference.enabled:
        return NoInference()
    return InferenceProcess(
        control=control_path(config.storage.directory),
        arguments=_inference_arguments(config),
        slots=slots,
        own=learner.own.values,
        launch=surroundings.launch,
        problems=problems,
        rng=surroundings.rng,
    )


def _inference_arguments(config: Config) -> list[str]:
    ours = config.inference
    path = ours.socket or default_path(config.storage.directory, os.environ, os.getpid())
    arguments = ["--threads", str(ours.threads), "--socket", str(path)]
    arguments += ["--group", ours.group] if ours.group else []
    return arguments + (["--mode", ours.mode] if ours.mode else [])


def _open_outbox(
    config: Config, installation: Installation, problems: Problems, new: Callable[[], str]
) -> tuple[Outbox, Installation]:
    """Open the outbox; a damaged one is put aside, and its numbers are never used again."""
    path = config.storage.directory / "outbox.db"

    def opened(digits: str) -> Outbox:
        return Outbox(
            path,
            max_bytes=config.max_outbox_bytes,
            max_waiting=config.training.max_waiting,
            installation=digits,
            earlier=installation.installation,
        )

    # An outbox that is missing at a later start may have used all numbers with the old digits.
    digits = installation.installation if installation.boot == 1 else new()
    try:
        outbox = opened(digits)
    except DamagedError:
        put_aside(path)
        problems.say("storage", "outbox.db was damaged and is put aside: its updates are lost")
        outbox = opened(new())
    return outbox, renamed(config.storage.directory, installation, outbox.installation)


def _learner(
    config: Config,
    slots: Slots,
    samples: Samples,
    outbox: Outbox,
    spending: SpendingBook,
    problems: Problems,
    surroundings: Surroundings,
) -> Learner:
    ours = config.training
    folders = JobFolders(
        config.storage.directory,
        slots=slots,
        samples=samples,
        outbox=outbox,
        rng=surroundings.rng,
        wall_clock=surroundings.wall_clock,
        max_batch=ours.max_batch,
        max_seconds=60 * ours.max_minutes,
        serve=config.inference.serve,
        limits=daily_limits(config),
    )
    return Learner(
        slots=slots,
        timing=Timing(
            outbox=outbox,
            samples=samples,
            vitals=surroundings.vitals,
            wall_clock=surroundings.wall_clock,
            limits=governor.TrainingLimits(
                enabled=ours.enabled,
                min_samples=ours.min_samples,
                min_new_samples=ours.min_new_samples,
                max_celsius=ours.max_celsius,
                min_free_mb=ours.min_free_mb,
                max_load=ours.max_load,
            ),
            min_seconds=60 * ours.min_minutes,
            spending=spending,
            serve=folders.own.serve,
        ),
        folders=folders,
        results=JobResults(
            folders,
            outbox,
            spending,
            task=config.device.task,
            chunk_size=1024 * config.limits.chunk_kib,
        ),
        launch=surroundings.launch_job,
        problems=problems,
        rng=surroundings.rng,
        check_seconds=ours.check_seconds,
        pace=surroundings.pace,
    )


def _inbox(
    config: Config, slots: Slots, samples: Samples, problems: Problems, surroundings: Surroundings
) -> SampleInbox:
    def spec() -> str | None:
        return slots.path(slots.active, "spec") if slots.active else None

    workspace = config.storage.directory / "intake"
    return SampleInbox(
        folder=InboxFolder(config.inbox, surroundings.wall_clock),
        samples=samples,
        spec=spec,
        launch=surroundings.launch_job,
        problems=problems,
        workspace=workspace,
        new_job=partial(
            IntakeJob,
            inbox=str(config.inbox),
            workspace=str(workspace),
            train=str(samples.train),
            holdout=str(samples.holdout),
            holdout_share=config.samples.holdout_share,
            max_count=config.samples.max_count,
            max_holdout=max(1, int(config.samples.max_count * config.samples.holdout_share)),
            max_bytes=min(config.max_sample_bytes, 128_000_000),
            keep_rejected_bytes=config.max_rejected_bytes,
            keep_rejected_s=86400 * config.samples.keep_rejected_days,
        ),
        pace=surroundings.pace,
    )
