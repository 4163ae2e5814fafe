"""Lottery tickets: only the surviving coordinates of a pruned net travel. Pure.

Sender and receiver hold the ticket (it is versioned with the release), so it costs no bytes: the
codec sees shorter tensors, whose values are the survivors.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.errors import PayloadError
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["restored", "surviving", "survivors"]

Ticket = npt.NDArray[np.bool_]  # shape (d,): True survives


def surviving(tensors: Sequence[TensorSpec], ticket: Ticket) -> tuple[TensorSpec, ...]:
    """Return ``tensors`` as the codec is to see them: of one dimension where values are missing.

    Raises:
        PayloadError: the ticket is not one of these tensors.
    """
    if ticket.dtype != np.bool_ or ticket.shape != (sum(tensor.size for tensor in tensors),):
        raise PayloadError(f"ticket of {ticket.shape} {ticket.dtype} for other tensors")
    short = []
    start = 0
    for tensor in tensors:
        left = int(np.count_nonzero(ticket[start : start + tensor.size]))
        start += tensor.size
        shape = tensor.shape if left == tensor.size else (left,)
        short.append(TensorSpec(tensor.name, shape, tensor.role))
    return tuple(short)


def survivors(vector: Vector, ticket: Ticket) -> Vector:
    """Return the values that travel."""
    return vector[ticket]


def restored(values: Vector, ticket: Ticket) -> Vector:
    """Return the whole vector of ``values``, zero where the ticket is."""
    whole: Vector = np.zeros(ticket.size, np.float32)
    whole[ticket] = values
    return whole
