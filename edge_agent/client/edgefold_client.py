"""Asks the model that runs on this board, and hands samples to the agent: one file, no dependency.

    from edgefold_client import Client

    with Client() as model:
        print(model.ask(x).names)

Arrays are numpy's where the application has numpy; without it nested lists, or `Array` for raw
bytes. This file is also where the protocol itself stands: the agent and its inference process
import it. It never imports numpy by itself, since the resident agent has none.
"""

from __future__ import annotations  # Python 3.9 knows no `int | None`

import contextlib
import itertools
import json
import math
import os
import re
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Union

__version__ = "0.2.0"

__all__ = [
    "Answer",
    "Array",
    "BusyError",
    "Client",
    "ClientError",
    "NoPermissionError",
    "NoReleaseError",
    "NotRunningError",
    "ProtocolError",
    "Task",
    "WrongSamplesError",
    "add_samples",
]

SOCKETS = ("/run/edge-agent/inference.sock", "/var/lib/edge-agent/inference.sock")
VARIABLE = "EDGEFOLD_SOCKET"  # names another one
MAX_HEAD = 16 * 1024  # bytes of JSON
MAX_BODY = 8 * 1024 * 1024  # bytes of one array; a client with more sends it in parts
AGAIN_S = 0.2  # between two tries of a client that waits
SWAPS = 5  # releases that may be installed in the middle of one `ask`
LENT = range(61184, 65520)  # groups that systemd makes while a unit runs: nobody can join them
_LENGTHS = struct.Struct("<II")
_LONGEST_NAME = 100  # sockaddr_un holds 108 bytes, state directories are often deeper
Result = TypeVar("Result")
PathLike = Union[str, "os.PathLike[str]"]  # not |: Python 3.9 runs these two lines
Buffer = Union[bytes, bytearray, memoryview]  # noqa: UP007 (likewise)


class ClientError(Exception):
    """Anything that goes wrong here, in one sentence."""


class NotRunningError(ClientError):
    """Nobody answers at the socket: no agent, or one that is starting, or too slow. Try again."""


class NoPermissionError(ClientError):
    """This user may not; the message names the group to join."""


class NoReleaseError(ClientError):
    """The agent runs and has no release yet: its server must publish one."""


class BusyError(ClientError):
    """Too many clients, or not enough memory now. Try again."""


class WrongSamplesError(ClientError, ValueError):
    """Not what the task takes; the message says what it does take."""


class ProtocolError(ClientError):
    """What came is not a frame or an array of the protocol."""


class Array(NamedTuple):
    """An array without numpy: ``data`` in C order and little endian, as ``array.tobytes()``."""

    data: Buffer
    shape: tuple[int, ...]
    dtype: str  # numpy's name of it, as "uint8" or "float32"


class Task(NamedTuple):
    """What the model of a release takes and gives."""

    release: int
    task: str
    dtype: str  # of x
    shape: tuple[int, ...]  # of one sample of x: `Client.ask` takes (n, *shape)
    loss: str  # "cross_entropy": it tells classes apart, and they are the output's last axis
    metric: str
    classes: int  # 0 where there are none
    class_names: tuple[str, ...]  # in the order of the labels; () if nobody named them
    at_once: int  # samples that fit into one request


class Answer(NamedTuple):
    """The answer for n samples, all of it by one release."""

    release: int
    outputs: Any  # what the model gives, (n, ...): a numpy array, or nested lists without numpy
    classes: list[Any] | None  # n labels; None if the model does not tell classes apart
    names: list[Any] | None  # n names of classes; None if they have none
    scores: list[Any] | None  # n outputs of those classes: logits, or probabilities if the
    # model ends in a softmax; larger is surer


class Client:
    """Asks one agent. Threads may share it: they take turns. Processes after a fork may not.

    ``path``: the socket; by default that of the variable EDGEFOLD_SOCKET, or where the agent's
    systemd unit has it. ``timeout_s``: how long one request may take. ``wait_s``: how long to wait
    for an agent that is starting, has no release yet, or is busy; 0 raises at once.

    It connects when it is first asked, and again after the agent was restarted.
    """

    def __init__(
        self, path: PathLike | None = None, *, timeout_s: float = 30.0, wait_s: float = 0.0
    ) -> None:
        self.path = find_socket() if path is None else Path(path)
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self._turn = threading.RLock()
        self._connection: Connection | None = None
        self._task: Task | None = None

    def ask(self, x: Any) -> Answer:
        """Return the model's answer for the samples ``x``, shape (n, ...) as the task has them.

        ``x`` is a numpy array (or what numpy makes one of), nested lists of numbers, or an `Array`.
        As many samples as there is memory for: they travel in parts.

        Raises:
            WrongSamplesError: ``x`` does not fit the task; the message says what does.
            NotRunningError, NoPermissionError, NoReleaseError, BusyError: see there.
        """
        with self._turn:
            return self._patiently(lambda: self._ask(x))

    def task(self) -> Task:
        """Return what the model takes and gives now. Raises as `ask` does."""
        with self._turn:
            return self._patiently(self._describe)

    def ping(self) -> int:
        """Return the release that answers, 0 while there is none. Raises as `ask` does."""
        with self._turn:
            return self._patiently(lambda: int(self._call({"do": "ping"})[0]["release"]))

    def close(self) -> None:
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _patiently(self, work: Callable[[], Result]) -> Result:
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                return work()
            except (NotRunningError, NoReleaseError, BusyError):
                if time.monotonic() + AGAIN_S > deadline:
                    raise
            time.sleep(AGAIN_S)

    def _ask(self, x: Any) -> Answer:
        """Ask again from the start when a release is installed in between: one gives it all."""
        task = self._task or self._describe()
        for _ in range(SWAPS):
            data, shape = fitted(x, task)
            size = len(data) // shape[0]
            parts, releases = [], {task.release}
            for first in range(0, shape[0], task.at_once):
                count = min(task.at_once, shape[0] - first)
                some = data[first * size : (first + count) * size]
                body = npy((count, *shape[1:]), task.dtype, some)
                head, answer = self._call({"do": "infer"}, body)
                releases.add(int(head["release"]))
                if len(releases) > 1:
                    break
                parts.append(answer)
            else:
                return answered(task, parts)
            task = self._describe()
        raise BusyError(f"{self.path}: a new release came {SWAPS} times while it was asked")

    def _describe(self) -> Task:
        head, body = self._call({"do": "describe"})
        try:
            facts = json.loads(body)
            self._task = Task(
                **{
                    **facts,
                    "release": head["release"],
                    "shape": tuple(facts["shape"]),
                    "class_names": tuple(facts["class_names"]),
                }
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ProtocolError(f"{self.path}: no description of a task: {error!r}") from None
        return self._task

    def _call(self, request: dict[str, object], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send a request; a connection that was closed since the last one is made anew."""
        kept, self._connection = self._connection, None
        answer, began = None, time.monotonic()
        if kept is not None:
            try:
                answer = kept.call(request, body)
            except NotRunningError:  # the agent was restarted, or made room for others
                kept.close()
                if time.monotonic() > began + self._timeout_s:
                    raise
        if answer is None:
            kept = Connection(self.path, timeout_s=self._timeout_s)
            answer = kept.call(request, body)
        self._connection = kept
        head = answer[0]
        if head.get("ok") is True:
            return answer
        reason = str(head.get("error", "refused without a reason"))
        if head.get("release") == 0:
            raise NoReleaseError(f"{self.path}: {reason}")
        raise (BusyError if head.get("transient") else WrongSamplesError)(reason)


def find_socket() -> Path:
    """Return where an agent answers on this board, or the likeliest place if none does."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    for place in map(Path, SOCKETS):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(place.stat().st_mode):
                return place
    return Path(SOCKETS[0])  # there, and kept from us, or not there: connecting says which


# --- arrays --------------------------------------------------------------------------------------

_CODES = {  # numpy's names -> the .npy header's, and struct's
    "bool": ("|b1", "?"),
    "int8": ("|i1", "b"),
    "uint8": ("|u1", "B"),
    "int16": ("<i2", "h"),
    "uint16": ("<u2", "H"),
    "int32": ("<i4", "i"),
    "uint32": ("<u4", "I"),
    "int64": ("<i8", "q"),
    "uint64": ("<u8", "Q"),
    "float16": ("<f2", "e"),
    "float32": ("<f4", "f"),
    "float64": ("<f8", "d"),
}
_HEADER = re.compile(
    rb"\{'descr': '([<|>=][a-z][0-9]{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,12}, ?)*(?:[0-9]{1,12})?)\),? ?\} *\n?"
)


class NpyHeader(NamedTuple):
    """What an ``.npy`` file says of its array."""

    descr: str  # as "<f4"
    is_fortran: bool
    shape: tuple[int, ...]
    start: int  # where the data begin


def npy(shape: tuple[int, ...], dtype: str, data: Buffer) -> bytes:
    """Return ``data`` (C order, little endian) as `numpy.save` would write it."""
    facts = f"{{'descr': '{_CODES[dtype][0]}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    header = facts + " " * (-(len(facts) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def npy_header(data: bytes) -> NpyHeader:
    """Read the header that numpy itself writes, and no other: nothing of it is evaluated.

    Nothing is allocated for what it says; who reads on compares it with the bytes that are there.

    Raises:
        ProtocolError: no such header.
    """
    if data[:6] != b"\x93NUMPY" or len(data) < 12 or data[6] not in (1, 2):
        raise ProtocolError("not an .npy array")
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = _HEADER.fullmatch(data[8 + width : start]) if start <= len(data) else None
    if header is None:
        raise ProtocolError("the .npy header is damaged")
    shape = tuple(int(part) for part in header[3].split(b",") if part.strip())
    return NpyHeader(header[1].decode(), header[2] == b"True", shape, start)


def fitted(x: Any, task: Task) -> tuple[memoryview, tuple[int, ...]]:
    """Return the bytes and the shape of ``x``, samples of ``task``.

    Raises:
        WrongSamplesError: they are none; says what is taken.
    """
    wanted = (
        f"task {task.task} takes {task.dtype} of shape ({', '.join(map(str, ('n', *task.shape)))})"
    )
    try:
        array = as_array(x, task.dtype)
    except WrongSamplesError as error:
        raise WrongSamplesError(f"x: {error}; {wanted}") from None
    if array.dtype != task.dtype:
        raise WrongSamplesError(f"x is {array.dtype}, {wanted}")
    if array.shape == task.shape:
        raise WrongSamplesError(f"x is one sample of shape {array.shape}: give a batch, {wanted}")
    if array.shape[1:] != task.shape or array.shape[:1] in ((), (0,)):
        raise WrongSamplesError(f"x has shape {array.shape}, {wanted}")
    return memoryview(array.data).cast("B"), array.shape


def as_array(x: Any, dtype: str | None = None) -> Array:
    """Return ``x`` as an `Array`: of ``dtype`` if numbers have that value there, else of its own.

    Numbers in lists have no dtype: they become ``dtype``, or int64 or float64 if that is None.

    Raises:
        WrongSamplesError: no array of numbers, or not of values that ``dtype`` holds.
    """
    if isinstance(x, Array):
        try:
            held = memoryview(x.data).cast("B").nbytes
        except TypeError:
            raise WrongSamplesError("data of an Array must be bytes in C order") from None
        size = struct.calcsize("<" + _code(x.dtype)) * math.prod(x.shape)
        if held != size:
            raise WrongSamplesError(f"{held} bytes; {x.dtype} of shape {x.shape} has {size}")
        return Array(x.data, tuple(x.shape), x.dtype)
    if isinstance(x, (bytes, bytearray, memoryview)):
        raise WrongSamplesError("bytes without a shape: give Array(bytes, shape, dtype)")
    if isinstance(x, (list, tuple)) and not _holds_numpy(x):
        return _of_lists(x, dtype)
    return _of_numpy(x, dtype)


def _holds_numpy(x: Any) -> bool:
    """Whether there is something of numpy in the first place where there is no list any more."""
    if isinstance(x, (list, tuple)):
        return bool(x) and (_holds_numpy(x[0]) or any(hasattr(p, "__array__") for p in x))
    return hasattr(x, "__array__")


def _of_numpy(x: Any, dtype: str | None) -> Array:
    try:
        import numpy as np
    except ImportError:
        raise WrongSamplesError(
            f"{type(x).__name__} needs numpy, which is not installed; give nested lists, or "
            "Array(bytes, shape, dtype)"
        ) from None
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:  # of several lengths, or not in this memory
        raise WrongSamplesError(f"no array: {error}") from None
    if dtype is not None and array.dtype.name != dtype:
        is_float = array.dtype.kind == np.dtype(dtype).kind == "f"
        if is_float or np.can_cast(array.dtype, np.dtype(dtype)):
            array = array.astype(dtype)
    if array.dtype.name not in _CODES:
        raise WrongSamplesError(f"values of {array.dtype} are no numbers")
    little = array.dtype.newbyteorder("<")
    # One more copy than a memoryview would need, and right for every layout and byte order.
    return Array(np.ascontiguousarray(array, little).tobytes(), array.shape, array.dtype.name)


def _of_lists(x: Any, dtype: str | None) -> Array:
    shape, level = [], [x]
    while level and isinstance(level[0], (list, tuple)):
        if any(not isinstance(part, (list, tuple)) or len(part) != len(level[0]) for part in level):
            raise WrongSamplesError("the inner lists differ in length")
        shape.append(len(level[0]))
        level = list(itertools.chain.from_iterable(level))
    if odd := [type(value).__name__ for value in level if not isinstance(value, (int, float))]:
        raise WrongSamplesError(f"{odd[0]} where a number is needed")
    if dtype is None:
        dtype = "float64" if any(isinstance(value, float) for value in level) else "int64"
    try:
        return Array(struct.pack(f"<{len(level)}{_code(dtype)}", *level), tuple(shape), dtype)
    except (struct.error, OverflowError):
        raise WrongSamplesError(f"a value that is no {dtype}") from None


def _code(dtype: str) -> str:
    if dtype not in _CODES:
        raise WrongSamplesError(f"dtype {dtype!r}; known are {', '.join(_CODES)}")
    return _CODES[dtype][1]


def answered(task: Task, parts: list[bytes]) -> Answer:
    """Return what the ``.npy`` arrays ``parts`` say, one after the other.

    Raises:
        ProtocolError: they are no such arrays.
    """
    outputs = _joined(parts)
    if task.loss != "cross_entropy":
        return Answer(task.release, outputs, None, None, None)
    classes, scores = _best(outputs)
    names = _named(classes, task.class_names) if task.class_names else None
    return Answer(task.release, outputs, classes, names, scores)


def _joined(parts: list[bytes]) -> Any:
    codes = dict(_CODES.values())
    values_of, count = [], 0
    for part in parts:
        header = npy_header(part)
        if header.descr not in codes or header.is_fortran or not header.shape:
            raise ProtocolError(f"an answer of dtype {header.descr} and shape {header.shape}")
        size = struct.calcsize("<" + codes[header.descr]) * math.prod(header.shape)
        if len(part) - header.start != size:
            raise ProtocolError(f"an answer of shape {header.shape} and {len(part)} bytes")
        values_of.append(memoryview(part)[header.start :])
        count += header.shape[0]
    data, shape = b"".join(values_of), (count, *header.shape[1:])
    try:
        import numpy as np
    except ImportError:
        values: Any = struct.unpack(f"<{math.prod(shape)}{codes[header.descr]}", data)
        for length in reversed(shape[1:]):
            values = [list(values[i : i + length]) for i in range(0, len(values), length)]
        return list(values)
    return np.frombuffer(data, header.descr).reshape(shape).copy()


def _best(outputs: Any) -> tuple[Any, Any]:
    """Return the place of the largest in the last axis, and it; of NaN, as numpy, the first."""
    if hasattr(outputs, "argmax"):
        return outputs.argmax(-1).tolist(), outputs.max(-1).tolist()
    if isinstance(outputs[0], list):
        pairs = [_best(inner) for inner in outputs]
        return [place for place, _ in pairs], [value for _, value in pairs]
    place = max(range(len(outputs)), key=lambda i: (outputs[i] != outputs[i], outputs[i]))
    return place, outputs[place]


def _named(classes: Any, names: tuple[str, ...]) -> Any:
    return [_named(c, names) if isinstance(c, list) else names[c] for c in classes]


# --- samples -------------------------------------------------------------------------------------


def add_samples(inbox: PathLike, x: Any, y: Any, *, dtype: str | None = None) -> Path:
    """Hand samples to the agent whose inbox is ``inbox``; return the file that it will take.

    ``x`` has shape (n, ...) and ``y`` (n, ...), as the task says: numpy arrays, nested lists, or
    `Array`; ``dtype`` is that of lists of ``x``. The file appears whole or not at all.

    Raises:
        WrongSamplesError: ``x`` and ``y`` differ in length, or hold no samples.
        NoPermissionError: this user may not write there.
        OSError: the file cannot be written.
    """
    import zipfile  # not above: it costs memory where nobody gives samples

    arrays = {"x": as_array(x, dtype), "y": as_array(y)}
    counts = [array.shape[0] if array.shape else 0 for array in arrays.values()]
    if counts[0] != counts[1] or counts[0] == 0:
        raise WrongSamplesError(
            f"{counts[0]} samples with {counts[1]} labels: give as many of both, at least 1"
        )
    folder, name = Path(inbox), f"{os.urandom(8).hex()}.npz"
    draft = folder / f".{name}.part"  # a name that the agent leaves alone
    try:
        # An inbox of a group gives its files to the group: the agent, which is in it, shall read.
        shared = folder.stat().st_mode & stat.S_ISGID
        with open(draft, "xb") as file, zipfile.ZipFile(file, "w") as archive:
            for key, array in arrays.items():
                archive.writestr(f"{key}.npy", npy(array.shape, array.dtype, array.data))
            archive.close()
            if shared:
                os.fchmod(file.fileno(), 0o640)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(folder / name)
    except PermissionError:
        raise _forbidden(folder, "put samples into") from None
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    with contextlib.suppress(PermissionError):  # a folder that others may only write to
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return folder / name


def _forbidden(path: Path, what: str) -> NoPermissionError:
    """Return the error that says who may do ``what`` at ``path``, and how to become one of them."""
    import grp
    import pwd

    def name(find: Callable[[int], Any], number: int) -> str:
        try:
            return str(find(number)[0])
        except KeyError:
            return str(number)

    for place in (path, *path.parents):  # the first that can be seen is what keeps us out
        with contextlib.suppress(OSError):
            found = place.stat()
            break
    group, user = name(grp.getgrgid, found.st_gid), name(pwd.getpwuid, os.geteuid())
    if not found.st_mode & stat.S_IRWXG or found.st_gid == 0:  # nobody is sent into root's group
        owner = name(pwd.getpwuid, found.st_uid)
        cure = f"{place} is for {owner} alone, unless its owner names a group in agent.toml"
    elif found.st_gid in LENT:
        group = "edgefold" if group.isdigit() else group
        cure = (
            f"make its group and join it: sudo systemctl stop edge-agent; sudo groupadd --system "
            f"{group}; sudo usermod -aG {group} {user}; sudo systemctl start edge-agent"
        )
    elif user in _members(group) and found.st_gid not in os.getgroups():
        cure = f"{user} is in the group {group} since this program started: log in again"
    else:
        cure = f"join the group {group} (sudo usermod -aG {group} {user}) and log in again"
    return NoPermissionError(f"{user} may not {what} {path}: {cure}")


def _members(group: str) -> list[str]:
    import grp

    try:
        return grp.getgrnam(group).gr_mem
    except KeyError:
        return []


# --- the protocol --------------------------------------------------------------------------------


class Connection:
    """A connection for many requests, one after the other; not for several threads at once.

    A frame is ``u32 json length, u32 body length`` (little endian), the JSON object, and the body:
    one ``.npy`` array, or nothing. One frame there, one frame back (docs/inference.md).

    Raises:
        NotRunningError, NoPermissionError: there is nobody, or not for us.
    """

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            with unix_name(path) as name:
                _connect(self._socket, name, time.monotonic() + timeout_s)
        except PermissionError:
            self._socket.close()
            raise _forbidden(path, "ask at") from None
        except OSError as error:
            self._socket.close()
            raise self._silent(error) from None

    def call(self, request: dict[str, object], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Send a request; return the answer and its body. After an error it is unusable.

        Raises:
            NotRunningError: no answer within ``timeout_s``; the request may have been carried out.
            ProtocolError: the answer is not a frame.
            WrongSamplesError: the request is larger than the protocol allows.
        """
        head = json.dumps(request).encode()
        if len(head) > MAX_HEAD or len(body) > MAX_BODY:
            raise WrongSamplesError(
                f"a request of {len(head)} + {len(body)} bytes; at most {MAX_HEAD} of JSON and "
                f"{MAX_BODY} of array are allowed: send fewer samples at a time"
            )
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                send_frame(self._socket, head, body)  # it may have refused us; then it says why
            deadline = time.monotonic() + self._timeout_s
            received = receive_head(self._socket, deadline=deadline)
            if received is None:
                raise ConnectionError("closed without an answer")
            data = receive_body(self._socket, received[1], deadline=deadline)
        except OSError as error:
            raise self._silent(error) from None
        try:
            answer = json.loads(received[0])
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ProtocolError(f"{self._path}: the answer is not a JSON object")
        return answer, data

    def _silent(self, error: OSError) -> NotRunningError:
        reason = error.strerror or str(error) or type(error).__name__
        return NotRunningError(f"{self._path}: no answer from the inference process ({reason})")

    def close(self) -> None:
        self._socket.close()


def _connect(stream: socket.socket, name: str, deadline: float) -> None:
    """A full queue fails at once on a socket with a timeout, unix(7): so wait here."""
    while True:
        try:
            return stream.connect(name)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextlib.contextmanager
def unix_name(path: Path) -> Iterator[str]:
    """Yield a name for the socket at ``path`` that fits into ``sockaddr_un``, whatever its depth.

    Raises:
        OSError: the directory is not there, or the last part of ``path`` alone is too long.
    """
    if len(os.fsencode(path)) <= _LONGEST_NAME:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def send_frame(stream: socket.socket, head: bytes, body: Buffer = b"") -> None:
    """Write one frame.

    Raises:
        OSError: the other side is gone, or takes nothing within the socket's timeout.
    """
    stream.sendall(_LENGTHS.pack(len(head), len(body)) + head)
    if body:
        stream.sendall(body)


def receive_head(stream: socket.socket, *, deadline: float) -> tuple[bytes, int] | None:
    """Read a frame's JSON and the length of its body; None if the other side closed instead.

    Raises:
        ProtocolError: lengths beyond `MAX_HEAD` or `MAX_BODY`; the stream is unusable then.
        OSError: broken off within a frame, or not there by ``deadline`` of `time.monotonic`.
    """
    stream.settimeout(max(0.001, deadline - time.monotonic()))
    first = stream.recv(1)
    if not first:
        return None
    lengths = first + receive_body(stream, _LENGTHS.size - 1, deadline=deadline)
    head_length, body_length = _LENGTHS.unpack(lengths)
    if head_length > MAX_HEAD or body_length > MAX_BODY:
        raise ProtocolError(
            f"a frame of {head_length} bytes of JSON and {body_length} of array; "
            f"at most {MAX_HEAD} and {MAX_BODY} are allowed"
        )
    return receive_body(stream, head_length, deadline=deadline), body_length


def receive_body(stream: socket.socket, length: int, *, deadline: float) -> bytes:
    """Read ``length`` bytes. Raises `OSError` as `receive_head` does."""
    data = bytearray(length)
    view, filled = memoryview(data), 0
    while filled < length:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other side is too slow")
        stream.settimeout(left)
        got = stream.recv_into(view[filled:])
        if not got:
            raise ConnectionError("broken off within a frame")
        filled += got
    return bytes(data)
