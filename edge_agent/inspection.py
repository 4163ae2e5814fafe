"""What the installed release answers, and what a training would give; changes nothing."""

import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.build import socket_path
from edge_agent.children import last_line, launch
from edge_agent.config import Config
from edge_agent.inference_client import MAX_BODY, call
from edge_agent.inference_process import MODULE, load_request
from edge_agent.local_steps import within_budget
from edge_agent.model_slots import Slots
from edge_agent.outbox import Codec, read_only
from edge_agent.samples import segments
from edge_agent.training_job import JOB, RESULT, decode_result, describe
from models.errors import PayloadError, TransientError, UsageError
from models.payload.manifest import Manifest

__all__ = ["infer_file", "inference_release", "train_once"]

STARTS_WITHIN_S = 60.0
ANSWERS_WITHIN_S = 60.0


def inference_release(socket: Path) -> int | None:
    """Return the release that answers at ``socket``, 0 for none yet; None if nobody answers."""
    try:
        answer, _ = call(socket, {"do": "ping"}, timeout_s=1.0)
    except (TransientError, PayloadError):
        return None
    release = answer.get("release")
    return release if isinstance(release, int) else None


def infer_file(config: Config, file: Path, *, as_json: bool) -> int:
    """Print the answer of the installed release for each sample in ``file``.

    Raises:
        UsageError, PayloadError: the file or its samples are not usable.
        TransientError: the inference process does not answer.
    """
    import numpy as np

    from edge_agent.intake import read_x

    directory = config.storage.directory
    slots = Slots(directory, is_owner=False)
    manifest = _installed(slots, directory)
    spec = slots.spec(manifest)
    x = read_x(file, spec, max_bytes=config.max_sample_bytes)
    socket = socket_path(directory)
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        child = None
        if inference_release(socket) in (None, 0):
            socket = Path(folder) / "inference.sock"
            child = launch(MODULE, [str(socket)], log=Path(folder) / "log.txt")
        try:
            if child is not None:
                _wait_for(socket)
                answer, _ = call(
                    socket,
                    load_request(manifest, slots, _personal(directory)),
                    timeout_s=ANSWERS_WITHIN_S,
                )
                _must_be_ok(answer)
            at_once = max(1, (MAX_BODY - 4096) // max(1, x[:1].nbytes))
            outputs, release = [], 0
            for start in range(0, len(x), at_once):
                body = io.BytesIO()
                np.save(body, np.ascontiguousarray(x[start : start + at_once]), allow_pickle=False)
                answer, data = call(
                    socket, {"do": "infer"}, body.getvalue(), timeout_s=ANSWERS_WITHIN_S
                )
                release = _must_be_ok(answer)
                outputs.append(np.load(io.BytesIO(data), allow_pickle=False))
        finally:
            if child is not None:
                child.kill()
    output = np.concatenate(outputs)
    if as_json:
        result: dict[str, Any] = {"release": release, "output": output.tolist()}
        if spec.loss == "cross_entropy":
            result["classes"] = output.reshape(len(output), spec.classes, -1).argmax(1).tolist()
        print(json.dumps(result))
        return 0
    print(f"# release {release}, {len(output)} samples")
    for row in output:
        if spec.loss == "cross_entropy" and row.ndim == 1:
            chances = np.exp(row - row.max())
            best = int(row.argmax())
            print(f"{best}  {chances[best] / chances.sum():.3f}")
        else:
            print(" ".join(f"{value:.6g}" for value in row.reshape(-1)))
    return 0


def _must_be_ok(answer: dict[str, object]) -> int:
    if answer.get("ok") is not True:
        raise UsageError(f"the inference process refuses: {answer.get('error')}")
    release = answer.get("release")
    return release if isinstance(release, int) else 0


def _wait_for(socket: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while inference_release(socket) is None:
        if time.monotonic() > deadline:
            raise TransientError("the inference process does not start")
        time.sleep(0.05)


def _installed(slots: Slots, directory: Path) -> Manifest:
    if slots.active is None:
        raise UsageError(
            f"no release is installed below {directory} yet: start the agent, and the server must "
            "have published one"
        )
    return slots.active


def _codec(directory: Path) -> Codec:
    with read_only(directory / "outbox.db") as (_, _, codec):
        return codec


def _personal(directory: Path) -> Path | None:
    name = _codec(directory).personal
    return directory / "codec" / name if name else None


def train_once(config: Config, *, as_json: bool) -> int:
    """Train on the installed release and this device's samples; print what would be sent.

    Raises:
        UsageError: nothing to train on, or the training failed.
    """
    directory = config.storage.directory
    slots = Slots(directory, is_owner=False)
    manifest = _installed(slots, directory)
    train = segments(directory / "samples")
    count = sum(segment.samples for segment in train)
    if count == 0:
        raise UsageError(f"no samples yet: put .npz files with x and y into {config.inbox}")
    codec = _codec(directory)
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
        job = msgspec.structs.replace(
            job,
            residual=str(directory / "codec" / codec.residual) if codec.residual else None,
            personal=str(directory / "codec" / codec.personal) if codec.personal else None,
            new_residual=str(folder / "residual.npz"),
            new_personal=str(folder / "personal.npz"),
            evaluate_after=True,
        )
        (folder / JOB).write_bytes(msgspec.json.encode(job))
        child = launch("edge_agent.trainer", [str(folder / JOB)], log=folder / "log.txt")
        try:
            while (code := child.poll()) is None:
                time.sleep(0.05)
        finally:
            if child.poll() is None:
                child.kill()
        if code != 0:
            raise UsageError(f"training failed: {last_line(folder / 'log.txt') or code}")
        result = decode_result((folder / RESULT).read_bytes())
    if as_json:
        print(msgspec.json.encode(result).decode())
        return 0
    print(f"release    {result.release}")
    print(f"samples    {result.samples}, hold-out {result.holdout}")
    print(f"steps      {result.steps} of {result.ms_per_step:.1f} ms, batch {plan.batch}")
    print(f"loss       {result.loss_first:.4f} -> {result.loss_last:.4f}")
    if result.metric is not None and result.metric_after is not None:
        print(f"{result.metric_name:10} {result.metric:.4f} -> {result.metric_after:.4f}")
    share = result.payload_size / max(1, result.dense_size)
    print(f"would send {result.payload_size} bytes, {share:.2%} of {result.dense_size}")
    print(f"took       {result.seconds:.1f} s, at most {result.peak_rss_mb:.0f} MB of memory")
    sys.stdout.flush()
    return 0
