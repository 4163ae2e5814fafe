"""Builds a server out of its configuration: the only place that knows all the parts."""

import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from broker.config import Config, TaskConfig
from broker.lease.leaseholder import Leaseholder, farewell
from broker.lease.server_state import LOCK
from broker.lease.tenure import MainLink
from broker.publishing.publisher import Publisher
from broker.receiving.update_inbox import InboxLimits, UpdateInbox, largest_update
from broker.records.device_records import DeviceRecords
from broker.records.registry import DATABASE, Registry
from broker.records.release_records import ReleaseRecords
from broker.records.update_records import UpdateRecords
from broker.releases.gate import Evaluate
from broker.releases.hold_out import Evaluator, load_hold_out
from broker.releases.release_line import ReleaseLine
from broker.releases.release_maker import Books
from broker.server import Server
from broker.state.artifact_store import ARTIFACTS, ArtifactStore
from models.errors import UsageError
from models.host.directory_lock import lock
from models.host.durable import sync_directory
from models.host.sentences import unusable
from models.protocol.messages import ServerStatus, encode_message
from models.protocol.topics import Topics
from models.task.bundle import Bundle, read_bundle
from models.task.spec import Role, TaskSpec
from models.transport.link import Link
from models.version import VERSION

__all__ = ["ServedTask", "assemble", "lease", "lock_directory", "read_tasks"]

MB = 1_000_000


class ServedTask(NamedTuple):
    """A task of broker.toml with the files that it names."""

    config: TaskConfig
    bundle: Bundle
    evaluate: Evaluate | None


def read_tasks(config: Config, on_progress: Callable[[], None] = lambda: None) -> list[ServedTask]:
    """Read every task's bundle and hold-out data.

    Raises:
        UsageError: a file is missing or wrong, a gate would judge what no device has, or two tasks
            have one name.
    """
    tasks = []
    for section in config.task:
        bundle = read_bundle(config.path(section.bundle))
        _check_gate(section, bundle.spec)
        _check_batch(section, bundle.spec)
        evaluate = None
        if section.evaluation is not None:
            hold_out = load_hold_out(config.path(section.evaluation.data), bundle.spec)
            evaluate = Evaluator(
                bundle.infer,
                bundle.spec,
                hold_out,
                batch=section.evaluation.batch,
                threads=section.evaluation.threads,
                on_progress=on_progress,
            )
        tasks.append(ServedTask(section, bundle, evaluate))
    names = [task.bundle.spec.task for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two [[task]] sections have bundles of task {min(twice)}")
    return tasks


def _check_gate(section: TaskConfig, spec: TaskSpec) -> None:
    """Refuse a gate on a model of which the server has the initial personal values only."""
    personal = spec.with_role(Role.PERSONAL)
    if personal and section.evaluation is not None and section.evaluation.max_drop is not None:
        raise UsageError(
            f"task {spec.task}: the server cannot measure personal models (of {personal[0].name}) "
            "on [task.evaluation] data; remove max_drop (devices report: edgefold-broker personal)"
        )


def _check_batch(section: TaskConfig, spec: TaskSpec) -> None:
    """Refuse steps of one sample where batch norm adapts: no device could make one."""
    if spec.norms_adapt and section.training.batch < 2:
        raise UsageError(
            f"task {spec.task}: [task.training] batch = 1 is no batch for batch norm that adapts "
            "(--norms personal), as one sample has no variance: take at least 2, or 16"
        )


def assemble(
    config: Config,
    tasks: Sequence[ServedTask],
    link: Link,
    now: float,
    wall: float,
    on_progress: Callable[[], None] = lambda: None,
) -> Server:
    """Return a server that has opened its registry and its releases.

    ``on_progress`` is called often during long work: a watchdog wants to hear of us.

    Raises:
        UsageError: the registry or a bundle does not fit.
        TransientError, OSError: the disk is full or failing.
    """
    storage = config.storage
    directory = config.path(storage.directory)
    registry = Registry(directory / DATABASE, config.fleet.name)
    devices = DeviceRecords(registry)
    updates, releases = UpdateRecords(registry, is_owner=True), ReleaseRecords(registry)
    artifacts = ArtifactStore(directory / ARTIFACTS)
    books = Books(
        registry, devices, updates, releases, artifacts, storage.keep_releases, on_progress
    )
    lines = [
        ReleaseLine(
            task.bundle,
            task.config,
            books,
            chunk_size=config.fleet.chunk_kib * 1024,
            evaluate=task.evaluate,
        )
        for task in tasks
    ]
    limits = InboxLimits(
        partial_bytes=storage.max_partial_mb * MB,
        waiting_bytes=storage.max_waiting_mb * MB,
        devices=storage.max_devices,
    )
    topics = Topics(config.fleet.name)
    server = Server(
        topics=topics,
        link=link,
        books=books,
        inbox=UpdateInbox(devices, updates, limits),
        lines=lines,
        largest={
            line.task: largest_update(line.spec.shared_size, storage.max_update_mb * MB)
            for line in lines
        },
        publisher=Publisher(topics, registry, releases, artifacts, [line.task for line in lines]),
    )
    server.start(now, wall)
    return server


class MakeLink(Protocol):
    """Makes a link to the MQTT broker; one that is not ``is_passing`` waits (`MainLink`)."""

    def __call__(
        self, client_id: str, will: tuple[str, bytes] | None, *, is_passing: bool = False
    ) -> MainLink:
        """Return a link that was not started yet."""


def lease(
    config: Config,
    tasks: Sequence[ServedTask],
    make_link: MakeLink,
    make_server: Callable[[Link], Server],
) -> Leaseholder:
    """Return the server under its lease; nothing is connected yet.

    Raises:
        UsageError, TransientError, OSError: as ``make_server``.
    """
    topics = Topics(config.fleet.name)
    client_id = config.fleet.session_id
    own = ServerStatus(
        online=True,
        instance=secrets.token_hex(4),
        host=socket.gethostname()[:64],
        tasks=tuple(task.bundle.spec.task for task in tasks),
        version=VERSION[:32],
    )
    will = topics.server_status, encode_message(farewell(own))
    return Leaseholder(
        topics=topics,
        own=own,
        client_id=client_id,
        make_scout=lambda: make_link(f"{client_id}-{own.instance}", None, is_passing=True),
        make_main=lambda: make_link(client_id, will),
        make_server=make_server,
        wall=time.time(),
    )


def lock_directory(directory: Path) -> int:
    """Make ``directory`` ours until this process ends; return the lock's descriptor.

    Raises:
        UsageError: another server works in it, or it cannot be written.
    """
    try:
        if not directory.exists():
            directory.mkdir(parents=True)
            sync_directory(directory.parent)
        return lock(
            directory / LOCK,
            otherwise=f"another server is running on {directory}; stop it, or give this one a "
            "directory of its own",
        )
    except OSError as error:
        raise unusable(f"[storage] directory {directory}", error) from None
