"""Answers with one model, and swaps it: the old one answers until the new one has been tested."""

import logging
import threading
from typing import NamedTuple

import msgspec
import numpy as np

from edge_agent.board.process_memory import give_back_memory, rss_mb
from edge_agent.client.edgefold_client import MAX_BODY
from edge_agent.inference.inference_model import Model
from edge_agent.inference.inference_requests import Describe, Infer, Load, decode_request
from edge_agent.inference.sample_array import FRAME_ROOM, npy_bytes, parse_samples
from models.errors import EdgefoldError, PayloadError, TransientError

__all__ = ["SLICE", "Answer", "Engine"]

log = logging.getLogger("inference")

SLICE = 32  # samples that run at once: bounds the memory of activations, whatever is asked


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
            match decode_request(head):
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
            model = Model(load, threads=self._threads)
            if not load.is_trial:
                self._model = model
            del model
        # The old session dies with the last request that it answers; give its pages back.
        give_back_memory()
        done = "tried" if load.is_trial else "loaded"
        log.info(
            "model %s release=%d serves=%s rss_mb=%.1f", done, load.release, load.serves, rss_mb()
        )
        return Answer({"ok": True, "release": load.release})

    def _infer(self, body: bytes) -> Answer:
        model = self._model
        if model is None:
            return _NO_RELEASE
        samples = parse_samples(body, model.spec)
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
        return Answer({"ok": True, "release": model.release}, npy_bytes(output))

    def _describe(self) -> Answer:
        model = self._model
        if model is None:
            return _NO_RELEASE
        return Answer(
            {"ok": True, "release": model.release}, msgspec.json.encode(model.description())
        )

    def _ping(self) -> Answer:
        release = self._model.release if self._model else 0
        serves = self._model.serves if self._model else ""
        head: dict[str, object] = {"release": release, "serves": serves}
        head |= {"answered": self._answered, "rss_mb": round(rss_mb(), 1)}
        return Answer({"ok": True, **head, **self.about_socket})


def _failure(reason: str, *, is_transient: bool = False) -> Answer:
    """Return an error; ``is_transient``: the same request may succeed later."""
    head: dict[str, object] = {"ok": False, "error": reason[:1000]}
    return Answer({**head, "transient": True} if is_transient else head)


_NO_RELEASE = Answer(
    {"ok": False, "error": "no release is installed yet", "transient": True, "release": 0}
)
