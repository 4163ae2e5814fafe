"""One release on onnxruntime, ready to answer."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_agent.client.edgefold_client import MAX_BODY
from edge_agent.inference.inference_requests import Load
from edge_agent.inference.sample_array import FRAME_ROOM, Array
from models.errors import PayloadError
from models.host.files import content_of, patiently
from models.learning.onnx_session import open_session, run_session
from models.protocol.npz import read_vector
from models.task.onnx_weights import replace_weights
from models.task.params import unflatten
from models.task.spec import Role, TaskSpec, TensorSpec, decode_spec

__all__ = ["Model"]


class Model:
    """One release, ready to answer. Immutable: a new release is a new `Model`.

    Raises:
        PayloadError: the files do not fit each other, or the model fails its self-test.
        OSError: a file cannot be read.
    """

    def __init__(self, load: Load, *, threads: int = 1) -> None:
        self.release: Final = load.release
        self.serves: Final = load.serves
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
        """Return the first output for ``samples``, a slice of the engine's, which fit the spec.

        Raises:
            PayloadError: the model does not run on them.
        """
        feeds = {self.spec.infer_input: samples}
        (output,) = run_session(self._session, [self.spec.infer_output], feeds)
        return output


def _overrides(load: Load, spec: TaskSpec) -> dict[str, npt.NDArray[np.float32]]:
    read = _own_content if load.serves == "tuned" else content_of
    values = _values(read(load.parameters), spec.shared, "parameters")
    personal = spec.with_role(Role.PERSONAL)
    if load.personal is not None and personal:
        values |= _values(_own_content(load.personal), personal, "personal")
    return values


def _own_content(path: str) -> bytes:
    """Return what a file of this device's own holds; gone or unreadable it is as good as damaged:
    nobody brings it back, and the release runs without it.
    """
    try:
        return patiently(lambda: content_of(path))
    except OSError as error:
        raise PayloadError(f"{path}: {error.strerror}") from None


def _values(
    data: bytes, tensors: tuple[TensorSpec, ...], name: str
) -> dict[str, npt.NDArray[np.float32]]:
    size = sum(tensor.size for tensor in tensors)
    return unflatten(read_vector(data, size=size, name=name), tensors)
