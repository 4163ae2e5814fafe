"""What the installed release answers, and what a training would give; changes nothing."""

import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.board.child_job import ChildJob
from edge_agent.board.children import launch
from edge_agent.build import control_path
from edge_agent.client.edgefold_client import Answer, Client
from edge_agent.config import Config
from edge_agent.inference.inference_client import call, in_our_words
from edge_agent.inference.inference_process import INFERENCE, load_request
from edge_agent.releases.model_slots import Slots
from edge_agent.samples.sample_store import segments
from edge_agent.training.local_steps import within_budget
from edge_agent.training.training_job import JOB, RESULT, TRAINER, decode_result, describe
from edge_agent.updates.outbox import Codec, read_only
from models.errors import PayloadError, TransientError, UsageError
from models.protocol.manifest import Manifest

__all__ = ["infer_file", "lines_of", "ping", "train_once"]

STARTS_WITHIN_S = 60.0
ANSWERS_WITHIN_S = 60.0


def ping(control: Path) -> dict[str, Any]:
    """Return what the inference process says of itself; nothing if there is none."""
    try:
        answer, _ = call(control, {"do": "ping"}, timeout_s=1.0)
    except (TransientError, PayloadError):
        return {}
    return answer


def infer_file(config: Config, file: Path, *, as_json: bool) -> int:
    """Print the answer of the installed release for each sample in ``file``.

    Raises:
        UsageError, PayloadError: the file or its samples are not usable.
        TransientError: the inference process does not answer.
    """
    from edge_agent.samples.sample_files import read_x

    directory = config.storage.directory
    slots = Slots(directory, is_owner=False)
    manifest = _installed(slots, directory)
    x = read_x(file, slots.spec(manifest), max_bytes=config.max_sample_bytes)
    control = control_path(directory)
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        child = None
        if not ping(control).get("release"):
            control = Path(folder) / "control.sock"
            child = launch(INFERENCE, [str(control)], log=Path(folder) / "log.txt")
        try:
            if child is not None:
                _wait_for(control)
                loaded, _ = call(
                    control,
                    load_request(manifest, slots, _personal(directory)),
                    timeout_s=ANSWERS_WITHIN_S,
                )
                if loaded.get("ok") is not True:
                    raise UsageError(f"the inference process refuses: {loaded.get('error')}")
            with in_our_words(), Client(control, timeout_s=ANSWERS_WITHIN_S) as client:
                answer = client.ask(x)
        finally:
            if child is not None:
                child.kill()
    _print(answer, as_json=as_json)
    return 0


def _print(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        result = {"release": answer.release, "output": answer.outputs.tolist()}
        result |= {"classes": answer.classes} if answer.classes is not None else {}
        result |= {"names": answer.names} if answer.names is not None else {}
        print(msgspec.json.encode(result).decode())  # null for what is no number: JSON has no NaN
        return
    print(f"# release {answer.release}, {len(answer.outputs)} samples")
    for line in lines_of(answer):
        print(line)


def lines_of(answer: Answer) -> Iterator[str]:
    """Return a line for each sample: its class and score, the class of each position, or numbers.

    The score is the model's own number: a probability only if it ends in a softmax.
    """
    named = answer.names or answer.classes
    for row, output in enumerate(answer.outputs):
        if named is None:
            yield " ".join(f"{value:.6g}" for value in output.reshape(-1))
        elif output.ndim == 1 and answer.scores is not None:
            yield f"{named[row]}  {answer.scores[row]:.4g}"
        else:
            yield ", ".join(map(str, _flat(named[row])))


def _flat(nested: Any) -> Iterator[Any]:
    if not isinstance(nested, list):
        yield nested
        return
    for one in nested:
        yield from _flat(one)


def _wait_for(control: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not ping(control):
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
