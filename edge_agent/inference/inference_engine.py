"""The inference process of a device: `python -m edge_agent.inference.inference_engine CONTROL`.

It answers applications over a Unix socket and swaps models under them: the old one answers until
the new one has passed its self-test. Releases are loaded over a socket of the agent's own. It has
no network, writes nothing to disk, and ends when the agent that started it does.
"""

import argparse
import ctypes
import io
import logging
import math
import os
import threading
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.board.children import parent_process
from edge_agent.client.edgefold_client import MAX_BODY, ProtocolError, npy_header
from edge_agent.inference.application_socket import ApplicationSocket, Settings
from edge_agent.inference.inference_server import serve
from models.errors import EdgefoldError, PayloadError, TransientError
from models.host.files import content_of
from models.host.service import configure_logging
from models.learning.onnx_session import open_session, run_session
from models.protocol.npz import read_vector
from models.task.onnx_weights import replace_weights
from models.task.params import unflatten
from models.task.spec import Role, TaskSpec, TensorSpec, decode_spec

__all__ = ["Engine", "Model", "main", "read_samples"]

log = logging.getLogger("inference")

SLICE = 32  # samples that run at once: bounds the memory of activations, whatever is asked
FRAME_ROOM = 4096  # bytes of a frame's body that are not the array's values
Array = npt.NDArray[np.generic]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    """What a client may want."""


class Load(Request, frozen=True, forbid_unknown_fields=True, tag="load"):
    """Take these files as the model, if they pass the self-test."""

    infer: str
    spec: str
    parameters: str
    release: int
    personal: str | None = None


class Infer(Request, frozen=True, forbid_unknown_fields=True, tag="infer"):
    """Answer for the samples in the body."""


class Describe(Request, frozen=True, forbid_unknown_fields=True, tag="describe"):
    """Say what the model takes and gives."""


class Ping(Request, frozen=True, forbid_unknown_fields=True, tag="ping"):
    """Say which release answers, how often it did, and in how much memory."""


_REQUEST: Final = msgspec.json.Decoder(Load | Infer | Describe | Ping)


class Model:
    """One release, ready to answer. Immutable: a new release is a new `Model`.

    Raises:
        PayloadError: the files do not fit each other, or the model fails its self-test.
        OSError: a file cannot be read.
    """

    def __init__(self, load: Load, *, threads: int = 1) -> None:
        self.release: Final = load.release
        self.spec: Final = decode_spec(content_of(load.spec))
        # Not add_initializer: onnxruntime's optimizer would go on with the values in the file.
        values = {name: value.data for name, value in _overrides(load, self.spec).items()}
        model = replace_weights(content_of(load.infer), values)
        try:
            # An arena would keep the peak of the largest request.
            self._session: Final = open_session(model, threads=threads, keeps_arena=False)
            self._self_test()
        except PayloadError as error:
            raise PayloadError(f"{load.infer}: {error}") from None

    def _self_test(self) -> None:
        spec = self.spec
        zero = np.zeros((1, *spec.x.shape), spec.x.dtype)
        output = self.run(zero)
        if output.shape[:1] != (1,) or not np.all(np.isfinite(output)):
            raise PayloadError(
                f"self-test: for one zero sample the model answers with shape {output.shape}"
                f"{'' if np.all(np.isfinite(output)) else ' and values that are not finite'}"
            )
        self.output_bytes = output.nbytes
        if spec.loss == "cross_entropy" and (output.ndim < 2 or output.shape[-1] != spec.classes):
            raise PayloadError(
                f"self-test: output of shape {output.shape[1:]} where the spec has "
                f"{spec.classes} classes"
            )

    def description(self) -> dict[str, object]:
        """Return what an application needs to know of it: see docs/inference.md."""
        spec = self.spec
        sample = np.dtype(spec.x.dtype).itemsize * math.prod(spec.x.shape)
        return {
            "task": spec.task,
            "dtype": spec.x.dtype,
            "shape": spec.x.shape,
            "loss": spec.loss,
            "metric": spec.metric,
            "classes": spec.classes,
            "class_names": spec.class_names,
            "at_once": max(1, (MAX_BODY - FRAME_ROOM) // max(1, sample, self.output_bytes)),
        }

    def run(self, samples: Array) -> Array:
        """Return the first output for at most `SLICE` ``samples``, which fit the spec.

        Raises:
            PayloadError: the model does not run on them.
        """
        feeds = {self.spec.infer_input: samples}
        (output,) = run_session(self._session, [self.spec.infer_output], feeds)
        return output


def _overrides(load: Load, spec: TaskSpec) -> dict[str, npt.NDArray[np.float32]]:
    values = _read_values(load.parameters, spec.shared, "parameters")
    personal = spec.with_role(Role.PERSONAL)
    if load.personal is not None and personal:
        values |= _read_values(load.personal, personal, "personal")
    return values


def _read_values(
    path: str, tensors: tuple[TensorSpec, ...], name: str
) -> dict[str, npt.NDArray[np.float32]]:
    size = sum(tensor.size for tensor in tensors)
    return unflatten(read_vector(content_of(path), size=size, name=name), tensors)


class Answer(NamedTuple):
    """What goes back to the client."""

    head: dict[str, object]
    body: bytes = b""


class Engine:
    """The model that answers now, and how it is replaced. Safe for many threads."""

    def __init__(self, *, threads: int = 1) -> None:
        self._threads = threads
        self._model: Model | None = None
        self._answered = 0
        self._loading = threading.Lock()  # one new session at a time: each costs memory
        self._running = threading.Lock()  # one slice at a time: likewise, and slices are short
        self.about_socket: dict[str, object] = {}  # what a ping says of the applications' socket

    def answer(self, head: bytes, body: bytes, *, may_load: bool = True) -> Answer:
        """Carry out one request; whatever is wrong with it becomes an error answer.

        Whoever may ask may not ``load``: it would choose the model, and read any file.
        """
        try:
            match _REQUEST.decode(head):
                case Load() as load:
                    if not may_load:
                        return _failure("only the agent of this device loads releases")
                    return self._load(load)
                case Infer():
                    return self._infer(body)
                case Describe():
                    return self._describe()
                case _:
                    return self._ping()
        except (msgspec.MsgspecError, RecursionError) as error:
            return _failure(f"request: {error}")
        except EdgefoldError as error:
            return _failure(str(error), is_transient=isinstance(error, TransientError))
        except OSError as error:
            return _failure(f"{error.filename}: {error.strerror}", is_transient=True)
        except MemoryError:
            return _failure("not enough memory for this request", is_transient=True)

    def _load(self, load: Load) -> Answer:
        with self._loading:
            self._model = Model(load, threads=self._threads)
        # The old session dies with the last request that it answers; give its pages back.
        _LIBC.malloc_trim(0)
        log.info("model loaded release=%d rss_mb=%.1f", load.release, _rss_mb())
        return Answer({"ok": True, "release": load.release})

    def _infer(self, body: bytes) -> Answer:
        model = self._model
        if model is None:
            return _NO_RELEASE
        samples = read_samples(body, model.spec)
        parts = []
        for start in range(0, len(samples), SLICE):
            with self._running:
                parts.append(model.run(samples[start : start + SLICE]))
        self._answered += 1
        output = np.concatenate(parts)
        if output.nbytes > MAX_BODY - FRAME_ROOM:
            raise PayloadError(
                f"the answer would be {output.nbytes} bytes, at most {MAX_BODY} are allowed: "
                "send fewer samples at a time"
            )
        return Answer({"ok": True, "release": model.release}, _npy(output))

    def _describe(self) -> Answer:
        model = self._model
        if model is None:
            return _NO_RELEASE
        return Answer(
            {"ok": True, "release": model.release}, msgspec.json.encode(model.description())
        )

    def _ping(self) -> Answer:
        release = self._model.release if self._model else 0
        head = {"release": release, "answered": self._answered, "rss_mb": round(_rss_mb(), 1)}
        return Answer({"ok": True, **head, **self.about_socket})


def _failure(reason: str, *, is_transient: bool = False) -> Answer:
    """Return an error; ``is_transient``: the same request may succeed later."""
    head: dict[str, object] = {"ok": False, "error": reason[:1000]}
    return Answer({**head, "transient": True} if is_transient else head)


_NO_RELEASE = Answer(
    {"ok": False, "error": "no release is installed yet", "transient": True, "release": 0}
)


def read_samples(data: bytes, spec: TaskSpec) -> Array:
    """Read one ``.npy`` array of samples, shape (n, *spec.x.shape), n >= 1, as a view of ``data``.

    Nothing is allocated for what its header says: the size is checked against the bytes that are
    there.

    Raises:
        PayloadError: not such an array; the message says what was expected.
    """
    wanted = f"samples of dtype {spec.x.dtype} and shape (n, {', '.join(map(str, spec.x.shape))})"
    try:
        header = npy_header(data)
    except ProtocolError as error:
        raise PayloadError(f"{error}; send {wanted} as numpy.save writes it") from None
    kind = np.dtype(spec.x.dtype)
    if header.descr != kind.str:
        raise PayloadError(f"array of dtype {header.descr}; send {wanted}")
    if header.shape[1:] != spec.x.shape or header.shape[:1] in ((), (0,)):
        raise PayloadError(f"array of shape {header.shape}; send {wanted}")
    if header.is_fortran:
        raise PayloadError("array in Fortran order; send it in C order (numpy.ascontiguousarray)")
    size = len(data) - header.start
    if size != math.prod(header.shape) * kind.itemsize:
        raise PayloadError(f"array of shape {header.shape} with {size} bytes of data")
    return np.frombuffer(data, kind, offset=header.start).reshape(header.shape)


def _npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


_LIBC = ctypes.CDLL(None)


def _rss_mb() -> float:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m edge_agent.inference.inference_engine", description=__doc__
    )
    parser.add_argument(
        "control", type=Path, help="where the agent itself asks and loads; made with mode 0600"
    )
    parser.add_argument("--socket", type=Path, help="where applications ask")
    parser.add_argument("--group", help="give that socket to this group")
    parser.add_argument("--mode", type=lambda text: int(text, 8), help="of that socket, as 0660")
    parser.add_argument("--threads", type=int, default=1, help="threads of one model run")
    parser.add_argument(
        "--parent", type=int, default=0, metavar="PID", help="end with this process (our parent)"
    )
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args(arguments)
    configure_logging(options.log_level)
    parent = options.parent or parent_process()
    # One heap for all threads: every further one of glibc's would keep its own peak.
    _LIBC.mallopt(-8, 1)  # M_ARENA_MAX
    applications = None
    if options.socket is not None:
        applications = ApplicationSocket(Settings(options.socket, options.group, options.mode))
    try:
        serve(options.control, Engine(threads=options.threads), applications, parent=parent)
    except OSError as error:
        log.error("cannot serve socket=%s reason=%s", options.control, error.strerror or error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
