"""The only way to open an onnxruntime session, and its errors as one sentence. Reads no files."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.errors import PayloadError
from models.learning.onnxruntime_errors import runtime_sentence

__all__ = ["Session", "open_session", "run_session"]

Array = npt.NDArray[Any]
Session: TypeAlias = ort.InferenceSession

ERRORS_ONLY = 3  # warnings about graphs are the author's business
SILENT = 4


def open_session(model: bytes, *, threads: int = 1, keeps_arena: bool = True) -> Session:
    """Return a session that costs little memory.

    Without ``keeps_arena`` what a run took is given back after it: for a process that lives long
    and whose requests differ in size.

    Raises:
        PayloadError: onnxruntime does not take the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A planned memory pattern adds one large block to what the first run took anyway: without it
    # the peak is 82 MB instead of 93 (cnn, batch 32), 126 instead of 183 (ds_cnn), in the same
    # time. The arena stays in training: without it the peak is higher.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = keeps_arena
    options.log_severity_level = ERRORS_ONLY if keeps_arena else SILENT
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base but this one
        raise PayloadError(f"onnxruntime refuses the model: {runtime_sentence(error)}") from None


def run_session(
    session: Session, outputs: Sequence[str] | None, feeds: Mapping[str, Array]
) -> list[Array]:
    """Return the values of ``outputs`` (None: of all) for ``feeds``.

    Raises:
        PayloadError: the model does not run on them, with onnxruntime's reason and the node.
    """
    options = ort.RunOptions()
    options.log_severity_level = SILENT  # what matters arrives as an exception
    try:
        names = None if outputs is None else list(outputs)
        found = session.run(names, dict(feeds), options)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise PayloadError(f"the model does not run: {runtime_sentence(error)}") from None
    return [np.asarray(value) for value in found]
