"""``edgefold-broker check``: what ``run`` would refuse, what is hardly meant so, and what it costs.

It changes nothing, and may be asked beside a running server.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from broker.config import Config, TaskConfig
from broker.contradictions import contradictions, doubts
from broker.learning_policy import AVERAGE
from broker.records.device_records import DeviceRecords
from broker.records.memory_records import MemoryRecords
from broker.records.registry import DATABASE, Registry, open_to_read
from broker.records.release_records import ReleaseRecords
from broker.releases.first_release import initial_parameters
from broker.releases.hold_out import load_hold_out
from broker.reports.text_table import bytes_text
from broker.state.artifact_store import ARTIFACTS, ArtifactStore
from models.errors import DigestMismatchError, EdgefoldError
from models.protocol.learning import StepsPlan
from models.protocol.manifest import Artifact, Manifest, encode_manifest
from models.task.bundle import Bundle, read_bundle
from models.task.spec import decode_spec

__all__ = ["Checked", "CheckedTask", "check", "show_checked"]

MB = 1_000_000
ARRAY = 190  # bytes of an npz around a vector
DIGEST = "0" * 64
# As long as one that devices had a say in.
ESTIMATED = StepsPlan(*(0.1234567890123456,) * 5)


class CheckedTask(msgspec.Struct, frozen=True):
    """One ``[[task]]``. Sizes in bytes."""

    task: str  # "": its bundle cannot be read
    bundle: str
    refused: tuple[str, ...]  # ``run`` ends with the first of these
    doubts: tuple[str, ...]
    parameters: int = 0  # that travel
    manifest: int = 0
    newcomer: int = 0  # what a device downloads that has nothing
    memory_of_device: int = 0  # at the server; 0: it remembers nobody
    memory_of_fleet: int = 0  # of the devices that ask for the task now
    memory_room: int = 0  # devices that `max_memory_mb` has room for
    devices: int = 0  # that ask for it now


class Checked(msgspec.Struct, frozen=True):
    """All of a broker.toml that can be read."""

    refused: tuple[str, ...]  # of no single task
    doubts: tuple[str, ...]
    tasks: tuple[CheckedTask, ...]

    @property
    def is_fine(self) -> bool:
        """Whether ``run`` would serve."""
        return not self.refused and not any(task.refused for task in self.tasks)


def check(config: Config) -> Checked:
    """Look at everything that ``config`` names.

    Raises:
        TransientError: the registry cannot be read now.
    """
    refused: list[str] = []
    directory = config.path(config.storage.directory)
    registry = None
    try:
        if (directory / DATABASE).exists():
            registry = open_to_read(directory)
    except EdgefoldError as error:
        refused.append(str(error))
    try:
        if registry is not None and registry.fleet != config.fleet.name:
            refused.append(
                f"{registry.path} belongs to fleet {registry.fleet}, not {config.fleet.name}: give "
                f"every fleet a [storage] directory of its own"
            )
        tasks = [_checked(config, section, registry, directory) for section in config.task]
    finally:
        if registry is not None:
            registry.close()
    names = [task.task for task in tasks if task.task]
    twice = sorted({name for name in names if names.count(name) > 1})
    refused += [f"two [[task]] sections have bundles of task {name}" for name in twice]
    return Checked(tuple(refused), tuple(config.doubts), tuple(tasks))


def _checked(
    config: Config, section: TaskConfig, registry: Registry | None, directory: Path
) -> CheckedTask:
    try:
        bundle = read_bundle(config.path(section.bundle))
    except EdgefoldError as error:
        return CheckedTask("", section.bundle, (str(error),), ())
    spec, refused = bundle.spec, list(contradictions(section, bundle.spec))
    try:
        initial_parameters(bundle)
        if section.evaluation is not None:
            load_hold_out(config.path(section.evaluation.data), spec)
    except EdgefoldError as error:
        refused.append(str(error))
    if registry is not None and _is_another_model(registry, directory, bundle):
        refused.append(
            "the bundle's shared tensors are not those of the newest release; give the new model "
            "another task name, or use another [storage] directory"
        )
    devices = DeviceRecords(registry).asking_for(spec.task) if registry is not None else 0
    learning, found = section.learning, doubts(section, spec)
    one = 4 * spec.shared_size + ARRAY if learning.has_memory else 0
    room = learning.max_memory_mb * MB // one if one else 0
    if one and devices > room:
        found.append(
            f"[task.learning] max_memory_mb = {learning.max_memory_mb} has room for the memories "
            f"of {room} devices, and {devices} ask for {spec.task}: those that are not heard "
            f"longest begin anew each time"
        )
    manifest = _manifest(config, section, bundle, registry)
    if registry is not None:
        unable, versions = DeviceRecords(registry).cannot_follow(spec.task, manifest.needs)
        if unable:
            found.append(
                f"{unable} of {devices} devices run {' or '.join(versions) or '?'}, which cannot "
                f"follow releases with these settings: update them first"
            )
    return CheckedTask(
        task=spec.task,
        bundle=section.bundle,
        refused=tuple(refused),
        doubts=tuple(found),
        parameters=spec.shared_size,
        manifest=len(encode_manifest(manifest)),
        newcomer=len(encode_manifest(manifest))
        + sum(artifact.size for artifact in manifest.artifacts.values()),
        memory_of_device=one,
        memory_of_fleet=max(
            one * min(devices, room),
            MemoryRecords(registry).total(spec.task).size if registry is not None else 0,
        ),
        memory_room=room,
        devices=devices,
    )


def _is_another_model(registry: Registry, directory: Path, bundle: Bundle) -> bool:
    newest = ReleaseRecords(registry).current(bundle.spec.task)
    if newest is None:
        return False
    try:
        data = ArtifactStore(directory / ARTIFACTS).get(newest.manifest.artifacts["spec"])
    except (OSError, DigestMismatchError):
        return False  # then `run` does not compare either
    return decode_spec(data).shared != bundle.spec.shared


def _manifest(
    config: Config, section: TaskConfig, bundle: Bundle, registry: Registry | None
) -> Manifest:
    """Return a manifest such as ``run`` would make; of a task with releases, one like theirs."""
    newest = None if registry is None else ReleaseRecords(registry).current(bundle.spec.task)
    is_new = newest is None or newest.manifest.averaged > 0 or bool(newest.manifest.plan.average)
    policy = section.learning
    decay = policy.decay(auto=AVERAGE if is_new else 0.0)
    vector = Artifact(sha256=DIGEST, size=4 * bundle.spec.shared_size + ARRAY)

    def file(data: bytes) -> Artifact:
        return Artifact(sha256=DIGEST, size=len(data))

    number = newest.number if newest else 100
    return Manifest(
        format=1,
        task=bundle.spec.task,
        release=number,
        parent=max(number - 1, 0),
        artifacts={
            "infer": file(bundle.infer),
            "train": file(bundle.train),
            "spec": file(bundle.spec_json),
            "parameters": vector,
            **({"average": vector} if decay else {}),
        },
        chunk_size=config.fleet.chunk_kib * 1024,
        training=section.training_plan(number, repeat=True),
        codec=section.codec,
        patches=newest.manifest.patches if newest else {},
        learning=policy.plan(
            average=decay, threshold=policy.threshold, steps=ESTIMATED, alone=section.report.alone
        ),
        averaged=number if decay else 0,
    )


def show_checked(checked: Checked) -> None:
    """Print what was found, for people."""
    _say("", checked.refused, checked.doubts)
    for task in checked.tasks:
        _say(f"{task.task or task.bundle}: ", task.refused, task.doubts)
        if not task.task:
            continue
        print(
            f"{task.task}: {task.parameters} parameters; a manifest takes {task.manifest} bytes, "
            f"what a newcomer downloads {bytes_text(task.newcomer)}"
        )
        if task.memory_of_device:
            print(
                f"{task.task}: a device's memory takes {bytes_text(task.memory_of_device)} here, "
                f"those of {task.devices} devices {bytes_text(task.memory_of_fleet)}; there is "
                f"room for {task.memory_room}"
            )
    print("run would serve" if checked.is_fine else "run would refuse this")


def _say(whose: str, refused: Sequence[str], doubted: Sequence[str]) -> None:
    for sentence in refused:
        print(f"refused: {whose}{sentence}")
    for sentence in doubted:
        print(f"careful: {whose}{sentence}")
