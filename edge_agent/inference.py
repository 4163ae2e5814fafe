"""The inference process of a device: `python -m edge_agent.inference SOCKET`.

It answers applications over a Unix socket and swaps models under them: the old one answers until
the new one has passed its self-test. It has no network, writes nothing to disk, and ends when the
agent that started it does.
"""

import argparse
import contextlib
import ctypes
import io
import logging
import math
import os
import re
import selectors
import signal
import socket
import threading
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_agent.children import parent_process
from edge_agent.inference_client import MAX_BODY, receive_frame, send_frame, unix_name
from models.errors import EdgefoldError, PayloadError, TransientError
from models.files import content_of
from models.params import unflatten
from models.payload.npz import read_vector
from models.payload.onnx_weights import replace_weights
from models.service import configure_logging
from models.spec import Role, TaskSpec, TensorSpec, decode_spec

__all__ = ["Engine", "Model", "main", "read_samples", "serve"]

log = logging.getLogger("inference")

MAX_CLIENTS = 32  # connections at a time: each costs a thread
SLICE = 32  # samples that run at once: bounds the memory of activations, whatever is asked
FRAME_S = 30.0  # a frame that has begun must be whole after this
Array = npt.NDArray[np.generic]


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="load", tag_field="do"):
    """Take these files as the model, if they pass the self-test."""

    infer: str
    spec: str
    parameters: str
    release: int
    personal: str | None = None


class Infer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="infer", tag_field="do"):
    """Answer for the samples in the body."""


class Ping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ping", tag_field="do"):
    """Say which release answers, how often it did, and in how much memory."""


_REQUEST: Final = msgspec.json.Decoder(Load | Infer | Ping)


class Model:
    """One release, ready to answer. Immutable: a new release is a new `Model`.

    Raises:
        PayloadError: the files do not fit each other, or the model fails its self-test.
        OSError: a file cannot be read.
    """

    def __init__(self, load: Load, *, threads: int = 1) -> None:
        self.release: Final = load.release
        self.spec: Final = decode_spec(content_of(load.spec))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # an arena keeps the peak of the largest request
        options.enable_mem_pattern = False  # likewise, per input shape
        options.log_severity_level = 4  # what matters arrives as an exception
        # Not add_initializer: onnxruntime's optimizer would go on with the values in the file.
        values = {name: value.data for name, value in _overrides(load, self.spec).items()}
        try:
            model = replace_weights(content_of(load.infer), values)
            self._session: Final = ort.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
            self._self_test()
        except (EdgefoldError, OSError):
            raise
        except Exception as error:  # onnxruntime's own classes derive from nothing narrower
            raise PayloadError(f"{load.infer}: {_first_line(error)}") from None

    def _self_test(self) -> None:
        spec = self.spec
        zero = np.zeros((1, *spec.x.shape), spec.x.dtype)
        output = self.run(zero)
        if output.shape[:1] != (1,) or not np.all(np.isfinite(output)):
            raise PayloadError(
                f"self-test: for one zero sample the model answers with shape {output.shape}"
                f"{'' if np.all(np.isfinite(output)) else ' and values that are not finite'}"
            )
        if spec.loss == "cross_entropy" and output.shape != (1, spec.classes):
            raise PayloadError(
                f"self-test: output of shape {output.shape[1:]} where the spec has "
                f"{spec.classes} classes"
            )

    def run(self, samples: Array) -> Array:
        """Return the first output for at most `SLICE` ``samples``, which fit the spec."""
        (output,) = self._session.run([self.spec.infer_output], {self.spec.infer_input: samples})
        return np.asarray(output)


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

    def answer(self, head: bytes, body: bytes) -> Answer:
        """Carry out one request; whatever is wrong with it becomes an error answer."""
        try:
            match _REQUEST.decode(head):
                case Load() as load:
                    return self._load(load)
                case Infer():
                    return self._infer(body)
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
            raise TransientError("no release is installed yet")
        samples = read_samples(body, model.spec)
        parts = []
        for start in range(0, len(samples), SLICE):
            with self._running:
                parts.append(model.run(samples[start : start + SLICE]))
        self._answered += 1
        output = np.concatenate(parts)
        if output.nbytes > MAX_BODY - 256:
            raise PayloadError(
                f"the answer would be {output.nbytes} bytes, at most {MAX_BODY} are allowed: "
                "send fewer samples at a time"
            )
        return Answer({"ok": True, "release": model.release}, _npy(output))

    def _ping(self) -> Answer:
        release = self._model.release if self._model else 0
        head = {"release": release, "answered": self._answered, "rss_mb": round(_rss_mb(), 1)}
        return Answer({"ok": True, **head})


def _failure(reason: str, *, is_transient: bool = False) -> Answer:
    """Return an error; ``is_transient``: the same request may succeed later."""
    head: dict[str, object] = {"ok": False, "error": reason[:1000]}
    return Answer({**head, "transient": True} if is_transient else head)


_NPY = re.compile(
    rb"\{'descr': '([<|>=][a-z][0-9]{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,12}, ?)*(?:[0-9]{1,12})?)\),? ?\} *\n?"
)


def read_samples(data: bytes, spec: TaskSpec) -> Array:
    """Read one ``.npy`` array of samples, shape (n, *spec.x.shape), n >= 1, as a view of ``data``.

    Only the header that numpy itself writes is understood, and nothing is allocated for what it
    says: the size is checked against the bytes that are there.

    Raises:
        PayloadError: not such an array; the message says what was expected.
    """
    wanted = f"samples of dtype {spec.x.dtype} and shape (n, {', '.join(map(str, spec.x.shape))})"
    if data[:6] != b"\x93NUMPY" or len(data) < 12 or data[6] not in (1, 2):
        raise PayloadError(f"the body is not an .npy array; send {wanted} as numpy.save writes it")
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = _NPY.fullmatch(data[8 + width : start]) if start <= len(data) else None
    if header is None:
        raise PayloadError(f"the .npy header is damaged; send {wanted} as numpy.save writes it")
    kind = np.dtype(spec.x.dtype)
    shape = tuple(int(part) for part in header[3].split(b",") if part.strip())
    if header[1].decode() != kind.str:
        raise PayloadError(f"array of dtype {header[1].decode()}; send {wanted}")
    if shape[1:] != spec.x.shape or shape[:1] in ((), (0,)):
        raise PayloadError(f"array of shape {shape}; send {wanted}")
    if header[2] != b"False":
        raise PayloadError("array in Fortran order; send it in C order (numpy.ascontiguousarray)")
    if len(data) - start != math.prod(shape) * kind.itemsize:
        raise PayloadError(f"array of shape {shape} with {len(data) - start} bytes of data")
    return np.frombuffer(data, kind, offset=start).reshape(shape)


def _npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def serve(path: Path, engine: Engine, *, parent: int) -> None:
    """Answer on ``path`` until SIGTERM, SIGINT or the end of process ``parent``.

    Raises:
        OSError: the socket cannot be made there, or ``parent`` is no process any more.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)  # from the first moment on nobody else can connect
        try:
            with unix_name(path) as name:
                listener.bind(name)
        finally:
            os.umask(mask)
        stack.callback(path.unlink, missing_ok=True)
        listener.listen(MAX_CLIENTS)
        listener.settimeout(0)
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(listener, selectors.EVENT_READ)
        selector.register(_signals(stack), selectors.EVENT_READ)
        selector.register(_end_of_parent(stack, parent), selectors.EVENT_READ)
        room = threading.BoundedSemaphore(MAX_CLIENTS)
        log.info("inference ready socket=%s", path)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if ready != {listener}:
                return
            with contextlib.suppress(OSError):  # the client went away, or we have no descriptor
                client, _ = listener.accept()
                _admit(client, engine, room)


def _admit(client: socket.socket, engine: Engine, room: threading.BoundedSemaphore) -> None:
    if room.acquire(blocking=False):
        threading.Thread(target=_attend, args=(client, engine, room), daemon=True).start()
        return
    with client:
        client.settimeout(0.1)
        reason = f"{MAX_CLIENTS} clients are connected already: try again later"
        _send(client, _failure(reason, is_transient=True))


def _attend(client: socket.socket, engine: Engine, room: threading.BoundedSemaphore) -> None:
    try:
        with client:
            while True:
                client.settimeout(None)  # an application may keep its connection for hours
                try:
                    frame = receive_frame(client, within_s=FRAME_S)
                except PayloadError as error:
                    _send(client, _failure(str(error)))
                    return  # where the next frame would begin is unknown
                if frame is None:
                    return
                answer = engine.answer(*frame)
                del frame
                client.settimeout(FRAME_S)
                _send(client, answer)
    except OSError as error:
        log.debug("client gone reason=%s", error)
    except Exception:
        log.exception("request failed, the client was dropped")
    finally:
        room.release()


def _send(client: socket.socket, answer: Answer) -> None:
    send_frame(client, msgspec.json.encode(answer.head), answer.body)


def _signals(stack: contextlib.ExitStack) -> socket.socket:
    """Return a socket that becomes readable when this process shall end."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
        stack.enter_context(end)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer.fileno())
    stack.callback(signal.set_wakeup_fd, -1)
    return reader


def _end_of_parent(stack: contextlib.ExitStack, parent: int) -> int:
    """Return a descriptor that becomes readable when process ``parent`` ends: no polling."""
    descriptor = os.pidfd_open(parent)
    stack.callback(os.close, descriptor)
    return descriptor


_LIBC = ctypes.CDLL(None)


def _rss_mb() -> float:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:600]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.inference", description=__doc__)
    parser.add_argument("socket", type=Path, help="where to answer; made with mode 0600")
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
    try:
        serve(options.socket, Engine(threads=options.threads), parent=parent)
    except OSError as error:
        log.error("cannot serve socket=%s reason=%s", options.socket, error.strerror)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
