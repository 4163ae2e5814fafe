"""What one update brings to a fold, as its device had it. Pure."""

from typing import NamedTuple

from models.task.params import Vector

__all__ = ["Share"]


class Share(NamedTuple):
    """An update, from the books of its device."""

    device: str
    delta: Vector  # as everybody decodes it
    base: int  # release
    samples: int
    memory: int  # the digest of the h that it names
    is_folded: bool  # else it was refused in that fold
