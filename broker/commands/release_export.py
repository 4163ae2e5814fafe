"""A release as an ordinary ONNX file, for use outside the fleet."""

from pathlib import Path

from broker.records.registry import open_to_read
from broker.records.release_records import ReleaseRecords
from broker.releases.first_release import with_parameters
from broker.state.artifact_store import ARTIFACTS, ArtifactStore
from models.errors import CommandLineError, DigestMismatchError, PayloadError, UsageError
from models.host.durable import atomic_write
from models.protocol.npz import read_vector
from models.task.spec import decode_spec

__all__ = ["export_release"]


def export_release(directory: Path, task: str, number: int, target: Path) -> None:
    """Write release ``number`` of ``task``, kept in the server's ``directory``, to ``target``.

    Raises:
        CommandLineError: there is no such release.
        UsageError: there is no registry, or its artifacts are gone or damaged.
        OSError: ``target`` cannot be written.
    """
    registry = open_to_read(directory)
    try:
        release = ReleaseRecords(registry).get(task, number)
    finally:
        registry.close()
    if release is None:
        raise CommandLineError(
            f"task {task} has no release {number}; `edgefold-broker releases` lists them"
        )
    store, artifacts = ArtifactStore(directory / ARTIFACTS), release.manifest.artifacts
    try:
        spec = decode_spec(store.get(artifacts["spec"]))
        infer = store.get(artifacts["infer"])
        parameters = read_vector(store.get(artifacts["parameters"]), size=spec.shared_size)
    except FileNotFoundError:
        raise UsageError(
            f"the weights of release {number} are not kept any more ([storage] keep_releases)"
        ) from None
    except (PayloadError, DigestMismatchError) as error:
        raise UsageError(f"release {number} of {task} is damaged on disk: {error}") from None
    atomic_write(target, with_parameters(infer, spec, parameters))
