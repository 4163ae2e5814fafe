"""The configurations of a simulated fleet: as in the field, but small. Pure."""

from pathlib import Path

import msgspec

from broker.config import Config, FleetConfig, FoldPolicy, StorageConfig, TaskConfig
from edge_agent import config as edge_config
from edge_agent.board.pace import Pace
from models.task.bundle import Bundle
from tools.simulation.scenario.fleet_settings import Settings
from tools.simulation.scenario.policy import with_policy

__all__ = ["device_config", "device_pace", "most_bytes", "served", "server_config", "server_idle_s"]

FAR_S = 30 * 86400.0  # nobody waits for so long
ARRAYS = 4096  # bytes of an npz around its values
LEFT_OVER = 2  # releases
PAGES = 1.5  # bytes of a database for each of its rows'
TABLES = 128 * 1024  # bytes: an empty registry, headers and ranges of what was settled


def served(settings: Settings) -> TaskConfig:
    """Return the section ``[[task]]`` of the fleet's one task."""
    policy = FoldPolicy(
        updates=settings.fold_updates,
        seconds=settings.fold_seconds,
        min_seconds=settings.fold_min_s,
        patience=settings.patience,
        max_staleness=settings.max_staleness,
    )
    return with_policy(TaskConfig(bundle="", aggregation=policy), settings.policy)


def server_config(settings: Settings, fleet: str, at: Path, task: TaskConfig) -> Config:
    """Return the broker.toml of a server whose files lie at ``at``."""
    storage = StorageConfig(str(at), keep_releases=5)
    if not settings.is_planning:
        storage = msgspec.structs.replace(
            storage, max_waiting_mb=1, max_partial_mb=1, max_update_mb=1
        )
    chunk_kib = 64 if settings.is_planning else 4
    return Config(
        fleet=FleetConfig(fleet, "mqtt://virtual", chunk_kib=chunk_kib),
        storage=storage,
        task=(task,),
    )


def most_bytes(config: Config, bundle: Bundle, megabyte: int) -> int:
    """Return what the disk of a server may hold at most, whatever happens to it.

    Of each release kept, its parameters and patches shorter than these; of a few more when a disk
    in trouble would not delete them.
    """
    storage, whole = config.storage, 4 * bundle.spec.shared_size + ARRAYS
    updates = storage.max_waiting_mb + storage.max_partial_mb + storage.max_update_mb
    files = len(bundle.infer) + len(bundle.train) + len(bundle.spec_json)
    artifacts = 2 * whole * (storage.keep_releases + LEFT_OVER) + files
    return round(PAGES * updates * megabyte) + artifacts + TABLES


def device_config(
    settings: Settings, fleet: str, name: str, task: str, at: Path
) -> edge_config.Config:
    """Return the edge.toml of the device ``name``."""
    is_planning = settings.is_planning
    return edge_config.Config(
        device=edge_config.Device(name, task),
        fleet=edge_config.Fleet(fleet, "mqtt://virtual"),
        storage=edge_config.Storage(at, max_mb=512 if is_planning else 2),
        samples=edge_config.Samples(max_count=settings.max_samples),
        training=msgspec.structs.replace(
            edge_config.Training(
                max_waiting=settings.max_waiting,
                min_minutes=settings.min_minutes,
                check_seconds=settings.look_s,
                max_minutes=30 if is_planning else 5,
            ),
            **dict(settings.training),
        ),
        inference=edge_config.Inference(enabled=False),
        limits=edge_config.Limits(chunk_kib=64 if is_planning else 1),
    )


def device_pace(settings: Settings) -> Pace:
    """Return how often a device looks; when planning, whatever happens wakes it."""
    if settings.is_planning:
        return Pace(training_s=FAR_S, child_s=FAR_S, inbox_s=FAR_S, idle_s=FAR_S, sleep_s=FAR_S)
    return Pace(training_s=20.0, inbox_s=settings.look_s, sleep_s=5 * settings.look_s)


def server_idle_s(settings: Settings) -> float:
    """Return how often a server looks at what time brings, where no message wakes it."""
    return 3600.0 if settings.is_planning else 5 * settings.look_s
