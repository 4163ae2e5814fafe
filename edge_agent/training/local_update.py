"""From what one training learned to what is sent and carried on: arrays in, arrays out. Pure.

The trainer child, the simulator and experiments call this; files, jobs and promises are theirs.
"""

from collections.abc import Sequence
from typing import NamedTuple

from models.codec.feedback import Carried, carried_after, recursion_of, wanted
from models.codec.payload import compressed, decompress
from models.codec.sparse.selection import gd_sec_threshold, only
from models.codec.transform.shared_basis import Context
from models.protocol.learning import LearningPlan
from models.protocol.manifest import CodecPlan
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["LocalUpdate", "local_update"]


class LocalUpdate(NamedTuple):
    """What becomes of one training."""

    payload: bytes
    said: Vector  # c: the payload as everybody decodes it
    carried: Carried  # h and e after it; with a memory they hold once the server has folded it
    step: float | None  # the ``hint`` for the next one


def local_update(
    delta: Vector,
    carried: Carried,
    *,
    tensors: Sequence[TensorSpec],
    plan: LearningPlan,
    codec: CodecPlan,
    context: Vector | None = None,
    moved: Vector | None = None,
    hint: float | None = None,
) -> LocalUpdate:
    """Return what to send of ``delta``, float32 of shape (d,), and what is carried after it.

    ``delta`` is local minus base over the shared ``tensors``. ``context`` and ``hint``: see
    `models.codec.payload.compressed`. ``moved`` is for gd-sec: the base minus the release that this
    device trained on before; None: zeros, so that everything is worth sending.

    GD-SEC's threshold without L: a device sends pseudo-gradients in units of parameters, and with
    f = sum of M equal shares and steps of 1/L the published |D_i| > xi_i/M |theta_i - theta'_i|
    becomes |D_i| > (kappa / beta) |moved_i|, where kappa = beta xi / (L M) is `plan.threshold`.

    Raises:
        ValueError: what is wanted is not finite.
    """
    recursion = recursion_of(plan)
    asked = wanted(delta, carried)
    sent = asked
    if plan.feedback == "gd-sec" and plan.threshold and moved is not None:
        positions = gd_sec_threshold(asked, moved, xi=plan.threshold / recursion.beta, workers=1)
        sent = only(asked, positions)
    held = Context.of(context)  # both ways want its bases
    payload, step = compressed(sent, tensors, codec, context=held, hint=hint)
    said = decompress(payload, tensors, context=held)
    after = carried_after(asked, said, carried, recursion)
    return LocalUpdate(payload, said, after, hint if step is None else step)
