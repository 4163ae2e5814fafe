"""`edgefold-agent train-once`: what a training would give; changes nothing."""

import math
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from edge_agent.board.child_job import ChildJob
from edge_agent.board.children import launch
from edge_agent.commands.installed_release import codec_of, installed
from edge_agent.config import Config
from edge_agent.releases.model_slots import Slots
from edge_agent.samples.sample_store import segments
from edge_agent.training.local_steps import within_budget
from edge_agent.training.training_job import JOB, RESULT, TRAINER, Result, decode_result, describe
from models.errors import UsageError

__all__ = ["train_once", "trained_once"]


def train_once(config: Config, *, as_json: bool) -> int:
    """Train once, and print what would be sent.

    Raises:
        UsageError: nothing to train on, or the training failed.
    """
    result, batch = trained_once(config)
    if as_json:
        print(msgspec.json.encode(result).decode())
        return 0
    print(f"release    {result.release}")
    print(f"samples    {result.samples}, hold-out {result.holdout}")
    print(f"steps      {result.steps} of {result.ms_per_step:.1f} ms, batch {batch}")
    print(f"loss       {result.loss_first:.4f} -> {result.loss_last:.4f}")
    if result.metric is not None and result.metric_after is not None:
        print(f"{result.metric_name:10} {result.metric:.4f} -> {result.metric_after:.4f}")
    share = result.payload_size / max(1, result.dense_size)
    print(f"would send {result.payload_size} bytes, {share:.2%} of {result.dense_size}")
    print(f"took       {result.seconds:.1f} s, at most {result.peak_rss_mb:.0f} MB of memory")
    sys.stdout.flush()
    return 0


def trained_once(config: Config) -> tuple[Result, int]:
    """Train on the installed release and this device's samples.

    Returns:
        What came of it, and the size of a batch.

    Raises:
        UsageError: nothing to train on, or the training failed.
    """
    directory = config.storage.directory
    slots = Slots(directory, is_owner=False)
    manifest = installed(slots, directory)
    train = segments(directory / "samples")
    count = sum(segment.samples for segment in train)
    if count == 0:
        raise UsageError(f"no samples yet: put .npz files with x and y into {config.inbox}")
    codec = codec_of(directory)
    plan = within_budget(
        manifest.training,
        samples=count,
        max_batch=config.training.max_batch,
        max_seconds=60 * config.training.max_minutes,
        ms_per_step=0.0,
    )
    with tempfile.TemporaryDirectory(prefix="edgefold-") as name:
        folder = Path(name)
        job = describe(
            "train",
            manifest,
            slots,
            samples=tuple(segment.path for segment in train),
            holdout=tuple(segment.path for segment in segments(directory / "holdout")),
            number=1,
            plan=plan,
            seed=1,
        )
        before = {
            "residual": codec.residual,
            "personal": codec.personal,
            "history": codec.history_for(manifest.plan.feedback),
        }
        job = msgspec.structs.replace(
            job,
            **{kind: f"{directory}/codec/{name}" for kind, name in before.items() if name},
            new_residual=str(folder / "residual.npz"),
            new_personal=str(folder / "personal.npz"),
            new_history=str(folder / "history.npz"),
            new_owed=str(folder / "owed.npz"),
            evaluate_after=True,
        )
        (folder / JOB).write_bytes(msgspec.json.encode(job))
        child = ChildJob(launch, folder, program=TRAINER)
        child.begin([str(folder / JOB)], 0.0, math.inf)
        try:
            while (ended := child.poll(0.0)) is None:
                time.sleep(0.05)
        finally:
            child.kill()
        if not ended.worked:
            raise UsageError(f"training failed: {ended.reason}")
        result = decode_result((folder / RESULT).read_bytes())
    return result, plan.batch
