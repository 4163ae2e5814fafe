"""`edgefold-agent infer`: what the installed release answers; changes nothing."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.board.children import launch
from edge_agent.build import control_path
from edge_agent.client.edgefold_client import Answer, Client
from edge_agent.commands.installed_release import installed, own_of
from edge_agent.config import Config
from edge_agent.inference.inference_client import call, in_our_words, ping
from edge_agent.inference.inference_process import INFERENCE, OwnValues, load_request
from edge_agent.releases.model_slots import Slots
from models.errors import CommandLineError, PayloadError, TransientError, UsageError
from models.protocol.manifest import Manifest

__all__ = ["infer_file", "lines_of", "print_answer"]

STARTS_WITHIN_S = 60.0
ANSWERS_WITHIN_S = 60.0


def infer_file(config: Config, file: Path, *, as_json: bool) -> int:
    """Print the answer of the installed release for each sample in ``file``.

    Raises:
        CommandLineError: the file or its samples are not usable.
        UsageError: no release is installed.
        TransientError: the inference process does not answer.
    """
    from edge_agent.samples.sample_files import read_x

    directory = config.storage.directory
    slots = Slots(directory, is_owner=False)
    manifest = installed(slots, directory)
    try:
        x = read_x(file, slots.spec(manifest), max_bytes=config.max_sample_bytes)
    except (UsageError, PayloadError) as error:
        raise CommandLineError(str(error)) from None
    control = control_path(directory)
    with tempfile.TemporaryDirectory(prefix="edgefold-") as folder:
        child = None
        if not ping(control).get("release"):
            control = Path(folder) / "control.sock"
            child = launch(INFERENCE, [str(control)], log=Path(folder) / "log.txt")
        try:
            if child is not None:
                _wait_for(control)
                _load(control, slots, manifest, own_of(config).values(manifest))
            with in_our_words(), Client(control, timeout_s=ANSWERS_WITHIN_S) as client:
                answer = client.ask(x)
        finally:
            if child is not None:
                child.kill()
    print_answer(answer, as_json=as_json)
    return 0


def _load(control: Path, slots: Slots, manifest: Manifest, own: OwnValues) -> None:
    """Load the release with what is the device's own, or without what of that is damaged."""
    left = list(dict.fromkeys((own, OwnValues(own.personal), OwnValues())))
    while True:
        request = load_request(manifest, slots, left.pop(0))
        loaded, _ = call(control, request, timeout_s=ANSWERS_WITHIN_S)
        if loaded.get("ok") is True:
            return
        if not left:
            raise UsageError(f"the inference process refuses: {loaded.get('error')}")
        print(f"answers without what is this device's own: {loaded.get('error')}", file=sys.stderr)


def print_answer(answer: Answer, *, as_json: bool) -> None:
    """Print an answer for people, or as JSON for programs."""
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
